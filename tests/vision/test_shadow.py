"""Frames that a worker lends, and a model that looks at them beside the one that found things."""

import fcntl
import json
import mmap
import os
import time
from functools import partial

import numpy as np
import pytest
from bad_models import made_at, made_box, made_classifier, made_recurrent, model_folder, pictures
from hypothesis import given
from hypothesis import strategies as st
from live import model

from agent.config import CameraConfig
from agent.contract.payloads import ModelIdentity
from agent.errors import ModelError
from agent.link import (
    FromWorker,
    Inbox,
    LendFrames,
    Lent,
    ResultOut,
    Stop,
    ToWorker,
    open_link,
    send,
)
from agent.ota.refusal import RefusalError
from agent.ota.selftest import ExamRequest, start_shadow
from agent.vision import lending
from agent.vision.agreement import Agreement, iou, matched
from agent.vision.exam import refusal
from agent.vision.handoff import Frame
from agent.vision.lending import Lender, LentFrames, Thing
from agent.vision.shadow import compare

IDENTITY = ModelIdentity(name="m", version=None, sha256="0" * 64)


# How far two models agree.


def box(label, left, *, score=0.9, size=0.2):
    return Thing(label=label, class_id=0, score=score, box=(left, 0.1, left + size, 0.1 + size))


def of(label, class_id=0, area=None):
    return Thing(label=label, class_id=class_id, score=0.5, area=area)


@pytest.mark.parametrize(
    ("active", "candidate", "pairs"),
    [
        ([], [], 0),
        ([box("cat", 0.1)], [box("cat", 0.1)], 1),
        ([box("cat", 0.1)], [box("cat", 0.15)], 1),  # overlap 0.6
        ([box("cat", 0.1)], [box("cat", 0.2)], 0),  # 0.33
        ([box("cat", 0.1)], [box("dog", 0.1)], 0),
        ([box("cat", 0.1)], [box("cat", 0.1), box("cat", 0.1, score=0.5)], 1),  # each but once
        ([box("cat", 0.1), box("cat", 0.12)], [box("cat", 0.12), box("cat", 0.1)], 2),
    ],
)
def test_boxes_pair_up(active, candidate, pairs):
    assert matched(active, candidate) == pairs


@pytest.mark.parametrize(
    ("task", "frames", "share"),
    [
        ("detection", [([box("a", 0.1)], [box("a", 0.1), box("b", 0.5)])], 0.6667),
        ("detection", [([], [])], None),
        ("detection", [([], []), ([box("a", 0.1)], [])], 0.0),
        ("pose", [([box("a", 0.1)], [box("a", 0.1)])], 1.0),
        ("classification", [([of("a"), of("b")], [of("a"), of("c")]), ([of("a")], [of("b")])], 0.5),
        ("classification", [([of(None, 3)], [of(None, 3)])], 1.0),
        ("classification", [([of("a")], [])], 0.0),
        ("segmentation", [([of("a", area=0.5)], [of("a", area=0.25), of("b", area=0.25)])], 0.5),
        ("raw", [([], [])], None),
        ("", [([box("a", 0.1)], [box("a", 0.1)])], None),
    ],
)
def test_each_task_has_its_measure(task, frames, share):
    agreement = Agreement(task)
    for active, candidate in frames:
        agreement.add(active, candidate)
    assert agreement.share == share


things = st.lists(
    st.builds(box, st.sampled_from(["a", "b"]), st.floats(0, 0.8), score=st.floats(0, 1)),
    max_size=6,
)


@given(things, things)
def test_agreement_is_bounded_and_whole_with_oneself(one, other):
    agreement = Agreement("detection")
    agreement.add(one, other)
    assert agreement.share is None if not one and not other else 0 <= agreement.share <= 1
    same = Agreement("detection")
    same.add(one, one)
    assert same.share in (None, 1.0)


def test_overlap_of_what_has_no_box():
    assert iou(None, None) == 1.0
    assert iou(None, (0, 0, 1, 1)) == 0.0
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0


# Descriptors over the link.


def open_files():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_a_descriptor_comes_with_its_message_and_is_closed_unless_taken():
    ours, theirs = open_link()
    inbox = Inbox(ours, FromWorker)
    before = open_files()
    file = os.memfd_create("x")
    try:
        os.write(file, b"frames")
        for _ in range(3):
            send(theirs, Lent(token="t", frames=1, size=6), descriptor=file)
        send(theirs, Lent(token="none", frames=0, size=0))
        assert inbox.receive().token == "t"
        taken = inbox.take_descriptor()
        assert os.pread(taken, 10, 0) == b"frames"
        assert not os.get_inheritable(taken)
        assert inbox.take_descriptor() is None
        os.close(taken)
        inbox.receive()  # left lying
        inbox.receive()
        assert inbox.receive().token == "none"
        assert inbox.take_descriptor() is None
    finally:
        os.close(file)
    assert open_files() == before
    ours.close()
    theirs.close()


