"""How each metric is said: its name, unit, which way is better and how its figures are written. One table; an evaluation adds a line.

A control `<metric>.<control>` is written as its metric. A metric that is not here is shown under its own name, unit unknown, and neither way of
it is called better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric in words. `factor` × value is in `unit`; `form` writes that; `better` is "higher", "lower" or "" (neither)."""

    name: str
    unit: str = ""
    better: str = "lower"
    factor: float = 1.0
    form: str = "{:.3f}"
    comparable: bool = True  # False: never between arms of different encoders
    points: str = ""  # the unit of a difference, where it has a name of its own

    @property
    def label(self) -> str:
        """What stands at an axis."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def sign(self) -> int:
        """+1 where more is better, −1 where less is, 0 where neither."""
        return {"higher": 1, "lower": -1}.get(self.better, 0)

    def said(self, value: float | None) -> str | None:
        """A value in the unit, without naming it."""
        return None if value is None or value != value else self.form.format(value * self.factor)

    def signed(self, value: float | None) -> str | None:
        """A difference in the unit, with its sign."""
        return None if value is None or value != value else self.form.replace("{:", "{:+").format(value * self.factor)


_SHARE: Any = {"better": "higher", "factor": 100.0, "form": "{:.1f}", "unit": "%", "points": "points"}
KNOWN = {
    "vqa": Measure("VQA accuracy", **_SHARE),
    "vqa.choice": Measure("VQA accuracy by choice likelihood", **_SHARE),
    "benchmark": Measure("benchmark accuracy", **_SHARE),
    "benchmark.choice": Measure("benchmark accuracy by choice likelihood", **_SHARE),
    "sft_vqa": Measure("VQA accuracy after instruction data", **_SHARE),
    "sft_vqa.choice": Measure("VQA accuracy by choice likelihood after instruction data", **_SHARE),
    "scene_match": Measure("what the caption says found in the picture", **_SHARE),
    "scene_match.all": Measure("whole captions found in the picture", **_SHARE),
    "geneval": Measure("GenEval score", better="higher"),
    "dpg": Measure("DPG-Bench score", better="higher"),
    "wise": Measure("WISE score", better="higher"),
    "commands": Measure("commands followed", **_SHARE),
    "text_perplexity": Measure("text perplexity", "per token", form="{:.3f}"),
    "bits_per_byte": Measure("text loss", "bits per byte", form="{:.4f}"),
    "flow_loss": Measure("flow loss", "mean squared error", form="{:.4f}", comparable=False),
    "flow_loss.bin": Measure("flow loss by time", "mean squared error", form="{:.4f}", comparable=False),
    "frechet": Measure("Fréchet distance", "squared features", form="{:.2f}"),
    "rollout.pixel": Measure("roll-out pixel error", "mean squared", form="{:.4f}"),
    "rollout.latent": Measure("roll-out latent error", "mean squared", form="{:.4f}", comparable=False),
    "rollout.psnr": Measure("roll-out PSNR", "dB", better="higher", form="{:.2f}"),
    "rollout.follows": Measure("roll-outs that follow their actions", **_SHARE),
    "planning.ate": Measure("absolute trajectory error", "steps of the action text"),
    "planning.rpe": Measure("relative pose error", "steps of the action text"),
    "planning.position": Measure("final position error", "steps of the action text"),
    "planning.yaw": Measure("final heading error", "rad"),
    "experts": Measure("experts", better="", form="{:.3g}"),
}
CONTROLS = {
    "constant": "best constant answer",
    "shuffled": "images shuffled",
    "blind": "no image",
    "attributes": "bag of attributes",
    "truth": "the true pictures",
    "copy": "copy of the last frame",
    "zero_action": "no action",
    "counterfactual": "another action",
    "other_action": "another action",
    "random": "random actions",
    "uninformed": "plans whose costs tell nothing",
    "simulator": "the true simulator",
    "untrained": "untrained router",
    "held_out": "one half of the held-out pictures against the other",
}


def measure(metric: str) -> Measure:
    """The metric in words, a control's with the control's name."""
    if metric in KNOWN:
        return KNOWN[metric]
    base, _, control = metric.rpartition(".")
    if base and base not in KNOWN and base.partition(".")[0] not in KNOWN:
        base = ""
    if base:
        found = measure(base)
        return replace(found, name=f"{found.name}: {CONTROLS.get(control, control.replace('_', ' '))}")
    return Measure(metric.replace("_", " ").replace(".", " "), better="", form="{:.4g}")


def is_control(metric: str) -> bool:
    """Whether a metric is a control of another one."""
    return metric not in KNOWN and metric.rpartition(".")[2] in CONTROLS


def part(split: str) -> str:
    """What is added to a metric's name where not the whole held-out set is meant."""
    return "" if split in ("held_out", "all") else f", {said_split(split)}"


def said_split(split: str) -> str:
    """A split as a reader says it: `held_out:text` is text, `horizon:4` is horizon 4, `set:notes` is notes (outside)."""
    if split == "held_out":
        return "held out"
    if split == "layer:all":
        return "mean of layers"
    kind, _, name = split.partition(":")
    words = {"held_out": "{}", "set": "{} (outside)"}.get(kind, "{kind} {}" if name else "{kind}")
    return words.format(name, kind=kind.replace("_", " "))
