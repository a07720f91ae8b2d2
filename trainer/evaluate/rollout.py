"""Roll-outs of a world model on held-out trajectories: how far from the truth, frame by frame, and whether it does what it is told.

    rollout.latent                  mean squared error of the latents, normalised as in training, by horizon (split horizon:<k>; 1 is one step)
    rollout.pixel, rollout.psnr     of the pictures they decode to, against those that the true latents decode to; values of pixels in [0, 1]
    … .copy                         the present frame, said to last
    … .zero_action                  the same model, told dx=dy=dyaw=0
    … .other_action                 the same model, told what was done in another trajectory; against this one's frames
    … .counterfactual               those very frames against what the simulator shows after the other's actions (where there is a simulator)
    rollout.follows                 share of roll-outs whose frame is nearer to the truth with the true actions than with the other's; chance 1/2
    rollout.follows.counterfactual  share of roll-outs under the other's actions that are nearer to what these lead to than to what was seen

Every start goes the whole horizon, so each k is a mean over the same items (named by the record; items of every metric are written). A model reads
its last frames as it made them; only the first context is true. Errors compare arms of one encoder; never encoders. Writes rollouts.html: some to
look at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from pipelines.format.document import Part
from trainer.generate.recipe import Sampling

if TYPE_CHECKING:
    from trainer.evaluate._subject import Subject
    from trainer.evaluate._walks import Start

TINY = 1e-10  # a mean squared error below this counts as this: 100 dB
APART = 0.5  # steps, or radians, by which another's first move must differ


class Rollout(Part):
    """Rolls out `records` held-out observations of `source` for `horizon` frames. `pixels: auto` measures pictures where latents can be turned back
    (by `decoder`, as a decode recipe names it, or by the encoder). `simulator` names the service that knows what other actions lead to. `shown` go
    on a page. `required: false` lets arms pass whose plan has no such source."""

    source: str = "action"
    required: bool = True
    records: int = Field(64, ge=1)
    horizon: int = Field(8, ge=1)
    sampling: Sampling = Sampling()
    pixels: Literal["auto"] | bool = "auto"
    decoder: dict[str, Any] | None = None
    simulator: str | None = "walker"
    batch: int = Field(64, ge=1)
    shown: int = Field(4, ge=0, le=64)

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Rows and items of all metrics by horizon; rollouts.html."""
        from trainer.evaluate._imagined import Imagine, imagined, normal
        from trainer.evaluate._simulated import Seen, simulators
        from trainer.evaluate._walks import starts, told_of
        from trainer.generate.generator import Generator

        if not self.required and not told_of(subject.plan, self.source):
            return []
        found = starts(subject.plan, self.source, self.records, self.horizon)
        seen = Seen(_data(subject.plan, self.source), self.decoder, subject.device)
        worlds = simulators(self.simulator, seen, found)
        others = others_of(found, worlds)
        told = {"": [s.moves for s in found], "zero_action": [np.zeros_like(s.moves) for s in found]}
        told["other_action"] = [found[j].moves for j in others]
        maker = Generator.of(subject, self.sampling, batch=self.batch)
        asked = [Imagine(f"rollout/{s.item}", s.context, s.wording.told(m)) for moves in told.values() for s, m in zip(found, moves, strict=True)]
        made = imagined(maker, asked)
        frames = {name: made[i * len(found) : (i + 1) * len(found)] for i, name in enumerate(told)}
        frames["copy"] = [[s.context[-1]] * self.horizon for s in found]
        truth = [list(s.frames) for s in found]
        elsewhere = None if worlds is None else _simulated(seen, worlds, found, told["other_action"])
        views = {"latent": lambda x: np.stack([normal(subject.reader, f) for f in x])}
        if self.pixels is True or (self.pixels == "auto" and seen.shows()):
            views["pixel"] = lambda x: seen.pixels([f for frames in x for f in frames]).reshape(len(x), self.horizon, -1)
        rows = []
        for kind, view in views.items():
            rows += measured(out, kind, found, {k: view(v) for k, v in frames.items()}, view(truth), None if elsewhere is None else view(elsewhere))
        if self.shown and "pixel" in views:
            from trainer.evaluate._sheets import publish

            sheets = {"seen": truth, **{(k or "made"): v for k, v in frames.items()}}
            if elsewhere is not None:
                sheets["simulated"] = elsewhere
            publish(out, seen, found[: self.shown], sheets, told["other_action"])
        return rows


