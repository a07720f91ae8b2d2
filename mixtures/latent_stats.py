"""Latent statistics of a plan: mean and variance per channel over every image of the datasets it is normalised by, exact in float64.

Each encoded dataset brings (n, mean, M2). They are merged by the pairwise formula of Chan, Golub and LeVeque (1983) in the order of the datasets'
fingerprints, so that all arms of an ablation, whatever their sources, normalise by the same bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import sha256_hex
from pipelines.format.errors import RecipeError, VerifyError
from pipelines.format.manifest import file_entry
from pipelines.format.storage import join

Moments = tuple[int, NDArray[np.float64], NDArray[np.float64]]  # n, mean [C], sum of squared deviations [C]


def has_latents(dataset: Dataset) -> bool:
    """Whether the dataset brings statistics."""
    return bool((dataset.encoding or {}).get("stats"))


def merged(datasets: list[Dataset]) -> Moments | None:
    """The moments of all distinct datasets together; None when none has images."""
    distinct = {d.fingerprint: d for d in datasets if has_latents(d)}
    total: Moments | None = None
    for fingerprint in sorted(distinct):
        part = distinct[fingerprint].latent_moments()
        if total is not None and len(total[1]) != len(part[1]):
            raise RecipeError("latents of two widths cannot be normalised together", where=distinct[fingerprint].path, found=len(part[1]))
        total = part if total is None else merge(total, part)
    return total


def merge(a: Moments, b: Moments) -> Moments:
    """Two disjoint sets as one."""
    if a[0] == 0 or b[0] == 0:
        return a if b[0] == 0 else b
    n = a[0] + b[0]
    shift = b[1] - a[1]
    return n, a[1] + shift * (b[0] / n), a[2] + b[2] + shift**2 * (a[0] * (b[0] / n))


def publish(root: str, moments: Moments) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write `stats-<hash>.parquet`; returns the card's `encoding.stats` and the file's entry."""
    n, mean, m2 = moments
    columns = {"channel": np.arange(len(mean), dtype=np.int32), "n": np.full(len(mean), n, np.int64), "mean": mean, "m2": m2}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", compression_level=3)
    data = sink.getvalue().to_pybytes()
    entry = file_entry(root, f"stats-{sha256_hex(data)[:16]}.parquet", data)
    return {"file": entry["path"], "sha256": entry["sha256"], "n": n}, entry


def read(root: str, entry: dict[str, Any]) -> Moments:
    """What `publish` wrote."""
    data = storage.read(join(root, entry["file"]))
    if sha256_hex(data) != entry["sha256"]:
        raise VerifyError("the statistics differ from their card", where=join(root, entry["file"]))
    table = pq.read_table(pa.BufferReader(data))
    return int(entry["n"]), table["mean"].to_numpy(), table["m2"].to_numpy()
