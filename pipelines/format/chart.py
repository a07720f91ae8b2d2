"""Line charts as inline SVG for pages that may hold no script: a few lines, a grid, labels, colours that follow the reader's light or dark.

In: named lines of points and names of the axes. Out: `Html`. Lines differ by dashes as well as by colour, so that a print or a colour-blind
reader tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from pipelines.format.page import Html, join, tag

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 26, 40  # room for labels
DASHES = (None, "6 4", "2 3")
Points = Sequence[tuple[float, float]]


def short(x: float) -> str:
    """1,500,000 as 1.5M: what an axis has room for."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(x) >= size:
            return f"{x / size:.3g}{unit}"
    return f"{x:.3g}"


def lines(series: Mapping[str, Points], x: str, y: str, log: bool = True, mark: tuple[float, str] | None = None) -> Html:
    """One chart. The y axis begins at 0; x is logarithmic (then positive) or linear; `mark` is an upright line at an x, with its name."""
    points = [p for line in series.values() for p in line]
    if not points:
        return Html("")
    low, high = min(p[0] for p in points), max(p[0] for p in points)
    if mark is not None:
        low, high = min(low, mark[0]), max(high, mark[0])
    top = max(p[1] for p in points)
    top = top if top > 1e-9 else 1.0
    scale: Callable[[float], float] = math.log10 if log else float
    reach = scale(high) - scale(low) or 1.0

    def px(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (scale(value) - scale(low)) / reach

    def py(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    ticks = _decades(low, high) if log else [low + (high - low) * k / 4 for k in range(5)]
    levels = _levels(top)
    grid = [_rule(LEFT, py(v), WIDTH - RIGHT, py(v), "var(--line)") for v in levels]
    labels = [_text(LEFT - 6, py(v) + 4, short(v), "end") for v in levels]
    labels += [_text(px(v), HEIGHT - BOTTOM + 16, short(v), "middle") for v in ticks]
    labels += [_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x, "middle"), _text(4, 12, y, "start")]
    drawn = [_line([(px(a), py(b)) for a, b in line], dash) for line, dash in zip(series.values(), DASHES * len(series), strict=False)]
    if mark is not None:
        side = "end" if px(mark[0]) > WIDTH / 2 else "start"
        drawn += [_rule(px(mark[0]), TOP - 6, px(mark[0]), HEIGHT - BOTTOM, "currentColor", "1 3")]
        drawn += [_text(px(mark[0]) + (-5 if side == "end" else 5), HEIGHT - BOTTOM - 6, mark[1], side)]
    body = join([*grid, *labels, *drawn, *_key(list(series))])
    style = f"max-width:{WIDTH}px;width:100%;color:var(--ink)"
    return tag("svg", body, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{y} by {x}", style=style)


def _levels(top: float) -> list[float]:
    """Round heights from 0 to `top`, three to six of them."""
    unit = 10.0 ** math.floor(math.log10(top))
    step = next(unit * k for k in (0.2, 0.25, 0.5, 1.0, 2.0) if top / (unit * k) <= 6)
    return [step * k for k in range(int(top / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    decades = [10.0**k for k in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]
    return decades[:: max(1, -(-len(decades) // 8))] or [low, high]


def _key(names: list[str]) -> list[Html]:
    """Which line is which, right above the plot; one line needs no key."""
    out: list[Html] = []
    at = float(WIDTH - RIGHT)
    for name, dash in reversed(list(zip((n[:20] for n in names), DASHES * len(names), strict=False))):
        if len(names) > 1:
            at -= 6.6 * len(name) + 34
            out += [_line([(at, 9.0), (at + 22, 9.0)], dash), _text(at + 26, 12, name, "start")]
    return out


def _line(points: Points, dash: str | None) -> Html:
    where = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return tag("polyline", points=where, fill="none", stroke="var(--mark)", stroke_width="2", stroke_dasharray=dash)


def _rule(x1: float, y1: float, x2: float, y2: float, stroke: str, dash: str | None = None) -> Html:
    place = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    return tag("line", **place, stroke=stroke, stroke_dasharray=dash)


def _text(x: float, y: float, said: str, anchor: str) -> Html:
    return tag("text", said, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, font_size="11", fill="var(--soft)")
