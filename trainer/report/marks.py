"""The marks that figures of a report are made of: intervals, seeds, baselines, axes that read well, names that do not collide.

In: matplotlib Axes (`panel`) and plain numbers. Every mark takes its ink from the page (INK, FAINT) or a series colour, so one drawing serves light,
dark and paper. Widths of words are those of the layout font, which is wider than the reader's: what fits here fits there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from trainer.report.markup import clean

INK, FAINT, PAPER = "#010203", "#040506", "#070809"
COLOURS = ("#427dc3", "#c97727", "#c13079", "#2a9fb1", "#7f30ff", "#8b5d2f", "#d4787a", "#5a7af6")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)), (0, (8, 2)), (0, (1, 2)), (0, (4, 1, 1, 1)))
BASELINES: tuple[Any, ...] = ((0, (5, 2)), (0, (1.2, 1.5)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 3)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 3)))
SMALL = 8.5  # points, 11.3 px: the smallest word of a figure
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def colour(i: int) -> str:
    """The i-th series colour; they come round again after eight."""
    return COLOURS[i % len(COLOURS)]


def look(i: int) -> dict[str, Any]:
    """Colour, marker and dash of the i-th line: 64 that differ in colour or dash, so that none is told by colour alone."""
    return {"color": colour(i), "marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[(i + i // len(COLOURS)) % len(DASHES)]}


def size(n: int, columns: int = 2, width: float = 2.2, height: float = 1.9, above: float = 0.5) -> tuple[float, float]:
    """(width, height) in inches of n small panels in so many columns, with room for a legend above them."""
    across = min(columns, n)
    return max(across * width, 3.55), above + height * -(-n // across)


def panels(fig: Any, titles: Sequence[str], columns: int = 2, share_x: bool = False, share_y: bool = False) -> list[Any]:
    """One panel a title, in reading order; places left over stay empty."""
    across = min(columns, len(titles))
    grid = fig.subplots(-(-len(titles) // across), across, squeeze=False, sharex=share_x, sharey=share_y).ravel()
    for panel, title in zip(grid, titles, strict=False):
        panel.set_title(clean(title))
    for panel in grid[len(titles) :]:
        panel.set_axis_off()
    return list(grid[: len(titles)])


def limits(values: Iterable[float], bounds: Iterable[float] = (), from_nothing: bool = False, log: bool = False) -> tuple[float, float]:
    """An axis that shows every value, and of the bounds of intervals what lies no farther out than the values are spread: one wide interval (two
    seeds have little else) must not press all values together. `from_nothing`: bars, which start at 0. `log`: for positive values on a log axis."""
    if log:
        low, high = limits([math.log10(v) for v in values], [math.log10(b) if b > 0 else -math.inf for b in bounds])
        return 10**low, 10**high
    values, bounds = [v for v in values if math.isfinite(v)], [b for b in bounds if not math.isnan(b)]
    low, high = min(values), max(values)
    if from_nothing:
        return 0.0, 1.04 * min(max([high, *bounds]), 1.35 * high) if high > 0 else 1.0
    reach = max(high - low, 0.02 * max(abs(high), abs(low))) or 1.0
    low, high = max(min([low, *bounds]), low - reach), min(max([high, *bounds]), high + reach)
    margin = 0.07 * (high - low) or 0.5 * reach
    return low - margin, high + margin


def whisker(panel: Any, at: float, low: float, high: float, across: bool = False, color: str = INK, cap: float = 3.0,
            within: tuple[float, float] = (-math.inf, math.inf), shift: float = 0.0) -> None:  # fmt: skip
    """An interval with caps: upright at x = at, or across at y = at, `shift` points to the right. What lies beyond `within` (see `limits`) is cut,
    and ends in an arrow."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return
    ends = [min(max(low, within[0]), within[1]), min(max(high, within[0]), within[1])]
    style: dict[str, Any] = {"color": color, "linewidth": 1.1, "zorder": 4, "transform": shifted(panel, shift)}
    panel.plot(*((ends, [at, at]) if across else ([at, at], ends)), **style)
    for end, whole, arrow in zip(ends, (low, high), ("<>" if across else "v^"), strict=True):
        cut = end != whole
        marker = arrow if cut else "|" if across else "_"
        size = 4.0 if cut else 2 * cap
        panel.plot(*(([end], [at]) if across else ([at], [end])), marker=marker, markersize=size, markeredgewidth=1.1, clip_on=False, **style)


