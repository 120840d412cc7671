"""How many of each label the cameras see now: the topic `counts`, retained.

A number rises at once and falls only when it was lower for `HOLD_S`, so that a frame that misses
somebody does not end an occupancy. While a motion gate lets no frame through nothing is known to
have changed, and what was seen last stays. One owner: the control process's main thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from agent.contract import topics
from agent.contract.payloads import Counts, encode
from agent.contract.topics import Topics
from agent.daemon.label_book import LabelBook

HOLD_S = 2.0
EVERY_S = 1.0  # at most
# Heartbeats come twice a second; more than this many in a hold are no heartbeats.
MOST_LOOKS = 64

Seen = tuple[int, dict[str, int]]  # the total, and of each label


@dataclass(slots=True)
class _Camera:
    is_online: bool = False
    # when, how many of each label: of the hold, and always the last one
    looks: deque[tuple[float, Mapping[str, int]]] = field(
        default_factory=lambda: deque(maxlen=MOST_LOOKS)
    )
    said: tuple[Seen | None] | None = None  # None: nothing yet
    said_at: float = float("-inf")


class CountReport:
    """See the module's docstring; times are monotonic seconds."""

    def __init__(
        self,
        *,
        names: Topics,
        cameras: Iterable[str],
        labels: LabelBook,
        retain: Callable[[str, bytes], None],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._names = names
        self._labels = labels
        self._retain = retain
        self._wall_clock = wall_clock
        self._cameras = {camera: _Camera() for camera in cameras}
        self._due = float("-inf")  # nothing changes before, unless something is noted

    def note(self, camera: str, found: Mapping[str, int] | None, now: float) -> None:
        """Take over a heartbeat: the most of each label in one frame since the one before.

        None: there was no frame. What comes of a camera that has gone was captured before.
        """
        if found is None:
            return
        self._labels.see(camera, found)
        known = self._cameras[camera]
        if known.is_online:
            known.looks.append((now, found))
            self._due = float("-inf")

    def set_online(self, camera: str, *, is_online: bool) -> None:
        """Note whether frames come; without them nobody knows how many there are."""
        known = self._cameras[camera]
        known.is_online = is_online
        self._due = float("-inf")
        if not is_online:
            known.looks.clear()

    def check(self, now: float) -> float:
        """Publish what has changed; return in how many seconds to look again."""
        if now >= self._due:
            due_s = (self._check(name, now) for name in self._cameras)
            self._due = now + min(due_s, default=float("inf"))
        return self._due - now

    def _check(self, name: str, now: float) -> float:
        camera = self._cameras[name]
        while len(camera.looks) > 1 and camera.looks[0][0] <= now - HOLD_S:
            camera.looks.popleft()
        seen = self._seen(name, camera)
        if camera.said is None or camera.said[0] != seen:
            early_s = camera.said_at + EVERY_S - now
            if early_s > 0:
                return early_s
            camera.said, camera.said_at = (seen,), now
            self._publish(name, seen)
        # A look that ends may change it.
        return camera.looks[0][0] + HOLD_S - now if len(camera.looks) > 1 else float("inf")

    def _seen(self, name: str, camera: _Camera) -> Seen | None:
        if not camera.is_online or not camera.looks:
            return None
        most: dict[str, int] = {}
        for _, found in camera.looks:
            for label, count in found.items():
                most[label] = max(count, most.get(label, 0))
        return sum(most.values()), {label: most.get(label, 0) for label in self._labels.of(name)}

    def _publish(self, name: str, seen: Seen | None) -> None:
        total, counts = seen if seen is not None else (None, None)
        payload = Counts(
            device=self._names.device,
            camera=name,
            at=self._wall_clock(),
            total=total,
            counts=counts,
        )
        self._retain(self._names.name(topics.COUNTS, name), encode(payload))
