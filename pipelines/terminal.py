"""What people read in a terminal: numbers, tables, and text from data made harmless.

Captions, file names and error texts are other people's bytes: an escape sequence in a caption must not move a cursor, set a title or
write to a clipboard, so everything that came from data passes `clean` on its way to a terminal. Data goes to stdout, progress to
stderr; colours follow NO_COLOR and vanish when the stream is not a terminal (rich does both).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# OSC and other string sequences up to their terminator, then CSI, then two-byte escapes, then single controls (tab and newline stay)
# and the bidirectional overrides that can make one text look like another.
_STRING = "\x1b[\\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c|$)"
_CONTROL = re.compile(
    _STRING
    + "|\x1b\\[[0-?]*[ -/]*[@-~]?|\x1b[ -/]*[0-~]?|\x9b[0-?]*[ -/]*[@-~]?|[\x00-\x08\x0b-\x1f\x7f-\x9f]|[\u202a-\u202e\u2066-\u2069]"
)


def clean(text: Any) -> str:
    """`text` without anything a terminal would obey."""
    return _CONTROL.sub("", str(text))


def short(text: Any, width: int = 100) -> str:
    """One harmless line of at most `width` characters."""
    line = " ".join(clean(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def count(n: Any) -> str:
    """An exact whole number with thin separators: 1 234 567."""
    return f"{n:,}".replace(",", " ") if isinstance(n, int) else "" if n is None else str(n)


def figure(x: Any) -> Any:
    """A measured number in four digits, a share just below 1 in as many as tell it from 1; anything else as it is."""
    if not isinstance(x, float):
        return x
    if 0.999 < x < 1:
        return f"{x:.7f}"
    return count(round(x)) if abs(x) >= 10_000 else f"{x:.4g}"


def size(n: int) -> str:
    """Bytes in the unit a person would choose."""
    value = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def console(stderr: bool = False) -> Console:
    """A rich console; wide enough for whole rows when the output is a file or a pipe."""
    from rich.console import Console  # 60 ms: not on the way to --help

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, markup=False, width=None if stream.isatty() else 160, soft_wrap=not stream.isatty())


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Container[int] = ()) -> None:
    """Print a table on stdout; whole numbers are set right, and so are the columns numbered in `right`; everything passes `clean`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    body = [list(row) for row in rows]
    grid = Table(title=Text(clean(title), style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        numbers = i in right or any(isinstance(row[i], int | float) for row in body)
        grid.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in body:
        grid.add_row(*(Text(clean(count(cell))) for cell in row))
    console().print(grid)


def say(text: str = "", stderr: bool = False) -> None:
    """A line for people: on stdout when it is data, on stderr when it is progress."""
    print(clean(text), file=sys.stderr if stderr else sys.stdout, flush=stderr)
