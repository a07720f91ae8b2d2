"""A plan as a web page: the mixture as a table with bars, what happens over the run, what it costs, and the first rows drawn to scale.

In: the path of a plan. Out: [(file name, HTML)], self-contained. Every text goes through `pipelines.format.page`, which escapes it. The figures over
the run need one pass over the rows; where these are gone the page has the card's figures alone.
"""

from __future__ import annotations

from typing import Any

from mixtures.counted import Counted, counted
from mixtures.drawn import costs, fill, hue, lengths, shares, swatch
from mixtures.layout import LATENT, TEXT, Layout, layout
from mixtures.plan import Plan
from mixtures.span import Row, Span
from pipelines.format.errors import HeadwaterError
from pipelines.format.page import Html, join, page, table, tag

ROWS_SHOWN = 48


def pages(path: str) -> list[tuple[str, str]]:
    """One page."""
    plan = Plan.open(path)
    card = plan.card
    try:
        c = counted(plan)
    except (HeadwaterError, OSError):
        c = None
    space = max(card["records"] * plan.sequence_length, 1)
    facts = [(k, card[k]) for k in ("records", "sequence_length", "count", "structure", "padding", "fill", "fingerprint")]
    facts.insert(2, ("payload tokens", card["tokens"]["all"]))
    parts = (("payload", card["tokens"]["all"]), ("structure", card["structure"]), ("padding", card["padding"]))
    facts.append(("of all positions", ", ".join(f"{n / space:.1%} {name}" for name, n in parts)))
    blocks = [
        table(("", ""), facts),
        tag("h2", "Sources"),
        _budgets(plan),
        tag("h3", "What is in it, in tokens"),
        _contents(plan, c),
        *(_over_the_run(plan, c) if c is not None and plan.sequences() else ()),
        *_held_out(plan),
    ]
    note = "A row is one packed sequence; a box is one document, dark below as far as it takes loss; grey is padding."
    drawn = [_drawn(plan, split) for split in ("train", "heldout")] if c is not None else []
    return [("index.html", page(f"Plan {card['name']}", join([*blocks, tag("p", note, class_="soft") if drawn else "", *drawn])))]


def _bar(share: float, colour: str) -> Html:
    return tag("span", class_="bar", style=f"width:{max(160 * share, 1 if share else 0):.1f}px;background:{colour}")


def _budgets(plan: Plan) -> Html:
    sources = plan.card["sources"]
    taken = max(sum(s["taken"] for s in sources.values()), 1)
    rows = []
    for i, name in enumerate(plan.sources):
        s = sources[name]
        share = s["taken"] / taken
        figures = [s[k] for k in ("wanted", "taken", "available", "epochs", "records")]
        rows.append([swatch(i), name, _bar(share, hue(i)), f"{share:.1%}", *figures])
    return table(("", "source", "share of the mixture", "", "wanted", "taken", "available", "epochs", "records"), rows)


def _contents(plan: Plan, c: Counted | None) -> Html:
    rows = []
    for i, name in enumerate(plan.sources):
        s = plan.card["sources"][name]
        t, total = s["tokens"], max(s["tokens"]["all"], 1)
        lost = s["continued"] if c is None else int(c.lost[i])
        share = t["loss"] / total
        row = [swatch(i), name, t["text"], t["visual"], t["loss"], _bar(share, hue(i)), f"{share:.1%}", s["structure"], s["spans"]]
        cut, drawn = c.cut(i) if c is not None else (0, 0)
        rows.append([*row, round(t["all"] / max(s["spans"], 1), 1), f"{lost / total:.2%}", f"{cut / drawn:.2%}" if drawn else ""])
    names = ("", "source", "text", "visual", "loss-bearing", "", "", "structure", "documents", "a document", "context lost", "records cut")
    return table(names, rows)


def _over_the_run(plan: Plan, c: Counted) -> list[Html]:
    stages = [s["until"] for s in plan.card["mixture"].get("stages") or []]
    soft = lambda said: tag("p", said, class_="soft")
    titled = lambda title, drawn: tag("div", tag("h3", title), drawn)
    return [
        tag("h2", "Over the run"),
        tag("h3", "Sources, as shares of payload tokens"),
        shares(c, stages),
        tag("h3", "Fill: positions that are not padding"),
        fill(c, stages),
        tag("div", titled("Predicted cost of a sequence", costs(c)), titled("Lengths of documents", lengths(c)), class_="side"),
        soft(
            "Cost is in sequence lengths: 1 is a sequence without attention, 2 one whole document. Where it spreads, steps of one batch differ. "
            "Context is lost where a document goes on in another sequence: its second part does not see the first."
        ),
    ]


def _held_out(plan: Plan) -> list[Html]:
    rows = []
    for i, name in enumerate(plan.sources):
        if held := plan.card["sources"][name].get("heldout"):
            rows.append([swatch(i), name, held["records"], *(held["tokens"][k] for k in ("all", "text", "visual", "loss"))])
    return [tag("h2", "Held out"), table(("", "source", "records", "tokens", "text", "visual", "loss-bearing"), rows)] if rows else []


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
        boxes.append(tag("rect", tag("title", words), x=at, y=0, width=max(width - 0.5, 0.5), height=height, fill=hue(span.source)))
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


def _what(span: Span) -> Any:
    if span.caption >= 0:
        return "image, then caption" if span.image_first else "caption, then image"
    return f"atoms {span.first} to {span.first + span.count - 1}, tokens {span.start:,} to {span.stop:,}, pass {span.epoch}"
