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

from mixtures.mixture import Mixture, TwoDatasets
from pipelines.format import storage
from pipelines.format.document import At, Document, Part, PartOf, Percent, Size, dump, fingerprint, merge, named_place, parse
from pipelines.format.errors import RecipeError
from pipelines.format.extends import Home, Places
from pipelines.format.yaml_text import Path
from trainer.ablate_design import Hardware, Slurm, Spread, arms_asked_about
from trainer.evaluate import Evaluation, Evaluations
from trainer.run import Run, Workers
from trainer.scaling import Isoflop
from trainer.setting import laid

VERSION = 1


class Arm(Document):
    """One arm: its budgets, and what differs in its sources and its run. `extends` starts from another arm; `records_from` takes its records;
    `evaluate: {part: {keys}}` is laid over the evaluations of that name."""

    tokens: dict[str, Size] = {}
    sources: dict[str, dict[str, Any]] = {}
    run: dict[str, Any] = {}
    evaluate: dict[str, dict[str, Any]] = {}
    extends: str | None = None
    records_from: str | None = None


class Ablation(Document):
    """An ablation document. `mixture` and `run` are what all arms share; `parallel` arms train side by side, each in a process of its own.

    datasets: what the names in a source's `dataset` are, and in `records_from` (a name that is not here is a path); models: what the names in an
    arm's `run.model` are, each laid over the model of `run`. on: a setting, which is laid over all of it (trainer/setting.py). left_out: arms
    that are not run, and why. isoflop: a sweep over FLOPs and sizes, which adds its arms.

    experiment: the paper's number, E1 to E13, whose values the report sets beside ours. question: what is asked, in a sentence. compare: the
    questions put to the numbers, and report: the figures, both by name; neither changes a run. engine, resources, slurm: how arm-runs
    are started (docs/launch.md). hardware and assume: what the dry run reckons cost and power with."""

    blocks: ClassVar[dict[str, type[BaseModel]]] = {"run": Run, "mixture": Mixture}  # each may say `extends` of its own
    leading: ClassVar[tuple[str, ...]] = ("on",)
    name: str | None = None
    datasets: dict[str, str | TwoDatasets] = {}
    models: dict[str, dict[str, Any]] = {}
    scale: Annotated[Percent, Field(gt=0)] = 1
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    run: dict[str, Any]
    mixture: dict[str, Any]
    arms: dict[str, Arm] = {}
    left_out: dict[str, str] = {}
    isoflop: Isoflop | None = None
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

    @classmethod
    def completed(cls, data: dict[str, Any], places: Places, home: Home) -> tuple[dict[str, Any], Places]:
        """With the setting that it is `on`."""
        return laid(cls, data, places, home)

    _named_place = model_validator(mode="before")(named_place)

    @model_validator(mode="after")
    def _arms_are_all(self) -> Ablation:
        """With the arms of the sweep, with models in place of their names, and without what is left out."""
        arms = dict(self.arms)
        if self.isoflop is not None:
            swept = self.isoflop.arms(self.run, self.mixture, self.scale)
            arms = {**{k: Arm.model_validate(v) for k, v in swept.items()}, **arms}
        object.__setattr__(self, "arms", arms)
        if isinstance(self.run.get("model"), str):
            object.__setattr__(self, "run", {**self.run, "model": self._model(self.run["model"], ("run", "model"))})
        object.__setattr__(self, "arms", {name: self._modelled(name) for name in arms})
        if set(self.left_out) & set(arms):  # what extends one of these keeps what it took from it
            kept = {k: self.settled(k) if arms[k].extends else self.arms[k] for k in arms if k not in self.left_out}
            object.__setattr__(self, "arms", kept)
        if not self.arms:
            raise At(("arms",), "an ablation has at least one arm, of its own or of `isoflop`, that is not left out")
        return self

    def _modelled(self, name: str) -> Arm:
        """The arm with the model that it names: laid over the run's, in the place of what an arm that it extends says of the model."""
        arm = self.arms[name]
        if not isinstance(arm.run.get("model"), str):
            return arm
        model = self._model(arm.run["model"], ("arms", name, "run", "model"))
        if arm.extends is not None:
            arm = self.settled(name)
        return arm.model_copy(update={"run": {**arm.run, "model": model}})

    def _model(self, name: str, path: Path) -> dict[str, Any]:
        if name in self.models:
            return self.models[name]
        parts = PartOf("trainer.models").names()
        if name in parts:
            return {name: {}}
        raise At(path, f"no model {name!r}; known: {', '.join(self.models) or 'none'}; parts: {', '.join(parts)}")

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
                    why = f", and {other} is left out" if other in self.left_out else ""
                    raise ValueError(f"arms.{name}: no other arm {other!r}; known: {', '.join(self.arms)}{why}")
            for part in self.settled(name).evaluate:  # one that is not asked here is passed over: settings may ask something else
                if part not in (parts := PartOf("trainer.evaluate").names()):
                    raise At(("arms", name, "evaluate"), f"no evaluation {part!r}; known: {', '.join(parts)}")
            other = self.settled(name).records_from
            if other is not None and self.settled(other).records_from is not None:
                raise ValueError(f"arms.{name}: {other!r} itself takes another arm's records; name that arm")
        for key, about in (("compare", self.compare), ("report", self.report)):
            for i, part in enumerate(about):
                for asked in arms_asked_about(part):
                    if asked not in self.arms and asked not in self.left_out:
                        raise At((key, i), f"no arm {asked!r}; known: {', '.join(self.arms)}")
        return self

    def settled(self, name: str, above: tuple[str, ...] = ()) -> Arm:
        """The arm with everything it extends laid under it."""
        if name in above:
            raise ValueError(f"arms: {' → '.join((*above, name))} extend one another in a circle")
        arm = self.arms.get(name)
        if arm is None:
            raise ValueError(f"arms: no other arm {name!r}; known: {', '.join(self.arms)}")
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
        sources[name]["dataset"] = _looked_up(ablation, sources[name].get("dataset"))
    own = {k: v for k, v in ablation.mixture.items() if k not in ("output", "name", "scale")}
    if "records_from" in own:
        own["records_from"] = _looked_up(ablation, own["records_from"])
    data = {**own, "name": arm, "scale": ablation.scale, "sources": sources, "output": output}
    return parse(Mixture, data, name=f"{ablation.name or 'ablation'}: arm {arm}")


