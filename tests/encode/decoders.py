"""Small decoders with random weights, saved as published ones are, and small encoded datasets to use them on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from encode.fit_tokenizer import STAGE as FIT
from encode.fit_tokenizer import FitTokenizer
from encode.recipe import EncodeRecipe
from encode.stage import STAGE
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from tests import toys


def save_decoder(folder: Path, channels: int, patch: int, side: int, depth: int = 1, seed: int = 0, numbers: bool = True) -> Any:
    """config.json and model.safetensors of the first published layout; weights large enough that pictures differ."""
    import torch

    from encode.reconstruction import layout
    from encode.reconstruction.vit import Shape, VitDecoder

    model = VitDecoder(Shape(channels, patch, side, side, depth, width=16, heads=2, mlp=24)).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    folder.mkdir(parents=True, exist_ok=True)
    half = (0.5, 0.5, 0.5) if numbers else None
    (folder / "config.json").write_text(json.dumps(layout.config_json(model.shape, half, half)))
    (folder / "model.safetensors").write_bytes(layout.written(model))
    return model


def run(stage: Any, config: Any, **keys: Any) -> str:
    with open_job("local") as job:
        return str(stage.run(parse(config, keys), job))


def encoded_toys(root: Path, size: int, patch: int, n: int, data: str = "image-text") -> Dataset:
    """n toy records encoded as raw pixels, in f32, beside their curated parent."""
    curated = toys.curated(str(root / "curated"), data, n=n)
    texts = curated if data != "video" else toys.curated(str(root / "texts"), "text", n=2)
    tokenizer = run(FIT, FitTokenizer, datasets=[texts], vocab=300, output=str(root / "tokenizer"))
    given = {"text": {"text_tokens": {"tokenizer": tokenizer}}, "images": {"pixels": {"size": size, "patch": patch}}, "storage": "f32"}
    return Dataset.open(run(STAGE, EncodeRecipe, dataset=curated, output=str(root / "encoded"), **given))
