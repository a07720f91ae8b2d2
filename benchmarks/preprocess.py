"""From the bytes of a photo to the numbers a vision tower takes, beside a plain loop over transformers' own image processor.

    python -m benchmarks.preprocess --json

    preprocess.SIDE.siglip2    both sides to 224                             SIDE: raw640, raw1280 photos with that longer side, their sides as
    preprocess.SIDE.dinov2     short side to 256, the middle 224             they come; stored256 squares as curation stores them

`peer` opens each photo with Pillow, makes it RGB and hands batches of 16 to the processor, float normalisation included. `ours` is what an encoder
does: `read` on a worker, then the numbers, both on one thread of the CPU. Both give [n, 3, 224, 224] float32, and ours must be within two levels of
the peer's everywhere and a tenth of one on average. Rates are per second of processor time. Photos are those of HEADWATER_DATA where it is set,
otherwise drawn.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.alternating import alternate, compared
from pipelines.media import images

BAR = 1.5
RUNS, BATCH, PHOTOS = 9, 16, 48
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def originals() -> list[Image.Image]:
    """Photos at their own size, the longer side at least 600."""
    folder = os.environ.get("HEADWATER_DATA")
    if folder:
        found = (Image.open(p).convert("RGB") for p in sorted((Path(folder) / "image_text/coco_captions/images").rglob("*.jpg")))
        return [photo for photo, _ in zip((p for p in found if max(p.size) >= 600), range(PHOTOS), strict=False)]
    rng = np.random.default_rng(0)
    return [drawn(rng, (640, 480) if i % 3 else (480, 640)) for i in range(PHOTOS)]


def drawn(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Colours at three scales and grain: as many bytes as a photo of that size."""
    out = np.zeros((size[1], size[0], 3))
    for cells, strength in ((4, 120), (24, 60), (160, 40)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        out += (np.asarray(coarse) / 255 - 0.5) * strength
    return Image.fromarray(np.clip(out + 128 + rng.normal(0, 6, out.shape), 0, 255).astype(np.uint8))


def at_side(photos: list[Image.Image], side: int) -> list[bytes]:
    """JPEGs whose longer side is `side`."""
    out = []
    for photo in photos:
        width, height = (round(x * side / max(photo.size)) for x in photo.size)
        out.append(images.encode_jpeg(np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC)), 90))
    return out


def stored(photos: list[Image.Image], size: int) -> list[bytes]:
    """As `resize_image` stores them."""
    from pipelines.media.resizing import resize

    return [images.encode_jpeg(resize(np.asarray(photo), size), 92) for photo in photos]


def in_batches(photos: list[bytes], one: Callable[[list[bytes]], Any]) -> list[Any]:
    return [one(photos[i : i + BATCH]) for i in range(0, len(photos), BATCH)]


def peer_of(processor: Any) -> Callable[[list[bytes]], Any]:
    """The plain loop."""
    return lambda some: processor(images=[Image.open(io.BytesIO(data)).convert("RGB") for data in some], return_tensors="pt")["pixel_values"]


def ours_of(processor: Any) -> Callable[[list[bytes]], Any]:
    """What an encoder of these settings does."""
    import torch

    from encode.processor import published

    prepared = published(processor.to_dict(), "benchmark", exact=False)
    numbers = prepared.numbers("cpu")
    return lambda some: numbers(torch.from_numpy(np.stack([prepared.read(data) for data in some])))


def rows() -> list[dict[str, Any]]:
    """Six rows."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    square = {"height": 224, "width": 224}
    processors = {
        "siglip2": transformers.SiglipImageProcessorPil(size=square),
        "dinov2": transformers.BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=square, **IMAGENET),
    }
    photos = originals()
    sets = {"raw640": at_side(photos, 640), "raw1280": at_side(photos, 1280), "stored256": stored(photos, 256)}
    versions = {p: version(p) for p in ("transformers", "pillow", "torch", "numpy")}
    out = []
    for name, processor in processors.items():
        mine, theirs = ours_of(processor), peer_of(processor)
        for kind, data in sets.items():
            std = torch.tensor(processor.image_std).view(3, 1, 1) * 255
            apart = [(a - b).abs() * std for a, b in zip(in_batches(data, mine), in_batches(data, theirs), strict=True)]
            worst, mean = max(float(x.max()) for x in apart), float(torch.cat(apart).mean())
            assert worst <= 2.01 and mean <= 0.1, (kind, name, worst, mean)
            pairs = alternate(lambda _, f=mine, d=data: in_batches(d, f), lambda _, f=theirs, d=data: in_batches(d, f), RUNS)
            more = {"versions": versions, "levels_apart": {"max": round(worst, 3), "mean": round(mean, 5)}}
            out.append(compared(f"preprocess.{kind}.{name}", len(data), "photos/s of processor time", BAR, pairs, **more))
            print(f"{out[-1]['name']}: {out[-1]['ratio']} (apart by {worst:.2f}, {mean:.4f} on average)", file=sys.stderr, flush=True)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = rows()
    print(json.dumps(found) if args.json else "\n".join(f"{r['name']}: {r['ratio']}" for r in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
