"""Does a world model do what it is told in words? Keys as predefined actions, and free commands that no training ever saw, scored by the simulator.

    commands                 share of commands carried out: split held_out (all free commands), held_out:<kind>, wasd, wasd:<key>
    commands.zero_action     the same model, told dx=dy=dyaw=0
    commands.random          a frame from a random pose of those that are searched: what luck carries out
    commands.simulator       frames of a simulator that does as told: 1.0, or the reading of poses is at fault

**Told.** Keys w, a, s, d become the text of a move, in the template that was trained. A free command ("take two big steps forward", "go to the red
circle") stands where the action's text stands, as it is; the model goes on for `frames` frames, told the same each time, from its own frames.

**Scored.** The last frame is compared with what the simulator shows from a grid of poses around the start (`reach` steps either way, every `pitch`
steps, `turns` directions), the nearest in mean square is refined (`_poses.py`), and that is where the model went. A command is carried
out if that pose, seen from the start, fits its kind (`fits`). Poses are read from pictures, so the latents must turn back into them, by the encoder
or a `decoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from pipelines.format import chance
from pipelines.format.document import Part
from pipelines.format.errors import InputError
from trainer.generate.recipe import Sampling

if TYPE_CHECKING:
    from trainer.evaluate._subject import Subject

# Held out by being nowhere in the data: their verbs stand in no text of the world, which a test holds.
PHRASES = {
    "forward": ("take two big steps forward", "walk straight ahead", "go forward quickly"),
    "back": ("take a big step back", "go backwards", "walk back a little"),
    "left": ("turn to the left", "swing round to the left"),
    "right": ("turn to the right", "swing round to the right"),
    "goto": ("go to the {thing}", "rush to the {thing} please"),
}
KEYS = {"w": (1.0, 0.0, 0.0), "a": (0.0, 0.0, np.pi / 6), "s": (-1.0, 0.0, 0.0), "d": (0.0, 0.0, -np.pi / 6)}  # a frame: a step, 30 degrees
KINDS = {"w": "forward", "a": "left", "s": "back", "d": "right"}
FAR, STRAIGHT, TURNED = 0.75, np.pi / 4, np.pi / 8  # at least so many steps; within so much of the direction; at least so far around
NEAR = 1.0  # steps from a thing's middle at which one is there, and from a place at which one has stayed


class Command(NamedTuple):
    """One thing to be done from one start: `text` as the model is told, `thing` where the named thing stands, seen from the start."""

    start: int
    split: str
    kind: str
    text: str
    thing: tuple[float, float] | None = None


def fits(kind: str, move: np.ndarray, thing: tuple[float, float] | None = None) -> bool:
    """Whether a move (dx, dy, dyaw) from the start does what a command of this kind says.

    forward, back: at least FAR steps that way, within STRAIGHT of it, and not turned by more than STRAIGHT. left, right: turned that way by TURNED or
    more, no more than NEAR away. goto: within NEAR of the thing, or FAR nearer to it than before."""
    dx, dy, dyaw = map(float, move)
    if kind in ("forward", "back"):
        ahead = dx if kind == "forward" else -dx
        return ahead >= FAR and abs(dy) <= ahead * np.tan(STRAIGHT) + 1e-9 and abs(dyaw) <= STRAIGHT
    if kind in ("left", "right"):
        return (dyaw if kind == "left" else -dyaw) >= TURNED and float(np.hypot(dx, dy)) <= NEAR
    assert thing is not None
    left = float(np.hypot(thing[0] - dx, thing[1] - dy))
    return left <= NEAR or left <= float(np.hypot(*thing)) - FAR


def done(kind: str, thing: tuple[float, float] | None, frames: int) -> np.ndarray:
    """A move that does it, for the simulator: what `fits` must say yes to, with room to spare."""
    if kind == "goto":
        assert thing is not None
        share = min(1.0, 2.0 / max(float(np.hypot(*thing)), 1e-9))  # two steps towards it
        return np.array([thing[0] * share, thing[1] * share, 0.0])
    key = next(k for k, name in KINDS.items() if name == kind)
    return np.array(KEYS[key]) * min(frames, 3)


class Commands(Part):
    """Tells `records` held-out observations of `source` all commands, for `frames` frames each. `template` says how a free command is put where the
    action's text stands. `simulator` names the service that knows the world; without one nothing can be scored. `required: false` lets arms
    pass whose plan has no such source."""

    source: str = "action"
    required: bool = True
    records: int = Field(16, ge=1)
    frames: int = Field(3, ge=1)
    template: str = "{command}"
    reach: float = Field(4.0, gt=0)
    pitch: float = Field(0.5, gt=0)
    turns: int = Field(16, ge=4)
    simulator: str = "walker"
    decoder: dict[str, Any] | None = None
    sampling: Sampling = Sampling()
    batch: int = Field(64, ge=1)

    @field_validator("template")
    @classmethod
    def _holds_it(cls, template: str) -> str:
        if template.count("{") != 1 or "{command}" not in template:
            raise ValueError("a template holds {command} and no other braces, such as 'action: {command}'")
        return template

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Rows and items."""
        from trainer.evaluate._imagined import Imagine, imagined
        from trainer.evaluate._poses import Finder
        from trainer.evaluate._simulated import Seen, simulators
        from trainer.evaluate._tokenizers import source_dataset
        from trainer.evaluate._walks import starts, told_of
        from trainer.generate.generator import Generator

        if not self.required and not told_of(subject.plan, self.source):
            return []
        found = starts(subject.plan, self.source, self.records, 1)
        seen = Seen(source_dataset(subject.plan, self.source), self.decoder, subject.device)
        worlds = simulators(self.simulator, seen, found)
        if worlds is None:
            raise InputError("commands are scored by a simulator, and none knows these data", where=self.source, found=self.simulator,
                             next="an action-video source of the little world, or a service of the data's own world")  # fmt: skip
        asked = commands(found, worlds, self.template)
        told = [found[c.start].wording.ids(c.text) for c in asked]
        none = [s.wording.told(np.zeros((1, 3)))[0] for s in found]
        context = [found[c.start].context for c in asked]
        names = [f"{found[c.start].item}/{c.text}" for c in asked]
        jobs = [Imagine(f"command/{n}", x, [ids] * self.frames) for n, x, ids in zip(names, context, told, strict=True)]
        jobs += [Imagine(f"command/{s.item}/none", s.context, [ids] * self.frames) for s, ids in zip(found, none, strict=True)]
        made = imagined(Generator.of(subject, self.sampling, batch=self.batch), jobs)
        pictures = seen.pixels([frames[-1] for frames in made])
        results: dict[str, list[bool]] = {"": [], "zero_action": [], "random": [], "simulator": []}
        luck: list[float] = []
        for i, start in enumerate(found):
            finder = Finder(worlds[i], start.poses[0], self.reach, self.pitch, self.turns)
            mine = [k for k, c in enumerate(asked) if c.start == i]
            shown = {"": pictures[mine]}
            keys = [int(chance.draw(chance.group_hash(f"{start.item}/{asked[k].text}"), 0, "command")) for k in mine]
            shown["random"] = finder.random(keys)
            shown["simulator"] = finder.shown(np.stack([done(asked[k].kind, asked[k].thing, self.frames) for k in mine]))
            luck += [_share(finder.moves, asked[k].kind, asked[k].thing) for k in mine]
            went = {name: finder.found(frames) for name, frames in shown.items()}
            went["zero_action"] = np.repeat(finder.found(pictures[len(asked) + i][None]), len(mine), axis=0)
            for name, moves in went.items():
                results[name] += [fits(asked[k].kind, m, asked[k].thing) for k, m in zip(mine, moves, strict=True)]
        return _rows(out, names, [c.split for c in asked], results, luck)


