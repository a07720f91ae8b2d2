"""An IsoFLOP sweep as arms of an ablation: budgets in FLOPs × a ladder of sizes, dense and sparse, each run on its own horizon.

    isoflop:                                       arms dense-6e18-100m, dense-6e18-200m … moe-6e20-3b
      budgets: [6e18, 6e19, 3e20, 6e20, 1e21]      FLOPs of training, forward and backward; `scale` does not touch them
      share: {text: 50%, pairs: 50%}               payload tokens by source, the same in every arm
      sizes: [100m, 200m, 400m, 700m, 1.5b]        of sizes.py, or {widths: [64, 96, …], aspect: 32, head: 32}
      families: {dense: {model: {ffn: per_modality}}, moe: {budgets: […], model: {ffn: moe, experts: {…}}}}

A run of budget C and size N reads D = C / (FLOPs a token) payload tokens; FLOPs a token are those of trainer/models/flops.py, with logits and
attention, and C / 6N stands beside it in the table. All arms ask for the same tokens, so they share one plan, whose sources are spread evenly; a
run reads its first D by `steps`, and its cosine ends there (a schedule longer than the run biases small budgets: Hoffmann et al. 2022, arXiv
2203.15556, appendix B). N is active non-embedding parameters: what acts on a text token, of blocks.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.format.document import Document, Percent, Size, merge
from trainer.models.sizes import SIZES

Flops = Annotated[float, Field(gt=0)]
LEAST_SIZES = 5


class Ladder(Document):
    """Sizes by a rule: layers = width / aspect (at least `least`), heads = width / head, feed-forward 4 x width, as in the paper's models."""

    widths: Annotated[list[int], Field(min_length=1)]
    aspect: float = Field(64, gt=0)
    head: int = Field(64, ge=2)
    least: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> Ladder:
        for width in self.widths:
            if width % self.head or self.head % 2:
                raise ValueError(f"width {width} must be a multiple of head {self.head}, and head even")
        return self


class Near(Document):
    """Which sizes a budget takes: the `points` whose N lie most evenly, in the logarithm, within a factor `span` of coefficient x C^exponent.

    The default line lies between the paper's two for dense models (arXiv 2603.03276: language .527 C^.47, vision 82 C^.37)."""

    coefficient: float = Field(6.6, gt=0)
    exponent: float = Field(0.417, gt=0, lt=1)
    span: float = Field(6, gt=1)
    points: int = Field(7, ge=LEAST_SIZES)


class Rate(Document):
    """The peak learning rate. width: lr x (width / own width)^power, the rule of maximal update parametrisation for Adam's hidden matrices (Yang et
    al. 2022, arXiv 2203.03466). compute: 0.3118 C^-0.125 (DeepSeek LLM, arXiv 2401.02954, fitted from 1e17 to 2e19). constant: lr."""

    rule: Literal["width", "compute", "constant"] = "width"
    lr: float = Field(3e-4, gt=0)
    width: int = Field(2048, ge=1)
    power: float = Field(1, ge=0)
    most: float = Field(1e-2, gt=0)

    def at(self, width: int, budget: float) -> float:
        """The rate of a model this wide at this budget, to four digits."""
        rates = {"width": self.lr * (self.width / width) ** self.power, "compute": 0.3118 * budget**-0.125, "constant": self.lr}
        return float(f"{min(rates[self.rule], self.most):.4g}")


class Batching(Document):
    """Sequences a step. constant: `size` (null: the run's `batch`) everywhere. compute: 0.2920 C^0.3271 tokens (DeepSeek LLM), one for all sizes of
    a budget, so that they differ in updates by their tokens alone."""

    rule: Literal["constant", "compute"] = "constant"
    size: Size | None = Field(None, ge=1)

    def at(self, budget: float, run_batch: int, sequence_length: int) -> int:
        """Sequences a step at this budget."""
        if self.rule == "constant":
            return self.size or run_batch
        return max(1, round(0.2920 * budget**0.3271 / sequence_length))


class Family(Document):
    """Models that differ in size alone. model: laid over the run's model. budgets, sizes, near: its own, where it says them."""

    model: dict[str, Any] = {}
    budgets: list[Flops] | None = None
    sizes: list[str] | Ladder | None = None
    near: Near | None = None


class Shape(Document):
    """What data make of a model: ids (structure included), channels and number of an image's latents. Stated, so that arms are known before any
    dataset is made; the report sets the FLOPs each run spent beside its budget."""

    vocab: Size = Field(128_256, ge=1)
    channels: Size = Field(1152, ge=1)
    patches: Size = Field(256, ge=1)


