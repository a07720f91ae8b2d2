"""Training steps on an accelerator, from real shards, as the trainer's own loop makes them: MFU, tokens a second, waits, memory, saves.

What a row's step is: bf16 under FSDP2 at world 1, blocks compiled, `rows` sequences in micro-batches of `micro`. The first model is also measured one
choice at a time the other way (micro-batches of one row, nothing compiled), and its step is taken apart by the kinds of kernels that take its time,
so that a figure below its bar says where to look. The model of experts has the active FLOPs of the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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

    rows = s.steps * s.rows + 8
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


def sections(root: Path, device: str, s: Sizes, flops: float) -> list[tuple[str, Callable[[], Iterator[Row]]]]:
    """A section a model, so that one that does not fit costs itself alone, over one plan."""
    plans: list[str] = []
    shares: dict[str, float] = {}
    made = lambda: plans[0] if plans else plans.append(plan(root, s)) or plans[0]  # type: ignore[func-returns-value]
    return [(f"train.{name}", lambda n=name, m=shape: model(n, m, made(), root, device, s, flops, shares)) for name, shape in s.models]  # type: ignore[misc]


class Rig:
    """A model in the trainer's loop, at work on a plan until closed."""

    def __init__(self, shape: dict[str, Any], made: str, output: Path, device: str, s: Sizes, **changes: Any) -> None:
        from mixtures.plan import Plan
        from trainer import loop, parallel, step
        from trainer.run import Run

        document = {
            "plan": made, "model": {"transfusion": shape}, "batch": s.rows, "micro_batch": s.micro, "steps": s.steps, "output": str(output),
            "device": device, "precision": "bf16" if device == "cuda" else "fp32",
            "flow": {"predict": "x", "loss_space": "v", "cfg_drop": {"caption": 0.1}}, **changes,
        }  # fmt: skip
        self.run = Run.model_validate(document)
        self._step, self._open = step, ExitStack()
        began = time.perf_counter()
        self.where = self._open.enter_context(parallel.world(self.run.device, self.run.parallel, alone=self.run.precision == "bf16"))
        self.state, _ = loop.begin(self.run, self.run.output, "gpu", Plan.open(made), self.where, lambda *a, **k: None)
        sync()
        self.ready = time.perf_counter() - began

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *failure: Any) -> None:
        self._open.close()

    def prepared(self) -> Iterator[Any]:
        """The input of each step, made ahead as a run makes it."""
        from trainer.ahead import ahead

        return ahead((self._step.prepare(self.state, batch) for batch, _ in self.state.stream), 2)

    def step(self, prepared: Any, number: int = 0) -> dict[str, Any]:
        """One optimizer step; its metrics line."""
        line, _ = self._step.advance(self.state, number, prepared, False)
        sync()
        return dict(line)