def commands(found: Sequence[Any], worlds: Sequence[Any], template: str) -> list[Command]:
    """All commands for all starts, by start. A thing is named where one stands 2 to 6 steps away, the nearest of those; other starts go nowhere."""
    from trainer.evaluate._moves import between

    out = []
    for i, (start, world) in enumerate(zip(found, worlds, strict=True)):
        out += [Command(i, f"wasd:{key}", KINDS[key], start.wording.say(np.array(move))) for key, move in KEYS.items()]
        things = {name: tuple(between(start.poses[0], np.array([*at, 0.0]))[:2]) for name, at in sorted(world.places().items())}
        able = sorted((float(np.hypot(*at)), name) for name, at in things.items() if 2 <= np.hypot(*at) <= 6)
        for kind, phrases in PHRASES.items():
            if kind != "goto" or able:
                thing = able[0][1] if kind == "goto" else ""
                texts = [template.format(command=p.format(thing=thing)) for p in phrases]
                out += [Command(i, f"held_out:{kind}", kind, text, things.get(thing)) for text in texts]
    return out


def _share(moves: np.ndarray, kind: str, thing: tuple[float, float] | None) -> float:
    """Of the poses that are searched, how many do what is said: chance."""
    return float(np.mean([fits(kind, m, thing) for m in moves]))


def _rows(out: str, items: list[str], splits: list[str], results: dict[str, list[bool]], luck: list[float]) -> list[dict[str, Any]]:
    """Rows by split, and over all keys and all free commands."""
    from trainer.evaluate._items import write_items

    rows = []
    for name, values in results.items():
        metric, value = f"commands{'.' * bool(name)}{name}", np.array(values, np.float64)
        whole = [s.partition(":")[0] for s in splits]
        write_items(out, metric, items * 2, [*value, *value], splits=[*whole, *splits])
        for split in sorted({*whole, *splits}):
            here = np.array([split in pair for pair in zip(whole, splits, strict=True)])
            row = {"metric": metric, "split": split, "value": float(value[here].mean()), "n": int(here.sum())}
            rows.append({**row, "chance": float(np.array(luck)[here].mean())})
    return rows
