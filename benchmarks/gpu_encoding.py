"""Encoding on an accelerator: numerics, the job from JPEG shards to encoded shards, codecs, and a compiled tower against a plain one.

In: sizes, a folder and a device. Out: rows, in sections that fail apart from one another. All share one tower, loaded by the job's own encode step.

    encode.f32, .bf16, .bytes     what it computes, against f32 on the CPU, and whether a picture's place in a batch matters
    encode.float, .stored.CODEC   pictures at hand in host memory -> latents, or bytes as stored, against the bare network
    encode.jpeg.bare, .loop       the encode stage's own steps, as a local job runs them: curated shards, processes that `load` ahead, the device,
                                  processes that `write` behind. Steady state: without the parts that filled the pipe and those that emptied it.
                                  Against the bare network (same batch, dtype and compiled kernels), and against Pillow, processor and model in a
                                  plain loop
    encode.jpeg.memory            the same, its output in memory: what the disk takes is not ours
    encode.jpeg.load, .write      the steps beside the network, alone and in one process; .disk: the same bytes written plainly
    encode.codec.CODEC            latents on the device -> bytes, moments and codec error, there; against numpy on the host; and whether bytes agree
    encode.compiled, .cosine      torch.compile as `compile: auto` has it, against the same tower without
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.encode_inputs import Shape, curated, photos, plain_loop, tokenizer, tower
from benchmarks.gpu_rows import Row, Sizes, row, timed

CODECS = ("bf16", "f8e4m3", "int8")
ROUNDS = 2  # of the bare network and the job by turns; medians count
HOST = 8  # pictures that the host codes for comparison
BAR, LOOP_BAR = 0.95, 1.5


class Ready:
    """The encode step with its network loaded, as a class again: what a job sets up once per worker."""

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self.call = call

    def __call__(self, item: Any) -> Any:
        return self.call(item)


class Bench:
    """The tower, and what goes through it."""

    def __init__(self, root: Path, device: str, s: Sizes) -> None:
        self.root, self.device, self.s = root, device, s

    @cached_property
    def weights(self) -> str:
        s = self.s
        return tower(self.root / "tower", Shape(s.hidden, s.inner, s.layers, s.heads, s.image, 14))

    @cached_property
    def pictures(self) -> np.ndarray:
        s = self.s
        return np.random.default_rng(0).integers(0, 256, (s.pictures, s.image, s.image, 3), dtype=np.uint8)

    @property
    def few(self) -> np.ndarray:
        return self.pictures[: min(HOST, self.s.batch)]

    def encoder(self, **fields: Any) -> Any:
        from encode.encoders.siglip2 import Siglip2

        return Siglip2(**{"weights": self.weights, "dtype": "bf16", "batch": self.s.batch, **fields})

    def encoding(self, on: str, **fields: Any) -> Any:
        from encode.encoder import ImageEncoding

        return ImageEncoding(self.encoder(**fields), on)

    @cached_property
    def step(self) -> Any:
        """The encode step: it holds the network that every section runs."""
        from encode.chain import Encode

        return Encode(self.encoder(), "bf16", self.device)

    @property
    def fast(self) -> Any:
        return self.step.encoding

    @cached_property
    def reference(self) -> np.ndarray:
        """f32 on the CPU, of the few pictures."""
        found: np.ndarray = self.encoding("cpu", dtype="f32", batch=4, compile="off").encode(self.few)
        return found

    @property
    def how(self) -> str:
        """What the rows say of the network that they ran."""
        from encode.compiled import compiler, compiles

        encoder, machine = self.fast.encoder, self.fast.machine
        return f"compiled, {compiler()}" if compiles(encoder.compile, machine) else "not compiled"

    def bare(self, encoding: Any = None) -> float:
        """Images a second of the network alone, its pictures on the device."""
        resident = torch.from_numpy(self.pictures[: self.s.batch]).to(self.device)
        forward = (encoding or self.fast).network.forward
        with torch.inference_mode():
            return self.s.batch / timed(lambda: forward(resident), 10)


def sections(root: Path, device: str, s: Sizes) -> list[tuple[str, Callable[[], Iterator[Row]]]]:
    """In the order in which they run; the tower goes with the last of them."""
    b = Bench(root, device, s)
    return [
        ("encode", lambda: numerics(b)),
        ("encode.speed", lambda: speed(b)),
        ("encode.jpeg", lambda: from_jpegs(b)),
        ("encode.codec", lambda: codecs(b)),
        ("encode.compiled", lambda: compiled(b)),
    ]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The worst cosine of any token."""
    a, b = a.reshape(-1, a.shape[-1]).astype(np.float64), b.reshape(-1, b.shape[-1]).astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def numerics(b: Bench) -> Iterator[Row]:
    torch.backends.cuda.matmul.allow_tf32 = False
    s, few, fast, unit = b.s, b.few, b.fast, "worst cosine of a token"
    exact = cosine(b.encoding(b.device, dtype="f32", batch=4, compile="off").encode(few), b.reference)
    yield row("encode.f32", exact, f"{unit}, not compiled", 1.0, "f32 on the CPU", ">= 0.9999", exact >= 0.9999)
    latents = fast.encode(few)
    bf16 = cosine(latents, b.reference)
    yield row("encode.bf16", bf16, f"{unit}, {b.how}", 1.0, "f32 on the CPU", ">= 0.9999", bf16 >= 0.9999)
    elsewhere = np.concatenate([b.pictures[8 : s.batch + 8 - len(few)], few]) if s.pictures > s.batch + 8 else few
    same = float(np.array_equal(fast.encode(elsewhere)[-len(few) :], latents) and np.array_equal(fast.encode(few), latents))
    yield row("encode.bytes", same, "1 = equal bytes at another place of the batch", 1.0, "the same pictures first in it", "1", same == 1)


