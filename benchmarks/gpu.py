"""What only an accelerator can show, in one command of at most eight minutes: numerics, encoding, attention, training steps; one table.

    python -m benchmarks.gpu --table benchmarks/gpu.md         on a machine with CUDA
    python -m benchmarks.gpu --toy                             the same code at toy size on a CPU: proof that it runs, not a measurement

Networks have their published shapes and random weights (speed and rounding do not depend on what was learned). Every figure stands beside what
limits it, measured in the same process: the bare network for an encoder, a plain causal kernel for masked attention, the card's own speed at a
large matrix product for a training step. A section that fails becomes a row that says so; the others still run. It needs neither Ray nor a video
codec. Without --toy it refuses to run on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import gpu_encoding
from benchmarks.gpu_rows import REAL, TOY, Row, Sizes, figure, peak, row, sync, table, timed

# ---- attention ---------------------------------------------------------------------------------------------------------------------------


def packed(s: Sizes, length: int, rows: int = 1, seed: int = 0) -> Any:
    """A batch as mixtures make them: captions and pictures, clips and documents, end to end in rows of `length`."""
    from trainer.batch import IGNORED, LATENT, STRUCTURE, TEXT, Document, collate

    rng = np.random.default_rng(seed)

    def document(images: int, words: int) -> Document:
        kinds = [STRUCTURE] + [k for _ in range(images) for k in (STRUCTURE, *[LATENT] * s.patches, STRUCTURE)] + [TEXT] * words + [STRUCTURE]
        kind = np.array(kinds, np.uint8)
        n = len(kind)
        image = np.full(n, -1, np.int32)
        image[kind == LATENT] = np.repeat(np.arange(images), s.patches)
        tokens = rng.integers(0, s.vocab - 8, n).astype(np.int32)
        target = np.where(kind == TEXT, tokens, IGNORED).astype(np.int32)
        zero = np.zeros(n, np.int16)
        return Document(
            tokens=tokens, kind=kind, turn=zero - 1, position=np.arange(n, dtype=np.int32), condition=np.zeros(n, np.uint8), text_target=target,
            image=image, image_loss=np.ones(images, bool), image_hidden=np.zeros(images, bool), image_segment=np.arange(images, dtype=np.int16),
            latents=rng.standard_normal((images * s.patches, s.channels)).astype(np.float32), h=int(rng.integers(1 << 60)),
        )  # fmt: skip

    out = []
    for _ in range(rows):
        members, free = [], length
        while free > s.patches + 40:
            images, words = [(1, 30), (0, min(free - 2, 700)), (4, 0), (1, 60)][int(rng.integers(4))]
            size = 2 + images * (s.patches + 2) + words
            if size > free:
                images, words = 0, max(1, free - 2)
            members.append(document(images, words))
            free -= len(members[-1])
        out.append(members)
    return collate(out, list(range(rows)), length, s.vocab - 1, s.channels)


def attention(device: str, s: Sizes) -> Iterator[Row]:
    import torch.nn.functional as F

    from trainer.models.attention import order, prepare

    heads, kv, width = s.attention_heads
    masked = "flex" if device == "cuda" else "documents"
    for length in s.lengths:
        batch = packed(s, length).to(device)
        where = order(batch)
        qkv = torch.randn(len(where.slots), heads + 2 * kv, width, device=device)
        dense32 = prepare(batch, where, None, "dense")(qkv, heads)
        ours32 = prepare(batch, where, None, masked)(qkv, heads)
        worst = float((dense32 - ours32).abs().max())
        unit = f"largest difference, f32, {masked} from dense"
        yield row(f"attention.{length}.numerics", worst, unit, None, "", "<= 1e-3 (TF32 in the kernel)", worst <= 1e-3)
        kind = torch.bfloat16 if device == "cuda" else torch.float32
        x = qkv.to(kind).requires_grad_()
        grad = torch.randn(len(where.slots), heads, width, device=device, dtype=kind)

        def both(attend: Any, x: torch.Tensor = x, grad: torch.Tensor = grad) -> None:
            attend(x, heads).backward(grad)
            x.grad = None

        flex_s, dense_s = (timed(lambda a=prepare(batch, where, None, backend): both(a), 10) for backend in (masked, "dense"))  # type: ignore[misc]
        q = torch.randn(1, heads, length, width, device=device, dtype=kind, requires_grad=True)
        k, v = (torch.randn(1, heads, length, width, device=device, dtype=kind, requires_grad=True) for _ in range(2))
        causal_s = timed(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward(), 10)  # noqa: B023
        made_s = timed(lambda: prepare(batch, where, None, masked), 5)  # noqa: B023
        unit = f"calls/s forward and backward, {masked}"
        yield row(f"attention.{length}.dense", 1 / flex_s, unit, 1 / dense_s, "dense mask through SDPA", "> 1", flex_s < dense_s)
        yield row(f"attention.{length}.causal", 1 / flex_s, unit, 1 / causal_s, "plain causal SDPA over the whole row")
        yield row(f"attention.{length}.mask", made_s * 1e3, "ms to make the mask of a batch, once a step")


# ---- training ----------------------------------------------------------------------------------------------------------------------------


def plan(root: Path, s: Sizes) -> str:
    """Encoded shards of text and of image and text, and a plan over them."""
    from mixtures import latent_stats
    from mixtures.mixture import Mixture
    from mixtures.plan import make_plan
    from pipelines.format import codec
    from pipelines.format.document import fingerprint
    from pipelines.format.part import PartWriter
    from pipelines.format.record import Record, Segment
    from tests.toys import seal

    rng = np.random.default_rng(0)
    specials = {name: s.vocab - 5 + i for i, name in enumerate(("bos", "eos", "boi", "eoi", "pad"))}
    kind = "uint16" if s.vocab <= 65_536 else "uint32"

    def words(n: int, atom: int = -1, name: str | None = None) -> Segment:
        payload = rng.integers(0, s.vocab - 8, n).astype("<u2" if kind == "uint16" else "<u4").tobytes()
        return Segment("tokens", "target", atom, -1, name, None, payload, kind, (n,), n)

    rows = s.steps * 4 + 8
    mean, m2 = np.zeros(s.channels), np.full(s.channels, 1e6)
    paths = {}
    for data, count in (("text", rows * 3), ("image-text", rows * s.sequence // s.patches // 2)):
        path = str(root / data)
        with PartWriter(path, 0, fingerprint=fingerprint([data, count]), encoded=True) as w:
            for i in range(count):
                segments = [words(s.sequence // 4)]
                if data != "text":
                    x = codec.encode_latents(rng.standard_normal((s.patches, s.channels), dtype=np.float32), "bf16")
                    picture = Segment("latents", "target", 0, -1, None, None, x, "bf16", (s.patches, s.channels), s.patches)
                    segments = [picture, words(30, 1, "original")]
                w.emit()
                w.add(Record.make("gpu", f"{data}{i}", data, segments))
            commits = [w.commit()]
        encoding: dict[str, Any] = {"text": {"tokenizer_sha256": "0" * 64, "vocab": s.vocab, "specials": specials}}
        if data != "text":
            encoding["stats"], _ = latent_stats.publish(path, (1_000_000, mean, m2))
            encoding["image"] = {"encoder": "random", "fingerprint": "0" * 64, "tokens": s.patches, "width": s.channels, "codec": "bf16"}
        paths[data] = seal(path, f"gpu-{data}", data, commits, {"dataset": "random"}, encoding)
    half = rows * s.sequence * 2 // 5
    sources = {"words": {"dataset": paths["text"], "tokens": half}, "pairs": {"dataset": paths["image-text"], "tokens": half}}
    mixture = Mixture.model_validate({"sequence_length": s.sequence, "held_out": {"fraction": 0.02, "seed": 0}, "sources": sources})
    return make_plan(mixture, str(root / "plan"))


def training(root: Path, device: str, s: Sizes, flops: float) -> Iterator[Row]:
    made = plan(root, s)
    for name, shape in s.models:
        yield from model(name, shape, made, root, device, s, flops)
        if device == "cuda":
            torch.cuda.empty_cache()


def model(name: str, shape: dict[str, Any], made: str, root: Path, device: str, s: Sizes, flops: float) -> Iterator[Row]:
    """Steps of one model from shards, as the trainer's own loop makes them, then steps over one batch that is at hand."""
    from mixtures.plan import Plan
    from trainer import loop, parallel
    from trainer.run import Run
    from trainer.stream import ahead

    document = {
        "plan": made, "model": {"transfusion": shape}, "batch": 4, "micro_batch": 1, "steps": s.steps, "output": str(root / "run"), "device": device,
        "precision": "bf16" if device == "cuda" else "fp32", "flow": {"predict": "x", "loss_space": "v", "cfg_drop": {"caption": 0.1}},
    }  # fmt: skip
    run = Run.model_validate(document)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with parallel.world(run.device) as where:
        state, _ = loop._begin(run, run.output, "gpu", Plan.open(made), where, lambda *a, **k: None)
        sync()
        ready, losses, took = time.perf_counter() - began, [], []
        clock, kept = time.perf_counter(), None
        for i, prepared in enumerate(ahead((loop._prepare(state, batch) for batch, _ in state.stream), 2)):
            waited = time.perf_counter() - clock
            line, _ = loop._step(state, i, prepared, False)
            sync()
            now = time.perf_counter()
            losses.append(line["loss"])
            took.append((now - clock, line["step_tokens"], waited))
            clock = now
            kept = prepared if i == 0 else kept  # the last step of a plan may be a short one
        assert kept is not None
        again = timed(lambda batch=kept: loop._step(state, 0, batch, False), 4)  # type: ignore[misc]
        steady = took[min(4, len(took) // 2) : -1] or took
        seconds, tokens, waiting = (sum(x) for x in zip(*steady, strict=True))
        rate, same, mfu = tokens / seconds, _tokens(kept) / again, _flops_per_token(state, kept) * tokens / seconds / flops
        yield row(f"train.{name}.mfu", mfu, "share of a large matrix product's FLOP/s", None, f"{flops / 1e12:.0f} TFLOP/s", ">= 0.5", mfu >= 0.5)
        yield row(f"train.{name}.speed", rate, "payload tokens/s, from shards", same, "one batch again and again", ">= 0.98", rate >= 0.98 * same)
        share = waiting / seconds
        yield row(f"train.{name}.wait", share, "share of the time spent waiting for data", None, "", "<= 0.02", share <= 0.02)
        yield row(f"train.{name}.loss", losses[-1], f"loss of step {len(losses)}", losses[0], "loss of step 1", "< 1", losses[-1] < losses[0])
        if device == "cuda":
            yield row(f"train.{name}.memory", torch.cuda.max_memory_allocated() / 2**30, "GiB at the peak")
        yield row(f"train.{name}.start", ready, "s to the first step")


def _tokens(prepared: Any) -> float:
    """Payload tokens of a batch."""
    return float(prepared.counts[:, :2].sum())


def _flops_per_token(state: Any, prepared: Any) -> float:
    """FLOPs of forward and backward by the model's own formula (true mask), per payload token of a batch."""
    from trainer.losses import COUNTS

    of = dict(zip(COUNTS, prepared.counts.sum(axis=0), strict=False))
    flops = state.model.training_flops(int(of["text"] + of["structure"]), int(of["visual"]), int(of["text_targets"]), int(of["pairs"]))
    return float(flops) / float(of["text"] + of["visual"])


# ---- all of it ----------------------------------------------------------------------------------------------------------------------------


def measure() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="toy sizes, on a CPU")
    parser.add_argument("--table", help="write the table here")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.toy:
        print("no CUDA device is to be seen; --toy shows on a CPU that everything runs", file=sys.stderr)
        return 2
    import transformers

    s = TOY if args.toy else REAL
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU, toy sizes"
    machine = f"{card}, {date.today()}, torch {torch.__version__}, transformers {transformers.__version__}, python {sys.version.split()[0]}"
    flops = peak(device, args.toy)
    rows = [row("device.matmul", flops / 1e12, "TFLOP/s, bf16, 8192 x 8192 x 8192" if not args.toy else "TFLOP/s, bf16, toy")]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sections: list[tuple[str, Callable[[], Iterator[Row]]]] = [
            *gpu_encoding.sections(root, device, s),
            ("attention", lambda: attention(device, s)),
            ("train", lambda: training(root, device, s, flops)),
        ]
        while sections:
            name, section = sections.pop(0)  # what it holds of the device's memory goes with it
            began = time.monotonic()
            try:
                for found in section():
                    rows.append(found)
                    print(f"{found['name']}: {figure(found['ours'])} {found['unit']}, ratio {figure(found['ratio'])}", file=sys.stderr, flush=True)
            except Exception as e:
                traceback.print_exc()
                rows.append({**row(name, 0.0, f"failed: {type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"), "ok": False})
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    text = table(rows, machine)
    if args.table:
        Path(args.table).write_text(text, encoding="utf-8")
    print(json.dumps(rows) if args.json else text)
    return 1 if any(r["ok"] is False for r in rows) else 0


if __name__ == "__main__":
    sys.exit(measure())
