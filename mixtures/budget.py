"""Budgets: what each source is asked for, what it can give, and the refusal when the one is more than the other.

What comes in: a mixture. What goes out: a `Draft`: datasets opened and agreed on one tokenizer and one encoder, and per source the units that
its budget takes, in draw order. Only indexes are read. Budgets are exact fractions until the last step, where the largest remainders are
rounded up, so that whole numbers still add up to the total.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.draws import Passes, held_out_units
from mixtures.dual import read_both, two_for_all
from mixtures.mixture import Mixture, Source, largest_remainder, over_share, wanted
from mixtures.records_from import chosen, take
from mixtures.span import Specials
from mixtures.table import Table, read_table
from mixtures.units import Units, join_units, units
from pipelines.format.dataset import Dataset
from pipelines.format.document import exact
from pipelines.format.errors import BudgetError, RecipeError


@dataclass(frozen=True, slots=True, eq=False)
class Drafted:
    """One source: what it was asked for and what it gives. `epoch` and `stage` are per unit of `taken`."""

    name: str
    source: Source
    dataset: int
    target: int | None  # the dataset of images with loss, where that is another
    table: Table
    wanted: int
    available: int
    taken: Units
    epoch: NDArray[np.int16]
    stage: NDArray[np.int16]
    held: Units
    unfit: dict[str, int]

    @property
    def passes(self) -> int:
        """How often the most used record is used."""
        return int(self.epoch.max()) + 1 if len(self.epoch) else 0


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """A mixture whose budgets can be met."""

    mixture: Mixture
    datasets: list[Dataset]
    encoding: dict[str, Any]
    specials: Specials
    sources: list[Drafted]


def draft(mixture: Mixture, records_from: str | None = None) -> Draft:
    """Open, count and choose. Raises RecipeError where datasets disagree, BudgetError (exit 3) where a budget cannot be met.

    With `records_from`, a plan, each source takes that plan's records instead of a budget's worth, whatever they come to here.

    Sources are numbered in the order of their names, so that the order of lines in a YAML changes nothing.
    """
    sources = dict(sorted(mixture.sources.items()))
    paths = list(dict.fromkeys(p for s in sources.values() for p in s.paths))
    datasets = [Dataset.open(p) for p in paths]
    encoding = agreed_encoding(mixture, dict(zip(paths, datasets, strict=True)))
    specials = Specials.of(encoding)
    records_from = records_from or mixture.records_from
    passes: dict[str, Passes] = {}
    tables: dict[str, Table] = {}
    scale = exact(mixture.scale)
    for name, source in sources.items():
        read = [(datasets[paths.index(p)], mixture.held_out, source.where, source.captions is not None) for p in source.paths]
        tables[name] = read_both(*read) if source.dual else read_table(*read[0])
        pool = None if source.pool is None or records_from is not None else source.pool * scale
        passes[name] = Passes(tables[name], source, mixture.sequence_length, mixture.seed, mixture.count, pool)
    others = chosen(records_from) if records_from is not None else None
    given = {name: take(name, passes[name], others.get(name, {})) for name in sources} if others is not None else {}
    stages = [_held_by(given, mixture)] if others is not None else budgets(mixture, {name: p.holds for name, p in passes.items()})
    refuse_over_share(mixture, {name: sum(stage[name] for stage in stages) for name in sources})
    drafted, short = [], {}
    for name, source in sources.items():
        asked = [stage[name] for stage in stages]
        parts, reached = (given[name], sum(asked)) if given else passes[name].take(sum(asked))
        if reached < sum(asked):
            short[name] = (sum(asked), reached)
        epoch = np.repeat(np.arange(len(parts)), [len(p) for p in parts]).astype(np.int16)
        taken = join_units([passes[name].units(0)[:0], *parts])
        stage = _stage_of(taken.counted(mixture.count), asked)
        held = _held(tables[name], source, mixture)
        unfit = {**tables[name].dropped, **passes[name].unfit}
        (at, *other), available = map(paths.index, source.paths), passes[name].available
        target = other[0] if other else None
        drafted.append(Drafted(name, source, at, target, tables[name], sum(asked), available, taken, epoch, stage, held, unfit))
    if short:
        raise refusal(mixture, short, {d.name: d.available for d in drafted}, sum(d.wanted for d in drafted))
    return Draft(mixture, datasets, encoding, specials, drafted)


def _held_by(given: dict[str, list[Units]], mixture: Mixture) -> dict[str, int]:
    return {name: sum(int(part.counted(mixture.count).sum()) for part in parts) for name, parts in given.items()}


def _held(table: Table, source: Source, mixture: Mixture) -> Units:
    if mixture.held_out is None:
        return units(table, np.zeros(0, np.int64), source, mixture.sequence_length, 0, 0)[0]
    return held_out_units(table, source, mixture.sequence_length, mixture.held_out)


def budgets(mixture: Mixture, holds: dict[str, Callable[[Fraction], Fraction]]) -> list[dict[str, int]]:
    """Whole budgets by stage and source, in the unit that the mixture counts; without stages there is one.

    `holds` says what so many epochs of a source hold: passes differ a little where captions are drawn anew in each.
    """
    scale = exact(mixture.scale)
    if mixture.stages is not None:
        assert mixture.total is not None
        total, last, out = mixture.total * scale, Fraction(0), []
        for stage in mixture.stages:
            stretch = (exact(stage.until) - last) * total
            last = exact(stage.until)
            out.append(_whole({name: exact(stage.share.get(name, 0)) * stretch for name in mixture.sources}))
        return out
    exactly = {}
    for name, s in mixture.sources.items():
        if s.epochs is not None:  # a pool is scaled already
            exactly[name] = holds[name](exact(s.epochs) * (1 if s.pool is not None else scale))
        else:
            exactly[name] = wanted(s, mixture.total) * scale
    return [_whole(exactly)]


def _whole(exactly: dict[str, Fraction]) -> dict[str, int]:
    return dict(zip(exactly, largest_remainder(list(exactly.values())), strict=True))


def _stage_of(counted: NDArray[Any], asked: list[int]) -> NDArray[np.int16]:
    """The stage of each unit: where the middle of what it counts falls."""
    middle = np.cumsum(counted) - counted / 2
    return np.minimum(np.searchsorted(np.cumsum(asked), middle, side="right"), len(asked) - 1).astype(np.int16)


def agreed_encoding(mixture: Mixture, datasets: dict[str, Dataset]) -> dict[str, Any]:
    """The tokenizer and the encoder that all datasets of the mixture share: {text, image}, and `target` for images with loss where two are."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, source in sorted(mixture.sources.items()):
        for path, image in zip(source.paths, ("image", "target"), strict=False):
            encoding = datasets[path].encoding
            if encoding is None:
                raise RecipeError(
                    "a mixture takes encoded datasets",
                    where=f"sources.{name}: {path}",
                    found="a curated dataset",
                    next="encode it first: pipelines run encode -c …",
                )
            for part, kind in (("text", "text"), (image, "image")):
                if encoding.get(kind):
                    entry = (f"sources.{name} ({path})", encoding[kind])
                    _agree(found.setdefault(part, entry), entry, kind, "tokenizer" if kind == "text" else "image encoder")
    agreed = {part: entry for part, (_, entry) in found.items()}
    if "target" in agreed:
        two_for_all(mixture, datasets)
    return agreed


