"""Pictures of a plan for its page: sources and fill over the run, costs, lengths of documents. Inline SVG, no script.

In: what was counted from the rows. Out: `Html`. The run is drawn from left to right in 200 stretches of equally many sequences (of the 1,000 that are
counted, so that a thin line is not noise); every stretch has a title that says its figures when pointed at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.counted import LENGTHS, STEPS, STRETCHES, Counted
from pipelines.format.page import Html, esc, join, tag

# Ten hues that stay apart for most colour-blind readers (after Okabe and Ito), then again.
HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#b8a800", "#7f7f7f", "#a6611a")
WIDTH, HEIGHT, LEFT, BELOW = 1000, 180, 46, 22
DRAWN = 200


def hue(i: int) -> str:
    """The colour of source number i."""
    return HUES[i % len(HUES)]


def swatch(i: int) -> Any:
    """The key to `hue`, before a source's name."""
    return tag("span", esc(" "), class_="bar", style=f"width:1rem;background:{hue(i)}")


def stretches(c: Counted) -> NDArray[np.int64]:
    """[n ≤ DRAWN, sources + 2] sums over neighbouring stretches; a run of fewer sequences has fewer."""
    n = int(min(DRAWN, c.plan.sequences()))
    edge = np.arange(n) * STRETCHES // n
    return np.add.reduceat(c.over, edge)


def shares(c: Counted, stages: list[float]) -> Html:
    """Sources one above the other, each as its share of a stretch's payload tokens, in the order of the table."""
    over = stretches(c)
    payload = over[:, :-2]
    share = payload / np.maximum(payload.sum(1, keepdims=True), 1)
    boxes, wide = [], (WIDTH - LEFT) / len(over)
    for k, row in enumerate(share):
        top = 0.0
        for i, x in enumerate(row.tolist()):
            if x > 0:
                said = f"{c.plan.sources[i]}: {x:.1%} of {int(payload[k].sum()):,} tokens, {_place(k, len(over))}"
                boxes.append(_box(LEFT + k * wide, HEIGHT * top, wide, HEIGHT * x, hue(i), said))
            top += x
    return _frame(boxes, [(0.0, "100 %"), (0.5, "50 %"), (1.0, "0 %")], stages, "sources over the run")


def fill(c: Counted, stages: list[float]) -> Html:
    """How full rows are, on a scale that begins below the emptiest stretch."""
    over = stretches(c)
    full = over[:, -2] / np.maximum(over[:, -1] * c.plan.sequence_length, 1)
    low = next(x for x in (0.99, 0.98, 0.95, 0.9, 0.8, 0.5, 0.0) if x <= full.min())
    wide = (WIDTH - LEFT) / len(over)
    boxes = []
    for k, x in enumerate(full.tolist()):
        tall = HEIGHT * (x - low) / (1 - low)
        boxes.append(_box(LEFT + k * wide, HEIGHT - tall, wide, tall, "var(--mark)", f"{x:.2%} full, {_place(k, len(over))}"))
    return _frame(boxes, [(0.0, "100 %"), (0.5, f"{50 + 50 * low:.4g} %"), (1.0, f"{100 * low:.4g} %")], stages, "fill over the run")


def costs(c: Counted) -> Html:
    """Sequences by predicted cost, from the least to the most that occurs, with mean and p99."""
    rows = c.cost.sum(0)
    met = np.flatnonzero(rows)
    first, last = int(met[0]), int(met[-1]) + 1
    bins = min(60, last - first)
    edge = first + np.arange(bins) * (last - first) // bins
    n = np.add.reduceat(rows[:last], edge)
    labels = [f"{2 * x / STEPS:.2f}" for x in edge.tolist()]
    note = f"mean {c.cost_mean():.3f}, p99 {c.cost_at(0.99):.3f}, most {c.cost_at(1.0):.3f}"
    return join([_bars(n, labels, ["var(--mark)"] * bins, "sequences"), tag("p", note, class_="soft")])


def lengths(c: Counted) -> Html:
    """Documents by payload tokens in powers of two, sources one above the other."""
    used = np.flatnonzero(c.lengths.sum(0))
    first, last = int(used[0]), min(int(used[-1]) + 1, LENGTHS)
    table = c.lengths[:, first:last]
    wide, top = (520 - LEFT) / table.shape[1], max(int(table.sum(0).max()), 1)
    boxes = []
    for k in range(table.shape[1]):
        at = float(HEIGHT)
        for i, n in enumerate(table[:, k].tolist()):
            tall = HEIGHT * n / top
            at -= tall
            if n:
                said = f"{c.plan.sources[i]}: {n:,} documents of {1 << (first + k):,} to {(2 << (first + k)) - 1:,} tokens"
                boxes.append(_box(LEFT + k * wide + 1, at, wide - 2, tall, hue(i), said))
        boxes.append(_word(LEFT + (k + 0.5) * wide, HEIGHT + 15, f"{1 << (first + k):,}", "middle"))
    return _frame(boxes, [(0.0, f"{top:,}"), (1.0, "0")], [], "documents by length", width=520, ends=False)


def _bars(n: NDArray[Any], labels: list[str], colours: list[str], what: str) -> Html:
    wide, top = (520 - LEFT) / len(n), max(int(n.max()), 1)
    boxes = []
    for k, x in enumerate(n.tolist()):
        tall = max(HEIGHT * x / top, 1 if x else 0)
        boxes.append(_box(LEFT + k * wide, HEIGHT - tall, max(wide - 0.5, 0.5), tall, colours[k], f"{x:,} {what} from {labels[k]}"))
        if k % max(1, -(-len(n) // 6)) == 0:
            boxes.append(_word(LEFT + (k + 0.5) * wide, HEIGHT + 15, labels[k], "middle"))
    return _frame(boxes, [(0.0, f"{top:,}"), (1.0, "0")], [], what, width=520, ends=False)


def _place(k: int, n: int) -> str:
    return f"{k / n:.1%} to {(k + 1) / n:.1%} of the run"


def _box(x: float, y: float, width: float, height: float, colour: str, said: str) -> Html:
    place = {"x": f"{x:.2f}", "y": f"{y:.2f}", "width": f"{width:.2f}", "height": f"{height:.2f}"}
    return tag("rect", tag("title", said), **place, fill=colour)


def _word(x: float, y: float, said: str, anchor: str) -> Html:
    return tag("text", said, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, font_size="11", fill="var(--soft)")


def _frame(boxes: list[Html], levels: list[tuple[float, str]], stages: list[float], name: str, width: int = WIDTH, ends: bool = True) -> Html:
    """The boxes with labels at the left, where stages end, and the run's ends below."""
    words = [_word(LEFT - 6, 4 + HEIGHT * at + (4 if at < 1 else 0), said, "end") for at, said in levels]
    for at in stages[:-1]:
        x = LEFT + (width - LEFT) * at
        words.append(tag("path", d=f"M{x:.1f} 0V{HEIGHT + 4}", stroke="currentColor", stroke_dasharray="3 3"))
        words.append(_word(x, HEIGHT + 15, f"{100 * at:.4g} %", "middle"))
    if ends:
        words += [_word(LEFT, HEIGHT + 15, "begin", "start"), _word(width, HEIGHT + 15, "end", "end")]
    scale = {"viewBox": f"0 0 {width} {HEIGHT + BELOW}", "width": "100%", "role": "img", "aria_label": name, "style": f"max-width:{width}px"}
    return tag("svg", *boxes, *words, **scale)
