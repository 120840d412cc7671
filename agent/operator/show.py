"""How operator commands show things: tables, progress, one JSON document.

On a terminal with rich; in pipes, logs and without rich as plain lines. What boards said is shown
without control characters, so that none of them can write on the operator's terminal.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TextIO

import msgspec

if TYPE_CHECKING:
    from rich.table import Table

LONGEST_CELL = 200
STYLES = {"good": "green", "bad": "red", "busy": "yellow", "": ""}


class Cell(NamedTuple):
    """A text of a table, and whether it is good, bad or busy."""

    text: str
    mood: str = ""


Row = Sequence[str | Cell]


def printable(text: str, most: int = LONGEST_CELL) -> str:
    """Return a text on one line, without what a terminal would obey, cut short."""
    clean = "".join(letter if letter.isprintable() else "?" for letter in text[: most + 1])
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"


def has_rich(stream: TextIO | None = None) -> bool:
    """Return whether a stream, by default stdout, is a terminal that rich can draw on."""
    return (stream or sys.stdout).isatty() and importlib.util.find_spec("rich") is not None


def print_json(document: object) -> None:
    """Print one document, and nothing else, on stdout."""
    print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def print_table(columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Print rows under their columns."""
    if has_rich():
        from rich.console import Console

        # Lines too long for the terminal are wrapped by it: a name cut short is no name.
        width = sum(_widths(columns, rows)) + 2 * len(columns)
        console = Console(highlight=False, width=max(Console().width, width))
        console.print(rich_table(columns, rows))
    else:
        print("\n".join(plain_table(columns, rows)))


def rich_table(columns: Sequence[str], rows: Sequence[Row]) -> Table:
    """Return rows as rich draws them."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    for row in rows:
        cells = (_cell(cell) for cell in row)
        table.add_row(*(Text(cell.text, style=STYLES[cell.mood]) for cell in cells))
    return table


def _cell(cell: str | Cell) -> Cell:
    found = cell if isinstance(cell, Cell) else Cell(cell)
    return found._replace(text=printable(found.text))


def plain_table(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return rows as lines, two spaces between columns."""
    lines = [list(columns), *([_cell(cell).text for cell in row] for row in rows)]
    widths = _widths(columns, rows)
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _widths(columns: Sequence[str], rows: Sequence[Row]) -> list[int]:
    lines = [list(columns), *([_cell(cell).text for cell in row] for row in rows)]
    return [max(len(line[index]) for line in lines) for index in range(len(columns))]


def fitted(
    columns: Sequence[str], rows: Sequence[Row], width: int, spare: Sequence[str]
) -> tuple[list[str], list[list[str | Cell]]]:
    """Return columns and rows without as many of the `spare` columns as do not fit, in that order.

    width: letters of a line
    """
    kept, widths = list(range(len(columns))), _widths(columns, rows)
    for name in spare:
        if sum(widths[index] + 2 for index in kept) - 2 <= width:
            break
        kept.remove(columns.index(name))
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show how many of `total` bytes are done, on stderr if that is a terminal."""
    if total <= 0 or not has_rich(sys.stderr):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(printable(label), total=total)
        yield lambda count: bars.advance(task, count)


def say(text: str) -> None:
    """Print a line for people beside a document or a table."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


def size_text(count: int) -> str:
    """Return bytes as people read them."""
    if count < 10_000:
        return f"{count} B"
    return f"{count / 1e3:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"
