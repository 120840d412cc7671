"""The plain view: one line per second, for pipes, logs and terminals without rich."""

from __future__ import annotations

from agent.demo.summary import plain
from agent.demo.view import Scene, number, seen_text

LINE_EVERY_S = 1.0


class Lines:
    """See `View`."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._waiting_for = ""
        self._next_line_s = LINE_EVERY_S

    def waiting(self, what: str, now: float) -> None:
        """Print a line for each new thing waited for."""
        self._started = self._started or now
        if what != self._waiting_for:
            self._waiting_for = what
            print(f"{now - self._started:6.1f}s  waiting for {what}", flush=True)

    def playing(self, scene: Scene) -> None:
        """Print a line for each second."""
        if scene.elapsed_s < self._next_line_s:
            return
        self._next_line_s += LINE_EVERY_S
        print(line(scene), flush=True)

    def close(self) -> None:
        """Nothing to give back."""

    def summary(self, rows: list[tuple[str, str]], hints: list[str]) -> None:
        """Print the summary."""
        print("\n".join(["", *plain(rows), "", *hints]), flush=True)


def line(scene: Scene) -> str:
    """Return `  12.0s  30.0 fps  p50 8.1 ms  p99 11.2 ms  person 0.93, cat 0.71`."""
    if scene.silent_s > LINE_EVERY_S:
        return f"{scene.elapsed_s:6.1f}s  no result for {scene.silent_s:.1f} s"
    figures = scene.story.figures
    return "  ".join(
        (
            f"{scene.elapsed_s:6.1f}s",
            f"{number(figures.fps_now[1])} fps",
            f"p50 {number(figures.latency.percentile(50))} ms",
            f"p99 {number(figures.latency.percentile(99))} ms",
            seen_text(scene.detections),
        )
    )
