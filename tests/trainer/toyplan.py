"""Small encoded datasets and a plan over them, so that the stream and the loop run on what they will meet. Latents carry a pattern that can
be learned: an image is one of four prototypes plus noise, and the text beside it names which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mixtures import latent_stats
from mixtures.mixture import Mixture
from mixtures.plan import make_plan
from pipelines.format import codec
from pipelines.format.document import fingerprint
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment
from tests.toys import seal
from trainer.run import Run

VOCAB, WIDTH, PATCHES = 55, 8, 4
SPECIALS = {"bos": 50, "eos": 51, "boi": 52, "eoi": 53, "pad": 54}
PROTOTYPES = np.random.default_rng(7).standard_normal((4, PATCHES, WIDTH)).astype(np.float32)


def ids(values: list[int], role: str = "target", atom: int = -1, turn: int = -1, member: str | None = None) -> Segment:
    payload = np.array(values, "<u2").tobytes()
    return Segment("tokens", role, atom, turn, member, None, payload, "uint16", (len(values),), len(values))  # type: ignore[arg-type]


def picture(rng: np.random.Generator, which: int, role: str = "target", atom: int = 0) -> Segment:
    x = 2 * PROTOTYPES[which] + 0.1 * rng.standard_normal((PATCHES, WIDTH)).astype(np.float32) + 3
    return Segment("latents", role, atom, -1, None, None, codec.encode_latents(x, "f32"), "f32", (PATCHES, WIDTH), PATCHES)  # type: ignore[arg-type]


def record(data: str, i: int) -> Record:
    rng = np.random.default_rng([i, len(data)])
    which = int(rng.integers(4))
    if data == "text":
        start = int(rng.integers(40))
        segments = [ids([(start + k) % 40 for k in range(30)])]
    elif data == "image-text":
        segments = [picture(rng, which), ids([40 + which, 44], atom=1, member="original")]
    elif data == "video":
        segments = [picture(rng, (which + k) % 4, atom=k) for k in range(3)]
    else:
        asked = [s for t in range(2) for s in (ids([45, 46], "context", 0, t), ids([40 + which], "target", 0, t))]
        segments = [picture(rng, which, "context"), *asked]
    return Record.make("toy", f"{data}{i}", data, segments)


def dataset(root: str, data: str, n: int) -> str:
    with PartWriter(root, 0, fingerprint=fingerprint([data, n]), encoded=True) as w:
        for i in range(n):
            w.emit()
            w.add(record(data, i))
        commits = [w.commit()]
    encoding: dict[str, Any] = {"text": {"tokenizer_sha256": "0" * 64, "vocab": VOCAB, "specials": SPECIALS}}
    if data != "text":
        rows = [codec.decode_latents(s.payload, "f32", PATCHES, WIDTH) for i in range(n) for s in record(data, i).segments if s.kind == "latents"]
        x = np.concatenate(rows).astype(np.float64)
        encoding["stats"], _ = latent_stats.publish(root, (len(x), x.mean(axis=0), ((x - x.mean(axis=0)) ** 2).sum(axis=0)))
        encoding["image"] = {"encoder": "toy", "fingerprint": "0" * 64, "tokens": PATCHES, "width": WIDTH, "codec": "f32"}
    return seal(root, f"toy-{data}", data, commits, {"dataset": "toy"}, encoding)


def make(root: Path, tokens: int = 2400, n: int = 300) -> str:
    """A plan of four sources with `tokens` payload tokens each (words 200 more), in rows of 64."""
    datasets = {data: dataset(str(root / data), data, n) for data in ("text", "image-text", "video", "vqa")}
    sources: dict[str, dict[str, Any]] = {
        "words": {"dataset": datasets["text"], "tokens": tokens + 200},
        "pairs": {"dataset": datasets["image-text"], "tokens": tokens, "max_epochs": 20},
        "clips": {"dataset": datasets["video"], "tokens": tokens, "max_epochs": 20},
        "vqa": {"dataset": datasets["vqa"], "tokens": tokens, "max_epochs": 20, "turns": "isolated"},
    }
    mixture = Mixture.model_validate({"sequence_length": 64, "held_out": {"fraction": 0.1, "seed": 0}, "sources": sources})
    return make_plan(mixture, str(root / "plan"))


def run(plan: str, output: Path, **changes: Any) -> Run:
    """A run of a model of 30 thousand parameters."""
    shape = {"layers": 2, "width": 32, "heads": 2, "ffn_width": 64, "norm": "layer", "activation": "relu2", "embedding_std": 0.3}
    document = {"plan": plan, "output": str(output), "model": {"transfusion": shape}, "batch": 4, "optim": {"lr": 4e-3}}
    return Run.model_validate({**document, "flow": {"predict": "v", "cfg_drop": {"caption": 0.1}}, "device": "cpu", "threads": 1, **changes})
