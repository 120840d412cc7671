"""The live view: drawn in place about ten times a second with rich, gone before the summary.

It shrinks with the terminal: boxes and bars go first, then empty rows, then whole lines at the
bottom, where the least important ones are.
"""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from agent.demo.figures import STAGES, Samples, label_of
from agent.demo.view import Scene, accelerator_text, broker_text, model_text, number

BOXES_FROM_WIDTH = 60
BARS_FROM_WIDTH = 44
MOST_ROWS = 6
# Everything but the detections, in lines; what is left of the terminal's height is theirs.
OTHER_LINES = 15
BAR_WIDTH = 20
QUIET_S = 1.0


class Screen:
    """See `View`."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        # Refreshed by hand: a thread that draws on its own would race with our children's start.
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop"
        )
        self._spinner = Spinner("dots")
        self._since = 0.0
        self._width = 0
        self._waiting_for = ""
        self._done: list[tuple[str, float]] = []

    @property
    def can_draw(self) -> bool:
        """Return whether the terminal can move its cursor and show bars and ellipses."""
        console = self._console
        is_unicode = console.encoding.startswith("utf")
        return console.is_terminal and not console.is_dumb_terminal and is_unicode

    def waiting(self, what: str, now: float) -> None:
        """Turn the spinner, below what has been waited for already."""
        self._live.start()  # once
        if what != self._waiting_for:
            if self._waiting_for:
                self._done.append((self._waiting_for, now - self._since))
            self._waiting_for, self._since = what, now
        self._spinner.update(text=Text(f"waiting for {what}  {now - self._since:.1f} s"))
        done = [
            Text(f"ok waited for {name}  {took_s:.1f} s", style="dim")
            for name, took_s in self._done
        ]
        self._live.update(Group(*done, self._spinner), refresh=True)

    def playing(self, scene: Scene) -> None:
        """Draw the scene."""
        if self._console.width < self._width:
            # The terminal has folded the lines drawn before, so they cannot be drawn over.
            self._console.clear()
        self._width = self._console.width
        self._live.update(draw(scene, self._console.width, self._console.height), refresh=True)

    def close(self) -> None:
        """Give the terminal back as it was."""
        self._live.stop()

    def summary(self, rows: list[tuple[str, str]], hints: list[str]) -> None:
        """Print the summary."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in rows:
            table.add_row(name, Text(text))
        self._console.print(Rule("summary"), table, Text(), sep="\n")
        for line in hints:
            self._console.print(Text(line), soft_wrap=True)


def draw(scene: Scene, width: int, height: int) -> RenderableType:
    """Return the whole view for a terminal of this size."""
    rows = max(1, min(MOST_ROWS, height - OTHER_LINES))
    return Group(
        _header(scene),
        _counts(scene),
        _progress(scene, width),
        Rule(style="dim"),
        _detections(scene, rows, width),
        Rule(style="dim"),
        _times(scene),
    )


def _header(scene: Scene) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_row("model", Text(model_text(scene)))
    table.add_row("accelerator", Text(accelerator_text(scene)))
    table.add_row("broker", Text(broker_text(scene)))
    return table


def _detections(scene: Scene, rows: int, width: int) -> RenderableType:
    """Return the best detections; always the same number of lines, so that nothing jumps."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("seen", min_width=14, no_wrap=True, overflow="ellipsis")
    table.add_column("score", justify="right", no_wrap=True)
    if width >= BARS_FROM_WIDTH:
        table.add_column("", width=BAR_WIDTH, no_wrap=True)
    if width >= BOXES_FROM_WIDTH:
        table.add_column("box", no_wrap=True, overflow="ellipsis")
    for item in scene.detections[:rows]:
        cells: list[RenderableType] = [Text(label_of(item)), f"{item.score:.2f}"]
        if width >= BARS_FROM_WIDTH:
            cells.append(_bar(item.score, 1.0, BAR_WIDTH))
        if width >= BOXES_FROM_WIDTH:
            left, top, right, bottom = item.box
            cells.append(f"{left:.0f},{top:.0f} to {right:.0f},{bottom:.0f}")
        table.add_row(*cells)
    for _ in range(rows - len(scene.detections)):
        table.add_row("")
    return table


def _times(scene: Scene) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("ms", no_wrap=True, overflow="ellipsis")
    for name in ("last", "p50", "p99"):
        table.add_column(name, justify="right", min_width=6, no_wrap=True)
    figures = scene.story.figures
    for stage in STAGES:
        table.add_row(stage, *_cells(figures.stages[stage]))
    table.add_row(Text("capture to here", style="bold"), *_cells(figures.latency))
    return table


def _cells(samples: Samples) -> list[str]:
    return [
        number(value) for value in (samples.last, samples.percentile(50), samples.percentile(99))
    ]


def _counts(scene: Scene) -> RenderableType:
    figures = scene.story.figures
    if scene.silent_s > QUIET_S:
        text = f"no result for {scene.silent_s:.1f} s  {scene.story.problems()}"
        return Text(text, style="yellow", no_wrap=True, overflow="ellipsis")
    fps_in, fps_out = figures.fps_now
    text = (
        f"{number(fps_in)} fps in  {number(fps_out)} fps out"
        f"  {figures.dropped} dropped  {figures.lost} lost"
    )
    return Text(text, no_wrap=True, overflow="ellipsis")


def _progress(scene: Scene, width: int) -> RenderableType:
    clock = f"{scene.elapsed_s:.1f} of {scene.story.seconds:g} s"
    table = Table.grid(padding=(0, 1))
    bar_width = max(1, width - len(clock) - 2)
    bar = _bar(scene.elapsed_s, scene.story.seconds, bar_width)
    table.add_row(bar, clock)
    return table


def _bar(part: float, whole: float, width: int) -> ProgressBar:
    return ProgressBar(
        total=whole, completed=part, width=width, complete_style="green", finished_style="green"
    )