def dots(panel: Any, x: Sequence[float], y: Sequence[float], color: str, shift: float = 0.0) -> None:
    """One ring a seed, drawn over bars and whiskers."""
    style: dict[str, Any] = {"color": color, "markeredgecolor": INK, "markeredgewidth": 0.7, "transform": shifted(panel, shift)}
    panel.plot(x, y, "o", markersize=4.2, zorder=5, **style)


def shifted(panel: Any, points: float) -> Any:
    """The panel's data coordinates moved so many points to the right: lines that meet at one x stand side by side."""
    from matplotlib.transforms import ScaledTranslation

    return panel.transData + ScaledTranslation(points / 72, 0, panel.figure.dpi_scale_trans) if points else panel.transData


def reference(panel: Any, value: float, name: str, i: int = 0, upright: bool = True, color: str = INK) -> None:
    """The i-th baseline of a panel: a dashed line across it at `value`, for the legend."""
    line = panel.axvline if upright else panel.axhline
    line(value, linestyle=BASELINES[i % len(BASELINES)], color=color, linewidth=1.2, zorder=3, label=clean(name))


def categories(panel: Any, names: Sequence[str], at: Iterable[float]) -> None:
    """Names down the left side at heights `at`, as `rows` leaves room for: an axis of names needs no other label."""
    panel.set_yticks(list(at), _named(names))
    panel.tick_params(axis="y", length=0, pad=6)


def rows(names: Sequence[str]) -> tuple[float, float]:
    """(height of a row, width of the names) in inches, so that no name of `categories` touches the next."""
    broken = [name.split("\n") for name in _named(names)]
    return max(0.3, 0.05 + 0.145 * max(map(len, broken))), 0.2 + 0.068 * max(len(line) for lines in broken for line in lines)


def _named(names: Sequence[str]) -> list[str]:
    """Names in lines of 18, or of 26 where some would need more than two lines."""
    narrow = ragged(names, 18, 4)
    return narrow if all(n.count("\n") < 2 for n in narrow) else ragged(names, 26)


def log_axis(panel: Any, axis: str, label: str, ticks: Sequence[float] | None = None, form: Any = None) -> None:
    """A logarithmic axis with its label and unit; ticks at the values themselves when given (thinned), else at 1 2 5, 1 3 or 1 of each decade."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    class Few(LogLocator):
        """As many round ticks as have room on a panel a phone shows."""

        def tick_values(self, vmin: float, vmax: float) -> Any:
            decades = math.log10(vmax / vmin) if 0 < vmin < vmax < math.inf else 1.0
            if decades >= 2.6:  # whole decades, every second or third where there are many
                return [10.0**k for k in range(math.floor(math.log10(vmin)), math.ceil(math.log10(vmax)) + 1) if k % math.ceil(decades / 4) == 0]
            self.set_params(subs=(1, 2, 5) if decades < 1.7 else (1, 3), numticks=7)
            return super().tick_values(vmin, vmax)

    getattr(panel, f"set_{axis}scale")("log")
    getattr(panel, f"set_{axis}label")(label)
    side = getattr(panel, f"{axis}axis")
    side.set_major_locator(Few() if ticks is None else FixedLocator(_apart(sorted(set(ticks)), form)))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(FuncFormatter(lambda v, _: (form or short)(v)))


def even_ticks(ticks: Iterable[float], least: float = 0.14) -> list[float]:
    """Ticks of a linear axis of which no two are nearer than a share of the axis, the first and last kept."""
    ticks = sorted(set(ticks))
    kept = ticks[:1]
    for tick in ticks[1:-1]:
        if min(tick - kept[-1], ticks[-1] - tick) >= least * (ticks[-1] - ticks[0]):
            kept.append(tick)
    return kept + ticks[-1:] if len(ticks) > 1 else kept


def _apart(ticks: Sequence[float], form: Any = None) -> list[float]:
    """Ticks of a log axis of which no two are nearer than their own words are long, as a share of a narrow panel's axis; the first and last kept."""
    if len(ticks) < 3 or ticks[0] <= 0:
        return list(ticks)
    whole, kept = math.log(ticks[-1] / ticks[0]), [ticks[0]]
    room = lambda a, b: 0.02 + 0.0175 * (len((form or short)(a)) + len((form or short)(b)))
    for tick in ticks[1:-1]:
        if all(abs(math.log(tick / other)) >= room(tick, other) * whole for other in (kept[-1], ticks[-1])):
            kept.append(tick)
    return [*kept, ticks[-1]]