_IDENTITY = {"text": ("tokenizer_sha256", "vocab", "specials"), "image": ("encoder", "fingerprint", "width")}


def _agree(first: tuple[str, dict[str, Any]], entry: tuple[str, dict[str, Any]], part: str, what: str) -> None:
    for key in _IDENTITY[part]:
        a, b = first[1].get(key), entry[1].get(key)
        if a != b:
            raise RecipeError(
                f"two datasets of the mixture disagree on the {what}",
                where=f"{first[0]} and {entry[0]}",
                found=f"{key}: {a} and {b}",
                allowed="one for the whole mixture",
                next="encode one of them again with the other's recipe (tokens and latents are encoded apart)",
            )


def refuse_over_share(mixture: Mixture, asked: dict[str, int]) -> None:
    """BudgetError where a source comes to more than its `max_share` of all that is asked: known only now where budgets are epochs or another
    plan's records (a document that contradicts itself was refused when it was read)."""
    for name, (share, most) in over_share(mixture, {k: Fraction(n) for k, n in asked.items()}).items():
        if asked[name] - exact(mixture.sources[name].max_share or 1) * sum(asked.values()) <= 1:  # whole budgets are within one of what was meant
            continue
        raise BudgetError(
            f"source {name!r} would be more of the mixture than it may",
            where=f"sources.{name}.max_share ({mixture.sources[name].main})",
            found=share,
            allowed=most,
            next=f"ask less of {name}, more of the others, or raise sources.{name}.max_share",
        )


def refusal(mixture: Mixture, short: dict[str, tuple[int, int]], available: dict[str, int], total: int) -> BudgetError:
    """From {source: (asked, reachable)}: the source that limits most, the best reachable size, two ways out (after OLMo-core's error)."""
    name, (asked, reached) = min(short.items(), key=lambda item: Fraction(item[1][1], item[1][0]))
    source, unit = mixture.sources[name], "records" if mixture.count == "records" else "tokens"
    unit = unit if mixture.count in ("all", "records") else f"{mixture.count} tokens"
    share, has = Fraction(reached, asked), available[name]
    times = f"{source.max_epochs:g} epoch" + ("s" if source.max_epochs != 1 else "")
    first = f"set sources.{name}.max_epochs={math.ceil(asked / has)}" if has else f"add data to {source.main}"
    down = math.floor(exact(mixture.scale) * share * 10**6) / 10**6
    second = f"scale={down:g}" if source.pool is None else f"raise sources.{name}.pool"  # a pool shrinks with the scale
    return BudgetError(
        f"source {name!r} cannot give what the mixture asks of it",
        where=f"sources.{name} ({source.main})",
        found=f"{asked:,} {unit} wanted; {has:,} available (training split, pool and filters applied), {reached:,} in {times}",
        allowed=f"in these proportions at most {math.floor(share * total):,} {unit} in all ({float(share):.2%} of what is asked)",
        next=f"either {first}, or {second}; or ask less of {name}",
    )
