"""Budgets: what each source is asked for, what it can give, and the refusal when the one is more than the other.

What comes in: a mixture. What goes out: a `Draft`: datasets opened and agreed on one tokenizer and one encoder, and per source the units that
its budget takes, which can be read back in the order of consumption. Only indexes are read. Budgets are exact fractions until the last step,
where the largest remainders are rounded up, so that whole numbers still add up to the total.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from mixtures.dual import two_for_all
from mixtures.mixture import Mixture, Source, largest_remainder, over_share, wanted
from mixtures.passes import Passes
from mixtures.records_from import Chosen, chosen, refuse_missing
from mixtures.span import Specials
from mixtures.spill import UNITS_IN_A_BUCKET, UNITS_IN_MEMORY, Spill, Taken, spill
from mixtures.sweep import MEMORY, Reading, sweep
from pipelines.format.dataset import Dataset
from pipelines.format.document import exact
from pipelines.format.errors import BudgetError, RecipeError


@dataclass(frozen=True, slots=True, eq=False)
class Drafted:
    """One source: what it was asked for and what it gives, as units that can be read back in order."""

    name: str
    source: Source
    dataset: int
    target: int | None  # the dataset of images with loss, where that is another
    data: str
    wanted: int
    available: int
    passes: int  # how often the most used record is used
    units: Spill
    unfit: dict[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """A mixture whose budgets can be met. Its spilled units live as long as it does."""

    mixture: Mixture
    datasets: list[Dataset]
    encoding: dict[str, Any]
    specials: Specials
    sources: list[Drafted]
    scratch: tempfile.TemporaryDirectory[str] | None


def draft(mixture: Mixture, records_from: str | None = None, job: Any = None, folder: str | None = None) -> Draft:
    """Open, count and choose. Raises RecipeError where datasets disagree, BudgetError (exit 3) where a budget cannot be met.

    With `records_from`, a plan, each source takes that plan's records instead of a budget's worth, whatever they come to here. With a `job` on Ray
    the sweeps over shards run there, and `folder` is where its workers leave their units.

    Sources are numbered in the order of their names, so that the order of lines in a YAML changes nothing.
    """
    sources = dict(sorted(mixture.sources.items()))
    paths = list(dict.fromkeys(p for s in sources.values() for p in s.paths))
    datasets = [Dataset.open(p) for p in paths]
    encoding = agreed_encoding(mixture, dict(zip(paths, datasets, strict=True)))
    specials = Specials.of(encoding)
    records_from = records_from or mixture.records_from
    others = chosen(records_from) if records_from is not None else None
    scale = exact(mixture.scale)
    many = sum(d.card["records"] for d in datasets) > UNITS_IN_MEMORY
    scratch = tempfile.TemporaryDirectory(prefix="headwater-plan-") if folder is None and many else None
    at = folder if folder is not None else scratch.name if scratch is not None else None
    passes: dict[str, Passes] = {}
    for number, (name, source) in enumerate(sources.items()):
        prints = tuple(datasets[paths.index(p)].fingerprint for p in source.paths)
        reading = Reading(number, source, prints, mixture.held_out, mixture.sequence_length, mixture.seed, mixture.count)
        hashes = None if others is None else {e: h for e, (h, _) in others.get(name, {}).items()}
        keep = (MEMORY if at is None else at) if _uses_most(mixture, source, datasets[paths.index(source.main)]) else None
        passes[name] = Passes(reading, job, None if source.pool is None or others is not None else source.pool * scale, hashes, keep)
    taken, asked = _taken(mixture, passes, others)
    drafted = []
    for name, source in sources.items():
        spilled = _spilled(passes[name], taken[name], at, job)
        available = passes[name].available if others is None else passes[name].first.holds
        first, *other = map(paths.index, source.paths)
        epochs = sum(not t.held for t in taken[name])
        entry = Drafted(name, source, first, other[0] if other else None, passes[name].first.data, 0, available, epochs, spilled, passes[name].unfit)
        drafted.append(replace(entry, wanted=asked[name] if others is None else spilled.of("counted")))
    if others is not None:
        refuse_over_share(mixture, {d.name: d.wanted for d in drafted})
    return Draft(mixture, datasets, encoding, specials, drafted, scratch)


def _uses_most(mixture: Mixture, source: Source, dataset: Dataset) -> bool:
    """Whether the budget is so large a part of the dataset that units found once are worth keeping, 90 bytes each, until they are taken."""
    if source.epochs is not None or mixture.stages is not None or (source.share is None and source.tokens is None):
        return True
    whole = dataset.card["records"] if mixture.count == "records" else dataset.card["tokens"][mixture.count]
    return wanted(source, mixture.total) * exact(mixture.scale) * 4 >= whole


def _taken(mixture: Mixture, passes: dict[str, Passes], others: dict[str, Chosen] | None) -> tuple[dict[str, list[Taken]], dict[str, int]]:
    """What each source gives to training and to the held-out split, and what it was asked for. BudgetError when it is more than there is."""
    taken: dict[str, list[Taken]] = {}
    asked: dict[str, int] = {}
    short: dict[str, tuple[int, int]] = {}
    stages = budgets(mixture, {name: p.holds for name, p in passes.items()}) if others is None else []
    for name, p in passes.items():
        if others is not None:
            taken[name], found = p.take_chosen({e: payload for e, (_, payload) in others.get(name, {}).items()})
            refuse_missing(name, p.reading.source.main, found)
        else:
            wanted_by_stage = [stage[name] for stage in stages]
            asked[name] = sum(wanted_by_stage)
            taken[name], reached = p.take(wanted_by_stage)
            if reached < asked[name]:
                short[name] = (asked[name], reached)
        taken[name] += [p.held] if p.held is not None else []
    if others is None:
        refuse_over_share(mixture, asked)
    if short:
        enough = {name: passes[name].enough(n) for name, (n, _) in short.items()}
        raise refusal(mixture, short, {name: p.available for name, p in passes.items()}, sum(asked.values()), enough)
    return taken, asked


def _spilled(passes: Passes, taken: list[Taken], folder: str | None, job: Any) -> Spill:
    units = passes.units(taken)
    buckets = 1 << max(units - 1, 0).bit_length() - min(UNITS_IN_A_BUCKET.bit_length() - 1, max(units - 1, 0).bit_length())
    out = Spill(buckets)
    given: dict[str, Any] = {"reading": passes.reading, "taken": taken, "count": passes.reading.count, "buckets": buckets, "folder": folder}
    found = []  # file names and edges; arrays of small plans
    for run, one in sweep(job, spill, passes.items, **given):
        passes.items[run]["kept"] = None
        found.append((run, one))
    for _, one in sorted(found, key=lambda f: f[0]):
        out.add(one)
    return out


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
            out.append(_whole({name: exact(stage.share.get(name, 0)) * stretch for name in sorted(mixture.sources)}))
        return out
    exactly = {}
    for name, s in sorted(mixture.sources.items()):  # equal remainders are rounded by name
        if s.epochs is not None:  # a pool is scaled already
            exactly[name] = holds[name](exact(s.epochs) * (1 if s.pool is not None else scale))
        else:
            exactly[name] = wanted(s, mixture.total) * scale
    return [_whole(exactly)]


def _whole(exactly: dict[str, Fraction]) -> dict[str, int]:
    return dict(zip(exactly, largest_remainder(list(exactly.values())), strict=True))


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


def refusal(
    mixture: Mixture, short: dict[str, tuple[int, int]], available: dict[str, int], total: int, enough: dict[str, int] | None = None
) -> BudgetError:
    """From {source: (asked, reachable)}: the source that limits most, the best reachable size, two ways out (after OLMo-core's error). `enough`:
    passes that hold what is asked, where they were counted and not all alike."""
    name, (asked, reached) = min(short.items(), key=lambda item: Fraction(item[1][1], item[1][0]))
    source, unit = mixture.sources[name], "records" if mixture.count == "records" else "tokens"
    unit = unit if mixture.count in ("all", "records") else f"{mixture.count} tokens"
    share, has = Fraction(reached, asked), available[name]
    times = f"{source.max_epochs:g} epoch" + ("s" if source.max_epochs != 1 else "")
    first = f"set sources.{name}.max_epochs={(enough or {}).get(name) or math.ceil(asked / has)}" if has else f"add data to {source.main}"
    down = math.floor(exact(mixture.scale) * share * 10**6) / 10**6
    second = f"scale={down:g}" if source.pool is None else f"raise sources.{name}.pool"  # a pool shrinks with the scale
    return BudgetError(
        f"source {name!r} cannot give what the mixture asks of it",
        where=f"sources.{name} ({source.main})",
        found=f"{asked:,} {unit} wanted; {has:,} available (training split, pool and filters applied), {reached:,} in {times}",
        allowed=f"in these proportions at most {math.floor(share * total):,} {unit} in all ({float(share):.2%} of what is asked)",
        next=f"either {first}, or {second}; or ask less of {name}",
    )
