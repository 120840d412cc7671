"""How many a camera sees: up at once, down after a hold, unknown without frames."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.topics import Topics
from agent.daemon.counts import EVERY_S, HOLD_S, CountReport
from agent.daemon.label_book import LabelBook, Listed


class Camera:
    """One camera, told of a heartbeat each half second."""

    def __init__(self, *labels):
        self.said = []
        self.now = 100.0
        self.labels = LabelBook({"door": Listed(labels=labels)}, {})
        self.report = CountReport(
            names=Topics("edge", "d"), cameras=["door"], labels=self.labels, retain=self._retain,
            wall_clock=lambda: self.now,
        )  # fmt: skip
        self.report.set_online("door", is_online=True)

    def _retain(self, topic, payload):
        assert topic == "edge/d/camera/door/counts"
        self.said.append((self.now, json.loads(payload)))

    def beat(self, found=None, *, frames=15, after_s=0.5):
        self.now += after_s
        self.report.note("door", (found or {}) if frames else None, self.now)
        return self.report.check(self.now)

    @property
    def counts(self):
        return self.said[-1][1]["counts"]

    @property
    def total(self):
        return self.said[-1][1]["total"]


def test_it_is_unknown_until_something_has_been_looked_at():
    camera = Camera("cat")
    camera.report.check(camera.now)
    assert camera.said[0][1] == {
        "schema": "edge-agent/counts/1", "device": "d", "camera": "door", "at": 100.0,
        "total": None, "counts": None,
    }  # fmt: skip
    camera.beat(after_s=EVERY_S)
    assert (camera.total, camera.counts) == (0, {"cat": 0})


def test_it_rises_at_once_and_falls_after_the_hold():
    camera = Camera()
    camera.beat({"cat": 1})
    assert (camera.total, camera.counts) == (1, {"cat": 1})
    camera.beat({"cat": 2}, after_s=EVERY_S)
    assert (camera.total, camera.counts) == (2, {"cat": 2})
    began = camera.now
    while camera.counts["cat"]:
        camera.beat()
        assert camera.now < began + 2 * HOLD_S
    assert camera.now >= began + HOLD_S
    assert camera.counts == {"cat": 0}  # a label that was seen stays, as a 0


def test_a_frame_that_misses_somebody_is_not_told():
    camera = Camera()
    for number in range(40):
        camera.beat({"cat": 1} if number % 3 == 0 else {})
    assert len(camera.said) == 1


def test_it_is_said_once_a_second_at_most_and_the_last_one_in_the_end():
    camera = Camera()
    for number in range(40):
        assert camera.beat({"cat": number + 1}, after_s=0.1) > 0
    times = [at for at, _ in camera.said]
    assert all(later - at >= EVERY_S - 1e-6 for at, later in itertools.pairwise(times))
    camera.now += EVERY_S
    camera.report.check(camera.now)
    assert camera.total == 40


def test_what_a_motion_gate_keeps_back_stays_as_it_was_seen():
    camera = Camera()
    camera.beat({"cat": 1})
    for _ in range(100):
        camera.beat(frames=0)
    assert camera.counts == {"cat": 1}
    camera.beat()  # the look that comes all the same: nobody is there
    assert camera.counts == {"cat": 0}


def test_the_last_look_counts_once_the_others_are_over_the_hold():
    camera = Camera()
    camera.beat({"cat": 2})
    camera.beat({"cat": 1})
    due_s = camera.beat(frames=0)
    assert camera.counts == {"cat": 2}
    camera.now += due_s
    camera.report.check(camera.now)
    assert camera.counts == {"cat": 1}


@pytest.mark.parametrize("found", [{}, {"cat": 1}])
def test_without_frames_nobody_knows(found):
    camera = Camera("cat")
    camera.beat(found)
    camera.report.set_online("door", is_online=False)
    camera.now += EVERY_S
    camera.report.check(camera.now)
    assert (camera.total, camera.counts) == (None, None)
    camera.report.set_online("door", is_online=True)
    camera.now += EVERY_S
    camera.report.check(camera.now)
    assert camera.total is None  # not looked at yet
    camera.beat()
    assert camera.total == 0


def test_a_worker_that_has_looked_at_nothing_yet_says_nothing():
    camera = Camera()
    camera.beat({"cat": 1})
    camera.report.set_online("door", is_online=False)  # its worker is replaced
    camera.beat(frames=0, after_s=EVERY_S)
    camera.report.set_online("door", is_online=True)  # before the model is loaded
    camera.beat(frames=0, after_s=EVERY_S)
    assert (camera.total, camera.counts) == (None, None)
    camera.beat({"dog": 1}, after_s=EVERY_S)
    assert camera.counts == {"cat": 0, "dog": 1}


def test_the_last_frames_of_a_camera_that_went_are_not_what_it_shows_when_it_is_back():
    camera = Camera()
    camera.report.set_online("door", is_online=False)
    camera.beat({"cat": 1}, after_s=EVERY_S)  # captured before
    camera.report.set_online("door", is_online=True)
    camera.now += 3600
    camera.report.check(camera.now)
    assert camera.total is None
    assert camera.labels.of("door") == ("cat",)


def test_labels_that_have_no_room_are_in_the_total():
    camera = Camera(*(f"label{at}" for at in range(32)))
    camera.beat({"label0": 1, "other": 2})
    assert camera.total == 3
    assert "other" not in camera.counts
    assert len(camera.counts) == 32


@given(
    beats=st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abc"), st.integers(1, 5), max_size=3),
            st.integers(0, 3), st.floats(0.0, 3.0), st.booleans(),
        ),
        max_size=60,
    )
)  # fmt: skip
def test_it_never_says_more_or_less_than_was_seen(beats):
    camera = Camera()
    looks = []
    for found, frames, after_s, is_online in beats:
        camera.report.set_online("door", is_online=is_online)
        if not is_online:
            looks.clear()
        before = len(camera.said)
        due_s = camera.beat(found if frames else {}, frames=frames, after_s=after_s)
        assert due_s > 0
        if frames and is_online:
            looks.append((camera.now, found))
        if len(camera.said) == before:
            continue
        if not is_online or not looks:
            assert camera.total is None
            continue
        held = [seen for at, seen in looks if at > camera.now - HOLD_S] or [looks[-1][1]]
        for label, count in camera.counts.items():
            assert count == max(seen.get(label, 0) for seen in held)
        assert camera.total == sum(camera.counts.values())
