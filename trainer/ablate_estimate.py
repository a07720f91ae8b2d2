"""What an ablation would come to, before anything is made: arms, tokens, steps, FLOPs, GPU-hours, disk, and what it could find.

In: an Ablation. Out: an `Estimate`, a row an arm. Where the datasets are there, tokens and steps are counted as planning would; where they are not,
budgets stand for tokens, the paper's vocabulary and latents for shapes, and 6 N D for FLOPs, which a warning says. GPU-hours are FLOPs over
`hardware.tflops` × `hardware.mfu`; disk is what stays: plans, final weights, the newest checkpoints.

**The smallest difference that the design can detect** is what two arms would have to differ by to be told apart with 80 % power at 5 % two-sided,
paired by seed and item (`report.statistics.smallest_difference`): from the number of seeds, the number of items an evaluation asks about, and two
spreads that nobody knows before: of a paired difference from seed to seed, and from item to item. They are assumed (ASSUMED), or said by the
document: `assume: {vqa: {seed: 1.5%, item: 0.6}}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mixtures.mixture import Mixture
from pipelines.format import storage
from pipelines.format.document import dump, exact, fingerprint, part_name
from pipelines.format.errors import RecipeError
from pipelines.format.estimate import Estimate
from pipelines.format.manifest import read_card
from trainer.ablation import Ablation, ArmRun, arm_runs, mixture_of, plan_paths
from trainer.run import Run

LEAST_STEPS, FEW_STEPS = 10, 300
VOCAB, CHANNELS, PATCHES = 128_256, 1152, 256  # Llama 3's, SigLIP 2 So400m's at 224 px: the paper's, where no dataset says otherwise
PLAN_BYTES = 12  # a span, and what a row adds: measured, benchmarks/plan.py
TOKENS_A_SPAN = 256
PRINTED_BYTES = 300  # a line of metrics.jsonl
# Spreads of a paired difference of two arms: from seed to seed (sd of the arms' difference of means) and from item to item (sd of an item's
# difference, mean over seeds). As shares for vqa, in nats a token for text, in units of the loss for flow, in steps for planning. Medians over pairs
# of arms on the little world with six seeds (docs/results): vqa of 15 pairs of E7 and 1,000 questions; the others of 21 pairs of E9 and 427 texts,
# 1,744 images (spread by item for the most part because arms do differ), 23 goals. Another model and other data have others.
ASSUMED: dict[str, tuple[float, float]] = {
    "vqa": (0.032, 0.40), "text_perplexity": (0.0086, 0.010), "flow_loss": (0.0032, 0.067), "planning": (0.14, 0.34)
}  # fmt: skip
MEASURES = {"vqa": "accuracy", "text_perplexity": "nats a token", "flow_loss": "flow loss", "planning": "steps of absolute trajectory error"}
ITEMS = {"vqa": "questions", "planning": "goals"}  # keys that say how many items are asked about; else SOME
SOME = 400


@dataclass(frozen=True, slots=True)
class Sized:
    """One arm with one seed: what it holds and takes."""

    arm: str
    tokens: int
    loss: int | None
    steps: int
    parameters: int | None
    flops: float | None
    counted: bool
    budget: str
    disk: int
    plan_bytes: int

    def row(self, gpu_hours: float | None) -> dict[str, Any]:
        """The row of the dry run."""
        shown = {"arm": self.arm, "budget": self.budget, "tokens": self.tokens, "loss-bearing": self.loss, "steps": self.steps}
        return {**shown, "parameters": self.parameters, "FLOPs": self.flops, "GPU-hours": gpu_hours}


def expected(config: Ablation) -> Estimate:
    """The dry run. Raises what planning would raise: budgets that cannot be, datasets that disagree."""
    runs = arm_runs(config)
    seeds = len(config.seeds)
    first = {arm: next(r for r in runs if r.arm == arm) for arm in config.arms}
    cache: dict[str, Any] = {}
    sized = [_sized(mixture_of(config, arm), item.run, arm, cache) for arm, item in first.items()]
    hours = [None if s.flops is None else s.flops / (config.hardware.tflops * 1e12 * config.hardware.mfu * 3600) for s in sized]
    shared = {path: s.plan_bytes for s, path in zip(sized, plan_paths(config).values(), strict=True)}
    facts: dict[str, Any] = {"arms": len(sized), "seeds": seeds, "runs": len(runs), "plans": len(shared), "at a time": config.parallel}
    facts |= {"tokens": seeds * sum(s.tokens for s in sized), "flops": float(seeds * sum(s.flops or 0.0 for s in sized))}
    said = f"GPU-hours at {config.hardware.tflops:g} TFLOP/s and {100 * config.hardware.mfu:g} % MFU"
    facts |= {said: round(seeds * sum(h or 0.0 for h in hours), 6), "disk bytes": seeds * sum(s.disk for s in sized) + sum(shared.values())}
    facts |= {f"smallest difference that would be found, {name}": text for name, text in detectable(config).items()}
    facts["commands"] = [" ".join(_argv(r)) for r in runs if r.run.processes * r.run.nodes > 1]
    rows = [s.row(h) for s, h in zip(sized, hours, strict=True)]
    return Estimate(f"ablation {config.name or ''}".strip(), facts, rows, _warnings(sized))


def _argv(item: ArmRun) -> list[str]:
    return ["-m", "trainer", storage.join(item.output, "run.yaml")]


def _warnings(sized: list[Sized]) -> list[str]:
    out = []
    for s in sized:
        if s.steps < FEW_STEPS:
            few = f"fewer than {LEAST_STEPS}: it will be refused" if s.steps < LEAST_STEPS else f"fewer than {FEW_STEPS}"
            out.append(f"{s.arm}: {s.steps} optimiser steps, {few}")
    if not all(s.counted for s in sized):
        instead = f"FLOPs are 6 N D with {VOCAB:,} ids and latents of {PATCHES} x {CHANNELS}, logits for every token (too much for images)"
        out.append(f"some datasets are not there yet: steps are from the budgets alone, {instead}")
    return out


def _sized(mixture: Mixture, run: Run, arm: str, cache: dict[str, Any]) -> Sized:
    budgets = {name: int(exact(s.tokens) * exact(mixture.scale)) for name, s in mixture.sources.items() if s.tokens}
    said = " + ".join(f"{s} {n:,}" for s, n in budgets.items())
    wanted = sum(budgets.values())
    places = [p for s in mixture.sources.values() for p in s.paths]
    there = all(storage.exists(storage.join(p, "manifest.json")) for p in places)
    facts = _counted(mixture, cache) if there else None
    sequences = facts["sequences"] if facts else -(-wanted // mixture.sequence_length)
    whole = -(-sequences // run.batch)
    steps = min(whole, run.steps or whole)
    made = [s.paths[1] for s in mixture.sources.values() if s.dual]
    model, uses = _model(run, places if there else [], made if there else [], cache)
    share = min(1.0, steps * run.batch / max(sequences, 1))
    tokens = int((facts["tokens"]["all"] if facts else wanted) * share)
    if facts:
        # Attention is left out (no pairs): at these lengths it is a few per cent, and a lower bound is honest before packing.
        of, structure = facts["tokens"], facts["structure"]
        flops = float(model.training_flops(int((of["text"] + structure) * share), int(of["visual"] * share), int(of["loss"] * share), 0))
    else:
        flops = 6.0 * (uses["active_text"] + uses["embedding"] // 2) * tokens  # one of the two vocabulary matrices multiplies
    kept = 4 * uses["total"] * (1 + 3 * run.keep + (run.keep + 1) * (run.ema is not None))  # fp32 weights, AdamW's two moments beside them
    plan_bytes = PLAN_BYTES * max(1, (facts["tokens"]["all"] if facts else wanted) // TOKENS_A_SPAN) + 8 * sequences
    loss = int(facts["tokens"]["loss"] * share) if facts else None
    return Sized(arm, tokens, loss, steps, uses["total"], flops, there, said, kept + PRINTED_BYTES * steps, plan_bytes)


def _counted(mixture: Mixture, cache: dict[str, Any]) -> dict[str, Any]:
    """`mixtures.estimate` of a mixture, once for arms that share it."""
    from mixtures.estimate import estimate

    key = fingerprint({k: v for k, v in dump(mixture).items() if k not in ("name", "output")})
    if key not in cache:
        cache[key] = estimate(mixture).facts
    found: dict[str, Any] = cache[key]
    return found


def _model(run: Run, places: list[str], made: list[str], cache: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    """The model without weights and what its parameters are for, of the shape that the datasets ask for; `made` are those of target images."""
    from trainer.models.load import build

    shape = {"vocab": VOCAB, "channels": CHANNELS, "patches": PATCHES}
    if places:
        encodings = [read_card(p)["encoding"] for p in places]
        image: dict[str, Any] = next((e["image"] for e in encodings if e.get("image")), {})
        vocab = max(int(e["text"]["vocab"]) for e in encodings)
        shape = {"vocab": vocab, "channels": int(image.get("width", 1)), "patches": int(image.get("tokens", 1))}
        target = next((e["image"] for e in (read_card(p)["encoding"] for p in made) if e.get("image")), None)
        shape |= {} if target is None else {"made_channels": int(target["width"]), "made_patches": int(target["tokens"])}
    key = fingerprint({"model": dump(run)["model"], "shape": shape})
    if key not in cache:
        model = build(run, shape)
        cache[key] = (model, dict(model.parameters_by_use()))
    found: tuple[Any, dict[str, int]] = cache[key]
    return found


def detectable(config: Ablation) -> dict[str, str]:
    """Metric → the smallest difference between two arms that this many seeds and items would usually show, in words with what was assumed. One seed
    shows no difference that another start would not undo, and its figure is over items alone: that is said first. Where the document compares
    several arms at once, Holm's hardest step."""
    from trainer.report.compare.difference import at_once
    from trainer.report.statistics import smallest_difference

    for name in config.assume:
        if name not in ASSUMED:
            raise RecipeError("no such measure to assume a spread of", where="assume", found=name, allowed=", ".join(ASSUMED))
    out = {}
    for part in config.evaluate:
        name = part_name(part)
        if name in ASSUMED:
            seed, item = config.assume[name].spreads if name in config.assume else ASSUMED[name]
            items = int(getattr(part, ITEMS.get(name, ""), None) or SOME)
            tests = at_once(config.compare, "planning.ate" if name == "planning" else name, list(config.arms))
            found = smallest_difference(len(config.seeds), items, seed, item, tests)
            least = f"{found:.3g} {MEASURES[name]}"
            together = f", {tests} arms compared at once" if tests > 1 else ""
            if len(config.seeds) == 1:
                alone = f"one seed: only over items, {least} ({items:,} items{together}; sd of a paired difference {item:g} by item)"
                out[name] = f"{alone}; what another start would move (assumed sd {seed:g}) one seed cannot show"
            else:
                spreads = f"sd of a paired difference {seed:g} by seed, {item:g} by item"
                out[name] = f"{least} ({len(config.seeds)} seeds x {items:,} items{together}; {spreads})"
    return out