def token_axis(panel: Any, axis: str, label: str) -> None:
    """A linear axis of counts, as 20K, 5M, 100B."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    side = getattr(panel, f"{axis}axis")
    getattr(panel, f"set_{axis}label")(label)
    side.set_major_locator(MaxNLocator(4))
    side.set_major_formatter(FuncFormatter(lambda v, _: short(v)))


def label_ends(panel: Any, ends: Sequence[tuple[float, float, str, str]], heading: str = "") -> None:
    """Names to the right of line ends (x, y, name, colour), joined to them by thin lines, below a heading. Call it last:
    the panel's height has to be known."""
    if not ends:
        return
    low, high = panel.get_ylim()
    panel.set_ylim(low, high)
    to_axes = lambda y: float((panel.transAxes.inverted().transform(panel.transData.transform((panel.get_xlim()[0], y))))[1])
    panel.figure.draw_without_rendering()  # lays the figure out
    points = max(30.0, 72 * panel.figure.get_size_inches()[1] * panel.get_position().height)
    order = sorted(ends, key=lambda e: e[1])
    heights = _moved([to_axes(y) for _, y, _, _ in order], 1.25 * SMALL / points)
    for (x, y, name, ink), height in zip(order, heights, strict=True):
        arrow = {"arrowstyle": "-", "color": ink, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 2, "relpos": (0, 0.5)}
        panel.annotate(clean(name), (x, y), xytext=(1.04, height), textcoords="axes fraction", va="center", ha="left", fontsize=SMALL,
                       color=INK, arrowprops=arrow, annotation_clip=False)  # fmt: skip
    if heading:
        top = max(1.02, heights[-1] + 1.25 * SMALL / points)
        panel.annotate(clean(heading), (1.04, top), xycoords="axes fraction", fontsize=SMALL, color=INK, ha="left", annotation_clip=False)


def _moved(heights: list[float], gap: float) -> list[float]:
    """Sorted heights moved apart to at least `gap`, as little as can be (pooling neighbours that collide about their common middle)."""
    pools: list[tuple[float, int]] = []  # (mean of height − rank × gap, how many)
    for rank, height in enumerate(heights):
        mean, n = height - rank * gap, 1
        while pools and pools[-1][0] > mean:
            before, m = pools.pop()
            mean, n = (mean * n + before * m) / (n + m), n + m
        pools.append((mean, n))
    flat = [mean for mean, n in pools for _ in range(n)]
    most = max(1.0 - gap * (len(heights) - 1), 0.0)
    return [min(max(mean, 0.0), most) + rank * gap for rank, mean in enumerate(flat)]


def legend(fig: Any, panels: Any, order: Sequence[str] | None = None, columns: int = 2) -> None:
    """One legend above the panels, each name once, in the given order or as drawn."""
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    names = list(found) if order is None else [n for n in dict.fromkeys(order) if n in found]
    if names:
        wrapped = ["\n".join(_lines(n, max(20, 56 // columns))) for n in names]
        fig.legend([found[n] for n in names], wrapped, loc="outside upper left", ncols=columns, handlelength=2.4, borderpad=0, columnspacing=1.2)


def ragged(names: Sequence[str], width: int = 18, lines: int = 3) -> list[str]:
    """Names broken at + _ - and spaces into at most `lines` lines of about `width` characters; what is longer ends in …"""
    out = []
    for name in names:
        broken = _lines(clean(name), width)
        out.append("\n".join(broken if len(broken) <= lines else [*broken[: lines - 1], broken[lines - 1][: width - 1] + "…"]))
    return out


def _lines(name: str, width: int) -> list[str]:
    """The name in lines of at most `width` characters; a piece that is longer by itself is cut."""
    lines, line = [], ""
    for piece in re.findall(r"[^+_\s-]*[+_\s-]?", name):
        for part in [piece[i : i + width] for i in range(0, len(piece), width)]:
            if line and len(line) + len(part.rstrip()) > width:
                lines.append(line.rstrip())
                line = ""
            line += part
    return [*lines, line] if line.strip() or not lines else lines


def short(value: float, _: Any = None) -> str:
    """A count as 950, 20K, 1.5M, 100B."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def power(value: float, _: Any = None) -> str:
    """A large or tiny number as 6×10¹⁸."""
    digits, _, exponent = f"{value:.2e}".partition("e")
    digits = digits.rstrip("0").rstrip(".")
    raised = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return raised if digits == "1" else f"{digits}×{raised}"


def number(value: float, _: Any = None) -> str:
    """A plain number with as many digits as tell it: 0.001, 0.35, 12, 1.5K."""
    return short(value) if abs(value) >= 1e4 else f"{value:.4g}"
