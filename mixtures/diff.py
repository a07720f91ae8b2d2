"""What two plans have in common: the table behind `pipelines run mix --diff A B`.

In: two plans, or mixture documents, which are planned into a scratch folder first. Out: one object: by source the records in both, in A alone, in B
alone, whether one's set holds the other's, the tokens they share, and whether shared records come in the same order; the held-out sets; the keys of
the mixtures and the datasets that differ; the first sequence that does.

Records are the same where they are the same record of the same snapshot. Where two sources have different datasets (another encoder, an older
snapshot) they are told by the first 64 bits of their ids, which the index has as a flat column. Tokens in both are counted record by record as the
smaller of the two, so a record drawn twice in one plan and once in the other counts once.

Plans are read a file at a time. What stays is 12 bytes for each record of a source's dataset and plan: 10 million records drawn by both take 0.3 GB.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from mixtures.plan_file import ROWS_PER_FILE, listed_files, row_path
from mixtures.used import record_numbers, row_files, shard_starts
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import load

_PLACES = ("name", "output", "engine")  # keys that say where, not what


@dataclass(slots=True)
class Drawn:
    """What a split of a plan draws of one source: per record of its dataset the tokens, and when it first comes (-1 = never)."""

    dataset: Dataset
    tokens: NDArray[np.uint32]
    first: NDArray[np.int64]
    spans: int = 0

    @property
    def records(self) -> NDArray[np.int64]:
        """Numbers of the records drawn."""
        return np.flatnonzero(self.first >= 0)


def diff(a: str, b: str) -> dict[str, Any]:
    """Compare two plans, or mixture YAMLs (told by their suffix)."""
    with tempfile.TemporaryDirectory(prefix="plans-") as scratch:
        return compare(*(_opened(path, storage.join(scratch, side)) for path, side in ((a, "a"), (b, "b"))))


def _opened(path: str, scratch: str) -> Plan:
    return Plan.open(make_plan(load(Mixture, path), scratch) if path.endswith((".yaml", ".yml")) else path)


def compare(a: Plan, b: Plan) -> dict[str, Any]:
    """The same for opened plans."""
    drawn = [{split: drawn_by(plan, split) for split in ("train", "heldout")} for plan in (a, b)]
    paired = pairs(a, b)
    sources = {name: beside(drawn[0]["train"].get(x or ""), drawn[1]["train"].get(y or "")) for name, (x, y) in paired.items()}
    held = {name: beside(drawn[0]["heldout"].get(x or ""), drawn[1]["heldout"].get(y or "")) for name, (x, y) in paired.items()}
    for name, (x, y) in paired.items():
        sources[name] |= {f"epochs_{k}": p.card["sources"][z]["epochs"] if z else None for k, p, z in (("a", a, x), ("b", b, y))}
    out: dict[str, Any] = {
        "same": a.card["fingerprint"] == b.card["fingerprint"],
        "a": _side(a),
        "b": _side(b),
        "sources": {name: row for name, row in sources.items() if row["a"] or row["b"]},
        "held_out": {name: row for name, row in held.items() if row["a"] or row["b"]},
        "mixture": keys(_said(a), _said(b)),
        "datasets": _datasets(a, b, paired),
        "first_difference": first_difference(a, b),
    }
    return {"title": f"A = {out['a']['path']}, B = {out['b']['path']}", "said": _sentences(out), **out}


def drawn_by(plan: Plan, split: str) -> dict[str, Drawn]:
    """Per source that a split holds, what it draws."""
    out: dict[str, Drawn] = {}
    starts = [shard_starts(d) for d in plan.datasets]
    for _, file in row_files(plan, split):
        held = (file.spans["stop"] - file.spans["start"]).astype(np.uint32)
        for i in np.unique(file.spans["source"]).tolist():
            name = plan.sources[i]
            number = plan.card["sources"][name]["dataset"]
            if name not in out:
                n = int(starts[number][-1])
                out[name] = Drawn(plan.datasets[number], np.zeros(n, np.uint32), np.full(n, -1, np.int64))
            d = out[name]
            mine = np.flatnonzero(file.spans["source"] == i)
            at = record_numbers(starts, {k: file.spans[k][mine] for k in ("dataset", "shard", "row")}, number)[1]
            np.add.at(d.tokens, at, held[mine])
            new = np.flatnonzero(d.first[at] < 0)[::-1]  # backwards: of several spans of a record the earliest is written last
            d.first[at[new]] = d.spans + new
            d.spans += len(at)
    return out


def pairs(a: Plan, b: Plan) -> dict[str, tuple[str | None, str | None]]:
    """Sources that are compared: those of one name, then those left over that draw from one dataset."""
    out: dict[str, tuple[str | None, str | None]] = {n: (n, n) for n in a.sources if n in b.sources}
    left = {n: a.datasets[a.card["sources"][n]["dataset"]].fingerprint for n in a.sources if n not in out}
    right = {n: b.datasets[b.card["sources"][n]["dataset"]].fingerprint for n in b.sources if n not in out}
    for n, print_ in left.items():
        other = next((m for m, p in right.items() if p == print_), None)
        out[n if other is None else f"{n} | {other}"] = (n, other)
        right.pop(other or "", None)
    return out | {n: (None, n) for n in right}


def beside(a: Drawn | None, b: Drawn | None) -> dict[str, Any]:
    """Records and tokens of one source in two plans."""
    x, y = (d.records if d is not None else np.zeros(0, np.int64) for d in (a, b))
    if a is not None and b is not None:
        i, j = (x, y) if a.dataset.fingerprint == b.dataset.fingerprint else (_h(a.dataset, x), _h(b.dataset, y))
        _, p, q = np.intersect1d(i, j, assume_unique=True, return_indices=True)
        p, q = x[p], y[q]
        ta, tb = (int(d.tokens[z].sum(dtype=np.int64)) for d, z in ((a, x), (b, y)))
        shared, order = int(np.minimum(a.tokens[p], b.tokens[q]).sum(dtype=np.int64)), _same_order(a.first[p], b.first[q])
    else:
        p, shared, order = np.zeros(0, np.int64), 0, None
        ta, tb = (int(d.tokens.sum(dtype=np.int64)) if d is not None else 0 for d in (a, b))
    counts = {"a": len(x), "b": len(y), "both": len(p), "only_a": len(x) - len(p), "only_b": len(y) - len(p)}
    relation = _relation(counts["only_a"], counts["only_b"], counts["both"])
    return {**counts, "sets": relation, "tokens_a": ta, "tokens_b": tb, "tokens_both": shared, "same_order": order}


def _relation(only_a: int, only_b: int, both: int) -> str:
    if not only_a and not only_b:
        return "equal" if both else "not drawn"
    if not both:
        return "nothing shared"
    return "overlap" if only_a and only_b else "B within A" if only_a else "A within B"


def _same_order(a: NDArray[np.int64], b: NDArray[np.int64]) -> float | None:
    """Of shared records that follow one another in A, the share that follow in B too (later, not at once): 1 is the same order, 0.5 is none."""
    if len(a) < 2:
        return None
    return float(np.mean(np.diff(b[np.argsort(a)]) > 0))


def _h(dataset: Dataset, records: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The first 64 bits of the ids of some records, whose numbers rise."""
    starts, out = shard_starts(dataset), []
    for i in range(len(dataset.shards)):
        rows = records[np.searchsorted(records, starts[i]) : np.searchsorted(records, starts[i + 1])] - starts[i]
        if len(rows):
            out.append(np.asarray(dataset.index(i, ["h"])["h"].combine_chunks(), np.uint64)[rows])
            dataset.release(i)
    return np.concatenate(out) if out else np.zeros(0, np.uint64)


