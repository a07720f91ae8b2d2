"""What an artifact says of itself: the object behind `stats`, `run --json` and the lineage in every page.

In: the path of any artifact. Out: plain values from its card and from its parents' cards, never from a listing of the folder. Keys that
do not apply to a kind are absent, so a script can ask `"tokens" in stats`.
"""

from __future__ import annotations

from typing import Any

from pipelines.format.errors import HeadwaterError, InputError
from pipelines.format.manifest import parent_path, read_card
from pipelines.terminal import count, figure, say, size, table

_KEYS = ["kind", "data", "name", "fingerprint", "records", "bytes", "tokens", "sources", "in", "written", "filtered", "rejected"]
# A plan's, an encoded dataset's, and what whole-dataset stages report.
_MORE = ["sequence_length", "count", "structure", "padding", "fill", "heldout", "encoding", "figures"]
QUICK = 8 << 20  # bytes of rows that are counted without being asked: half a second


def stats(path: str, deep: bool | None = None) -> dict[str, Any]:
    """The `stats --json` object of an artifact. `deep` lets the stage that made it count what the card does not say (`counted`); by default where
    that is done at once."""
    card = read_card(path)
    found = {key: card[key] for key in _KEYS if card.get(key) is not None}
    if isinstance(card.get("shards"), dict):
        found["shards"] = card["shards"]["n"]
    found |= {key: card[key] for key in _MORE if card.get(key) is not None}
    if deep or (deep is None and card["kind"] == "plan" and card.get("bytes", QUICK) < QUICK):
        found |= _counted(card, bool(deep))
    return found | {"lineage": lineage(path, card)}


def _counted(card: dict[str, Any], asked: bool) -> dict[str, Any]:
    """What the artifact's stage counts from its files. Not asked for, it must not hinder: a card can be read where its files are gone."""
    from pipelines import plugins

    names = [name for name in (card.get("code") or {}).get("stages") or {} if name in plugins.entries(plugins.STAGES)]
    stage = next((s for s in (plugins.find(plugins.STAGES, name) for name in names) if hasattr(s, "count")), None)
    if stage is None:
        if asked:
            raise InputError("nothing is counted beyond the card of such an artifact", where=card["path"], found=card["kind"])
        return {}
    try:
        return {"counted": stage.count(card["path"])}
    except (HeadwaterError, OSError):
        if asked:
            raise
        return {}