def speed(b: Bench) -> Iterator[Row]:
    """Pictures at hand on the host."""
    from encode.coding import coded

    fast, bare, some = b.fast, b.bare(), b.pictures[: max(b.s.batch, b.s.pictures // 2)]
    whole = len(some) / timed(lambda: [len(x) for x in fast.batches(some)], 3)
    unit = f"images/s, uint8 on the host to float32 on the host, {b.how}"
    yield row("encode.float", whole, unit, bare, "the bare network, inputs on the device")
    for codec in CODECS:
        stored = len(some) / timed(lambda: coded(fast, some, codec), 3)  # noqa: B023
        unit = f"images/s, uint8 on the host to bytes as stored, {b.how}"
        yield row(f"encode.stored.{codec}", stored, unit, bare, "the bare network", f">= {BAR}", stored >= BAR * bare)


# ---- from JPEG shards --------------------------------------------------------------------------------------------------------------------


def from_jpegs(b: Bench) -> Iterator[Row]:
    """The encode job as `engine: local` runs it."""
    from encode.parts import encode_parts
    from encode.recipe import EncodeRecipe
    from encode.stage import chain
    from pipelines.engine import open_job
    from pipelines.format.dataset import Dataset

    s, jpegs = b.s, photos(b.s.jpegs)
    data = curated(b.root / "curated", jpegs, s.batch)
    text = {"text_tokens": {"tokenizer": tokenizer(b.root / "tokenizer", data)}}
    outputs = {"disk": b.root / "encoded", "memory": Path("/dev/shm") / f"headwater-benchmark-{os.getpid()}"}
    recipe = EncodeRecipe(dataset=data, text=text, images=b.encoder(), output=str(outputs["disk"]), engine="local")
    dataset = Dataset.open(data)
    parts = encode_parts(recipe, dataset)
    rates: dict[str, list[float]] = {place: [] for place in outputs}
    bares = []
    with open_job("local") as job:
        load, encode, write = chain(recipe, dataset, str(outputs["disk"]), job)
        assert encode.kwargs["encoder"] == b.fast.encoder, "the job's network is the one that is loaded"
        edge = encode.at_once + load.processes + write.processes
        passes = -(-(2 * edge + s.steady) // len(parts))
        items = [{**p, "part": k * len(parts) + i} for k in range(passes) for i, p in enumerate(parts)]
        for _ in range(ROUNDS):
            bares.append(b.bare())
            for place, out in outputs.items():
                there = replace(write, kwargs={**write.kwargs, "root": str(out)})
                steps = [load, replace(encode, fn=Ready, kwargs={"call": b.step}), there]
                try:
                    rates[place].append(steady(job, steps, items, edge))
                finally:
                    shutil.rmtree(out, ignore_errors=True)
    ours, memory, bare = (float(np.median(x)) for x in (rates["disk"], rates["memory"], bares))
    kb = sum(map(len, jpegs)) / len(jpegs) / 1e3
    beside = f"{load.processes} processes that decode and {write.processes} that write on {os.cpu_count()} processors"
    inputs = f"JPEGs of {kb:.0f} kB, sides of 256 to 512 px"
    unit = f"images/s, curated shards ({inputs}) to encoded shards (bf16), {beside}, {b.how}"
    yield row("encode.jpeg.bare", ours, unit, bare, f"the bare network, {b.how}", f">= {BAR}", ours >= BAR * bare)
    against = f"the bare network, {b.how}"
    yield row("encode.jpeg.memory", memory, "images/s, the same, written to memory", bare, against, f">= {BAR}", memory >= BAR * bare)
    plain = plain_loop(b.weights, b.device, "bf16", s.batch)
    plain(jpegs[: s.batch])
    began = time.perf_counter()
    some = jpegs[s.batch : 2 * s.batch]
    plain(some)
    loop = len(some) / (time.perf_counter() - began)
    against = "Pillow, AutoImageProcessor and SiglipVisionModel (bf16, sdpa, not compiled) in a loop, to bytes in memory"
    yield row("encode.jpeg.loop", ours, unit, loop, against, f">= {LOOP_BAR}", ours >= LOOP_BAR * loop)
    yield from apart(b, (load, write), parts[: min(4, len(parts))], bare)


def steady(job: Any, steps: list[Any], items: list[dict[str, Any]], edge: int) -> float:
    """Images a second between two results: as many parts are left out at the start as may have been loaded before the network ran, and at the end
    as may be under way when there is nothing left to load."""
    seen, images = [], []
    for commit in job.map(steps, items):
        seen.append(time.perf_counter())
        images.append(commit["stats"]["images"])
    if sum(images) != sum(p["images"] for p in items):
        raise ValueError(f"{sum(images)} images were encoded of {sum(p['images'] for p in items)}")
    last = len(seen) - 1 - edge
    return sum(images[edge + 1 : last + 1]) / (seen[last] - seen[edge])


def apart(b: Bench, steps: tuple[Any, Any], parts: list[dict[str, Any]], bare: float) -> Iterator[Row]:
    """The steps beside the network, each alone, one part after another, in one process of the many."""
    load, write = (step.ready() for step in steps)
    images, took = sum(p["images"] for p in parts), {"load": 0.0, "write": 0.0}
    for part in parts:
        began = time.perf_counter()
        item = load(part)
        took["load"] += time.perf_counter() - began
        item = b.step(item)
        began = time.perf_counter()
        write(item)
        took["write"] += time.perf_counter() - began
    shutil.rmtree(steps[1].kwargs["root"])
    blocks, began = b.root / "plain", time.perf_counter()
    for _ in parts:
        with blocks.open("wb") as f:
            f.write(bytes(item["payloads"].nbytes))
            os.fsync(f.fileno())
    took["disk"] = time.perf_counter() - began
    unit = "images/s, the same bytes written plainly to the same disk, each part synced"
    yield row("encode.jpeg.disk", images / took["disk"], unit, bare, "the bare network")
    for name, what in (("load", "shards to uint8 pictures and token ids"), ("write", "coded latents to committed shards")):
        yield row(f"encode.jpeg.{name}", images / took[name], f"images/s, this step alone: {what}", bare, f"the bare network, {b.how}")


# ---- codecs and the compiler -------------------------------------------------------------------------------------------------------------


def codecs(b: Bench) -> Iterator[Row]:
    """What a device does beside the network."""
    from encode.codec_error import CodecError
    from encode.encoder import values
    from encode.stats import Moments
    from encode.tensors import Tally
    from pipelines.format.codec import decode_latents, encode_latents

    network, grid = b.fast.network, b.fast.grid
    shape = (grid.tokens, grid.channels)
    with torch.inference_mode():
        latents = network.resident(b.pictures[: b.s.batch])()
    exact = values(network.to_host(latents)()[:HOST])
    for codec in CODECS:

        def here(codec: str = codec) -> list[bytes]:
            payloads = [encode_latents(image, codec) for image in exact]
            stored = np.stack([decode_latents(payload, codec, *shape) for payload in payloads])
            Moments.of(stored)
            CodecError.of(exact.reshape(-1, shape[1]), stored.reshape(-1, shape[1]))
            return payloads

        there = [bytes(image) for some in Tally(shape, codec).add(latents[: len(exact)]) for image in network.to_host(some)()]
        ours = len(latents) / timed(lambda: Tally(shape, codec).add(latents), 5)  # noqa: B023
        host = len(exact) / timed(here, 3)
        unit = f"images/s, {shape[0]} x {shape[1]} on the device to bytes, moments and error there"
        yield row(f"encode.codec.{codec}", ours, unit, host, "numpy on the host, one thread")
        same = float(there == here())
        yield row(f"encode.codec.{codec}.bytes", same, "1 = the host's bytes", 1.0, "numpy on the host", "1", same == 1)


def compiled(b: Bench) -> Iterator[Row]:
    """On a CPU nothing is compiled, and the row says so."""
    plain = b.encoding(b.device, compile="off")
    ours, peer, on_gpu = b.bare(), b.bare(plain), b.device == "cuda"
    bar, ok = ("> 1", ours > peer) if on_gpu else ("", None)
    yield row("encode.compiled", ours, f"images/s of the bare network, {b.how}", peer, "the same, not compiled", bar, ok)
    ours, peer = (cosine(encoding.encode(b.few), b.reference) for encoding in (b.fast, plain))
    yield row("encode.compiled.cosine", ours, f"worst cosine of a token from f32 on the CPU, {b.how}", peer, "the same, not compiled")