def _data(plan: Any, source: str) -> Any:
    from trainer.evaluate._tokenizers import source_dataset

    return source_dataset(plan, source)


def others_of(found: list[Start], worlds: list[Any] | None) -> list[int]:
    """For each start another whose first move is another and whose path stays where the data go, as far as a simulator knows. The next in order that
    fits, so that what is done elsewhere has the distribution of what is done; the next one at all where none fits."""
    from trainer.evaluate._moves import after

    out = []
    for i, start in enumerate(found):
        order = [(i + k) % len(found) for k in range(1, len(found))] or [i]
        chosen = order[0]
        for j in order:
            path, here = [start.poses[:1]], np.array([start.spacing, start.spacing, 1.0])
            for move in found[j].moves:
                path.append(after(path[-1], move[None] * here))
            differs = np.abs(found[j].moves[0] - start.moves[0]).max() >= APART
            if differs and (worlds is None or bool(worlds[i].inside(np.concatenate(path)).all())):
                chosen = j
                break
        out.append(chosen)
    return out


def _simulated(seen: Any, worlds: list[Any], found: list[Start], moves: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Latents of what the simulator shows along each path."""
    pictures = []
    for world, start, path in zip(worlds, found, moves, strict=True):
        poses = [start.poses[:1]]
        for move in path:
            poses.append(world.moved(poses[-1], move[None]))
        pictures.append(world.seen(np.concatenate(poses[1:])))
    latents = seen.latents(np.concatenate(pictures))
    return [list(x) for x in np.split(latents, np.cumsum([len(p) for p in pictures])[:-1])]


def measured(
    out: str, kind: str, found: list[Start], frames: dict[str, np.ndarray], truth: np.ndarray, elsewhere: np.ndarray | None
) -> list[dict[str, Any]]:
    """Rows of one kind of error, and their items. Arrays [starts, horizon, …]."""
    errors = {name: _error(x, truth) for name, x in frames.items()}
    tables = {f"rollout.{kind}{'.' * bool(name)}{name}": e for name, e in errors.items()}
    if elsewhere is not None:
        tables[f"rollout.{kind}.counterfactual"] = _error(frames["other_action"], elsewhere)
    if kind == "pixel":
        tables |= {m.replace("rollout.pixel", "rollout.psnr"): -10 * np.log10(np.maximum(e, TINY)) for m, e in list(tables.items())}
    else:
        tables["rollout.follows"] = _nearer(errors[""], errors["other_action"])
        if elsewhere is not None:
            tables["rollout.follows.counterfactual"] = _nearer(tables["rollout.latent.counterfactual"], errors["other_action"])
    rows = []
    for metric, table in tables.items():
        rows += by_horizon(out, metric, [s.item for s in found], table, 0.5 if metric.startswith("rollout.follows") else None)
    return rows


def _error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean squares [starts, horizon] of latents, or of pixels uint8 as values in [0, 1]; a start at a time, so that pictures stay bytes."""
    unit = 255 if a.dtype == np.uint8 else 1
    inside = tuple(range(1, a.ndim - 1))
    off = ((x.astype(np.float32) - y) / unit for x, y in zip(a, b, strict=True))
    return np.stack([np.mean(x**2, axis=inside, dtype=np.float64) for x in off])


def _nearer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 where a is less than b, 1/2 where they are equal: a model that hears nothing makes one frame of all actions."""
    return np.asarray((a < b) + 0.5 * (a == b), np.float64)


def by_horizon(out: str, metric: str, items: list[str], table: np.ndarray, chance: float | None) -> list[dict[str, Any]]:
    """Rows horizon:<k> of values [starts, horizon], and their items."""
    from trainer.evaluate._items import write_items

    n, horizon = table.shape
    splits = [f"horizon:{k + 1}" for k in range(horizon)]
    write_items(out, metric, [i for i in items for _ in splits], table.reshape(-1).tolist(), splits=splits * n)
    return [{"metric": metric, "split": s, "value": float(v), "n": n, "chance": chance} for s, v in zip(splits, table.mean(axis=0), strict=True)]
