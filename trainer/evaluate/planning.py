"""Planning with a world model: which straight plan of eight steps ends in the picture of the goal? The cross-entropy method of Navigation World
Models.

    planning.ate, planning.rpe            of the plan against the path that was walked (RMSE of positions, of displacements over a frame)
    planning.position, planning.yaw       of its last pose: distance, angle in radians
    … .random                             one plan drawn from the prior: what is reached without a model
    … .uninformed                         the same method with costs that tell nothing: the mean of the first plans drawn. A mean is nearer to most
                                          goals than one plan, so this is what a model must beat
    … .simulator                          the same method with the true simulator in the model's place: what the protocol leaves to be reached (where
                                          there is one)

A goal is a held-out observation and the frame `steps` frames later. Distances are in units of the action text: waypoints of a navigation set, steps
of the little world. The protocol and its two repairs are told in `_plans.py`, its figures in docs/evaluating_worlds.md. All samples of a goal go
through the model together. Chance is keyed by the record, so every arm and seed judges the same plans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from pipelines.format import chance
from pipelines.format.document import Document, Part
from trainer.generate.recipe import Sampling

if TYPE_CHECKING:
    from trainer.evaluate._plans import Prior
    from trainer.evaluate._subject import Subject
    from trainer.evaluate._walks import Start

METRICS = ("ate", "rpe", "position", "yaw")


class Given(Document):
    """A prior of one's own: mean and deviation of dx, dy (units of the action text, a step) and of the final yaw (radians)."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


