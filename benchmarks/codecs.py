"""What each storage codec costs and loses, and what becomes of a small model that learns from it: latents of real photos, outliers planted or not.

    python -m benchmarks.codecs --json        needs HEADWATER_DATA; ten minutes on two processors

Photos go through a vision tower of SigLIP 2's so400m/14 architecture with one layer of random weights (256 x 1152 an image), once. Four channels are
then moved by 20 standard deviations, or not, since published towers have such channels and a random one has none. For each codec: bytes a token,
relative L2, mean and worst cosine; and the flow loss of the trainer's own small transfusion model, trained by the trainer's own loop from shards
stored with that codec and judged on exact latents of held-out photos, at fixed times and noise. Models of one seed see the same records, times
and noise in the same order, and latents are normalised by the statistics of the exact ones, so that runs differ by what was stored and nothing
else. `seeds` shows how far two runs of one codec lie apart: an effect much smaller than that is no reason to choose a codec.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from encode.codec_error import CodecError
from encode.encoder import ImageEncoding
from encode.encoders.siglip2 import Siglip2
from encode.stats import Moments
from mixtures import latent_stats
from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from pipelines.format import codec
from pipelines.format.document import fingerprint
from pipelines.format.errors import Reject
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment
from tests.toys import seal

PHOTOS_READ = 52  # in float32 they fill 61 MB: more than 64 MiB would be shuffled in two windows there and in one elsewhere
PHOTOS = ("coco_captions", "openstax_alt")
CODECS = ("f32", "bf16", "int8", "f8e4m3")
BARS = {"bf16": 0.004, "int8": 0.015, "f8e4m3": 0.04}  # relative L2
FLOW_BAR = 0.99  # exact over stored: at most one percent is lost
SEEDS, EPOCHS, VOCAB = (0, 1), 6, 64
MODEL = {"layers": 3, "width": 96, "heads": 4, "ffn": "shared", "ffn_width": 384, "norm": "layer", "activation": "relu2", "output_skip": True}
OUTLIERS, SIGMAS = (7, 300, 777, 1151), 20
SPECIALS = {name: VOCAB - 5 + i for i, name in enumerate(("bos", "eos", "boi", "eoi", "pad"))}

Row = dict[str, Any]


def photos(data: Path, limit: int) -> list[bytes]:
    """JPEG files, in the order of their names."""
    found = [p for folder in PHOTOS for p in sorted((data / "image_text" / folder).rglob("*.jpg"))]
    return [p.read_bytes() for p in found[:limit]]


def latents(root: Path, payloads: list[bytes]) -> np.ndarray:
    """float32 [images, 256, 1152] of those that can be read."""
    argv, sys.argv = sys.argv, ["random_tower", str(root / "tower")]
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        runpy.run_path(str(Path(__file__).parents[1] / "examples" / "real" / "random_tower.py"), run_name="__main__")
    finally:
        sys.argv, sys.stdout = argv, out
    encoding = ImageEncoding(Siglip2(weights=str(root / "tower"), batch=8, dtype="f32"), "cpu")
    done = []
    for payload in payloads:
        try:
            done.append(encoding.encoder.picture(_decoded(payload)))
        except Reject:
            continue
    return encoding.encode(np.stack(done))


def _decoded(payload: bytes) -> np.ndarray:
    from pipelines.media import images

    return images.decode(payload)


def planned(root: Path, name: str, x: np.ndarray) -> tuple[str, CodecError]:
    """A dataset of these latents in a codec and a plan over it, pictures after a word; what the codec lost."""
    shape = x.shape[1:]
    error = []
    path = str(root / name)
    with PartWriter(path, 0, fingerprint=fingerprint(["codecs", name]), encoded=True) as w:
        for i, image in enumerate(x):
            payload = codec.encode_latents(image, name)
            error.append(CodecError.of(image, codec.decode_latents(payload, name, *shape)))
            word = np.array([i % 8], "<u2").tobytes()
            caption = Segment("tokens", "target", 1, -1, "original", None, word, "uint16", (1,), 1)
            w.emit()
            picture = Segment("latents", "target", 0, -1, None, None, payload, name, shape, shape[0])
            w.add(Record.make("photos", f"{i}", "image-text", [picture, caption]))
        commit = w.commit()
    exact = Moments.of(x.reshape(-1, shape[1]))
    encoding: Row = {"text": {"tokenizer_sha256": "0" * 64, "vocab": VOCAB, "specials": SPECIALS}}
    encoding["stats"], _ = latent_stats.publish(path, (exact.n, exact.mean, exact.m2))
    encoding["image"] = {"encoder": "random tower", "fingerprint": "0" * 64, "tokens": shape[0], "width": shape[1], "codec": name}
    seal(path, "photos", "image-text", [commit], {}, encoding)
    source = {"dataset": path, "epochs": EPOCHS, "max_epochs": EPOCHS, "image_first": 0}
    settings = {"sequence_length": 2 * (shape[0] + 6), "held_out": {"fraction": 0.15, "seed": 0}, "sources": {"photos": source}}
    return make_plan(Mixture.model_validate(settings), str(root / f"{name}-plan")), CodecError.total(error)


def order(plan: str) -> tuple[tuple[int, ...], ...]:
    """The records of each sequence of a plan."""
    made = Plan.open(plan)
    return tuple(tuple(span.row for span in made.row(i, "train").spans) for i in range(made.sequences("train")))


def trained(root: Path, plan: str, exact: str, seed: int) -> float:
    """The flow loss on exact held-out latents of a small model trained on a plan."""
    from trainer.evaluate._subject import Subject
    from trainer.evaluate.flow_loss import FlowLoss
    from trainer.loop import train
    from trainer.models.load import load_model
    from trainer.run import Run
    from trainer.stream import Reader

    output = f"{plan}-run{seed}"
    document = {
        "plan": plan, "seed": seed, "model": {"transfusion": MODEL}, "loss": {"text": 0.0, "flow": 1.0}, "optim": {"lr": 2e-3, "warmup": 0.06},
        "batch": 4, "device": "cpu", "precision": "fp32", "checkpoint_every": None, "output": output,
    }  # fmt: skip
    train(Run.model_validate(document))
    model, run, _ = load_model(output)
    rows = FlowLoss(bins=8).run(Subject(model.eval(), run, Reader(Plan.open(exact))), output)
    return float(next(r["value"] for r in rows if r["metric"] == "flow_loss" and r["split"] == "held_out"))


def measure(data: Path, limit: int) -> list[Row]:
    """Two rows per lossy codec and kind of latents: what is lost, and what a model loses by it."""
    torch.set_num_threads(os.cpu_count() or 1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        x = latents(root, photos(data, limit))
        for kind in ("plain", "outliers"):
            if kind == "outliers":
                x[..., list(OUTLIERS)] += SIGMAS * x.std()
            plans = {name: planned(root / kind, name, x) for name in CODECS}
            assert len({order(plan) for plan, _ in plans.values()}) == 1, "a plan's order follows its shards' sizes: read fewer photos"
            found = {name: [trained(root, plan, plans["f32"][0], seed) for seed in SEEDS] for name, (plan, _) in plans.items()}
            print(f"{kind}: {found}", file=sys.stderr, flush=True)
            for name in CODECS[1:]:
                rows += compared(kind, name, x.shape, plans[name][1], found[name], found["f32"])
    return rows


def compared(kind: str, name: str, shape: tuple[int, ...], error: CodecError, ours: list[float], exact: list[float]) -> list[Row]:
    """What machines read."""
    facts = {**error.figures(name, *shape[1:]), "images": shape[0], "seeds_apart": max(exact) / min(exact) - 1}
    facts["flow_loss_change"] = float(np.mean(ours) / np.mean(exact) - 1)
    versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    lost, loss = error.relative_l2, float(np.mean(ours))
    same: Row = {"versions": versions, "facts": facts}
    paired = [{"seed": s, "ours": a, "peer": b} for s, a, b in zip(SEEDS, ours, exact, strict=True)]
    bar, ratio = BARS[name], float(np.mean(exact)) / loss
    about = {"name": f"codecs.{kind}.{name}", "ours": lost, "peer": bar, "unit": "relative L2; peer: the most it may be", "ratio": bar / lost}
    model = {"name": f"codecs.{kind}.{name}.flow", "ours": loss, "peer": float(np.mean(exact)), "unit": "flow loss; peer: learnt from exact latents"}
    return [
        {**about, "bar": 1.0, "ok": lost <= bar, "runs": [{"relative_l2": lost}], **same},
        {**model, "ratio": ratio, "bar": FLOW_BAR, "ok": ratio >= FLOW_BAR, "runs": paired, **same},
    ]


def table(rows: list[Row]) -> str:
    """Markdown, as in docs/codecs.md."""
    columns = ("latents", "codec", "bytes a token", "relative L2", "mean cosine", "worst cosine", "flow loss", "against exact")
    out = ["| " + " | ".join(columns) + " |\n|---|---|" + "---:|" * 6]
    for r in rows:
        if not r["name"].endswith(".flow"):
            continue
        _, kind, name, _ = r["name"].split(".")
        f = r["facts"]
        cells = [kind, name, f"{f['bytes_per_token']:,.0f}", f"{f['relative_l2']:.2%}", f"{f['mean_cosine']:.6f}", f"{f['worst_cosine']:.6f}"]
        out.append("| " + " | ".join([*cells, f"{r['ours']:.4f}", f"{f['flow_loss_change']:+.3%}"]) + " |")
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one list on stdout, nothing else")
    parser.add_argument("--photos", type=int, default=PHOTOS_READ)
    args = parser.parse_args()
    data = os.environ.get("HEADWATER_DATA")
    if not data or not Path(data).is_dir():
        print("HEADWATER_DATA names no folder of real inputs: nothing is measured", file=sys.stderr)
        print("[]")
        return 0
    rows = measure(Path(data), args.photos)
    print(json.dumps(rows) if args.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