def _side(plan: Plan) -> dict[str, Any]:
    c = plan.card
    facts = {"sequences": c["records"], "sequence_length": c["sequence_length"], "tokens": c["tokens"]["all"], "fill": c["fill"]}
    return {"path": plan.path, "name": c["name"], "fingerprint": c["fingerprint"], **facts}


def _said(plan: Plan) -> dict[str, Any]:
    """The mixture, without places; where datasets lie is told apart."""
    said = {k: v for k, v in plan.card["mixture"].items() if k not in _PLACES}
    return said | {"sources": {n: {k: v for k, v in s.items() if k != "dataset"} for n, s in said["sources"].items()}}


def keys(a: Any, b: Any, at: str = "") -> list[dict[str, Any]]:
    """Where two documents differ: [{key, a, b}], down to single values; a key that one of them has not is "—" there."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = [*a, *(k for k in b if k not in a)]
        return [row for k in names for row in keys(a.get(k, "—"), b.get(k, "—"), f"{at}.{k}" if at else k)]
    return [] if a == b else [{"key": at, "a": "null" if a is None else a, "b": "null" if b is None else b}]


def _datasets(a: Plan, b: Plan, paired: dict[str, tuple[str | None, str | None]]) -> list[dict[str, Any]]:
    def named(plan: Plan, source: str | None) -> dict[str, Any] | None:
        return plan.card["datasets"][plan.card["sources"][source]["dataset"]] if source else None

    out = []
    for name, (x, y) in paired.items():
        one, two = named(a, x), named(b, y)
        if (one or {}).get("fingerprint") != (two or {}).get("fingerprint"):
            sides = {k: f"{d['name']} {d['fingerprint'][:16]}" if d else "—" for k, d in (("a", one), ("b", two))}
            out.append({"source": name, **sides})
    return out


def first_difference(a: Plan, b: Plan) -> int | None:
    """The first training sequence that is not the same in both, None when there is none. Files of equal bytes are not opened."""
    digests = [[f["sha256"] for f in listed_files(p.path, p.card) if f["path"].startswith("sequences-")] for p in (a, b)]
    shorter = min(a.sequences(), b.sequences())
    odd = next((k for k, (x, y) in enumerate(zip(*digests, strict=False)) if x != y), None)
    if odd is not None:
        left, right = (p.file(row_path(p.path, "train", odd * ROWS_PER_FILE)) for p in (a, b))
        met = next((i for i in range(min(len(left), len(right))) if left.row(i) != right.row(i)), min(len(left), len(right)))
        return odd * ROWS_PER_FILE + met
    return None if a.sequences() == b.sequences() else shorter


def _sentences(out: dict[str, Any]) -> list[str]:
    """What a reader wants to know first."""
    at, n = out["first_difference"], (out["a"]["sequences"], out["b"]["sequences"])
    same = "All sequences are the same" if at is None else f"The first {at:,} sequences are the same" if at else "The very first sequence differs"
    said = [f"{same}; A has {n[0]:,}, B has {n[1]:,}."]
    within = {r: [k for k, s in out["sources"].items() if s["sets"] == r] for r in ("equal", "A within B", "B within A", "overlap", "nothing shared")}
    said += [f"Records {'are equal' if r == 'equal' else r}: {', '.join(names)}." for r, names in within.items() if names]
    odd = [k for k, s in out["held_out"].items() if s["sets"] != "equal"]
    said.append("The held-out records are the same." if not odd else f"The held-out records differ: {', '.join(odd)}.")
    if not out["mixture"] and not out["datasets"]:
        said.append("The mixtures and datasets are the same.")
    return said