def _looked_up(ablation: Ablation, said: Any) -> Any:
    """What a dataset is: by its name, or as it was said; each of two."""
    if isinstance(said, dict):
        return {side: _looked_up(ablation, one) for side, one in said.items()}
    found = ablation.datasets.get(said, said) if isinstance(said, str) else said
    return dump(found) if isinstance(found, TwoDatasets) else found


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


def evaluations_of(ablation: Ablation, arm: str) -> list[Part]:
    """What is asked of an arm: the ablation's evaluations, with the arm's own keys laid over those of that name (a decoder or an instruction set
    in its encoding)."""
    over = ablation.settled(arm).evaluate
    if not over:
        return list(ablation.evaluate)
    asked = [(name, fields) for part in dump(ablation)["evaluate"] for name, fields in part.items()]
    return list(parse(Evaluations, {"evaluate": [{n: merge(f, over.get(n, {}))} for n, f in asked]}, name=f"arms.{arm}.evaluate").evaluate)


def identity(ablation: Ablation, plans: dict[str, str]) -> str:
    """Fingerprint of the ablation: the document without where things lie and how fast they go, and the fingerprints of its plans by arm."""
    document = dump(ablation)
    run = {k: v for k, v in document["run"].items() if k not in ("output", "plan", "threads", "device")}
    kept = {k: document[k] for k in ("scale", "seeds", "arms", "evaluate")}
    if not plans:
        raise RecipeError("an ablation without plans has no identity")
    return fingerprint({"ablation": kept, "run": run, "plans": plans, "version": VERSION})
