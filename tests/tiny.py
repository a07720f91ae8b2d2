"""The whole journey at its smallest: the YAMLs of every stage over a tiny world, for tests that run them through the real command line.

`write(folder, root)` writes one YAML a stage into `folder`, with every output below `root` (a path or an s3:// prefix), and returns the steps in
the order in which they must run. Sizes are such that the stages make several parts each and the whole takes about a minute on one processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

KINDS = ("text", "image-text", "video", "action-video", "vqa")
SCENES = {"text": 700, "image-text": 600, "video": 300, "action-video": 60, "vqa": 600}


@dataclass(frozen=True)
class Run:
    """One command: `pipelines run <stage> -c <config>`, and where its artifact will lie."""

    stage: str
    config: str
    output: str

    def argv(self) -> list[str]:
        """What follows `python -m` or stands for the console script."""
        return ["run", self.stage, "-c", self.config]


MODEL = {"transfusion": {"layers": 2, "width": 48, "heads": 2, "ffn": "per_modality"}}


SHOWN: dict[str, dict[str, Any]] = {"vqa": {"turns": "isolated", "loss": "text"}, "image-text": {"image_first": 0.5}}


def _mixture(root: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    sources = {k: {"dataset": f"{root}/encoded/{k.replace('-', '_')}", "tokens": 8_000, **SHOWN.get(k, {})} for k in kinds}
    return {"sequence_length": 256, "held_out": {"fraction": 0.1, "seed": 0, "max_tokens": 20_000}, "sources": sources}


def write(folder: Path, root: str, engine: str = "ray", kinds: tuple[str, ...] = KINDS) -> list[Run]:
    """The YAMLs and the order of the journey: a curated set of each kind, a tokenizer, the encoded sets, a plan, a run."""
    folder.mkdir(parents=True, exist_ok=True)
    steps: list[Run] = []

    def add(stage: str, name: str, document: dict[str, Any]) -> None:
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        steps.append(Run(stage, str(path), document["output"]))

    for kind in kinds:
        name = kind.replace("-", "_")
        world = {"kind": kind, "scenes": SCENES[kind], "seed": 3}
        add(kind, name, {"name": f"tiny_{name}", "source": {"world": world}, "engine": engine, "output": f"{root}/curated/{name}"})
    curated = [f"{root}/curated/{k.replace('-', '_')}" for k in kinds]
    add("fit-tokenizer", "tokenizer", {"datasets": curated, "vocab": 320, "output": f"{root}/tokenizer"})
    for path in curated:
        name = path.rsplit("/", 1)[-1]
        document: dict[str, Any] = {"dataset": path, "text": {"text_tokens": {"tokenizer": f"{root}/tokenizer"}}, "storage": "bf16"}
        if name != "text":
            document["images"] = {"pixels": {"patch": 8, "size": 32}}
        add("encode", f"encode_{name}", {**document, "engine": engine, "output": f"{root}/encoded/{name}"})
    add("mix", "mixture", {**_mixture(root, kinds), "output": f"{root}/plan"})
    run = {"plan": f"{root}/plan", "model": MODEL, "batch": 4, "optim": {"lr": 2e-3}, "checkpoint_every": 10, "threads": 1, "device": "cpu"}
    add("train", "run", {**run, "output": f"{root}/run"})
    return steps