def model(
    name: str, shape: dict[str, Any], made: str, root: Path, device: str, s: Sizes, flops: float, shares: dict[str, float]
) -> Iterator[Row]:
    """Steps of one model from shards, then over one batch that is at hand. `shares` keeps the MFU of each model; the first is the others' measure."""
    first = not shares
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with Rig(shape, made, root / name.replace(" ", "-"), device, s) as rig:
        losses, took, kept = [], [], None
        clock = time.perf_counter()
        for i, prepared in enumerate(rig.prepared()):
            waited = time.perf_counter() - clock
            line = rig.step(prepared, i)
            now = time.perf_counter()
            losses.append(line["loss"])
            took.append((now - clock, line["step_tokens"], waited, line["flops"]))
            clock, kept = now, prepared if i == 0 else kept  # the last step of a plan may be a short one
        assert kept is not None
        again = timed(lambda: rig.step(kept), 4)
        steady = took[min(4, len(took) // 2) : -1] or took
        seconds, tokens, waiting, done = (sum(x) for x in zip(*steady, strict=True))
        rate, same, mfu = tokens / seconds, float(kept.counts[:, :2].sum()) / again, done / seconds / flops
        bar = (">= 0.5", mfu >= 0.5) if "experts" not in name else ("", None)
        yield row(f"train.{name}.mfu", mfu, "share of a large matrix product's FLOP/s", None, f"{flops / 1e12:.0f} TFLOP/s", *bar)
        if "experts" in name and shares:  # without the first, which may not have fitted, there is nothing to compare with
            of, dense = next(iter(shares.items()))
            yield row(f"train.{name}.dense", mfu, "MFU of a part of the experts", dense, f"{of}, the same FLOPs", ">= 0.6", mfu >= 0.6 * dense)
        shares[name] = mfu
        yield row(f"train.{name}.speed", rate, "payload tokens/s, from shards", same, "one batch again and again", ">= 0.98", rate >= 0.98 * same)
        share = waiting / seconds
        yield row(f"train.{name}.wait", share, "share of the time spent waiting for data", None, "", "<= 0.02", share <= 0.02)
        yield row(f"train.{name}.loss", losses[-1], f"loss of step {len(losses)}", losses[0], "loss of step 1", "< 1", losses[-1] < losses[0])
        if device == "cuda":
            yield row(f"train.{name}.memory", torch.cuda.max_memory_allocated() / 2**30, "GiB at the peak")
        yield row(f"train.{name}.start", rig.ready, "s to the first step")
        if first:
            yield from kernels(name, rig, kept)
            yield from saving(name, rig, kept, again)
    if first:
        yield from otherwise(name, shape, made, root, device, s, same)


def otherwise(name: str, shape: dict[str, Any], made: str, root: Path, device: str, s: Sizes, same: float) -> Iterator[Row]:
    """The same model and batch with one choice the other way: what each is worth."""
    ways: list[tuple[str, str, dict[str, Any]]] = [("micro_1", "micro-batches of one row", {"micro_batch": 1})]
    if device == "cuda":
        ways.append(("eager", "nothing compiled", {"compile": False}))
    for short, what, changes in ways:
        with Rig(shape, made, root / "otherwise", device, s, **changes) as rig:
            prepared = next(rig.prepared())
            rate = float(prepared.counts[:, :2].sum()) / timed(lambda: rig.step(prepared), 3)  # noqa: B023
        yield row(f"train.{name}.{short}", same, "payload tokens/s, one batch", rate, what)


def saving(name: str, rig: Rig, prepared: Any, step_s: float) -> Iterator[Row]:
    """How long the loop stands still for a checkpoint that is written behind it, with host memory to be had and with that of the save before; and
    a step while one is being written."""
    from trainer import checkpoint
    from trainer.saver import Saver

    saver = Saver(rig.run.output, rig.where, 1, lambda *a, **k: None)
    blocked = []
    for step in (1, 2):
        saver.wait()
        blocked.append(saver.save(step, checkpoint.state_of(rig.state.model, rig.state.optimizer, rig.state.ema), {"fingerprint": "gpu"}))
    began = time.perf_counter()
    rig.step(prepared)
    beside = time.perf_counter() - began
    saver.close()
    yield row(f"train.{name}.save", blocked[1], "s that a save blocked the loop, from the second on", None, "", "< 1", blocked[1] < 1)
    yield row(f"train.{name}.save.first", blocked[0], "s that the first save blocked it")
    yield row(f"train.{name}.save.beside", beside, "s of a step while a checkpoint is written", step_s, "a step otherwise")


# Parts of the names of kernels (CUDA) and operators (CPU), the first that fits. What no part fits is small change: casts, copies, indices.
KINDS = {
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "addmm", "::mm", "bmm"), "attention": ("flex", "flash", "fmha", "scaled_dot"),
    "optimizer": ("adam",), "logits and softmax": ("softmax", "nll_loss", "cross_entropy"),
    "compiled, fused": ("triton",), "norms": ("norm",), "gathers": ("index", "gather", "scatter"),
    "copies and casts": ("copy", "memcpy", "cat", "_to_copy"), "element-wise": ("elementwise", "aten::mul", "aten::add", "aten::silu"),
}  # fmt: skip


def kernels(name: str, rig: Rig, prepared: Any) -> Iterator[Row]:
    """Where the time of a step goes, by kind of kernel, as shares of the time in which the device was busy; and how busy it was."""
    from torch.profiler import ProfilerActivity, profile

    cuda = rig.where.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        began = time.perf_counter()
        rig.step(prepared)
        wall = time.perf_counter() - began
    spent: dict[str, float] = {}
    for event in seen.key_averages():
        if cuda and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        key = event.key.lower()
        kind = next((kind for kind, parts in KINDS.items() if any(part in key for part in parts)), "other")
        spent[kind] = spent.get(kind, 0.0) + (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
    busy = max(sum(spent.values()), 1e-9)
    told = ", ".join(f"{kind} {100 * t / busy:.0f} %" for kind, t in sorted(spent.items(), key=lambda kv: -kv[1]))
    yield row(f"train.{name}.busy", busy / wall, f"share of a step's wall time that the device computed (profiled): {told}")
