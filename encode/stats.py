"""Latent statistics: count, mean and sum of squared deviations per channel, exact whatever the order and the number of workers.

In: the latents of each part *as stored* (after the codec), every distinct payload once. Out: one `Moments` per part in its commit record,
merged in part order into `stats-<hash>.parquet`. Two passes within a block and Chan's merge between blocks (Chan, Golub & LeVeque 1983),
all in float64: running averages with a momentum, as published stat files were made, depend on batch size and order. The statistics are
applied on reading and never baked into what is stored, so they can be merged over all datasets of a mixture.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.format import storage
from pipelines.format.document import sha256_hex

BLOCK_ROWS = 1024  # float64 temporaries of 1,024 x 1,152 are 9 MB: they stay in cache


@dataclass(frozen=True)
class Moments:
    """n samples; `mean` and `m2` (sum of squared deviations from the mean) are float64, of the shape of a sample: [channels] for latent
    vectors, [tokens, channels] for whole images."""

    n: int
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def none(cls, shape: int | tuple[int, ...]) -> Moments:
        return cls(0, np.zeros(shape), np.zeros(shape))

    @classmethod
    def of(cls, latents: np.ndarray) -> Moments:
        """float [n, ...] -> their moments."""
        out = cls.none(latents.shape[1:])
        rows = max(1, BLOCK_ROWS * latents.shape[-1] // max(1, int(np.prod(latents.shape[1:]))))
        for first in range(0, len(latents), rows):
            x = latents[first : first + rows].astype(np.float64)
            mean = x.mean(axis=0)
            x -= mean
            out = out.merged(cls(len(x), mean, np.einsum("n...,n...->...", x, x)))
        return out

    def merged(self, other: Moments) -> Moments:
        """The moments of both sets together."""
        if not self.n or not other.n:
            return other if other.n else self
        n = self.n + other.n
        delta = other.mean - self.mean
        return Moments(n, self.mean + delta * (other.n / n), self.m2 + other.m2 + delta**2 * (self.n * other.n / n))

    def by_channel(self) -> Moments:
        """Of [tokens, channels]: the moments of all positions together, [channels], by the law of total variance."""
        tokens = len(self.mean)
        mean = self.mean.mean(axis=0)
        return Moments(self.n * tokens, mean, self.m2.sum(axis=0) + self.n * np.square(self.mean - mean).sum(axis=0))

    @property
    def variance(self) -> np.ndarray:
        """Of the population: m2 / n."""
        return self.m2 / max(self.n, 1)

    def as_json(self) -> dict[str, Any]:
        """For a commit record: float64 bits in base64, since decimal text would be three times as long."""
        return {"n": self.n, "mean": packed(self.mean), "m2": packed(self.m2)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Moments:
        return cls(int(value["n"]), unpacked(value["mean"]), unpacked(value["m2"]))


def merge(parts: Iterable[tuple[int, Moments]]) -> Moments | None:
    """(part number, moments) in any order -> the moments of all, the same to the last bit: they are merged in part order."""
    out: Moments | None = None
    for _, moments in sorted(parts, key=lambda p: p[0]):
        out = moments if out is None else out.merged(moments)
    return out


def publish(root: str, moments: Moments) -> dict[str, Any]:
    """Write `stats-<hash>.parquet` (channel, n, mean, m2) and return {path, bytes, sha256, n} for the card."""
    channels = len(moments.mean)
    columns = {"channel": np.arange(channels, dtype=np.int32), "n": np.full(channels, moments.n), "mean": moments.mean, "m2": moments.m2}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", compression_level=3)
    data = cast(bytes, sink.getvalue().to_pybytes())
    digest = sha256_hex(data)
    name = f"stats-{digest[:16]}.parquet"
    storage.publish(storage.join(root, name), data, scratch=root)
    return {"path": name, "bytes": len(data), "sha256": digest, "n": moments.n}


def packed(x: np.ndarray) -> str:
    return base64.b64encode(x.astype("<f8").tobytes()).decode()


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f8").astype(np.float64)
