"""What a mixture would come to, before anything is written: the tree that `--dry-run` prints.

Up to two million records the plan is made and packed in memory, so the figures are the plan's own. Beyond that they are expectations: of each
dataset a sample of its indexes is counted, or, where there are none or too many, its card is asked, which takes a second whatever the size
(`expected.py`). The title says which of the three it is, the warnings what could not be known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from mixtures import dual, latent_stats
from mixtures.budget import agreed_encoding, budgets, draft, refusal, refuse_over_share
from mixtures.expected import Expected, filled, of_card, of_sample
from mixtures.mixture import Mixture, Source
from mixtures.rows import held_out_rows, train_rows
from mixtures.tally import Tally, describe
from pipelines.format.dataset import Dataset
from pipelines.format.document import exact
from pipelines.format.errors import BudgetError
from pipelines.format.estimate import Estimate
from pipelines.format.manifest import read_card

COUNTED = 2_000_000  # records up to which everything is counted
_COLUMNS = ("wanted", "share", "taken", "available", "epochs", "records", "loss_tokens", "structure")


def estimate(mixture: Mixture) -> Estimate:
    """Raises what planning would raise: disagreeing datasets, impossible budgets, statistics of other images."""
    datasets = {p: Dataset.of_card(p) for s in mixture.sources.values() for p in s.paths}
    dual.settled(mixture.normalise, latent_stats.named_by(mixture), list(datasets.values()), agreed_encoding(mixture, datasets))
    if sum(int(d.card["records"]) for d in datasets.values()) > COUNTED:
        return _expected(mixture, datasets)
    drafted = draft(mixture)
    names = [d.name for d in drafted.sources]
    train, held = Tally(names), Tally(names)
    for tally, windows in ((train, train_rows(drafted)), (held, held_out_rows(drafted))):
        for _, spans in windows:
            tally.add(spans)
    facts = describe(drafted, train, held)
    sources = facts.pop("sources")
    whole = sum(s["wanted"] for s in sources.values())
    table = [{"source": n, "data": s["data"], **{k: (s | {"share": _share(s["wanted"], whole)})[k] for k in _COLUMNS}} for n, s in sources.items()]
    return Estimate("plan, counted record by record", {"sequences": facts.pop("records"), **facts}, table, _warnings(sources))


def _share(part: int, whole: int) -> float:
    return round(part / max(whole, 1), 6)


def _warnings(sources: dict[str, Any]) -> list[str]:
    out = []
    for name, s in sources.items():
        out += [f"{name}: {n:,} records left out: {reason}" for reason, n in s["unfit"].items() if reason != "held_out"]
        out += [f"{name}: nothing is left to train on"] if not s["available"] else []
    return out


# ---- expectations ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Side:
    """One source: its dataset, what a record of it is expected to come to, and what one pass over its pool holds."""

    name: str
    source: Source
    card: dict[str, Any]
    record: Expected
    records: float  # that may be trained on
    count: str
    pool: int | None

    def _held(self, a_record: float) -> int:
        whole = int(self.records * a_record)
        return whole if self.pool is None else min(whole, self.pool)

    @property
    def available(self) -> int:
        """One pass, as expected."""
        return self._held(self.record.counted(self.count))

    @property
    def reach(self) -> int:
        """What may be had at most."""
        return int(self._held(self.record.most(self.count)) * exact(self.source.max_epochs))

    def passes(self, asked: int) -> float:
        """Records that so much of the count comes to, each as often as it is used."""
        return asked / max(self.record.counted(self.count), 1e-12)

    def row(self, asked: int, total: int, row: int) -> dict[str, Any]:
        """Its line of the table."""
        used, has = self.passes(asked), self.available
        line: dict[str, Any] = {"source": self.name, "data": self.card["data"], "wanted": asked, "share": _share(asked, total)}
        distinct = min(used, has / max(self.record.counted(self.count), 1e-12))
        line |= {"available": has, "epochs": round(asked / max(has, 1), 6), "records": round(distinct)}
        line |= {"loss_tokens": round(used * self.record.loss), "structure": round(used * self.record.structure)}
        return line | {"fill_alone": round(filled([(self.record, used * self.record.units)], row), 4) if asked else None}


def _expected(mixture: Mixture, datasets: dict[str, Dataset]) -> Estimate:
    sides = {name: _side(mixture, name, source, [datasets[p] for p in source.paths]) for name, source in sorted(mixture.sources.items())}
    said = [f"{name}: {line}" for name, s in sides.items() for line in s.record.said]
    said += [f"{n}: images with loss are counted as those of {s.source.main}" for n, s in sides.items() if s.source.dual and s.record.slack == 1]
    if mixture.records_from is not None:
        stages = [_of_the_other(mixture.records_from, sides)]
        said.append(f"records are those of {mixture.records_from}, whatever they come to here; budgets are not looked at")
    else:
        stages = budgets(mixture, {n: partial(Fraction.__mul__, Fraction(s.available)) for n, s in sides.items()})
    asked = {name: sum(stage[name] for stage in stages) for name in sides}
    refuse_over_share(mixture, asked)
    if mixture.records_from is None:
        said += _refuse(mixture, sides, asked)
    table = [s.row(asked[n], sum(asked.values()), mixture.sequence_length) for n, s in sides.items()]
    facts = _facts(mixture, sides, asked) | ({"stages": _stages(mixture, stages)} if mixture.stages else {})
    sampled = {s.record.slack > 1 for s in sides.values()}
    how = "cards, and samples of their indexes" if len(sampled) == 2 else "indexes, some shards of each" if sampled == {True} else "cards"
    return Estimate(f"plan, expected from the datasets' {how}", facts, table, said)


def _side(mixture: Mixture, name: str, source: Source, datasets: list[Dataset]) -> _Side:
    card = datasets[0].card
    record = of_sample(datasets, source, mixture) or of_card(card, source, mixture.sequence_length)
    train = 1 - (exact(mixture.held_out.fraction) if mixture.held_out else Fraction(0))
    if record.counted(mixture.count) == 0 and (source.tokens or source.share):
        raise BudgetError(f"the dataset holds nothing that `count: {mixture.count}` counts", where=source.main, allowed="another `count`")
    pool = None if source.pool is None or mixture.records_from is not None else int(source.pool * exact(mixture.scale))
    return _Side(name, source, card, record, float(card["records"] * train) * record.usable, mixture.count, pool)


def _refuse(mixture: Mixture, sides: dict[str, _Side], asked: dict[str, int]) -> list[str]:
    """Refuse what cannot be; what may be and may not is said."""
    short = {n: (asked[n], s.reach) for n, s in sides.items() if asked[n] > s.reach}
    if short:
        raise refusal(mixture, short, {n: s.available for n, s in sides.items()}, sum(asked.values()))
    close = [n for n, s in sides.items() if asked[n] > s.available * exact(s.source.max_epochs)]
    return [f"{n}: {asked[n]:,} wanted, about {sides[n].available:,} expected a pass: whether that is enough only planning can tell" for n in close]


def _of_the_other(path: str, sides: dict[str, _Side]) -> dict[str, int]:
    """What the records of another plan count here: its text as it is, its images in tokens of this encoding."""
    card, out = read_card(path), {}
    theirs = (card["encoding"].get("image") or {}).get("tokens")
    for name, side in sides.items():
        ours = (side.card["encoding"].get("image") or {}).get("tokens")
        tokens = card["sources"].get(name, {}).get("tokens", {"text": 0, "visual": 0})
        payload = tokens["text"] + tokens["visual"] * (ours / theirs if ours and theirs else 1)
        out[name] = round(payload * side.record.counted(side.count) / max(side.record.payload, 1e-12))
    return out


def _facts(mixture: Mixture, sides: dict[str, _Side], asked: dict[str, int]) -> dict[str, Any]:
    row, used = mixture.sequence_length, {n: s.passes(asked[n]) for n, s in sides.items()}
    tokens = {k: round(sum(used[n] * getattr(s.record, k) for n, s in sides.items())) for k in ("text", "visual", "loss")}
    tokens["all"] = tokens["text"] + tokens["visual"]
    structure = round(sum(used[n] * s.record.structure for n, s in sides.items()))
    fill = filled([(s.record, used[n] * s.record.units) for n, s in sides.items()], row)
    sequences = math.ceil((tokens["all"] + structure) / (row * fill))
    facts = {"sequences": sequences, "sequence_length": row, "count": mixture.count, "tokens": tokens, "structure": structure}
    facts |= {"padding": max(sequences * row - tokens["all"] - structure, 0), "fill": round(fill, 4)}
    if mixture.held_out is None:
        return facts
    share, most = mixture.held_out.fraction, mixture.held_out.max_tokens
    documents = held = 0.0
    for s in sides.values():
        n = int(s.card["records"]) * share
        n = n if most is None else min(n, most / max(s.record.payload, 1e-12))
        documents += n
        held += n * s.record.payload
    return facts | {"heldout": {"documents": round(documents), "tokens": {"all": round(held)}}}


def _stages(mixture: Mixture, stages: list[dict[str, int]]) -> list[str]:
    ends = [f"{s.until:g}" for s in mixture.stages or []]
    return [f"until {end} of the run: " + ", ".join(f"{n} {k:,}" for n, k in stage.items() if k) for end, stage in zip(ends, stages, strict=True)]
