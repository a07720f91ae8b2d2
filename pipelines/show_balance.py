"""How so many pairs became so few: what `metaclip` noted in a card, for a terminal and for a page.

In: the `stats` object of a dataset and the figures of one `metaclip` stage in it. Out: tables on stdout, or blocks of a page. The order is that
of the questions a person asks: how many went where (the funnel), what captions match, which entries were cut, and what another t would keep.
"""

from __future__ import annotations

from typing import Any

from pipelines.format import chart, page
from pipelines.format.page import Html, tag
from pipelines.terminal import count, table

Figures = dict[str, Any]


def funnel(found: dict[str, Any], figures: Figures) -> list[tuple[str, int]]:
    """(what is left, records), from what came in to what is written.

    How many are kept is told by the card's own count of drops, which two stages of this kind in one recipe would share; then it is left out.
    """
    seen, matched = figures["records"]["all"], figures["records"]["matched"]
    rows = [("came in", found["in"]), ("left by filters and stages before", seen), ("with an entry in a text", matched)]
    if sum(name.split(" ")[0] == "metaclip" for name in found.get("figures", {})) == 1:
        rows.append(("kept by the draws", matched - found.get("filtered", {}).get("metaclip.balanced", 0)))
    return [*rows, ("written", found["written"])]


def of_before(rows: list[tuple[str, int]]) -> list[list[Any]]:
    """Each row of a funnel with its share of the row above."""
    before = [rows[0][1], *(n for _, n in rows[:-1])]
    return [[name, n, percent(n, b) if i else ""] for i, ((name, n), b) in enumerate(zip(rows, before, strict=True))]


def percent(n: int, whole: int) -> str:
    """A share with as many digits as can matter."""
    return f"{100 * n / whole:.1f}\u202f%" if whole else ""


def limit(figures: Figures) -> str:
    """t as it is said in a sentence."""
    t = figures["t"]
    return ", ".join(f"{language} {count(n)}" for language, n in t.items()) if isinstance(t, dict) else count(t)


def lists(figures: Figures) -> list[list[Any]]:
    """Entries by what became of them: [what, entries, texts that match them, share of all matches]."""
    entries, matches = figures["entries"], figures["matches"]
    tail = matches["all"] - matches["head"]
    unseen = entries["all"] - entries["matched"] - entries["unreachable"]
    return [
        ["head: more than t texts, thinned", entries["head"], matches["head"], percent(matches["head"], matches["all"])],
        ["tail: up to t texts, kept whole", entries["matched"] - entries["head"], tail, percent(tail, matches["all"])],
        ["in no text", unseen, 0, ""],
        ["that no text can match", entries["unreachable"], 0, ""],
    ]


def bars(figures: Figures) -> dict[str, int]:
    """Texts by the number of entries they match: "0", "1", … "16+"."""
    return {f"{k.lstrip('0') or '0'}": n for k, n in figures["texts_with_entries"].items()}


def show(name: str, found: dict[str, Any], figures: Figures) -> None:
    """The figures for people, on stdout."""
    table(f"{name}: t = {limit(figures)}", ["records", "", "of those before"], of_before(funnel(found, figures)))
    table("entries", ["", "entries", "matches", "of all"], lists(figures))
    a_text, texts = figures["matches"]["a_text"], figures["texts"]["all"]
    matched = [[k, n, percent(n, texts)] for k, n in bars(figures).items()]
    table(f"entries a text matches, {a_text} in the mean", ["entries", "texts", "of all"], matched)
    if figures.get("commonest"):
        rows = [[e, n, percent(t, n)] for e, n, t in figures["commonest"]]
        table("the commonest entries", ["entry", "texts", "chance to keep one"], rows)
    if figures.get("records_by_t"):
        rows = [[t, n, percent(n, figures["records"]["matched"])] for t, n in figures["records_by_t"]]
        table("what another t would keep", ["t", "records", "of those that match"], rows)


def blocks(name: str, found: dict[str, Any], figures: Figures) -> list[Html]:
    """The same as a section of a page."""
    rows = funnel(found, figures)
    top = max(rows[0][1], 1)
    drawn = [[what, n, share, _bar(n, top)] for what, n, share in of_before(rows)]
    texts = figures["texts"]["all"]
    most = max(figures["texts_with_entries"].values(), default=1) or 1
    matched = [[k, n, percent(n, texts), _bar(n, most)] for k, n in bars(figures).items()]
    left = [
        tag("h3", "Entries"),
        page.table(["", "entries", "matches", "of all matches"], lists(figures)),
        tag("h3", f"Entries that a text matches: {figures['matches']['a_text']} in the mean"),
        page.table(["entries", "texts", "of all", ""], matched),
    ]
    return [
        tag("h2", f"How the pairs were balanced ({name})"),
        tag("p", _sentence(figures)),
        page.table(["records", "", "of those before", ""], drawn),
        tag("div", tag("div", *left), tag("div", *_commonest(figures)), class_="side"),
        tag("div", *_curves(figures), class_="side"),
    ]


def _sentence(figures: Figures) -> str:
    who = "any of its entries keeps it" if "drawn" not in figures["texts"] else "an entry of one of its texts, drawn from those that match, keeps it"
    return (
        f"Each text is matched to {count(figures['entries']['all'])} entries. An entry in up to t = {limit(figures)} texts keeps all of its records; "
        f"one in more keeps each with chance t / its count. A record stays if {who}."
    )


def _commonest(figures: Figures) -> list[Html]:
    if not figures.get("commonest"):
        return [tag("p", "No entry has more than t texts, so nothing was thinned.", class_="soft")]
    most = figures["commonest"][0][1]
    rows = [[e, n, percent(t, n), _bar(n, most)] for e, n, t in figures["commonest"]]
    return [tag("h3", "The commonest entries"), page.table(["entry", "texts", "chance to keep one", ""], rows)]


def _curves(figures: Figures) -> list[Html]:
    out: list[Html] = []
    if len(curve := figures.get("records_by_t") or []) > 1:
        t = figures["t"]
        at = next(iter(t.values())) if isinstance(t, dict) else t
        mark = (float(at), f"t = {count(at)}") if at <= 10 * curve[-1][0] else None  # far beyond the data it would squeeze the curve
        names = "t of the first list" if isinstance(t, dict) else "t"
        drawn = chart.lines({"records": [(float(a), float(b)) for a, b in curve]}, names, "records that stay", mark=mark)
        out.append(tag("div", tag("h3", "What another t would keep"), drawn))
    if len(ranks := figures.get("matches_by_rank") or []) > 1:
        series = {"all": [(float(n), float(b)) for n, b, _ in ranks], "passed by the draws": [(float(n), float(a)) for n, _, a in ranks]}
        drawn = chart.lines(series, "the n commonest entries", "matches they hold")
        out.append(tag("div", tag("h3", "How much the commonest entries hold"), drawn))
    return out


def _bar(n: int, whole: int) -> Html:
    return tag("span", class_="bar", style=f"width:{200 * n / whole:.0f}px")
