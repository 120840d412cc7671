"""What the heartbeat tells of each frame: where its time went, and how many of what were in it.

One tuple per frame goes from the postprocess thread, which only appends, to the heartbeat's,
which only takes away; a deque needs no lock for that. All reckoning is the control process's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from msgspec.structs import replace

from agent.link import Beat, FrameTimes
from agent.vision.encode import Findings, Timing
from agent.vision.handoff import Frame

# Between two heartbeats: far more than any accelerator infers in half a second.
MOST_FRAMES = 4096
# Of one camera; a subscriber wants to know of those that matter, and a heartbeat has an end.
MOST_LABELS = 64

Label = Callable[[int], str | None]
_Seen = tuple[Label, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What happened since the heartbeat before.

    `found` holds for each camera of these frames the most of each label in one of them.
    """

    times: list[FrameTimes]
    found: dict[str, dict[str, int]]
    lost: int  # frames that are not in it


NOTHING_NEW = News(times=[], found={}, lost=0)


class FrameLog:
    """The frames since the last heartbeat, as many as there is room for.

    `label` gives a class's label, None where it has none; of frames that are noted from then on.
    """

    def __init__(self, label: Label) -> None:
        self.label = label  # belongs to the thread that notes
        self._frames: deque[tuple[FrameTimes, _Seen]] = deque()
        self._lost = 0  # written by the thread that notes
        self._lost_told = 0  # owned by the thread that takes

    def note(self, times: FrameTimes, class_ids: tuple[int, ...]) -> None:
        """Add a frame; called by one thread."""
        if len(self._frames) >= MOST_FRAMES:
            self._lost += 1
        else:
            self._frames.append((times, (self.label, class_ids)))

    def take(self, most: int) -> News:
        """Take away the oldest, up to so many; called by one thread."""
        frames = [self._frames.popleft() for _ in range(min(most, len(self._frames)))]
        by_camera: dict[str, list[_Seen]] = {}
        for times, seen in frames:
            by_camera.setdefault(times.camera, []).append(seen)
        lost = self._lost
        told, self._lost_told = self._lost_told, lost
        return News(
            times=[times for times, _ in frames],
            found={camera: _most_at_once(there) for camera, there in by_camera.items()},
            lost=lost - told,
        )


def _most_at_once(frames: Iterable[_Seen]) -> dict[str, int]:
    """Return for each label the most of it in one frame."""
    most: dict[str, int] = {}
    for label, class_ids in dict.fromkeys(frames):
        names = (label(class_id) or f"class_{class_id}" for class_id in class_ids)
        for name, count in Counter(names).items():
            if name in most or len(most) < MOST_LABELS:
                most[name] = max(count, most.get(name, 0))
    return most


def times_of(frame: Frame, timing: Timing, done_ns: int) -> FrameTimes:
    """Return where a frame's time went; `done_ns` is when its findings were ready."""
    captured_ns, taken_ns, prepared_ns = frame.captured_ns, timing.taken_ns, timing.prepared_ns
    started_ns, invoked_ns, cascade_ns = (
        timing.invoke_started_ns,
        timing.invoked_ns,
        timing.cascade_ns,
    )
    age = taken_ns - captured_ns
    return FrameTimes(
        frame.camera,
        age,
        age + started_ns - prepared_ns,
        prepared_ns - taken_ns,
        invoked_ns - started_ns,
        done_ns - invoked_ns - cascade_ns,
        cascade_ns,
        done_ns - captured_ns,
    )


def counted_ids(findings: Findings, class_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return the classes to count in a frame, of those found: of a classified one the likeliest."""
    return (findings.classes[0].class_id,) if findings.classes else class_ids


def bare(beat: Beat) -> Beat:
    """Return a heartbeat without all that may make one too large to send."""
    return replace(
        beat,
        cameras={name: replace(one, found=None) for name, one in beat.cameras.items()},
        times=[],
        times_lost=beat.times_lost + len(beat.times),
    )
