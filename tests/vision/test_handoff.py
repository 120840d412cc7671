"""The slots between cameras and engine: exact counts, and an even share for every camera."""

import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.vision.handoff import Frame, FrameBuffers, LatestSlot, take_next


def frame(camera="a", frame_id=1, captured_ns=0):
    return Frame(
        camera=camera, frame_id=frame_id, pixels=None, captured_ns=captured_ns, captured_at=0.0
    )


def take(slots):
    return take_next(slots, slots[0]._ready, 0.0)


def slots_of(count):
    ready = threading.Condition()
    return [LatestSlot(ready) for _ in range(count)]


def test_the_newer_frame_replaces_the_older_and_nothing_waiting_is_none():
    [slot] = slots_of(1)
    assert take([slot]) is None
    first, second = frame(frame_id=1), frame(frame_id=2)
    assert slot.put(first) is None
    assert slot.put(second) is first
    taken = take([slot])
    assert (taken.frame, taken.dropped, taken.still) == (second, 1, 0)
    assert take([slot]) is None


def test_of_cameras_never_served_the_frame_that_waited_longest_goes_first():
    slots = slots_of(3)
    for slot, name, captured_ns in zip(slots, "abc", (30, 10, 20), strict=True):
        slot.put(frame(name, 1, captured_ns))
    slots[1].put(frame("b", 2, 40))
    assert [take(slots).frame.camera for _ in range(3)] == ["c", "a", "b"]


def test_the_camera_served_longest_ago_goes_first_however_old_the_others_frames_are():
    slots = slots_of(2)
    slots[0].put(frame("a", 1, 0))
    slots[1].put(frame("b", 1, 1))
    assert [take(slots).frame.camera for _ in range(2)] == ["a", "b"]
    slots[1].put(frame("b", 2, 2))
    slots[0].put(frame("a", 2, 3))
    assert [take(slots).frame.camera for _ in range(2)] == ["a", "b"]


def test_a_frame_that_waits_is_not_charged_with_what_comes_after_it():
    [slot] = slots_of(1)
    slot.note_still(2)
    slot.note_dropped(3)
    slot.put(frame(frame_id=6))
    slot.note_still(4)
    slot.note_dropped(5)
    taken = take([slot])
    assert (taken.dropped, taken.still) == (3, 2)
    slot.put(frame(frame_id=16))
    taken = take([slot])
    assert (taken.dropped, taken.still) == (5, 4)


@given(st.lists(st.sampled_from(["put", "put", "still", "skip", "take"]), max_size=60))
def test_ids_grow_by_what_was_counted_and_one(events):
    [slot] = slots_of(1)
    next_id, last, dropped, still = 1, 0, 0, 0
    for event in [*events, "put", "take"]:
        if event == "put":
            slot.put(frame(frame_id=next_id))
            next_id += 1
        elif event == "still":
            slot.note_still(1)
            next_id += 1
            still += 1
        elif event == "skip":
            slot.note_dropped(2)
            next_id += 2
        elif (taken := take([slot])) is not None:
            assert taken.frame.frame_id == last + taken.dropped + taken.still + 1
            last = taken.frame.frame_id
            dropped += taken.dropped
            still -= taken.still
    assert still == 0, "each was told of once"


def serve(arrivals, takes_at):
    """Simulate: arrivals[camera] are the times of its frames; one frame is taken at each time.

    Returns the camera served at each of those times (None: nothing waited), and the slots that
    held a frame then.
    """
    slots = slots_of(len(arrivals))
    served, waiting = [], []
    events = sorted((at, camera) for camera, times in enumerate(arrivals) for at in times)
    ids = [0] * len(arrivals)
    for now in takes_at:
        while events and events[0][0] <= now:
            at, camera = events.pop(0)
            ids[camera] += 1
            slots[camera].put(frame(camera, ids[camera], int(at * 1e9)))
        waiting.append([camera for camera, slot in enumerate(slots) if slot.frame is not None])
        taken = take(slots)
        served.append(None if taken is None else taken.frame.camera)
    return served, waiting


