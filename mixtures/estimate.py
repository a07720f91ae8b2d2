"""What a mixture would come to, before anything is written: the tree that `--dry-run` prints.

Up to two million records the plan is made and packed in memory, so the figures are the plan's own. Beyond that the datasets' cards are asked,
which answers in a second for datasets of any size: the held-out share and the fill are then expectations, pairs with several captions count
all of them (an upper bound), and the title says so.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import Any

from mixtures import dual, latent_stats
from mixtures.budget import agreed_encoding, budgets, draft, refusal
from mixtures.mixture import Mixture, Source
from mixtures.rows import held_out_rows, train_rows
from mixtures.tally import Tally, describe
from pipelines.format.dataset import Dataset
from pipelines.format.document import exact
from pipelines.format.errors import BudgetError
from pipelines.format.estimate import Estimate

COUNTED = 2_000_000  # records up to which everything is counted
FILL = 0.98  # of rows packed by best fit; 99.9 % where texts fill the gaps
_COLUMNS = ("wanted", "taken", "available", "epochs", "records", "loss_tokens", "structure")


def estimate(mixture: Mixture) -> Estimate:
    """Raises what planning would raise: disagreeing datasets, impossible budgets, statistics of other images."""
    datasets = {p: Dataset.open(p) for s in mixture.sources.values() for p in s.paths}
    dual.settled(mixture.normalise, latent_stats.named_by(mixture), list(datasets.values()), agreed_encoding(mixture, datasets))
    if sum(int(d.card["records"]) for d in datasets.values()) > COUNTED:
        return _from_cards(mixture, datasets)
    drafted = draft(mixture)
    names = [d.name for d in drafted.sources]
    train, held = Tally(names), Tally(names)
    for tally, windows in ((train, train_rows(drafted)), (held, held_out_rows(drafted))):
        for _, spans in windows:
            tally.add(spans)
    facts = describe(drafted, train, held)
    sources = facts.pop("sources")
    table = [{"source": n, "data": s["data"], **{k: s[k] for k in _COLUMNS}} for n, s in sources.items()]
    return Estimate("plan, counted record by record", {"sequences": facts.pop("records"), **facts}, table, _warnings(sources))


def _warnings(sources: dict[str, Any]) -> list[str]:
    out = []
    for name, s in sources.items():
        out += [f"{name}: {n:,} records left out: {reason}" for reason, n in s["unfit"].items() if reason != "held_out"]
    return out


def _from_cards(mixture: Mixture, datasets: dict[str, Dataset]) -> Estimate:
    agreed_encoding(mixture, datasets)
    train_share = 1 - (exact(mixture.held_out.fraction) if mixture.held_out else Fraction(0))
    has = {n: _available(mixture, s, datasets[s.main].card, train_share) for n, s in mixture.sources.items()}
    stages = budgets(mixture, {n: partial(Fraction.__mul__, Fraction(has[n])) for n in has})
    table: list[dict[str, Any]] = []
    short, total = {}, dict.fromkeys(("text", "visual", "loss", "all"), 0)
    for name, source in sorted(mixture.sources.items()):
        asked, card = sum(stage[name] for stage in stages), datasets[source.main].card
        most = int(has[name] * exact(source.max_epochs))
        if asked > most:
            short[name] = (asked, most)
        whole = card["records"] if mixture.count == "records" else card["tokens"][mixture.count]
        share = Fraction(asked, max(whole, 1))  # of the dataset; more than 1 where it is repeated
        tokens = {k: int(share * n) for k, n in card["tokens"].items()}
        total = {k: n + tokens[k] for k, n in total.items()}
        used, image = int(share * card["records"]), (card["encoding"].get("image") or {}).get("tokens")
        row = {"source": name, "data": card["data"], "wanted": asked, "available": has[name], "epochs": round(asked / max(has[name], 1), 4)}
        row |= {"records": min(used, int(card["records"] * train_share)), "loss_tokens": tokens["loss"]}
        table.append(row | {"structure": 2 * used + 2 * (tokens["visual"] // image if image else 0)})
    if short:
        raise refusal(mixture, short, has, sum(r["wanted"] for r in table))
    structure = sum(r["structure"] for r in table)
    sequences = math.ceil((total["all"] + structure) / (mixture.sequence_length * FILL))
    facts = {"sequences": sequences, "sequence_length": mixture.sequence_length, "count": mixture.count, "tokens": total}
    said = [f"{n}: images with loss are counted as those of {s.main}" for n, s in sorted(mixture.sources.items()) if s.dual]
    return Estimate("plan, expected from the datasets' cards", facts | {"structure": structure, "fill": FILL}, table, said)


def _available(mixture: Mixture, source: Source, card: dict[str, Any], train_share: Fraction) -> int:
    """Tokens (or records) of the training split that the pool leaves, as expected from a card."""
    whole = card["records"] if mixture.count == "records" else card["tokens"][mixture.count]
    if not whole and (source.tokens or source.share):
        raise BudgetError(f"the dataset holds nothing that `count: {mixture.count}` counts", where=source.main, allowed="another `count`")
    have = int(whole * train_share)
    return have if source.pool is None else min(have, int(source.pool * exact(mixture.scale)))