def test_more_descriptors_than_asked_for_are_closed():
    ours, theirs = open_link()
    inbox = Inbox(ours, ToWorker)
    before = open_files()
    file = os.memfd_create("x")
    rights = np.array([file] * 3, np.int32).tobytes()
    import socket

    import msgspec

    theirs.sendmsg(
        [msgspec.msgpack.encode(Stop())], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    )
    os.close(file)
    assert inbox.receive() == Stop()
    inbox.close()
    assert open_files() == before
    ours.close()
    theirs.close()


# The lender.


class Loan:
    """A lender with a clock of its own."""

    def __init__(self, **order):
        self.now = 0.0
        self.handed = []
        self.lender = Lender(
            LendFrames(token="t", **{"count": 3, "every_s": 0.5, "within_s": 10.0, **order}),
            self.take,
            clock=lambda: self.now,
        )

    def take(self, lent, descriptor):
        self.handed.append((lent, None if descriptor is None else os.dup(descriptor)))

    def frame(self, number, shape=(48, 64, 3)):
        pixels = np.full(shape, number % 256, np.uint8)
        frame = Frame(camera="door", frame_id=number, pixels=pixels, captured_ns=0, captured_at=0.0)
        return self.lender.take(frame, None)

    def read(self):
        [(lent, descriptor)] = self.handed
        frames = LentFrames(descriptor)
        os.close(descriptor)
        assert len(frames.index.frames) == lent.frames
        return frames


def test_frames_are_spaced_and_come_with_what_was_found():
    loan = Loan()
    for number in range(1, 40):
        loan.now = number * 0.1
        at = loan.frame(number)
        if at is not None:
            loan.lender.note(at, [box("cat", number / 100)], IDENTITY, "detection")
    frames = loan.read()
    assert [one.frame_id for one in frames.index.frames] == [1, 6, 11]
    assert (frames.index.model, frames.index.task) == (IDENTITY, "detection")
    for one, pixels in frames.pictures():
        assert one.things == [box("cat", one.frame_id / 100)]
        assert pixels.shape == (48, 64, 3)
        assert (pixels == one.frame_id).all()
        assert not pixels.flags.writeable
    assert loan.frame(50) is None


def test_nobody_can_change_what_was_lent():
    loan = Loan(count=1)
    loan.lender.note(loan.frame(1), [], IDENTITY, "detection")
    [(_, descriptor)] = loan.handed
    try:
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, 0)  # shared and writable
    finally:
        os.close(descriptor)


def test_large_frames_are_made_smaller_and_memory_is_bounded(monkeypatch):
    loan = Loan(count=100)
    monkeypatch.setattr(lending, "available_bytes", lambda: 8 * 3 * 640 * 360 * 3)
    small = Loan(count=100)
    for number in range(1, 60):
        loan.now = small.now = float(number)
        for one in (loan, small):
            at = one.frame(number, (720, 1280, 3) if one is small else (1440, 2560, 3))
            if at is not None:
                one.lender.note(at, [], IDENTITY, "detection")
    [(lent, descriptor)] = loan.handed
    os.close(descriptor)
    assert lent.frames <= lending.MOST_FRAMES
    assert lent.size <= lending.MOST_BYTES + lending.MAX_INDEX_BYTES
    small.lender.check()
    assert small.handed[0][0].frames == 0, "not even one fits"


def test_lost_frames_and_other_models_are_left_out():
    loan = Loan(every_s=0.0)
    first, second, third = (loan.frame(number) for number in (1, 2, 3))
    loan.lender.note(first, [], IDENTITY, "detection")
    loan.lender.drop(second)
    other = ModelIdentity(name="other", version=None, sha256="1" * 64)
    loan.lender.note(third, [], other, "detection")
    assert [one.frame_id for one in loan.read().index.frames] == [1]


@pytest.mark.parametrize("count", [0, 2])
def test_when_time_is_up_what_is_there_is_handed_over(count):
    loan = Loan()
    for number in range(1, count + 1):
        loan.now = float(number)
        loan.lender.note(loan.frame(number), [], IDENTITY, "detection")
    loan.now = 9.9
    loan.lender.check()
    assert loan.handed == []
    loan.now = 10.1
    loan.lender.check()
    loan.lender.check()
    if count:
        assert len(loan.read().index.frames) == 2
    else:
        [(lent, descriptor)] = loan.handed
        assert (lent.frames, descriptor) == (0, None)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8 + lending.MAGIC])
def test_a_file_that_is_none_of_ours_is_refused(content):
    file = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    try:
        os.write(file, content)
        with pytest.raises(ModelError, match="not sealed"):
            LentFrames(file)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, lending.SEALS)
        with pytest.raises(ModelError, match="frames to be looked at"):
            LentFrames(file)
    finally:
        os.close(file)


