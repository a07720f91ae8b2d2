"""matplotlib figures as inline SVG that follows the reader's colours: light, dark and print from one drawing, on a phone and on paper.

    drawing = draw(lambda fig: …, height=3, label="what it shows, in words", prefix="unique-on-the-page")
    figure(drawing, "caption, sentences")            → <figure>: the drawing in a box that scrolls, its caption beside or below it

What is here to draw with (`panel` is a matplotlib Axes; the marks are in `marks.py`, and importable from there):

    colour(i), look(i)           series colours, and with marker and dash, for lines that must be told apart without colour
    panels(fig, titles, columns) small multiples in reading order; `size(n, columns)` gives their width and height in inches
    whisker, dots, reference     an interval, the seeds, a dashed baseline; `shifted` beside one another
    limits                       an axis for values and intervals of which one may be very wide
    log_axis, token_axis         ticks that read 1K 2K 5K, 0.1 1 10 %, or 6×10¹⁸; a linear axis of tokens; `even_ticks` thins
    label_ends                   names at the ends of lines, moved apart so that none covers another
    categories, rows, ragged     long arm names as an axis, broken at + _ - and spaces; the room they need
    legend                       one legend above all panels, each name once
    short, power, number         12K · 6×10¹⁸ · the fewest digits that tell a value

Two placeholder colours, INK and FAINT, that no data uses become `currentColor` and a style-sheet variable in the SVG, so that axes and words take
the page's own colour; PAPER is the page's ground, for halos. COLOURS stand at 3:1 or better on white and on near-black, and the nearest two of
them remain 20 apart (CIE76) for full, protan and deutan sight: the price is that none is light or dark, so fills use `alpha`. Sizes are points of
which one is 4/3 px on the page and never less: no word is smaller than SMALL (11.3 px), and a drawing wider than the screen scrolls. So `width` is
at most WIDEST (fits A4) and, where it can be, PHONE (fits 390 px). Every axis has a label with its unit, or names (`categories`). Text stays text;
maths is never parsed, because labels come from data. Ids are prefixed per drawing: a page holds many. Same data, same bytes: no date, a fixed hash
salt. matplotlib is imported on first use, and nowhere else in the trainer.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

from trainer.report.marks import (  # noqa: F401 - the one import of who draws
    BASELINES,
    COLOURS,
    FAINT,
    INK,
    PAPER,
    SMALL,
    categories,
    colour,
    dots,
    even_ticks,
    label_ends,
    legend,
    limits,
    log_axis,
    look,
    number,
    panels,
    power,
    ragged,
    reference,
    rows,
    shifted,
    short,
    size,
    token_axis,
    whisker,
)
from trainer.report.markup import Markup, clean, tag

PHONE, WIDTH, WIDEST = 3.55, 4.4, 7.1  # inches of 96 px: 341, 422, 682
GROW = 1.3  # how much larger than drawn a drawing may be shown
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "headwater",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.edgecolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.35,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "legend.labelcolor": INK,
    "figure.facecolor": "none",
    "figure.constrained_layout.w_pad": 0.06,
    "figure.constrained_layout.h_pad": 0.05,
    "lines.linewidth": 1.5,
}


def draw(make: Any, width: float = WIDTH, height: float = 3.0, label: str = "", prefix: str = "f") -> Markup:
    """Call make(figure) on an empty figure of width × height inches and return it as an SVG element that scales with the page."""
    import matplotlib
    from matplotlib.figure import Figure

    assert width <= WIDEST, f"{width} in: wider than paper"
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that the layout font lacks is still shown by the browser's own
        figure = Figure(figsize=(width, height), layout="constrained")
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
    least = round(float(view[1].split()[2]) * 4 / 3)
    opening = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{view[1]}" role="img" aria-label="'
    return Markup(opening + tag("i", clean(label))[3:-4] + f'" style="width:100%;min-width:{least}px;max-width:{round(least * GROW)}px">' + inner)


def figure(svg: Markup, *caption: Any) -> Markup:
    """A drawing with its caption: beside it where there is room for both, else below it. A drawing wider than the screen scrolls by itself."""
    least, most = (int(n) for n in re.findall(r"m(?:in|ax)-width:(\d+)px", svg[:2000])[:2])
    box = tag("div", svg, class_="scroll", tabindex="0", style=f"flex:0 1 {most}px;min-width:min(100%,{least}px);margin:0")
    words = tag("figcaption", *caption, style="flex:1 1 230px;margin:0")
    return tag("figure", box, words, style="display:flex;flex-wrap:wrap;gap:4px 28px;align-items:flex-start")
