"""Moments of latents: a count, means and sums of squared deviations, which merge exactly, and the Parquet file that holds them.

In: latents [n, channels] or whole images [n, tokens, channels]. Out: `Moments` of the shape of one sample, in float64. Every block is summed in two
passes with the correction of Chan, Golub & LeVeque (1983), and blocks are joined by their merge in a binary tree whose form follows from the order
of the blocks alone: so a channel a thousand deviations from 0 keeps twelve digits of its mean in units of its deviation, whether a dataset has one
part or a million, and who merges in part order gets the same bits. Running averages with a momentum, as published stat files were made, depend on
batch size and order. A statistic is applied on reading and never baked into what is stored.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import InputError, VerifyError

By = Literal["channel", "position"]
KIND = "latent-stats"  # of the card of statistics that stand alone; its `stats` is formed like a dataset's `encoding.stats`
BLOCK_ROWS = 1024  # float64 temporaries of 1,024 x 1,152 are 9 MB: they stay in cache


@dataclass(frozen=True)
class Moments:
    """n samples; `mean` and `m2` (sum of squared deviations from the mean) are float64, of the shape of a sample: [channels] for latent
    vectors, [tokens, channels] for whole images (token t = row * columns + column)."""

    n: int
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def none(cls, shape: int | tuple[int, ...]) -> Moments:
        return cls(0, np.zeros(shape), np.zeros(shape))

    @classmethod
    def of(cls, latents: np.ndarray) -> Moments:
        """float [n, ...] -> their moments."""
        rows = max(1, BLOCK_ROWS * latents.shape[-1] // max(1, int(np.prod(latents.shape[1:]))))
        blocks = (_block(latents[first : first + rows].astype(np.float64)) for first in range(0, len(latents), rows))
        return joined(blocks) or cls.none(latents.shape[1:])

    def merged(self, other: Moments) -> Moments:
        """The moments of both sets together."""
        if not self.n or not other.n:
            return other if other.n else self
        n = self.n + other.n
        delta = other.mean - self.mean
        return Moments(n, self.mean + delta * (other.n / n), self.m2 + other.m2 + delta**2 * (self.n * other.n / n))

    def by_channel(self) -> Moments:
        """Of [tokens, channels]: the moments of all positions together, [channels], by the law of total variance."""
        between = _block(self.mean.copy())
        return Moments(self.n * len(self.mean), between.mean, self.m2.sum(axis=0) + self.n * between.m2)

    @property
    def variance(self) -> np.ndarray:
        """Of the population: m2 / n."""
        return self.m2 / max(self.n, 1)

    def as_json(self) -> dict[str, Any]:
        """For a commit record: float64 bits in base64, since decimal text would be three times as long. Of [channels]."""
        return {"n": self.n, "mean": _packed(self.mean), "m2": _packed(self.m2)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Moments:
        return cls(int(value["n"]), _unpacked(value["mean"]), _unpacked(value["m2"]))


def _block(x: np.ndarray) -> Moments:
    """Of float64 [n > 0, ...], which is overwritten. A sum of n equal terms is off by about sqrt(n) roundings of the mean; the mean of what is
    left over after subtracting it says by how much."""
    mean = x.mean(axis=0)
    x -= mean
    left = x.mean(axis=0)
    return Moments(len(x), mean + left, np.maximum(np.einsum("n...,n...->...", x, x) - len(x) * left**2, 0))


def joined(moments: Iterable[Moments]) -> Moments | None:
    """All of them together, None for none. Merged as a binary counter carries: neighbours first, then pairs of pairs, so that roundings grow with
    the logarithm of their number, and that many are held at a time. The bits depend on the order and on nothing else."""
    held: list[Moments | None] = []
    for one in moments:
        carry = one
        for level, other in enumerate(held):
            if other is None:
                held[level] = carry
                break
            carry, held[level] = other.merged(carry), None
        else:
            held.append(carry)
    out: Moments | None = None
    for some in held:  # from the last and smallest to the first and largest
        if some is not None:
            out = some if out is None else some.merged(out)
    return out


def to_parquet(moments: Moments) -> bytes:
    """(channel, n, mean, m2), or (token, channel, n, mean, m2) by position, tokens in order and channels within them."""
    shape = moments.mean.shape
    size, channels = moments.mean.size, shape[-1]
    columns: dict[str, Any] = {"channel": np.tile(np.arange(channels, dtype=np.int32), size // channels), "n": np.full(size, moments.n, np.int64)}
    columns |= {"mean": moments.mean.reshape(-1), "m2": moments.m2.reshape(-1)}
    options: dict[str, Any] = {}
    if len(shape) == 2:
        columns = {"token": np.repeat(np.arange(shape[0], dtype=np.int32), channels), **columns}
        # Bytes of one weight side by side: of moments of few or coarse values most are zero, and a dictionary of distinct floats is of no use.
        options = {"use_dictionary": ["token", "channel", "n"], "use_byte_stream_split": ["mean", "m2"]}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", compression_level=3, **options)
    return cast(bytes, sink.getvalue().to_pybytes())


def from_parquet(data: bytes, where: str = "") -> Moments:
    """What `to_parquet` gave. VerifyError for a file of another form."""
    try:
        table = pq.read_table(pa.BufferReader(data))
        n, mean, m2 = (table[name].to_numpy() for name in ("n", "mean", "m2"))
        tokens = int(table["token"][-1].as_py()) + 1 if "token" in table.column_names else 0
        shape = (tokens, len(mean) // tokens) if tokens else (len(mean),)
        return Moments(int(n[0]), mean.reshape(shape).astype(np.float64), m2.reshape(shape).astype(np.float64))
    except (pa.ArrowInvalid, OSError, KeyError, IndexError, ValueError) as e:
        raise VerifyError("this is not a file of latent statistics", where=where, found=e) from e


def publish(root: str, moments: Moments) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write `stats-<hash>.parquet` (by position: `stats-position-<hash>.parquet`); returns what a card's `encoding.stats` says, and the file's
    entry."""
    data = to_parquet(moments)
    digest = sha256_hex(data)
    name = f"{'stats' if moments.mean.ndim == 1 else 'stats-position'}-{digest[:16]}.parquet"
    storage.publish(storage.join(root, name), data, scratch=root)
    return {"file": name, "sha256": digest, "n": moments.n}, {"path": name, "bytes": len(data), "sha256": digest}


def read(root: str, said: dict[str, Any] | None, by: By = "channel") -> Moments:
    """The statistics that `encoding.stats` of the card at `root` names. InputError where it names none, VerifyError where the file is another."""
    if not said:
        raise InputError("this dataset has no latent statistics", where=root, allowed="an encoded dataset with images")
    entry = said if by == "channel" else said.get("position")
    if entry is None:
        raise InputError(
            "this dataset has latent statistics by channel alone",
            where=root,
            next="make them by position from what is stored: pipelines run latent-stats",
        )
    where = storage.join(root, entry["file"])
    data = storage.read(where)
    if sha256_hex(data) != entry["sha256"]:
        raise VerifyError("the statistics differ from their card", where=where)
    return from_parquet(data, where)


def _packed(x: np.ndarray) -> str:
    return base64.b64encode(x.astype("<f8").tobytes()).decode()


def _unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f8").astype(np.float64)