def max_min_shares(rates, capacity):
    """Fill all alike until each has what it asks for or nothing is left (water filling)."""
    shares, left = [0.0] * len(rates), capacity
    open_ones = set(range(len(rates)))
    while open_ones and left > 1e-9:
        least = min(rates[one] - shares[one] for one in open_ones)
        step = min(least, left / len(open_ones))
        for one in open_ones:
            shares[one] += step
        left -= step * len(open_ones)
        open_ones = {one for one in open_ones if rates[one] - shares[one] > 1e-9}
    return shares


@pytest.mark.parametrize(
    ("rates_hz", "capacity_hz"),
    [
        ((60, 1), 10),
        ((1, 60), 10),
        ((100, 30, 5, 1), 20),
        ((30, 30, 30), 20),
        ((60, 60, 2), 15),
        ((15, 3), 40),
        ((1000, 7, 7, 7), 30),
        ((25, 24), 24),
    ],
)
def test_cameras_of_very_different_rates_get_their_max_min_share(rates_hz, capacity_hz):
    seconds = 40
    arrivals = [
        [(number + camera / 97) / rate for number in range(rate * seconds)]
        for camera, rate in enumerate(rates_hz)
    ]
    times = [number / capacity_hz for number in range(capacity_hz * seconds)]
    served, _ = serve(arrivals, times)
    fair = max_min_shares([rate * seconds for rate in rates_hz], capacity_hz * seconds)
    for camera, share in enumerate(fair):
        # One frame may be on its way at either end.
        assert abs(served.count(camera) - share) <= 2, (camera, share)


@given(
    st.lists(st.lists(st.floats(0, 50), max_size=60).map(sorted), min_size=2, max_size=5),
    st.lists(st.floats(0, 55), min_size=1, max_size=80).map(sorted),
)
def test_while_two_cameras_have_frames_neither_gets_two_more_than_the_other(arrivals, times):
    """Max-min fair at every moment: only who has nothing to give is passed over."""
    served, waiting = serve(arrivals, times)
    assert all((one is None) == (not there) for one, there in zip(served, waiting, strict=True))
    for one in range(len(arrivals)):
        for other in range(len(arrivals)):
            lead = 0
            for camera, there in zip(served, waiting, strict=True):
                if one not in there or other not in there:
                    lead = 0
                    continue
                lead += (camera == one) - (camera == other)
                assert abs(lead) <= 1


@given(st.integers(2, 6), st.integers(1, 400), st.randoms(use_true_random=False))
def test_a_camera_slower_than_an_even_share_loses_nothing(cameras, rate_hz, random):
    """Its frame waits for one frame of each other camera at most, whatever their rates."""
    period = cameras / 10  # the slow one's; the engine takes ten a second
    slow = [number * period for number in range(30)]
    fast = [
        sorted(random.uniform(0, 30 * period) for _ in range(rate_hz)) for _ in range(cameras - 1)
    ]
    times = [number / 10 + 0.05 for number in range(30 * cameras)]
    served, _ = serve([slow, *fast], times)
    assert served.count(0) == 30
    mine = [at for at, camera in enumerate(served) if camera == 0]
    assert all(after - before <= 2 * cameras for before, after in pairwise(mine))


def test_more_frames_than_memory_is_kept_for_are_given_some_and_it_is_not_kept():
    buffers = FrameBuffers(2)
    frames = [np.zeros((2, 2, 3), np.uint8) for _ in range(4)]
    for _ in frames:
        assert buffers.take() is None, "made by whoever captures"
    for one in frames:
        buffers.give_back(one)
    taken = [buffers.take() for _ in range(4)]
    assert all(one is other for one, other in zip(taken, [*frames[:2], None, None], strict=True))