@dataclass(frozen=True, slots=True)
class Point:
    """One arm of the sweep. active: N, non-embedding parameters that act on a text token; tokens: D, payload; tokens_6nd: C / 6N. sparsity: experts
    over active ones, 1 for dense. flops_per_token: of forward and backward, a payload token."""

    arm: str
    family: str
    budget: float
    size: str
    active: int
    total: int
    embedding: int
    sparsity: float
    flops_per_token: float
    tokens: float
    tokens_6nd: float
    lr: float
    batch: int
    steps: int
    model: dict[str, Any]


class Isoflop(Document):
    """The sweep; see the module. latents: share of payload tokens that are latents (the rest takes logits). structure: structure tokens a payload
    token. fill: share of a packed sequence that is payload. context: mean positions a query sees (null: half the sequence, an upper bound where
    documents are isolated). count: what D is of. spare: tokens of the plan over what the longest run reads."""

    budgets: Annotated[list[Flops], Field(min_length=1)]
    share: Annotated[dict[str, Percent], Field(min_length=1)]
    sizes: list[str] | Ladder = Field(default_factory=lambda: ["30m", "100m", "200m", "400m", "700m", "1.5b", "3b", "7b"])
    near: Near | None = None
    families: Annotated[dict[str, Family], Field(min_length=1)] = {"dense": Family()}
    count: Literal["flops", "6nd"] = "flops"
    lr: Rate = Rate()
    batch: Batching = Batching()
    shape: Shape = Shape()
    latents: Percent = Field(0.5, ge=0, le=1)
    structure: Percent = Field(0, ge=0, lt=1)
    fill: Percent = Field(0.98, gt=0, le=1)
    context: Size | None = None
    spare: Percent = Field(0.02, ge=0)

    @model_validator(mode="after")
    def _enough(self) -> Isoflop:
        if abs(sum(self.share.values()) - 1) > 1e-6:
            raise ValueError(f"share: they add up to {sum(self.share.values()):g}, not 1")
        for name, family in self.families.items():
            sizes = family.sizes or self.sizes
            for size in sizes if isinstance(sizes, list) else ():
                if size not in SIZES:
                    raise ValueError(f"sizes: no size {size!r}; known: {', '.join(SIZES)}")
            names = sizes if isinstance(sizes, list) else sizes.widths
            if len(set(names)) < LEAST_SIZES:
                raise ValueError(f"families.{name}: {len(set(names))} sizes; a parabola with a minimum inside needs at least {LEAST_SIZES}")
        return self

    def arms(self, run: dict[str, Any], mixture: dict[str, Any], scale: float = 1) -> dict[str, dict[str, Any]]:
        """The sweep as arms: {name: {"tokens": {source: n}, "run": {"model": …, "optim": {"lr"}, "batch", "steps"}}}, to be laid under the
        document's own arms. Deterministic; opens no dataset.

        run, mixture: the ablation's blocks, with what they extend; of them are read the run's `model` and `batch` and the mixture's
        `sequence_length`. scale: the ablation's. `tokens` are divided by it, since it will multiply them: they come to the longest run's D.
        All arms ask for the same `tokens`, so that `plan_paths` gives them one plan; `steps` cuts each run to its D. ValueError: a model that
        cannot be, or a source of `share` that the mixture lacks."""
        known = mixture.get("sources") or {}
        for source in self.share:
            if source not in known:
                raise ValueError(f"isoflop.share: no source {source!r} in mixture.sources; known: {', '.join(known)}")
        points = self.points(run, mixture)
        longest = max(p.steps * p.batch for p in points.values()) * int(mixture["sequence_length"]) * self.fill * (1 + self.spare)
        tokens = {source: math.ceil(longest * share / scale) for source, share in self.share.items()}
        part = next(iter(run["model"]))
        return {
            p.arm: {"tokens": tokens, "run": {"model": {part: p.model}, "optim": {"lr": p.lr}, "batch": p.batch, "steps": p.steps}}
            for p in points.values()
        }

    def points(self, run: dict[str, Any], mixture: dict[str, Any]) -> dict[str, Point]:
        """Every arm with its numbers, budgets ascending, sizes ascending within. Models are built on the meta device: no memory, but torch."""
        length = int(mixture["sequence_length"])
        (part, base), *_ = run["model"].items()
        out: dict[str, Point] = {}
        for name, family in self.families.items():
            sized = sorted((self._sized(part, base, family, size, length) for size in _names(family.sizes or self.sizes)), key=lambda s: s["active"])
            for budget in sorted(family.budgets or self.budgets):
                for size in _near(sized, budget, family.near or self.near):
                    point = self._point(name, budget, size, int(run.get("batch") or 512), length)
                    out[point.arm] = point
        return out

    def _sized(self, part: str, base: dict[str, Any], family: Family, size: str | tuple[str, dict[str, Any]], length: int) -> dict[str, Any]:
        """What a size of a family holds and what a token costs it."""
        from pipelines.format.document import PartOf

        name, dims = size if isinstance(size, tuple) else (size, {k: v for k, v in SIZES[size].items() if k not in ("ffn", "experts")})  # type: ignore[index]
        model = {"size": None, **dims, **family.model}
        laid = merge(base, model)
        if laid.get("ffn") == "moe" and "ffn_width" not in family.model:
            model["ffn_width"] = laid["ffn_width"] = None  # granularity says it
        shape = PartOf("trainer.models").find(part).model_validate(laid)
        some = 1_000_000  # tokens, so that shares of them are whole numbers
        latents = round(some * self.latents)
        rows = round(some * (1 - self.latents) + some * self.structure)
        seen = length / 2 if self.context is None else self.context
        counted = _counted(part, json.dumps(laid, sort_keys=True), self.shape, rows, latents, some - latents, round((latents + rows) * seen))
        experts = shape.experts if shape.ffn == "moe" else None  # type: ignore[attr-defined]
        sparsity = experts.count / experts.top_k if experts else 1.0
        return {"size": name, "model": model, "width": shape.width, "active": counted["active_text"], "total": counted["total"],  # type: ignore[attr-defined]
                "embedding": counted["embedding"], "flops": counted["flops"] / some, "sparsity": sparsity}  # fmt: skip

    def _point(self, family: str, budget: float, size: dict[str, Any], run_batch: int, length: int) -> Point:
        by_rule = budget / (6 * size["active"])
        tokens = budget / size["flops"] if self.count == "flops" else by_rule
        batch = self.batch.at(budget, run_batch, length)
        steps = max(1, round(tokens / (batch * length * self.fill)))
        return Point(
            arm=f"{family}-{said(budget)}-{size['size']}", family=family, budget=budget, size=size["size"], active=size["active"],
            total=size["total"], embedding=size["embedding"], sparsity=size["sparsity"], flops_per_token=size["flops"], tokens=tokens,
            tokens_6nd=by_rule, lr=self.lr.at(size["width"], budget), batch=batch, steps=steps, model=size["model"],
        )  # fmt: skip