def lineage(path: str, card: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every ancestor once, nearest first: path (as seen from here), fingerprint, kind and name where its card can still be read.

    `found` is "missing" for a parent that is gone and "changed" for one whose card now has another fingerprint.
    """
    out: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    queue = _parents(path, card or read_card(path))
    while queue:
        place, fingerprint = queue.pop(0)
        if (place, fingerprint) in seen:
            continue
        seen.add((place, fingerprint))
        row: dict[str, Any] = {"path": place, "fingerprint": fingerprint}
        try:
            parent = read_card(place)
        except InputError:
            out.append(row | {"found": "missing"})
            continue
        same = parent.get("fingerprint") == fingerprint
        out.append(row | {"kind": parent.get("kind"), "name": parent.get("name"), "found": "yes" if same else "changed"})
        queue += _parents(place, parent)
    return out


def _parents(path: str, card: dict[str, Any]) -> list[tuple[str, str]]:
    return [(parent_path({"path": path}, p), p.get("fingerprint") or "") for p in card.get("parents") or []]


def show_stats(found: dict[str, Any]) -> None:
    """The same for people."""
    if found.get("kind") == "plan" and {"sequence_length", "count", "padding"} <= found.keys():
        from pipelines import show_plan

        show_plan.show(found)
        _show_lineage(found)
        return
    head = " · ".join(str(found[k]) for k in ("kind", "data", "name") if found.get(k))
    rows: list[list[Any]] = [[k, found[k]] for k in ("records", "shards") if k in found]
    if "bytes" in found:
        rows.append(["bytes", f"{count(found['bytes'])} ({size(found['bytes'])})"])
    rows += [[f"tokens: {k}", n] for k, n in (found.get("tokens") or {}).items()]
    rows += [[k, found[k]] for k in ("structure", "padding", "fill") if k in found]
    if "in" in found:
        rows += [["in", found["in"]], ["written", found.get("written", 0)]]
        rows += [[f"filtered: {reason}", n] for reason, n in sorted((found.get("filtered") or {}).items())]
        rows += [[f"rejected: {reason}", n] for reason, n in sorted((found.get("rejected") or {}).items())]
    table(head, ["", ""], rows)
    if found.get("sources"):
        _show_sources(found["sources"])
    for name, figures in (found.get("figures") or {}).items():
        _show_figures(name, found, figures)
    _show_lineage(found)


def _show_lineage(found: dict[str, Any]) -> None:
    for parent in found.get("lineage") or []:
        note = {"yes": "", "missing": "  (no longer there)", "changed": "  (has changed since)"}[parent["found"]]
        say(f"from {parent.get('kind') or '?'} {parent['path']} {parent['fingerprint'][:16]}{note}")


def _show_figures(name: str, found: dict[str, Any], figures: dict[str, Any]) -> None:
    if is_balance(figures):
        from pipelines import show_balance

        show_balance.show(name, found, figures)
    elif rows := side_by_side(figures):
        table(name, rows[0], rows[1:])
    else:
        for title, rows in tables(name, figures):
            table(title, rows[0], rows[1:])


def side_by_side(figures: dict[str, Any]) -> list[list[Any]]:
    """A header and a row for each, where every value is a mapping of the same keys to plain values; else nothing."""
    rows = list(figures.values())
    if not rows or not all(isinstance(r, dict) and r and r.keys() == rows[0].keys() for r in rows):
        return []
    if any(isinstance(v, dict | list) for r in rows for v in r.values()):
        return []
    return [["", *rows[0]], *([name, *(figure(v) for v in r.values())] for name, r in figures.items())]


def tables(name: str, figures: dict[str, Any]) -> list[tuple[str, list[list[Any]]]]:
    """(title, header and rows): what stands side by side as a table of its own, then the rest as one."""
    beside = {key: rows for key, value in figures.items() if isinstance(value, dict) and len(rows := side_by_side(value)) > 1}
    rest = [[label, figure(value)] for label, value in flat({k: v for k, v in figures.items() if k not in beside})]
    return [*((f"{name}: {key}", rows) for key, rows in beside.items()), *([(name, [["", ""], *rest])] if rest else [])]


def is_balance(figures: dict[str, Any]) -> bool:
    """Whether these are what a `metaclip` stage reports."""
    return {"texts_with_entries", "matches", "entries", "t"} <= figures.keys()


def flat(figures: dict[str, Any]) -> list[list[Any]]:
    """Nested figures as rows: `matches_a_text` of {mean, 0, 1} becomes "matches a text: mean" and so on."""
    rows: list[list[Any]] = []
    for key, value in figures.items():
        label = key.replace("_", " ") if key.isidentifier() else key  # names of files stay as they are
        rows += [[f"{label}: {k}", v] for k, v in flat(value)] if isinstance(value, dict) else [[label, value]]
    return rows


def _show_sources(sources: dict[str, dict[str, Any]]) -> None:
    flat = {
        name: {**{k: v for k, v in s.items() if not isinstance(v, dict)}, **{f"{k} tokens": v for k, v in (s.get("tokens") or {}).items()}}
        for name, s in sources.items()
    }
    keys = list(dict.fromkeys(key for row in flat.values() for key in row))
    if len(keys) > 8 and len(flat) < len(keys):  # a plan says a dozen things of each source: sources side by side are easier to compare
        table("by source", ["", *flat], [[key, *(figure(row.get(key)) for row in flat.values())] for key in keys])
    else:
        table("by source", ["source", *keys], [[name, *(figure(row.get(key)) for key in keys)] for name, row in flat.items()])
