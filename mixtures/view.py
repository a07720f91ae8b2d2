"""A plan as a web page: what each source gives, and the first rows drawn to scale, spans coloured by source.

In: the path of a plan. Out: [(file name, HTML)], self-contained. Every text goes through `pipelines.format.page`, which escapes it.
"""

from __future__ import annotations

from typing import Any

from mixtures.layout import LATENT, TEXT, Layout, layout
from mixtures.plan import Plan
from mixtures.span import Row, Span
from pipelines.format.page import Html, esc, join, page, table, tag

ROWS_SHOWN = 48
# Ten hues that stay apart for most colour-blind readers (after Okabe and Ito), then again with lower strength.
_HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#b8a800", "#7f7f7f", "#a6611a")


def pages(path: str) -> list[tuple[str, str]]:
    """One page: the card's table and the first rows of both splits."""
    plan = Plan.open(path)
    card = plan.card
    facts = [(k, card[k]) for k in ("records", "sequence_length", "count", "structure", "padding", "fill", "fingerprint")]
    columns = ("wanted", "taken", "available", "epochs", "records", "spans", "loss_tokens", "structure", "continued")
    rows = [[_swatch(i), name, *(card["sources"][name][c] for c in columns)] for i, name in enumerate(plan.sources)]
    blocks = [
        table(("", ""), facts),
        tag("h2", "Sources"),
        table(("", "source", *columns), rows),
        tag("p", "A row is one packed sequence; a box is one document, dark below as far as it takes loss; grey is padding.", class_="soft"),
        *(_drawn(plan, split) for split in ("train", "heldout")),
    ]
    return [("index.html", page(f"Plan {card['name']}", join(blocks)))]


def _drawn(plan: Plan, split: str) -> Html:
    n = plan.sequences(split)
    if not n:
        return Html("")
    shown = [_line(plan, plan.row(i, split)) for i in range(min(n, ROWS_SHOWN))]
    return join([tag("h2", f"{split}: the first {len(shown)} of {n:,} rows"), *shown])


def _line(plan: Plan, row: Row) -> Html:
    height, boxes, at = 14, [], 0
    for span in row.spans:
        laid = layout(span, plan.record(span), plan.rules(span.source), plan.specials)
        width = len(laid)
        words = f"{plan.sources[span.source]}: {_what(span)}, {laid.payload:,} payload + {width - laid.payload:,}"
        colour = _HUES[span.source % len(_HUES)]
        boxes.append(tag("rect", tag("title", words), x=at, y=0, width=max(width - 0.5, 0.5), height=height, fill=colour))
        share = _trained(laid) / max(laid.payload, 1)
        boxes.append(tag("rect", x=at, y=height - 3, width=width * share, height=3, **{"fill-opacity": "0.45"}))
        at += width
    scale = {"viewBox": f"0 0 {plan.sequence_length} {height}", "preserveAspectRatio": "none", "width": "100%", "height": str(height)}
    back = tag("rect", x=0, y=0, width=plan.sequence_length, height=height, fill="#999", **{"fill-opacity": "0.25"})
    return tag("div", tag("svg", back, *boxes, **scale), style="margin:2px 0;line-height:0")


def _trained(laid: Layout) -> int:
    """Payload positions that take loss."""
    latents = laid.image_loss[laid.image[laid.kind == LATENT]]
    return int((laid.is_target & (laid.kind == TEXT)).sum() + latents.sum())


def _what(span: Span) -> str:
    if span.caption >= 0:
        return "image, then caption" if span.image_first else "caption, then image"
    return f"atoms {span.first} to {span.first + span.count - 1}, tokens {span.start:,} to {span.stop:,}, pass {span.epoch}"


def _swatch(i: int) -> Any:
    return tag("span", esc(" "), class_="bar", style=f"width:1rem;background:{_HUES[i % len(_HUES)]}")
