"""How long a worker's stages may go without a tick. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from agent.link import OPENING

# Every stage waits at most half a second before it ticks; more than this is native code that
# hangs. Cameras get longer: opening a network stream may rightly take several seconds.
STAGE_STUCK_S = 10.0
# Big models on small boards take seconds; hung is what takes this many times the 99th
# percentile and more, or that many first invokes before a percentile is known.
INVOKES_STUCK = 20
CAPTURE_STUCK_S = 25.0
# A camera that hangs in its driver again and again takes the whole worker with it, and what other
# cameras see meanwhile: each time it is left alone for twice as long, until it has come online.
CAPTURE_STUCK_MOST_S = 1800.0
# Opening an accelerator and the first run on it; 2.75 s on a Coral (edgetpu#522).
OPEN_STUCK_S = 30.0
MOST_DOUBLINGS = 10  # beyond CAPTURE_STUCK_MOST_S, and no overflow after weeks
CAPTURE = "capture."  # and the camera's name


class StageLimits:
    """The limits of one engine's worker, over all workers it has had."""

    def __init__(self) -> None:
        self._stuck_s = STAGE_STUCK_S
        self._hangs: dict[str, int] = {}  # by camera, since it was online

    def note_invoke(self, seconds: float) -> None:
        """A run of the model takes as long as this, at most or at first."""
        self._stuck_s = max(STAGE_STUCK_S, INVOKES_STUCK * seconds)

    def note_online(self, camera: str) -> None:
        """A camera gives frames."""
        self._hangs.pop(camera, None)

    def stuck(self, ages_s: Mapping[str, float], *, but_cameras: bool = False) -> str | None:
        """Return the stage that is stuck, of those whose last tick was so long ago; None: none is.

        `but_cameras`: a camera that hangs is no reason, as another worker would hang, too.
        """
        for stage, age_s in ages_s.items():
            if age_s <= self._limit_s(stage) or (but_cameras and stage.startswith(CAPTURE)):
                continue
            if stage.startswith(CAPTURE):
                camera = stage.removeprefix(CAPTURE)
                self._hangs[camera] = self._hangs.get(camera, 0) + 1
            return stage
        return None

    def _limit_s(self, stage: str) -> float:
        if stage == OPENING:
            return OPEN_STUCK_S
        if not stage.startswith(CAPTURE):
            return self._stuck_s
        hangs = self._hangs.get(stage.removeprefix(CAPTURE), 0)
        return min(CAPTURE_STUCK_MOST_S, CAPTURE_STUCK_S * 2.0 ** min(hangs, MOST_DOUBLINGS))
