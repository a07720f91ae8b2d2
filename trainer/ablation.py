"""The ablation document: arms = mixture × run, crossed with seeds, and what each of them is as a `Mixture` and a `Run`.

    scale, seeds, run, mixture, arms, evaluate, output   ──▶   a Mixture an arm (plans/<arm>), a Run an arm and seed (arms/<arm>/seed-<n>)

Every arm's mixture lists *all* sources of the ablation, those it does not train on with `tokens: 0`: so all arms share one held-out set and one
normalisation of latents. Seeds are paired: seed n gives every arm the same start, noise and times; records and their order are the plan's, the
same for all seeds. Arms whose mixtures are equal share one plan. No torch here: `--dry-run` should not wait for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from mixtures.mixture import Mixture
from pipelines.format import storage
from pipelines.format.document import Document, PartOf, Percent, Size, dump, fingerprint, merge, parse
from pipelines.format.errors import RecipeError
from trainer.ablate_design import Hardware, Slurm, Spread
from trainer.evaluate import Evaluation
from trainer.run import Run, Workers

VERSION = 1


class Arm(Document):
    """One arm: its budgets, and what differs in its sources and its run. `extends` starts from another arm; `records_from` takes its records."""

    tokens: dict[str, Size] = {}
    sources: dict[str, dict[str, Any]] = {}
    run: dict[str, Any] = {}
    extends: str | None = None
    records_from: str | None = None


class Ablation(Document):
    """An ablation document. `mixture` and `run` are what all arms share; `parallel` arms train side by side, each in a process of its own.

    experiment: the paper's number, E1 to E13, whose values the report sets beside ours. question: what is asked, in a sentence. compare: the
    questions put to the numbers, and report: the figures, both by name; neither changes a run. engine, resources, slurm: how arm-runs
    are started (docs/launch.md). hardware and assume: what the dry run reckons cost and power with."""

    blocks: ClassVar[dict[str, type[BaseModel]]] = {"run": Run, "mixture": Mixture}  # each may say `extends` of its own
    name: str | None = None
    scale: Annotated[Percent, Field(gt=0)] = 1
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    run: dict[str, Any]
    mixture: dict[str, Any]
    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    evaluate: list[Evaluation] = []
    experiment: Annotated[str, Field(pattern=r"^E\d{1,2}$")] | None = None
    question: str | None = None
    compare: list[Annotated[Any, PartOf("trainer.report.compare")]] = []
    report: list[Annotated[Any, PartOf("trainer.report.figures")]] = []
    output: str
    parallel: Annotated[int, Field(ge=1)] = 1
    engine: Literal["local", "ray"] = "local"
    resources: Workers | None = None
    slurm: Slurm | None = None
    hardware: Hardware = Hardware()
    assume: dict[str, Spread] = {}

    @model_validator(mode="after")
    def _arms_fit(self) -> Ablation:
        known = list(self.mixture.get("sources") or {})
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed stands twice")
        for name, arm in self.arms.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", name):
                raise ValueError(f"arms: {name!r} cannot name a folder; letters, digits and _ . + -")
            for source in (*arm.tokens, *arm.sources):
                if source not in known:
                    raise ValueError(f"arms.{name}: no source {source!r} in mixture.sources; known: {', '.join(known)}")
            for other in (arm.extends, arm.records_from):
                if other is not None and (other not in self.arms or other == name):
                    raise ValueError(f"arms.{name}: no other arm {other!r}; known: {', '.join(self.arms)}")
            other = self.settled(name).records_from
            if other is not None and self.settled(other).records_from is not None:
                raise ValueError(f"arms.{name}: {other!r} itself takes another arm's records; name that arm")
        return self

    def settled(self, name: str, above: tuple[str, ...] = ()) -> Arm:
        """The arm with everything it extends laid under it."""
        if name in above:
            raise ValueError(f"arms: {' → '.join((*above, name))} extend one another in a circle")
        arm = self.arms[name]
        if arm.extends is None:
            return arm
        base = dump(self.settled(arm.extends, (*above, name)))
        own = {k: v for k, v in dump(arm).items() if k in arm.model_fields_set}
        return Arm.model_validate({**merge(base, own), "extends": None})


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One arm with one seed: the run and where it goes."""

    arm: str
    seed: int
    run: Run

    @property
    def output(self) -> str:
        """The run's folder."""
        return self.run.output


def mixture_of(ablation: Ablation, arm: str, output: str | None = None) -> Mixture:
    """The arm's mixture: all sources, its own budgets, 0 for the others."""
    settled = ablation.settled(arm)
    sources = {}
    for name, shared in (ablation.mixture.get("sources") or {}).items():
        base = {k: v for k, v in (shared or {}).items() if k not in ("share", "epochs")}
        sources[name] = {**base, **settled.sources.get(name, {}), "tokens": settled.tokens.get(name, 0)}
    own = {k: v for k, v in ablation.mixture.items() if k not in ("output", "name", "scale")}
    data = {**own, "name": arm, "scale": ablation.scale, "sources": sources, "output": output}
    return parse(Mixture, data, name=f"{ablation.name or 'ablation'}: arm {arm}")


def plan_paths(ablation: Ablation) -> dict[str, str]:
    """Where each arm's plan lies. Arms with equal mixtures (and records) share the plan of the first of them."""
    first: dict[str, str] = {}
    out = {}
    for arm in ablation.arms:
        same = {k: v for k, v in dump(mixture_of(ablation, arm)).items() if k not in ("name", "output")}
        key = fingerprint([same, ablation.settled(arm).records_from])
        out[arm] = first.setdefault(key, storage.join(ablation.output, "plans", arm))
    return out


def arm_runs(ablation: Ablation) -> list[ArmRun]:
    """Every arm with every seed, in the order of the document."""
    plans = plan_paths(ablation)
    out = []
    for arm in ablation.arms:
        for seed in ablation.seeds:
            data = merge(ablation.run, ablation.settled(arm).run)
            place = storage.join(ablation.output, "arms", arm, f"seed-{seed}")
            data = {**data, "name": f"{arm} seed {seed}", "plan": plans[arm], "seed": seed, "output": place}
            out.append(ArmRun(arm, seed, parse(Run, data, name=f"{ablation.name or 'ablation'}: run of arm {arm}")))
    return out


def identity(ablation: Ablation, plans: dict[str, str]) -> str:
    """Fingerprint of the ablation: the document without where things lie and how fast they go, and the fingerprints of its plans by arm."""
    document = dump(ablation)
    run = {k: v for k, v in document["run"].items() if k not in ("output", "plan", "threads", "device")}
    kept = {k: document[k] for k in ("scale", "seeds", "arms", "evaluate")}
    if not plans:
        raise RecipeError("an ablation without plans has no identity")
    return fingerprint({"ablation": kept, "run": run, "plans": plans, "version": VERSION})
