"""The mixture: which sources, how many tokens of each, how their records are shown. A strict YAML document; the config is the object.

    sequence_length: 4096
    total: 100B                                  # optional: must equal the sum
    count: all                                   # what a budget counts: all | text | visual | loss | records
    scale: 1e-3                                  # shrinks every budget and pool, proportions kept; never model, batch or schedule
    held_out: {fraction: 2%, seed: 0, max_tokens: 5M}
    sources:
      vqa:   {dataset: out/vqa, tokens: 20B, pool: 20B, max_epochs: 4, turns: isolated}
      pairs: {dataset: out/pairs, tokens: 80B, image_first: 0.2, captions: {original: 1, recaption: 1}, max_share: 80%}
    normalise: channel                           # latents on reading: channel | position | none | {stats: PATH}
    records_from: out/plans/base                 # optional: the records of that plan, whatever they come to here (encoder arms)
    balance: 512                                 # optional: so many rows in a row are put in order of their cost
    output: out/plans/{name}

Exactly one of `tokens | share | epochs` per source; shares are of `total`. With `stages` the shares stand there, one set for each stretch of
the run. Every figure is kept as the decimal that was written (an exact fraction), so that budgets add up to the token. A mixture may
`extends: another.yaml` (pipelines/format/extends.py). docs/mixtures_yaml.md explains every key.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mixtures.span import SourceRules
from mixtures.where import Where
from pipelines.format.document import At, Document, Percent, Size, exact, named_place

__all__ = ["Count", "FixedStats", "HeldOut", "Mixture", "Source", "Stretch", "TwoDatasets", "Where", "largest_remainder", "wanted"]
Count = Literal["all", "text", "visual", "loss", "records"]


class HeldOut(Document):
    """Groups kept from training, the same for every arm and training seed, since their seed is apart. `max_tokens` is per source, unscaled."""

    fraction: Annotated[Percent, Field(ge=0, le=0.5)] = 0.02
    seed: int = 0
    max_tokens: Size | None = None


class TwoDatasets(Document):
    """The datasets of a dual encoder: same ids, same rows. An image without loss is shown as in `context`, one with loss as in `target`."""

    context: str
    target: str


class Source(Document):
    """One entry of `sources`: an encoded dataset (or two of a dual encoder), its budget, and how its records are shown."""

    dataset: str | TwoDatasets
    tokens: Size | None = None
    share: Percent | None = None
    epochs: float | None = None
    pool: Size | None = None  # only the first so many tokens of the draw order may be used
    max_epochs: float = 1
    max_share: Annotated[Percent, Field(gt=0, le=1)] | None = None  # of all that the mixture counts; more is refused
    image_first: Annotated[Percent, Field(ge=0, le=1)] = 0.5  # the share of pairs shown as image → text
    both: bool = False  # image → text trains the image too
    captions: dict[str, float] | None = None  # weights by name; default: all captions alike
    history: Literal["noised", "clean_copy"] = "noised"
    turns: Literal["chained", "isolated"] = "chained"
    loss: Literal["role", "text", "all"] = "role"
    where: Where = Where()

    @property
    def paths(self) -> tuple[str, ...]:
        """The datasets that it reads: one, or those for context and for target images."""
        return (self.dataset,) if isinstance(self.dataset, str) else (self.dataset.context, self.dataset.target)

    @property
    def main(self) -> str:
        """The dataset that spans point into."""
        return self.paths[0]

    @property
    def dual(self) -> bool:
        """Whether images with loss come from a dataset of their own."""
        return len(self.paths) == 2

    @property
    def rules(self) -> SourceRules:
        """What the trainer needs to lay spans of this source out."""
        return SourceRules(self.turns, self.history, self.loss, self.both)

    @model_serializer(mode="wrap")
    def _as_written_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without keys of later days where they are not set: plans that never heard of them keep their bytes and fingerprints."""
        said: dict[str, Any] = handler(self)
        return {k: v for k, v in said.items() if k != "max_share" or v is not None}

    @model_validator(mode="after")
    def _budget_is_possible(self) -> Source:
        for name in ("share", "epochs", "max_epochs"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} cannot be negative")
        if self.dual and self.history == "clean_copy":
            raise ValueError("`history: clean_copy` shows one frame in two ways; with two datasets, say `history: noised`")
        if self.max_epochs == 0:
            raise ValueError("max_epochs must be more than 0")
        if self.captions is not None and (min(self.captions.values(), default=0) < 0 or sum(self.captions.values()) <= 0):
            raise ValueError("captions needs weights ≥ 0, at least one of them more than 0")
        return self


class Stretch(Document):
    """A stage: until this share of the total, these shares of it."""

    until: Annotated[Percent, Field(gt=0, le=1)]
    share: dict[str, Percent]


class FixedStats(Document):
    """Statistics that are not this mixture's own: those of an artifact of `latent-stats` (imported from a file, say) or of an encoded dataset.
    `by` is `position` where the artifact has that, unless said."""

    stats: str
    by: Literal["channel", "position"] | None = None


