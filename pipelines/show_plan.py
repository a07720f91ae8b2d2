"""A plan's figures for people: the mixture as a tree, stage by stage and source by source. Behind `pipelines stats PLAN`.

In: the object that `stats` prints as JSON, of a plan. Out: text. Figures are the card's; what stands under `counted` was counted from the rows.
Whole numbers are exact up to ten million and have four digits and a unit beyond.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.terminal import clean, count, say, table

WIDTH = 20  # characters of a bar


def show(found: dict[str, Any]) -> None:
    """Print it."""
    sources = found["sources"]
    counted = found.get("counted") or {}
    say(clean(f"plan {found['name']} · {count(found['records'])} sequences of {count(found['sequence_length'])} · budgets count {found['count']}"))
    for name, said in _facts(found, counted):
        say(f"  {name:<10}{said}")
    say()
    total = {k: sum(s.get(k) or 0 for s in sources.values()) for k in ("wanted", "taken", "available", "records")}
    rows = [["mixture", bar(1.0), "100 %", *(big(total[k]) for k in ("wanted", "taken", "available")), "", big(total["records"])]]
    taken = max(total["taken"], 1)
    for branch, name, s in branches(sources):
        share = s["taken"] / taken
        figures = [big(s["wanted"]), big(s["taken"]), big(s["available"]), _epochs(s["epochs"]), big(s["records"])]
        rows.append([branch + name, bar(share), percent(share), *figures])
    table(f"budgets, in {_unit(found['count'])}", ["source", "", "share", "wanted", "taken", "available", "epochs", "records"], rows, range(2, 8))
    more = counted.get("sources") or {}
    held = [_holds("mixture", None, found, more), *(_holds(branch + name, name, found, more) for branch, name, _ in branches(sources))]
    table("what is in it, in tokens", ["source", *_HOLDS], held, range(1, 10))
    if len(counted.get("stages") or []) > 1:
        _stages(counted["stages"], found["count"])
    if out := {n: s for n, s in sources.items() if s.get("heldout")}:
        kinds = ("all", "text", "visual", "loss")
        rows = [[b + n, big(s["heldout"]["records"]), *(big(s["heldout"]["tokens"][k]) for k in kinds)] for b, n, s in branches(out)]
        table("held out, never trained on", ["source", "records", "tokens", "text", "visual", "loss"], rows, range(1, 6))
    lost = [[n, reason.replace("_", " "), big(k)] for n, s in sources.items() for reason, k in (s.get("unfit") or {}).items() if k]
    lost = [row for row in lost if row[1] != "held out" or row[2] != big((sources[row[0]].get("heldout") or {}).get("records"))]
    if lost:
        table("records left out of training", ["source", "why", "records"], lost, (2,))
    if not counted:
        say("sequences by source, stages, cost and what cutting loses are counted from the rows: --deep")


_HOLDS = ("text", "visual", "loss-bearing", "structure", "documents", "in sequences", "a document", "context lost", "records cut")


def _holds(label: str, name: str | None, found: dict[str, Any], more: dict[str, Any]) -> list[str]:
    """One line of the table of contents: of a source, or of the mixture."""
    sources = found["sources"]
    mine = [sources[name]] if name is not None else list(sources.values())
    tokens = {k: sum(s["tokens"][k] for s in mine) for k in ("text", "visual", "loss", "all")}
    spans = sum(s["spans"] for s in mine)
    deep = [more[n] for n in ([name] if name is not None else sources) if n in more]
    drawn, cut = (sum(d[k] for d in deep) for k in ("drawn", "cut"))
    lost = sum(d["lost"] for d in deep) if deep else sum(s["continued"] for s in mine)
    row = [label, big(tokens["text"]), big(tokens["visual"]), _of_all(tokens)]
    row += [big(sum(s["structure"] for s in mine)), big(spans), big(deep[0]["sequences"]) if deep and name else ""]
    return [*row, f"{tokens['all'] / max(spans, 1):,.1f}", percent(lost / max(tokens["all"], 1)), percent(cut / drawn) if drawn else ""]


def _stages(stages: list[dict[str, Any]], unit: str) -> None:
    rows = []
    for k, stage in enumerate(stages):
        cost = f"{stage['cost']['mean']:.3f}, {stage['cost']['p99']:.3f}"
        begin = stages[k - 1]["until"] if k else 0.0
        head = f"stage {k + 1}: {percent(begin)} to {percent(stage['until'])}"
        rows.append([head, bar(1.0), "100 %", "", big(stage["tokens"]), big(stage["sequences"]), f"{100 * stage['fill']:.2f} %", cost])
        for branch, name, s in branches(stage["sources"]):
            share = s["tokens"] / max(stage["tokens"], 1)
            rows.append([branch + name, bar(share), percent(share), big(round(s["wanted"])), big(s["tokens"]), "", "", ""])
    table("by stage", ["", "", "share", f"wanted ({_unit(unit)})", "tokens", "sequences", "fill", "cost: mean, p99"], rows, range(2, 8))


def _facts(found: dict[str, Any], counted: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The mixture's own lines above the tables."""
    t, held = found["tokens"], found.get("heldout") or {}
    space = found["records"] * found["sequence_length"]
    yield "tokens", f"{big(t['all'])}: text {big(t['text'])}, visual {big(t['visual'])}; loss on {_of_all(t)}"
    parts = (("payload", t["all"]), ("structure", found["structure"]), ("padding", found["padding"]))
    yield "positions", f"{big(space)}: " + ", ".join(f"{k} {percent(n / max(space, 1))}" for k, n in parts)
    if held.get("records"):
        yield "held out", f"{big(held['tokens']['all'])} tokens in {big(held['records'])} sequences of their own"
    if cost := counted.get("cost"):
        said = ", ".join(f"{k} {cost[k]:.3f}" for k in ("mean", "p99", "max"))
        yield "cost", f"of a sequence, predicted, in sequence lengths: {said} (1 without attention, 2 where one document fills it)"


def branches(sources: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(branch of the tree, name, facts) of each source."""
    for i, (name, facts) in enumerate(sources.items()):
        yield ("└─ " if i + 1 == len(sources) else "├─ "), name, facts


def bar(share: float) -> str:
    """A share as a bar of eighths of a character; anything above nothing is seen."""
    eighths = max(round(share * WIDTH * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")


def percent(share: float) -> str:
    """A share in per cent: two digits that mean something, and never 0 for what is more."""
    x = 100 * share
    if 0 < x < 0.01:
        return "< 0.01 %"
    return f"{x:.0f} %" if x in (0, 100) else f"{x:.2f} %" if x < 10 or x > 99 else f"{x:.1f} %"


def big(n: Any) -> str:
    """A whole number, exact where a person can read it."""
    if n is None:
        return ""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6)):
        if abs(n) >= max(size, 10**7):
            return f"{n / size:,.4g} {unit}" if n / size < 1000 else f"{n / size:,.0f} {unit}"
    return count(int(n))


def _of_all(tokens: dict[str, int]) -> str:
    """Loss-bearing tokens and their share."""
    return f"{big(tokens['loss'])} ({percent(tokens['loss'] / max(tokens['all'], 1))})"


def _epochs(x: float) -> str:
    return f"{x:.4g}" if x >= 0.001 or not x else "< 0.001"


def _unit(unit: str) -> str:
    return {"all": "tokens", "records": "records"}.get(unit, f"{unit} tokens")