# A worker lends, a child looks.


def lend(running, count=4):
    running.say(LendFrames(token="loan", count=count, every_s=0.05, within_s=30.0))
    lent = running.until(Lent)
    assert lent.frames == count
    return running.inbox.take_descriptor()


def shadow(config, frames, **fields):
    """Compare in a child, as the daemon does."""
    request = ExamRequest(model=config, most_threads=1, stands_back="no", **fields)
    exam = start_shadow(request, frames)
    os.close(frames)
    while (report := exam.poll()) is None:
        time.sleep(0.01)
    exam.process.wait(60)  # one that was killed has to get some processor time to end
    return report


def shadow_here(config, frames):
    """Compare in this process: for what does no harm; a child's start takes a second."""
    try:
        return compare(ExamRequest(model=config, most_threads=1), frames, lambda stage: None)
    except RefusalError as error:
        return refusal(error)
    finally:
        os.close(frames)


LABELS = ["cat", "dog", "owl", "cow"]


def test_candidates_are_compared_on_what_the_camera_has_just_seen(live, tmp_path):
    cats = model(model_folder(tmp_path / "cats", made_box(0), name="cats", labels=LABELS))
    # Another order of the labels: the same words count, not the same numbers.
    alike = model(model_folder(tmp_path / "alike", made_box(3), labels=LABELS[::-1]))
    dogs = model(model_folder(tmp_path / "dogs", made_box(1), name="dogs", labels=LABELS))
    other = model(model_folder(tmp_path / "other", made_classifier(1), name="other"))
    # The camera's filter hides every box from subscribers, and none from this.
    camera = CameraConfig(name="door", source="synthetic", fps=30.0, min_area=0.99)
    running = live(cats, cameras=(camera,))
    running.until(ResultOut, count=3)
    before = open_files()
    reports = {}
    for config, look in ((alike, shadow), (dogs, shadow_here), (other, shadow_here)):
        reports[config.path] = report = look(config, lend(running))
        assert report.ok, report
        assert report.runs == 4
        assert report.p95_ms > 0
    assert open_files() == before, "no descriptor stays here"
    assert (reports[alike.path].agreement, reports[alike.path].both) == (1.0, 4.0)
    assert (reports[dogs.path].agreement, reports[dogs.path].only_candidate) == (0.0, 4.0)
    assert reports[other.path].agreement is None, "another task"
    running.until(ResultOut, count=3)
    assert not any(result["detections"] for result in running.results())


def test_what_fails_on_this_boards_frames_is_refused(live, tmp_path):
    one = model(model_folder(tmp_path / "one", made_classifier(1), name="one"))
    shown = pictures(tmp_path / "shown", [200] * 5)
    camera = CameraConfig(name="door", source=shown, loop=True, realtime=True, fps=30.0)
    running = live(one, cameras=(camera,))
    running.until(ResultOut, count=3)
    for what, code in (("fail", "E_FRAME"), ("endless", "E_HANG")):
        bad = model(model_folder(tmp_path / what, made_at(200, what), name=what))
        look = partial(shadow, run_within_s=0.5) if what == "endless" else shadow_here
        report = look(bad, lend(running, 2))
        assert (report.ok, report.code) == (False, code), report
    assert "gather index out of bounds" not in json.dumps(running.results())
    running.until(ResultOut, count=3)


def test_a_recurrent_candidate_keeps_its_state_for_each_camera(live, tmp_path):
    one = model(model_folder(tmp_path / "one", made_recurrent(), name="one"))
    running = live(one)
    running.until(ResultOut, count=3)
    report = shadow_here(one, lend(running))
    assert (report.ok, report.agreement, report.runs) == (True, None, 4)


def test_one_loan_at_a_time_and_none_without_frames(live, tmp_path):
    one = model(model_folder(tmp_path / "one", made_classifier(1), name="one"))
    shown = pictures(tmp_path / "shown", [20])
    running = live(one, cameras=(CameraConfig(name="door", source=shown),))  # ends at once
    running.until(ResultOut, count=1)
    running.say(LendFrames(token="first", count=2, within_s=1.0))
    running.say(LendFrames(token="second", count=2, within_s=1.0))
    assert running.until(Lent).token == "second"
    first = running.until(Lent)
    assert (first.token, first.frames) == ("first", 0)
    assert running.inbox.take_descriptor() is None


def test_frames_that_are_not_sealed_are_no_fault_of_the_models(tmp_path):
    config = model(model_folder(tmp_path / "one", made_classifier(1), name="one"))
    report = shadow_here(config, os.memfd_create("x", os.MFD_ALLOW_SEALING))
    assert (report.code, report.is_final) == ("E_SELFTEST", False)
