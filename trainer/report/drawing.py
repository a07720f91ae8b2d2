"""matplotlib figures as inline SVG that follows the reader's colours: light, dark and print from one drawing.

A figure is drawn once with two placeholder colours, INK and FAINT, that no data uses; in the SVG they become `currentColor` and a style-sheet
variable, so that axes and words take the page's own colour. Text stays text (searchable, small); maths is never parsed, because labels come
from data. Ids are prefixed per figure: a page holds many. Same data, same bytes: no date, a fixed hash salt. matplotlib is imported here, on
first use, and nowhere else in the trainer. Figures are made about 440 px wide, so that on a 390 px screen their 9 pt words stay readable.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

from trainer.report.markup import Markup, clean, tag

INK, FAINT, PAPER = "#010203", "#040506", "#070809"
WIDTH = 4.4  # inches of 100 px
COLOURS = ("#3b82c4", "#d9822b", "#2f9e6e", "#9a6fc9", "#d0545f", "#2a9db0", "#a3812b", "#7c8795", "#c45ba0", "#6b8e23")
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "headwater",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 9,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "figure.facecolor": "none",
    "lines.linewidth": 1.4,
}


def colour(i: int) -> str:
    """The i-th series colour; chosen to stand on white and on near-black."""
    return COLOURS[i % len(COLOURS)]


def draw(make: Any, width: float = WIDTH, height: float = 3.0, label: str = "", prefix: str = "f") -> Markup:
    """Call make(figure) on an empty figure of width × height inches and return it as an SVG element that scales with the page."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that the layout font lacks is still shown by the browser's own
        figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
        make(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), label, prefix)


def _inline(svg: str, label: str, prefix: str) -> Markup:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = body.replace(INK, "currentColor").replace(FAINT, "var(--faint)").replace(PAPER, "var(--paper)")
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = body.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    view = re.search(r'viewBox="([^"]*)"', body)
    assert view, "matplotlib writes a viewBox"
    inner = body[body.index(">") + 1 :]
    width = round(float(view[1].split()[2]) * 4 / 3)
    opening = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{view[1]}" role="img" aria-label="'
    return Markup(opening + tag("i", clean(label))[3:-4] + f'" style="width:100%;max-width:{round(width * 1.45)}px">' + inner)


def figure(svg: Markup, *caption: Any) -> Markup:
    """A drawing with its caption."""
    return tag("figure", svg, tag("figcaption", *caption))


def legend(fig: Any, panels: Any, order: list[str], columns: int) -> None:
    """One legend above the panels, each name once, in the given order."""
    found = {name: handle for panel in panels for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    names = [n for n in order if n in found]
    fig.legend([found[n] for n in names], names, loc="outside upper left", ncols=columns, handlelength=1.6, borderpad=0)


def ragged(names: list[str], width: int = 18) -> list[str]:
    """Names broken at + and _ into lines of about `width` characters, for axis labels."""
    return [_broken(clean(name), width) for name in names]


def _broken(name: str, width: int) -> str:
    lines, line = [], ""
    for piece in re.findall(r"[^+_\s-]*[+_\s-]?", name):
        if line and len(line) + len(piece) > width:
            lines.append(line)
            line = ""
        line += piece
    return "\n".join([*lines, line][:3])