@lru_cache(maxsize=256)
def _counted(part: str, model: str, shape: Shape, text: int, latents: int, targets: int, pairs: int) -> dict[str, int]:
    """Parameters by use, and FLOPs of so many tokens: the trainer's own counts. A document is read several times, and building takes seconds."""
    import torch

    from pipelines.format.document import PartOf
    from trainer.models.flops import parameters, training_flops

    with torch.device("meta"):
        built = PartOf("trainer.models").find(part).model_validate_json(model).build(**shape.model_dump())  # type: ignore[attr-defined]
    return {**parameters(built), "flops": training_flops(built, text, latents, targets, pairs)}


def said(flops: float) -> str:
    """A budget as it stands in a name: 6e18, 2.5e13."""
    return f"{flops:.6g}".replace("e+", "e") if flops >= 1e6 else f"{flops:g}"


def _names(sizes: list[str] | Ladder) -> list[Any]:
    if isinstance(sizes, list):
        return list(dict.fromkeys(sizes))
    out = []
    for width in sorted(set(sizes.widths)):
        layers, heads = max(sizes.least, round(width / sizes.aspect)), width // sizes.head
        out.append((f"l{layers}w{width}", {"layers": layers, "width": width, "heads": heads, "kv_heads": None, "ffn_width": 4 * width}))
    return out


def _near(sized: list[dict[str, Any]], budget: float, near: Near | None) -> list[dict[str, Any]]:
    """The sizes a budget takes; at least LEAST_SIZES, the nearest ones, whatever the span."""
    if near is None:
        return sized
    centre = math.log(near.coefficient * budget**near.exponent)
    distance = lambda s: abs(math.log(s["active"]) - centre)
    inside = [s for s in sized if distance(s) <= math.log(near.span)]
    if len(inside) < LEAST_SIZES:
        inside = sorted(sorted(sized, key=distance)[:LEAST_SIZES], key=lambda s: s["active"])
    if len(inside) <= near.points:
        return inside
    ends = math.log(inside[0]["active"]), math.log(inside[-1]["active"])
    chosen: list[dict[str, Any]] = []
    for i in range(near.points):
        aim = ends[0] + (ends[1] - ends[0]) * i / (near.points - 1)
        chosen.append(min((s for s in inside if s not in chosen), key=lambda s: abs(math.log(s["active"]) - aim)))
    return sorted(chosen, key=lambda s: s["active"])
