"""What the comparisons of encoding read: towers of published shapes with random weights, photos as JPEGs, curated shards of them, a tokenizer, and
the loop that one would write with transformers alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CAPTION = "a photo as it lies on the web, number {}"


class Shape(NamedTuple):
    """Of a vision tower."""

    hidden: int
    inner: int
    layers: int
    heads: int
    image: int
    patch: int


def tower(folder: Path, shape: Shape) -> str:
    """SigLIP 2's vision tower with random weights, saved as published ones are."""
    import torch
    import transformers

    torch.manual_seed(0)
    s = shape
    sizes: dict[str, Any] = {"hidden_size": s.hidden, "intermediate_size": s.inner, "num_hidden_layers": s.layers, "num_attention_heads": s.heads}
    config = transformers.SiglipVisionConfig(**sizes, image_size=s.image, patch_size=s.patch)
    transformers.SiglipVisionModel(config).eval().save_pretrained(str(folder))
    settings = {
        "image_processor_type": "SiglipImageProcessor", "do_resize": True, "size": {"height": s.image, "width": s.image}, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


def photos(n: int) -> list[bytes]:
    """JPEGs with sides of 256 to 512 pixels, no two alike: real ones from HEADWATER_DATA, else smooth colours with noise."""
    from pipelines.media import images

    rng = np.random.default_rng(0)
    found = sorted(Path(os.environ.get("HEADWATER_DATA", "nowhere")).glob("image_text/coco_captions/**/*.jpg"))
    some = [images.decode(p.read_bytes()) for p in islice(found, 64)] or [_drawn(rng) for _ in range(16)]
    made = []
    for i in range(min(n, 256)):
        height, width = (int(x) for x in rng.integers(256, 513, 2))
        made.append(images.encode_jpeg(images.stretch(some[i % len(some)], height, width), 90))
    return [_numbered(made[i % len(made)], i) for i in range(n)]


def _drawn(rng: np.random.Generator) -> np.ndarray:
    coarse = rng.integers(0, 256, (16, 16, 3)).repeat(32, 0).repeat(32, 1)
    return np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8)


def _numbered(jpeg: bytes, i: int) -> bytes:
    """The same picture in other bytes: a shard stores equal ones once."""
    note = f"{i:08}".encode()
    return jpeg[:2] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note + jpeg[2:]


def curated(root: Path, jpegs: Sequence[bytes], per_shard: int) -> str:
    """A curated dataset of pictures with captions."""
    from pipelines.format.part import PartWriter
    from pipelines.format.record import Image, Record, Text
    from tests.toys import seal

    commits = []
    for part, first in enumerate(range(0, len(jpegs), per_shard)):
        with PartWriter(str(root), part, fingerprint=f"{part:064x}") as w:
            for i, payload in enumerate(jpegs[first : first + per_shard], first):
                w.emit()
                w.add(Record.make("photos", f"{i}.jpg", "image-text", [Image(payload, atom=0), Text(CAPTION.format(i), atom=1, name="original")]))
            commits.append(w.commit())
    return seal(str(root), "photos", "image-text", commits, {"source": "photos"})


def tokenizer(root: Path, dataset: str) -> str:
    from encode.fit_tokenizer import STAGE, FitTokenizer
    from pipelines.engine import open_job

    with open_job("local") as job:
        return STAGE.run(FitTokenizer(datasets=[dataset], vocab=300, output=str(root)), job)


def plain_loop(weights: str, device: str, dtype: str, batch: int) -> Callable[[Sequence[bytes]], int]:
    """Pillow, the model's own processor and the model, a batch at a time, to bf16 bytes: JPEGs -> how many bytes came of them."""
    import io

    import torch
    import transformers
    from PIL import Image

    processor = transformers.AutoImageProcessor.from_pretrained(weights)
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    model: Any = transformers.SiglipVisionModel.from_pretrained(weights, dtype=kind, attn_implementation="sdpa").to(device).eval()

    def run(jpegs: Sequence[bytes]) -> int:
        size = 0
        for first in range(0, len(jpegs), batch):
            pictures = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in jpegs[first : first + batch]]
            with torch.inference_mode():
                inputs = processor(images=pictures, return_tensors="pt").to(device)
                out = model(pixel_values=inputs["pixel_values"].to(kind)).last_hidden_state
            stored = out.to(torch.bfloat16).cpu().view(torch.uint16).numpy()
            size += sum(len(latents.tobytes()) for latents in stored)
        return size

    return run