class Mixture(Document):
    """A mixture document. `name` defaults to the file's stem, which `{name}` in `output` stands for.

    records_from: a plan whose records each source takes, instead of a budget's worth; the plan's fingerprint counts, not where it lies.
    balance: of so many consecutive rows (a training step, or several), those of alike cost stand next to one another: ranks that work side by
    side then wait little for each other, whatever their number. Which rows a step holds does not change when it divides the step.
    """

    name: str | None = None
    sequence_length: Annotated[int, Field(ge=8, le=1 << 20)]
    total: Size | None = None
    count: Count = "all"
    scale: Annotated[Percent, Field(gt=0)] = 1
    seed: int = 0
    held_out: HeldOut | None = None
    sources: dict[str, Source]
    stages: list[Stretch] | None = None
    normalise: Literal["channel", "position", "none"] | FixedStats = "channel"
    records_from: str | None = None
    balance: Annotated[int, Field(ge=2)] | None = None
    engine: Literal["ray", "local"] = "local"
    output: str | None = None
    materialize: bool | Literal["ours", "webdataset"] = Field(False, exclude=True)  # files beside the plan, which is the same plan without them

    @model_serializer(mode="wrap")
    def _as_written_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without keys of later days where they are as if not said: plans that never heard of them keep their bytes and fingerprints."""
        said: dict[str, Any] = handler(self)
        later = {"normalise": "channel", "records_from": None, "balance": None}
        return {k: v for k, v in said.items() if k not in later or v != later[k]}

    _named_place = model_validator(mode="before")(named_place)

    @model_validator(mode="after")
    def _adds_up(self) -> Mixture:
        if not self.sources:
            raise At(("sources",), "a mixture has at least one source")
        if self.stages is not None:
            if self.records_from is not None:
                raise At(("stages",), "with `records_from` the records are that plan's, in one stretch; `stages` have no say")
            self._stages_add_up()
            return self
        for name, s in self.sources.items():
            given = [k for k in ("tokens", "share", "epochs") if getattr(s, k) is not None]
            if len(given) != 1 and (given or self.records_from is None):
                hint = f"; `{given[0]}: null` takes one away that is extended" if given else ""
                raise At(("sources", name), f"exactly one of tokens, share, epochs (found {', '.join(given) or 'none'}){hint}")
            if s.share is not None and self.total is None:
                raise At(("sources", name, "share"), "a share needs `total`")
        if self.total is not None:
            if any(s.epochs is not None for s in self.sources.values()):
                raise At(("total",), "`total` cannot stand beside `epochs`: what an epoch holds is known only when records are counted")
            found = sum((wanted(s, self.total) for s in self.sources.values()), Fraction(0))
            if found != self.total:
                raise At(("total",), f"the sources add up to {_figure(found)}, and total is {self.total:,}")
        if self.records_from is None and all(s.epochs is None for s in self.sources.values()):
            self._shares_allow({name: wanted(s, self.total) for name, s in self.sources.items()})
        return self

    def _stages_add_up(self) -> None:
        assert self.stages is not None
        if self.total is None:
            raise At(("stages",), "`stages` needs `total`")
        ends = [exact(s.until) for s in self.stages]
        if not ends or any(b <= a for a, b in pairwise(ends)) or ends[-1] != 1:
            raise At(("stages",), "stages end at rising shares of the run, the last at 100%")
        for i, stage in enumerate(self.stages):
            unknown = sorted(set(stage.share) - set(self.sources))
            if unknown:
                raise At(("stages", i, "share", unknown[0]), f"no source {unknown[0]!r}; known: {', '.join(self.sources)}")
            if sum((exact(x) for x in stage.share.values()), Fraction(0)) != 1:
                raise At(("stages", i, "share"), "the shares must add up to 1 (write thirds as tokens instead)")
        for name, s in self.sources.items():
            if any(getattr(s, k) is not None for k in ("tokens", "share", "epochs")):
                raise At(("sources", name), "with `stages` the shares stand there, and nowhere else")
        lengths = [(end - begin) * self.total for begin, end in pairwise([Fraction(0), *ends])]
        by_stage = [{k: exact(x) * n for k, x in stage.share.items()} for stage, n in zip(self.stages, lengths, strict=True)]
        self._shares_allow({name: sum((asked.get(name, Fraction(0)) for asked in by_stage), Fraction(0)) for name in self.sources})

    def _shares_allow(self, asked: dict[str, Fraction]) -> None:
        """Refuse a document that asks more of a source than its own `max_share`."""
        for name, (share, most) in over_share(self, asked).items():
            raise At(("sources", name, "max_share"), f"{name} has {share} of the total, and max_share is {most}")


def over_share(mixture: Mixture, asked: Mapping[str, Fraction]) -> dict[str, tuple[str, str]]:
    """{source: (its share, its `max_share`)} of the sources that have more than they may of all that is asked."""
    total, out = sum(asked.values(), Fraction(0)), {}
    for name, source in sorted(mixture.sources.items()):
        if source.max_share is not None and asked[name] > exact(source.max_share) * total:
            share = f"{_figure(asked[name])} of {_figure(total)} ({float(asked[name] / total):.4%})"
            out[name] = (share, f"{float(source.max_share):.4%}")
    return out


def _figure(x: Fraction) -> str:
    return f"{int(x):,}" if x.denominator == 1 else f"{float(x):,.2f}"


def wanted(source: Source, total: int | None) -> Fraction:
    """The budget as written, before `scale`. `epochs` is counted where records are."""
    if source.share is not None:
        assert total is not None
        return exact(source.share) * total
    return Fraction(source.tokens or 0)


def largest_remainder(parts: list[Fraction]) -> list[int]:
    """Whole numbers that differ from `parts` by less than 1 each and add up to the floor of their sum (Hamilton's method).

    >>> largest_remainder([Fraction(10, 3)] * 3)
    [4, 3, 3]
    """
    floors = [int(p) for p in parts]
    missing = int(sum(parts, Fraction(0))) - sum(floors)
    by_remainder = sorted(range(len(parts)), key=lambda i: (floors[i] - parts[i], i))
    for i in by_remainder[:missing]:
        floors[i] += 1
    return floors
