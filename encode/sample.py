"""A few images of a dataset through the real network, before a job: how fast it goes and what each codec would lose.

In: an encode recipe and its curated dataset. Out: a `Sampled`: exact latents, the rate of one worker as the job would have it (its device, its
threads, the codec included), the rate at which one processor decodes and prepares pictures, and a row of figures per codec. It writes nothing, and
stops between batches when its time is up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from encode.codec_error import CodecError
from encode.encoder import ImageEncoder, ImageEncoding
from encode.linear_flow import flow_loss
from encode.recipe import EncodeRecipe
from pipelines.format import codec
from pipelines.format.dataset import Dataset
from pipelines.format.errors import Reject

HELD = 4  # one image of so many is kept for judging


@dataclass(frozen=True)
class Sampled:
    """`rate`: images a second of one worker, which has `workers` = (processors, GPUs); `prepared`: images a second that one processor decodes."""

    latents: np.ndarray
    rate: float
    prepared: float
    workers: tuple[int, float]
    batch: int
    machine: str


def sampled(config: EncodeRecipe, dataset: Dataset) -> Sampled | None:
    """Encode up to `estimate.sample` images; None where there is none that can be read."""
    assert isinstance(config.images, ImageEncoder)
    began = time.perf_counter()
    pictures = list(prepared(config.images, dataset, config.estimate.sample, began + config.estimate.seconds / 4))
    spent = time.perf_counter() - began
    if not pictures:
        return None
    from encode.chain import threads

    gpus = config.resources.gpus
    encoder = config.images.model_copy(update={"batch": min(config.images.batch, max(1, len(pictures) // 4))})
    device = "cpu" if gpus == 0 else None
    on_gpu = encoder.machine(device).device == "cuda"
    encoding = ImageEncoding(config.images if on_gpu else encoder, device)
    with threads(encoding.machine, config.resources.cpus):
        latents, rate = measured(encoding, np.stack(pictures), config.storage, config.estimate.seconds)
    workers = (config.resources.cpus, 0.0 if not on_gpu else 1.0 if gpus is None else gpus)
    return Sampled(latents, rate, len(pictures) / spent, workers, encoding.encoder.batch, encoding.machine.kind)


def prepared(encoder: ImageEncoder, dataset: Dataset, count: int, until: float) -> Iterator[np.ndarray]:
    """Pictures of the first records of shards spread over the dataset, as the network takes them; at least one, and none after `until`."""
    shards = [i for i, shard in enumerate(dataset.shards) if shard.data]
    chosen = sorted({shards[round(x)] for x in np.linspace(0, len(shards) - 1, min(count, len(shards)))} if shards else ())
    for k, i in enumerate(chosen):
        wanted = (k + 1) * count // len(chosen) - k * count // len(chosen)
        seen: set[int | None] = set()
        for s in (s for record in dataset.records(i) for s in record.segments if s.kind == "image"):
            if len(seen) == wanted or (seen and time.perf_counter() > until):
                break
            if s.offset not in seen:
                seen.add(s.offset)
                try:
                    yield encoder.read(bytes(dataset.payload(i, s)))
                except Reject:
                    continue


def measured(encoding: ImageEncoding, pictures: np.ndarray, storage: str, seconds: float) -> tuple[np.ndarray, float]:
    """(float32 latents, images a second). The first batch warms up and is not timed, unless it is the only one. On a GPU whole batches are timed
    apart, with the codec; on a CPU the codec is a thousandth of the network."""
    from encode.coding import coded

    began, size = time.perf_counter(), encoding.encoder.batch
    done: list[np.ndarray] = []
    marks: list[float] = []
    for first in range(0, len(pictures), size):
        done.append(encoding.encode(pictures[first : first + size]))
        marks.append(time.perf_counter())
        if marks[-1] - began > seconds:
            break
    latents = np.concatenate(done)
    if encoding.machine.device == "cuda":
        name, many = "bf16" if storage == "none" else storage, np.resize(pictures, (4 * size, *pictures.shape[1:]))
        coded(encoding, many[:size], name)
        began = time.perf_counter()
        coded(encoding, many, name)
        return latents, len(many) / (time.perf_counter() - began)
    if len(done) == 1:
        return latents, len(latents) / (marks[0] - began)
    return latents, (len(latents) - len(done[0])) / (marks[-1] - marks[0])


def losses(latents: np.ndarray) -> dict[str, dict[str, Any]]:
    """Each codec's figures on these latents: cost, what is lost, and the change of a linear denoiser's flow loss, learnt from what is stored and
    judged on exact latents of other images (None where there are too few)."""
    n, shape = len(latents), latents.shape[1:]
    kept = np.arange(n) % HELD == HELD - 1
    exact, held = latents[~kept], latents[kept]
    base = flow_loss(exact, held, exact) if kept.any() else None
    out = {}
    for name in codec.CODECS:
        stored = np.stack([codec.decode_latents(codec.encode_latents(image, name), name, *shape) for image in latents])
        error = CodecError.of(latents.reshape(-1, shape[1]), stored.reshape(-1, shape[1]))
        change = None if base is None else 0.0 if name == "f32" else flow_loss(stored[~kept], held, exact) / base - 1
        figures = error.figures(name, *shape)
        out[name] = {**{k: figures[k] for k in ("bytes_per_token", "relative_l2", "mean_cosine", "worst_cosine")}, "flow_loss_change": change}
    return out
