"""How scores are spread, told so that no order, part or worker shows: counts, exact ends, and quantiles from a fixed histogram.

A bin is the upper half of a float32 (sign, exponent, seven bits of fraction: what bf16 keeps), so bins are 0.4 to 0.8 % of the value wide at any
scale, whatever a model's scores are. Counts in bins add up exactly; a quantile is the middle of its bin, within 0.4 % of the value. A part's commit
record holds its bins; the card holds what they say of the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import fsum
from typing import Any

import numpy as np

QUANTILES = (0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99)  # DataComp keeps the top 30 %
MOST = 64  # columns that a card tells of: it may not grow with the names of captions


def tally(columns: dict[str, list[float]]) -> dict[str, Any]:
    """Values of some records by column -> what a commit record keeps: {column: {n, min, max, sum, bins: [[bin, count], …]}}."""
    out = {}
    for name, listed in sorted(columns.items()):
        values = np.asarray(listed, np.float32)
        bins, counts = np.unique(_bins(values), return_counts=True)
        ends = {"n": len(values), "min": float(values.min()), "max": float(values.max()), "sum": fsum(values.tolist())}
        out[name] = {**ends, "bins": [list(pair) for pair in zip(bins.tolist(), counts.tolist(), strict=True)]}
    return out


def figures(tallies: Iterable[dict[str, Any]], records: int) -> dict[str, Any]:
    """Tallies of all parts, in part order -> what the card says of each column: n, missing, min, quantiles, max, mean."""
    bins: dict[str, Counter[int]] = {}
    ends: dict[str, list[tuple[float, float, float]]] = {}
    for one in tallies:
        for name, t in one.items():
            bins.setdefault(name, Counter()).update(dict(t["bins"]))
            ends.setdefault(name, []).append((t["min"], t["max"], t["sum"]))
    shown = sorted(bins, key=lambda name: (name.count("."), name))[:MOST]
    return {name: _figures(bins[name], ends[name], records) for name in sorted(shown)}


def _figures(bins: Counter[int], ends: list[tuple[float, float, float]], records: int) -> dict[str, Any]:
    n, low, high = bins.total(), min(e[0] for e in ends), max(e[1] for e in ends)
    numbers = sorted(bins)
    reached = np.cumsum([bins[b] for b in numbers])
    places = [int(np.searchsorted(reached, q * n)) for q in QUANTILES]
    spread = {f"p{round(100 * q):02}": _short(min(max(_middle(numbers[at]), low), high)) for q, at in zip(QUANTILES, places, strict=True)}
    told = {"min": _short(low), **spread, "max": _short(high), "mean": _short(fsum(e[2] for e in ends) / n)}
    return {"n": n, "missing": records - n, **told}


def _bins(values: np.ndarray) -> np.ndarray:
    """The number of each value's bin; numbers stand in the order of values."""
    upper = (values.view(np.uint32) >> np.uint32(16)).astype(np.int64)
    return np.where(upper < 0x8000, upper, 0x7FFF - upper)


def _middle(bin: int) -> float:
    upper = bin if bin >= 0 else 0x7FFF - bin
    return float(np.uint32(upper << 16 | 0x8000).view(np.float32))


def _short(x: float) -> float:
    return float(f"{x:.6g}")
