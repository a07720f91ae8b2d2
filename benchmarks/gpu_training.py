"""Training steps on an accelerator, from real shards, as the trainer's own loop makes them: MFU, tokens a second, waits, memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_rows import Row, Sizes, row, sync, timed


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
