"""The toy datasets of toyplan once more as another encoder makes them: 9 latents of width 5 where the first makes 4 of 8, and a plan over both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import toyplan

from mixtures import latent_stats
from mixtures.mixture import Mixture
from mixtures.plan import make_plan
from pipelines.format import codec
from pipelines.format.document import fingerprint
from pipelines.format.part import PartWriter
from pipelines.format.record import Record
from tests.toys import seal

WIDTH, PATCHES = 5, 9
DOOR = np.random.default_rng(11).standard_normal((toyplan.WIDTH, WIDTH)).astype(np.float32)


def other(x: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """What the second encoder makes of the first one's latents [4, 8]: [9, 5], and says the same."""
    door = DOOR if width == WIDTH else np.random.default_rng(12).standard_normal((toyplan.WIDTH, width)).astype(np.float32)
    return np.concatenate([x, x, x[:1]]) @ door


def record(data: str, i: int, width: int) -> Record:
    found = toyplan.record(data, i)
    segments = []
    for s in found.segments:
        if s.kind == "latents":
            x = other(codec.decode_latents(s.payload, "f32", *s.shape), width)
            s = replace(s, payload=codec.encode_latents(x, "f32"), shape=x.shape, tokens=len(x))
        segments.append(s)
    return replace(found, segments=tuple(segments))


def dataset(root: str, data: str, n: int, width: int) -> str:
    records = [record(data, i, width) for i in range(n)]
    with PartWriter(root, 0, fingerprint=fingerprint([data, n, "other"]), encoded=True) as w:
        for r in records:
            w.emit()
            w.add(r)
        commits = [w.commit()]
    encoding: dict[str, Any] = {"text": {"tokenizer_sha256": "0" * 64, "vocab": toyplan.VOCAB, "specials": toyplan.SPECIALS}}
    rows = [codec.decode_latents(s.payload, "f32", PATCHES, width) for r in records for s in r.segments if s.kind == "latents"]
    x = np.concatenate(rows).astype(np.float64)
    encoding["stats"], _ = latent_stats.publish(root, (len(x), x.mean(axis=0), ((x - x.mean(axis=0)) ** 2).sum(axis=0)))
    encoding["image"] = {"encoder": "other", "fingerprint": "1" * 64, "tokens": PATCHES, "width": width, "codec": "f32"}
    return seal(root, f"other-{data}", data, commits, {"dataset": "toy"}, encoding)


def make(root: Path, tokens: int = 2400, n: int = 300, same: bool = False, width: int = WIDTH) -> str:
    """A plan of the four sources of toyplan, each with images in two datasets; `same`: with one dataset in both places."""
    context = {data: toyplan.dataset(str(root / data), data, n) for data in ("text", "image-text", "video", "vqa")}
    target = {d: context[d] if same else dataset(str(root / f"{d}-made"), d, n, width) for d in context if d != "text"}
    two = lambda data: {"dataset": {"context": context[data], "target": target[data]}, "tokens": tokens, "max_epochs": 20}
    sources = {
        "words": {"dataset": context["text"], "tokens": tokens + 200},
        "pairs": {**two("image-text"), "image_first": 0.5},
        "clips": two("video"),
        "vqa": {**two("vqa"), "turns": "isolated"},
    }
    mixture = Mixture.model_validate({"sequence_length": 64, "held_out": {"fraction": 0.1, "seed": 0}, "sources": sources})
    return make_plan(mixture, str(root / "plan"))
