"""What a view shows, and which view fits the output: live drawing, or plain lines."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from typing import Protocol

from agent.contract.payloads import Detection
from agent.demo.figures import detections_of, label_of
from agent.demo.story import Story


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The state of the demo at one moment."""

    now: float  # monotonic
    broker: str
    story: Story

    @property
    def elapsed_s(self) -> float:
        """Return the time since the first result, at most the run's length."""
        return min(self.now - self.story.figures.first_at, self.story.seconds)

    @property
    def silent_s(self) -> float:
        """Return the time since the last result."""
        return self.now - self.story.figures.last_at

    @property
    def detections(self) -> list[Detection]:
        """Return what the last result saw, best first."""
        last = self.story.figures.last
        return detections_of(last) if last else []


class View(Protocol):
    """Call order: `waiting` and `playing` at will, `close`, then `summary` at most once."""

    def waiting(self, what: str, now: float) -> None:
        """Say what the demo is waiting for; called again and again."""

    def playing(self, scene: Scene) -> None:
        """Show results; called about ten times a second."""

    def close(self) -> None:
        """End the live display; may be called without any display."""

    def summary(self, rows: list[tuple[str, str]], hints: list[str]) -> None:
        """Print the summary."""


def choose_view() -> View:
    """Return live drawing on a terminal that can, else lines."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        from agent.demo.screen import Screen

        screen = Screen()
        if screen.can_draw:
            return screen
    from agent.demo.lines import Lines

    return Lines()


def number(value: float | None, digits: int = 1) -> str:
    """Return a number as text, or a dash for unknown."""
    return "-" if value is None else f"{value:.{digits}f}"


def model_text(scene: Scene) -> str:
    """Return name, version and the start of the hash, as far as known."""
    last = scene.story.figures.last
    if last is None:
        return "-"
    return " ".join(filter(None, (last.model.name, last.model.version, last.model.sha256[:12])))


def accelerator_text(scene: Scene) -> str:
    """Return what really runs, and by which runtime."""
    last, status = scene.story.figures.last, scene.story.status
    runtime = status.board.runtime if status else None
    return ", ".join(filter(None, (last.accelerator if last else None, runtime))) or "-"


def broker_text(scene: Scene) -> str:
    """Return the broker and the protocol that the daemon speaks with it."""
    telemetry = scene.story.telemetry
    protocol = telemetry.mqtt.protocol if telemetry else None
    return scene.broker + (f", MQTT {protocol}" if protocol else "")


def seen_text(detections: list[Detection]) -> str:
    """Return `person 0.93, cat 0.71`."""
    return ", ".join(f"{label_of(item)} {item.score:.2f}" for item in detections) or "nothing"
