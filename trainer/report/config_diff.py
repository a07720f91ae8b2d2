"""Whether the arms differ in what they were meant to differ in: the machine's diff of resolved configs, and what all arms share.

In: the card's `diff` (trainer/ablate_diff.py): per arm the keys whose value is another than the first arm's, each declared by the document or not.
An undeclared one stands in red here, and in a sentence at the top of the page: an ablation with it has not shown what it says. Seeds of one arm that
differ in more than their seed have a table of their own, where every row is red.
"""

from __future__ import annotations

import json
from typing import Any

from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, table, tag

OPEN = ("mixture.held_out.", "mixture.sequence_length", "mixture.scale", "run.batch", "run.optim.", "run.loss.", "run.flow.", "data.")

WIDE = 8  # arms that still fit side by side,
LONG = 48  # if no value has more letters: a list of instruction data in seven columns leaves the paper


def undeclared(evidence: Evidence) -> list[tuple[str, str]]:
    """(arm, key) of every difference that the document does not declare; of one between an arm's seeds, ("arm, seed n", key)."""
    arms = (evidence.card.get("diff") or {}).get("arms") or {}
    who = lambda arm, row: f"{arm}, seed {row['seed']}" if "seed" in row else arm
    return [(who(arm, row), row["key"]) for arm, rows in arms.items() for row in rows if not row.get("declared")]


def warning(evidence: Evidence) -> Markup | None:
    """The sentence for the top of the page, or None when arms differ in their declared keys alone."""
    found = undeclared(evidence)
    if not found:
        return None
    named = ", ".join(dict.fromkeys(f"{key} ({arm})" for arm, key in found[:6])) + (", …" if len(found) > 6 else "")
    what = "Runs" if _of_seeds(evidence.card["diff"]) else "Arms"
    return tag("p", f"{what} differ in keys that the document does not declare: {named}. What follows may be the effect of those.", class_="bad")


def section(evidence: Evidence) -> Markup | None:
    """Differences by key and arm, then those between seeds of one arm, then what was held fixed."""
    diff = evidence.card.get("diff")
    if not diff:
        return None
    base, arms = diff["base"], {a: {r["key"]: r for r in rows if "seed" not in r} for a, rows in diff["arms"].items()}
    keys = sorted({k for rows in arms.values() for k in rows})
    others = [a for a in arms if a != base]
    body: list[Any] = []
    caption = "Keys of the resolved mixture, run and evaluation that differ."
    said = [_value(row[side]) for a in others for row in arms[a].values() for side in ("base", "here")]
    if keys and len(others) <= WIDE and max(map(len, said)) <= LONG:
        rows = [[key, _value(_base(arms, key)), *(_cell(arms[a].get(key)) for a in others)] for key in keys]
        body.append(table(["key", f"{base} (base)", *others], rows, caption, numeric_from=10**6))
    elif keys:  # a column an arm would be wider than any screen
        rows = [[a, key, _value(row["base"]), _cell(row)] for a in others for key, row in arms[a].items()]
        made = table(["arm", "key", f"{base} (base)", "here"], rows, caption, numeric_from=10**6)
        folded = tag("details", tag("summary", f"{len(rows)} differences in {len(others)} arms"), made)
        body.append(folded if len(others) > WIDE else made)
    if seeds := _of_seeds(diff):
        rows = [[a, str(r["seed"]), r["key"], _value(r["base"]), _cell(r)] for a, r in seeds]
        columns = ["arm", "seed", "key", "its first seed", "this seed"]
        body.append(table(columns, rows, "Seeds of one arm that differ in more than their seed.", numeric_from=10**6))
    verdict = f"All {len(keys)} keys that differ are declared by the arms." if keys else "No key differs between the arms."
    bad = undeclared(evidence)
    head = tag("p", f"{len(bad)} differences are declared by no arm; they stand in red.", class_="bad") if bad else tag("p", verdict)
    return tag("section", tag("h2", "What differs between arms, by machine"), head, *body, _held(evidence, diff), id="diff")


def _of_seeds(diff: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(arm, row) of the differences between an arm's seeds."""
    return [(arm, row) for arm, rows in diff["arms"].items() for row in rows if "seed" in row]


def _base(arms: dict[str, dict[str, Any]], key: str) -> Any:
    return next(rows[key]["base"] for rows in arms.values() if key in rows)


def _cell(row: dict[str, Any] | None) -> Markup | str:
    if row is None:
        return tag("span", "as base", class_="weak")
    return _value(row["here"]) if row.get("declared") else tag("span", _value(row["here"]), " (undeclared)", class_="bad")


def _value(value: Any) -> str:
    if value is None or isinstance(value, str):
        return "not set" if value is None else value
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)


def _held(evidence: Evidence, diff: dict[str, Any]) -> Markup | None:
    """What was held fixed: in a sentence, the keys that matter, and all of them folded."""
    held = diff.get("held") or {}
    if not held:
        return None
    shared = [k.removeprefix("data.") for k in held if k.startswith("data.") and held[k]]
    said = [f"seeds {', '.join(map(str, evidence.seeds))} (paired)", f"{len(held)} keys of mixture, run and evaluation"]
    said += [f"the data of {', '.join(shared)} (fingerprints below)"] if shared else []
    said += ["the held-out set"] if all(f"mixture.held_out.{k}" in held for k in ("fraction", "seed")) else []
    differs = any(row["key"].startswith("code.") for rows in diff["arms"].values() for row in rows)
    said += ["the code"] if "code.version" in held and not differs else []
    chosen = [[k, _value(v)] for k, v in held.items() if k.startswith(OPEN) and v is not None]
    every = [[k, _value(v)] for k, v in held.items() if not k.startswith(OPEN)]
    rest = table(["key", "value"], every, numeric_from=9) if every else None
    folded = tag("details", tag("summary", f"all other keys held fixed ({len(every)})"), rest) if every else None
    body = table(["key", "in all arms"], chosen, "Equal in all arms.", numeric_from=9) if chosen else None
    return tag("div", tag("h3", "Held fixed"), tag("p", "The same in all arms: ", "; ".join(said), "."), body, folded)
