"""What a frame leaves behind for the heartbeat: its times, and what was in it."""

import errno
import threading

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.payloads import Classification, Detection
from agent.link import MAX_MESSAGE_BYTES, Beat, CameraCounts, FrameTimes, open_link, send
from agent.vision.encode import Findings, Timing
from agent.vision.frame_log import MOST_FRAMES, MOST_LABELS, FrameLog, bare, counted_ids, times_of
from agent.vision.handoff import Frame
from agent.vision.worker import BEAT_FRAMES

LABELS = {0: "person", 1: "car", 3: "person"}
LARGEST = 2**64 - 1


def times(camera="door", total=7):
    return FrameTimes(camera, 1, 2, 3, 4, 5, 0, total)


@pytest.fixture
def log():
    return FrameLog(LABELS.get)


@given(
    captured=st.integers(0, 2**62),
    steps=st.lists(st.integers(0, 10**12), min_size=6, max_size=6),
)
def test_the_stages_add_up_to_the_total(captured, steps):
    age, preprocess, wait, inference, cascade, rest = steps
    taken = captured + age
    prepared = taken + preprocess
    started = prepared + wait
    invoked = started + inference
    done = invoked + cascade + rest
    frame = Frame(
        camera="door", frame_id=1, pixels=np.zeros((1, 1, 3), np.uint8), captured_ns=captured,
        captured_at=0.0,
    )  # fmt: skip
    timing = Timing(
        taken_ns=taken, prepared_ns=prepared, invoke_started_ns=started, invoked_ns=invoked,
        cascade_ns=cascade,
    )  # fmt: skip
    assert times_of(frame, timing, done) == FrameTimes(
        "door", age, age + wait, preprocess, inference, rest, cascade, done - captured
    )
    assert age + wait + preprocess + inference + rest + cascade == done - captured


def test_frames_are_told_of_once_and_in_order(log):
    for total in range(5):
        log.note(times(total=total), ())
    assert [one.total for one in log.take(3).times] == [0, 1, 2]
    assert [one.total for one in log.take(3).times] == [3, 4]
    assert log.take(3).times == []


def test_found_is_the_most_in_one_frame_since_the_last_heartbeat(log):
    for class_ids in ((0, 0), (0, 1, 7), (), (0, 3, 3)):
        log.note(times(), class_ids)
    log.note(times("yard"), (1,))
    found = {"door": {"person": 3, "car": 1, "class_7": 1}, "yard": {"car": 1}}
    assert log.take(10).found == found
    log.note(times("yard"), ())
    assert log.take(10).found == {"yard": {}}, "no frame: nothing is said; an empty one: none"
    assert log.take(10).found == {}


def test_found_has_an_end(log):
    log.note(times(), tuple(range(100, 100 + 2 * MOST_LABELS)))
    log.note(times(), (100, 100, 5000))
    found = log.take(10).found["door"]
    assert len(found) == MOST_LABELS
    assert found["class_100"] == 2


def test_of_a_classified_frame_the_likeliest_counts():
    classes = [Classification(label=None, class_id=at, score=0.5) for at in (4, 2)]
    assert counted_ids(Findings(classes=classes), (2, 4)) == (4,)
    assert counted_ids(Findings(classes=[]), ()) == ()
    box = Detection(label=None, class_id=4, score=0.5, box=(0, 0, 1, 1))
    assert counted_ids(Findings(detections=[box, box]), (4, 4)) == (4, 4)


def test_frames_without_room_are_counted(log):
    for _ in range(MOST_FRAMES + 3):
        log.note(times(), ())
    first = log.take(MOST_FRAMES)
    assert (len(first.times), first.lost) == (MOST_FRAMES, 3)
    log.note(times(), ())
    second = log.take(MOST_FRAMES)
    assert (len(second.times), second.lost) == (1, 0)


def test_nothing_is_lost_between_two_threads(log):
    number, told = 50_000, []

    def note():
        for total in range(number):
            log.note(times(total=total), (0,))

    thread = threading.Thread(target=note)
    thread.start()
    lost, is_over = 0, False
    while not is_over:
        is_over = not thread.is_alive()  # asked first: then nothing comes after what is taken now
        news = log.take(MOST_FRAMES)
        told += news.times
        lost += news.lost
    assert lost + len(told) == number
    totals = [one.total for one in told]
    assert totals == sorted(set(totals))


def largest(labels):
    found = {f"{at}".ljust(labels, "ü"): 2**32 for at in range(MOST_LABELS)}
    counts = CameraCounts(
        captured=LARGEST, dropped=LARGEST, still=LARGEST, processed=LARGEST,
        last_frame_id=LARGEST, found=found,
    )  # fmt: skip
    worst = FrameTimes("x" * 64, *[LARGEST] * 7)
    return Beat(
        stage_age_s={}, cameras={f"{at:064}": counts for at in range(16)},
        times=[worst] * BEAT_FRAMES, times_lost=2**32,
    )  # fmt: skip


def test_the_largest_heartbeat_fits_the_link():
    """Sixteen cameras, each with as many labels as are told of, all times as large as can be."""
    assert len(msgspec.msgpack.encode(largest(labels=60))) < 300_000 < MAX_MESSAGE_BYTES


def test_a_heartbeat_that_is_too_large_is_cut_to_what_keeps_the_worker_alive():
    ours, theirs = open_link()
    with ours, theirs:
        beat = largest(labels=MAX_MESSAGE_BYTES // 16 // MOST_LABELS)
        with pytest.raises(OSError, match="too long") as raised:
            send(theirs, beat)
        assert raised.value.errno == errno.EMSGSIZE
        send(theirs, bare(beat))
        heard = msgspec.msgpack.decode(ours.recv(MAX_MESSAGE_BYTES), type=Beat)
    assert heard.times == []
    assert {one.found for one in heard.cameras.values()} == {None}, "not known, and no zeros"
    assert bare(beat).times_lost == BEAT_FRAMES + 2**32