class Planning(Part):
    """Plans for `goals` held-out observations of `source`. The defaults are the released settings; `samples: 16, top: 2, goals: 8, repeats: 1` is a
    smoke size.

    prior: where the first plans are drawn. score: distance of the imagined last frame to the goal's, in latents (`latent`: root of the mean square,
    normalised as in training), in pictures (`pixel`) or by LPIPS over AlexNet (`lpips`), whose weights lie in the folder `weights`; the paper's is
    lpips. `required: false` lets arms pass whose plan has no such source.
    """

    source: str = "action"
    required: bool = True
    goals: int = Field(64, ge=1)
    steps: int = Field(8, ge=1)
    samples: int = Field(120, ge=1)
    top: int = Field(5, ge=1)
    optimisation_steps: int = Field(1, ge=1)
    repeats: int = Field(3, ge=1)
    prior: Literal["world", "recon", "tartan", "scand", "sacson"] | Given = "world"
    score: Literal["latent", "pixel", "lpips"] = "latent"
    weights: str | None = None
    decoder: dict[str, Any] | None = None
    simulator: str | None = "walker"
    sampling: Sampling = Sampling()
    batch: int = Field(120, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> Planning:
        if self.top > self.samples:
            raise ValueError("top: more than there are samples")
        if (self.score == "lpips") != (self.weights is not None):
            raise ValueError("weights: the folder of LPIPS's weights, with score: lpips and with no other")
        return self

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Rows and items planning.<metric> and its controls, split held_out."""
        from trainer.evaluate._plans import errors, planned
        from trainer.evaluate._simulated import Seen, simulators
        from trainer.evaluate._tokenizers import source_dataset
        from trainer.evaluate._walks import starts, told_of
        from trainer.generate.generator import Generator

        if not self.required and not told_of(subject.plan, self.source):
            return []
        found = starts(subject.plan, self.source, self.goals, self.steps)
        seen = Seen(source_dataset(subject.plan, self.source), self.decoder, subject.device)
        worlds = simulators(self.simulator, seen, found)
        maker = Generator.of(subject, self.sampling, batch=self.batch)
        prior, far = self._prior(), self._distance(subject, seen)
        results: dict[str, list[dict[str, float]]] = {"": [], "random": [], "uninformed": []}
        for i, start in enumerate(found):
            key = int(chance.draw(chance.group_hash(start.item), 0, "planning"))
            truth = start.poses / np.array([start.spacing, start.spacing, 1.0])
            settle = lambda cost, key=key: planned(prior, cost, key, self.samples, self.top, self.optimisation_steps)
            results[""].append(errors(settle(self._imagined_cost(maker, start, far)), truth))
            results["random"].append(errors(prior.draw(int(chance.draw(key, 0, "random")), 1)[0], truth))
            results["uninformed"].append(errors(settle(lambda plans, round_: np.zeros(len(plans))), truth))
            if worlds is not None:
                results.setdefault("simulator", []).append(errors(settle(self._true_cost(seen, worlds[i], start, far)), truth))
        return self._rows(out, [s.item for s in found], results)

    def _prior(self) -> Prior:
        from trainer.evaluate._plans import Prior

        if isinstance(self.prior, Given):
            return Prior(np.array(self.prior.mean), np.array(self.prior.deviation))
        return Prior.named(self.prior)

    def _distance(self, subject: Subject, seen: Any) -> Callable[[list[np.ndarray], np.ndarray], np.ndarray]:
        """Distance [n] of latents to the goal's."""
        from trainer.evaluate._imagined import normal

        def latent(made: list[np.ndarray], goal: np.ndarray) -> np.ndarray:
            return np.sqrt(np.mean((normal(subject.reader, made) - normal(subject.reader, [goal])) ** 2, axis=(1, 2), dtype=np.float64))

        def pixel(made: list[np.ndarray], goal: np.ndarray) -> np.ndarray:
            pictures = seen.pixels([goal, *made]).astype(np.float32) / 255
            return np.sqrt(np.mean((pictures[1:] - pictures[:1]) ** 2, axis=(1, 2, 3), dtype=np.float64))

        if self.score == "lpips":
            from trainer.evaluate._lpips import Lpips

            judge = Lpips.load(str(self.weights), subject.device)
            return lambda made, goal: judge.to_one(seen.pixels(made), seen.pixels([goal])[0])
        return {"latent": latent, "pixel": pixel}[self.score]

    def _imagined_cost(self, maker: Any, start: Start, far: Any) -> Callable[[np.ndarray, int], np.ndarray]:
        """Costs of plans by what the model imagines at their end, averaged over `repeats`."""
        from trainer.evaluate._imagined import Imagine, imagined
        from trainer.evaluate._plans import moves_of

        def cost(plans: np.ndarray, round_: int) -> np.ndarray:
            told = [start.wording.told(moves) for moves in moves_of(plans, self.steps)]
            asked = [
                Imagine(f"plan/{start.item}/{round_}/{n}", start.context, ids, repeat)
                for repeat in range(self.repeats)
                for n, ids in enumerate(told)
            ]
            ends = [frames[-1] for frames in imagined(maker, asked)]
            return np.asarray(far(ends, start.frames[-1]).reshape(self.repeats, len(plans)).mean(axis=0))

        return cost

    def _true_cost(self, seen: Any, world: Any, start: Start, far: Any) -> Callable[[np.ndarray, int], np.ndarray]:
        """The same with what the simulator shows."""
        from trainer.evaluate._moves import after
        from trainer.evaluate._plans import poses_of

        def cost(plans: np.ndarray, round_: int) -> np.ndarray:
            ends = poses_of(plans, self.steps)[:, -1] * np.array([start.spacing, start.spacing, 1.0])
            return np.asarray(far(list(seen.latents(world.seen(after(start.poses[:1], ends)))), start.frames[-1]))

        return cost

    def _rows(self, out: str, items: list[str], results: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
        from trainer.evaluate._items import write_items

        rows = []
        for name, found in results.items():
            for metric in METRICS:
                values = [e[metric] for e in found]
                whole = f"planning.{metric}{'.' * bool(name)}{name}"
                write_items(out, whole, items, values)
                rows.append({"metric": whole, "split": "held_out", "value": float(np.mean(values)), "n": len(values), "chance": None})
        return rows
