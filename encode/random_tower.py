"""The random-tower stage: a vision tower of a published architecture with random weights, small, made here: for trying everything that encodes.

In: an architecture and a size. Out: config.json, model.safetensors, preprocessor_config.json and a card, as a downloaded tower has them. Its latents
have a tower's shape and mean nothing; a wide and shallow one still holds what it saw (docs/decoders.md), so a comparison of encoders can be walked
through, and nothing be learned from it about encoders. Same seed and library, same bytes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.format import storage
from pipelines.format.document import Document, dump, fingerprint
from pipelines.format.estimate import Estimate
from pipelines.format.manifest import card, file_entry, publish_card, refuse_other_recipe
from pipelines.format.part import FORMAT
from pipelines.stage import Job

VERSION = 1


class RandomTower(Document):
    """`size` pixels a side in patches of `patch`; `width` channels, `layers` blocks of `heads` heads."""

    name: str = ""
    architecture: Literal["siglip2", "dinov2"]
    size: int = Field(32, ge=2)
    patch: int = Field(8, ge=1)
    width: int = Field(256, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    seed: int = Field(0, ge=0)
    output: str
    engine: Literal["ray", "local"] = "local"

    @model_validator(mode="after")
    def _fits(self) -> RandomTower:
        if self.size % self.patch or self.width % self.heads:
            raise ValueError("size must be a multiple of patch, and width of heads")
        return self


class RandomTowerStage:
    """`pipelines run random-tower -c world_siglip2`."""

    config = RandomTower
    summary = "a small vision tower with random weights, to try encoders without a download"

    def plan(self, config: RandomTower) -> Estimate:
        """What it comes to."""
        tokens = (config.size // config.patch) ** 2
        return Estimate(f"random-tower {config.name}", {"latents": f"{tokens} x {config.width}", "output": config.output})

    def run(self, config: RandomTower, job: Job) -> str:
        """Make it, unless the output already holds this very tower. Returns the folder."""
        output = storage.absolute(config.output)
        settings = {k: v for k, v in dump(config).items() if k not in ("name", "output", "engine")}
        recipe = fingerprint({"format": FORMAT, "stage": "random-tower", "version": VERSION, **settings})
        refuse_other_recipe(output, "manifest.json", recipe)
        if storage.exists(storage.join(output, "manifest.json")):
            return output
        with tempfile.TemporaryDirectory() as scratch:
            _model(config).save_pretrained(scratch)
            names = ("config.json", "model.safetensors")
            files = [file_entry(output, name, (Path(scratch) / name).read_bytes()) for name in names]
        files.append(file_entry(output, "preprocessor_config.json", json.dumps(_processor(config), indent=1).encode()))
        made = fingerprint([recipe, [f["sha256"] for f in files]])
        facts: dict[str, Any] = {"files": files, "bytes": sum(f["bytes"] for f in files), "recipe_fingerprint": recipe}
        made_card = card("tower", config.name or "tower", made, dump(config), stages={"random-tower": VERSION}, **facts)
        publish_card(output, "manifest.json", made_card, recipe)
        storage.sweep(output)
        return output


STAGE = RandomTowerStage()


def _model(config: RandomTower) -> Any:
    import torch
    import transformers

    shape: dict[str, Any] = {"hidden_size": config.width, "num_attention_heads": config.heads, "num_hidden_layers": config.layers}
    shape |= {"patch_size": config.patch, "image_size": config.size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.architecture == "dinov2":
            return transformers.Dinov2Model(transformers.Dinov2Config(**shape))
        vision = transformers.SiglipVisionConfig(intermediate_size=4 * config.width, vision_use_head=False, **shape)
        return transformers.SiglipVisionModel(vision)


def _processor(config: RandomTower) -> dict[str, Any]:
    """What such a tower's own processor says: SigLIP stretches to the square, DINOv2 cuts the middle of a picture an eighth larger."""
    steps: dict[str, Any] = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    if config.architecture == "dinov2":
        crop = {"do_center_crop": True, "crop_size": {"height": config.size, "width": config.size}, "size": {"shortest_edge": config.size * 8 // 7}}
        known = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "image_processor_type": "BitImageProcessor", "resample": 3}
        return {**steps, **crop, **known}
    side = {"height": config.size, "width": config.size}
    return {**steps, "size": side, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "SiglipImageProcessor"}
