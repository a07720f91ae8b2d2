"""The mixture: which sources, how many tokens of each, how their records are shown. A strict YAML document; the config is the object.

    sequence_length: 4096
    total: 100B                                  # optional: must equal the sum
    count: all                                   # what a budget counts: all | text | visual | loss | records
    scale: 1e-3                                  # shrinks every budget and pool, proportions kept; never model, batch or schedule
    held_out: {fraction: 2%, seed: 0, max_tokens: 5M}
    sources:
      vqa:   {dataset: out/vqa, tokens: 20B, pool: 20B, max_epochs: 4, turns: isolated}
      pairs: {dataset: out/pairs, tokens: 80B, image_first: 0.2, captions: {original: 1, recaption: 1}}
    normalise: channel                           # latents on reading: channel | position | none | {stats: PATH}
    output: out/plans/example

Exactly one of `tokens | share | epochs` per source; shares are of `total`. With `stages` the shares stand there, one set for each stretch of
the run. Every figure is kept as the decimal that was written (an exact fraction), so that budgets add up to the token.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mixtures.span import SourceRules
from pipelines.format.document import Document, Percent, Size, exact

Count = Literal["all", "text", "visual", "loss", "records"]


class HeldOut(Document):
    """Groups kept from training, the same for every arm and training seed, since their seed is apart. `max_tokens` is per source, unscaled."""

    fraction: Annotated[Percent, Field(ge=0, le=0.5)] = 0.02
    seed: int = 0
    max_tokens: Size | None = None


class Bound(Document):
    """What a score must lie within, ends included."""

    min: float | None = None
    max: float | None = None


class Where(Document):
    """Which records may be trained on. A record without the score is left out."""

    scores: dict[str, Bound] = {}


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
    """A mixture document. `name` defaults to the file's stem."""

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
    engine: Literal["ray", "local"] = "local"
    output: str | None = None
    materialize: bool | Literal["ours", "webdataset"] = Field(False, exclude=True)  # files beside the plan, which is the same plan without them

    @model_serializer(mode="wrap")
    def _as_written_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `normalise` where it is the default: plans that never heard of it keep their bytes and fingerprints."""
        said: dict[str, Any] = handler(self)
        return {k: v for k, v in said.items() if k != "normalise" or v != "channel"}

    @model_validator(mode="after")
    def _adds_up(self) -> Mixture:
        if not self.sources:
            raise ValueError("a mixture has at least one source")
        if self.stages is not None:
            self._stages_add_up()
            return self
        for name, s in self.sources.items():
            given = [k for k in ("tokens", "share", "epochs") if getattr(s, k) is not None]
            if len(given) != 1:
                raise ValueError(f"sources.{name}: exactly one of tokens, share, epochs (found {', '.join(given) or 'none'})")
            if s.share is not None and self.total is None:
                raise ValueError(f"sources.{name}: a share needs `total`")
        if self.total is not None:
            if any(s.epochs is not None for s in self.sources.values()):
                raise ValueError("`total` cannot stand beside `epochs`: what an epoch holds is known only when records are counted")
            found = sum((wanted(s, self.total) for s in self.sources.values()), Fraction(0))
            if found != self.total:
                raise ValueError(f"the sources add up to {float(found):,.0f}, and total is {self.total:,}")
        return self

    def _stages_add_up(self) -> None:
        assert self.stages is not None
        if self.total is None:
            raise ValueError("`stages` needs `total`")
        ends = [exact(s.until) for s in self.stages]
        if not ends or any(b <= a for a, b in pairwise(ends)) or ends[-1] != 1:
            raise ValueError("stages end at rising shares of the run, the last at 100%")
        for i, stage in enumerate(self.stages):
            unknown = sorted(set(stage.share) - set(self.sources))
            if unknown:
                raise ValueError(f"stages.{i}.share: no source {unknown[0]!r}; known: {', '.join(self.sources)}")
            if sum((exact(x) for x in stage.share.values()), Fraction(0)) != 1:
                raise ValueError(f"stages.{i}.share: the shares must add up to 1 (write thirds as tokens instead)")
        for name, s in self.sources.items():
            if any(getattr(s, k) is not None for k in ("tokens", "share", "epochs")):
                raise ValueError(f"sources.{name}: with `stages` the shares stand there, and nowhere else")


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
