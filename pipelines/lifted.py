"""Large arrays beside the value that holds them, so that they pass from worker to worker without being copied by whoever reads them.

A value travels pickled, and a part's pictures would be copied four times on the way: 0.2 s of processor time for 1,024 of 224 pixels, in the very
worker that drives a GPU. As a column of bytes of its own an array lies in shared memory, and the next step sees it there: 0.007 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

LARGE = 1 << 20  # bytes
NONE = np.zeros(1, np.uint8)  # a row without large arrays has the column too


@dataclass(frozen=True, slots=True)
class Lifted:
    """In place of an array: where it begins in the bytes beside, and what it is."""

    first: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


def lift(value: Any) -> tuple[Any, np.ndarray]:
    """The value without its large arrays, which are looked for among the values of a mapping; and their bytes, uint8 [n]. Not copied if it is one."""
    if not isinstance(value, dict):
        return value, NONE
    large = {k: np.ascontiguousarray(v) for k, v in value.items() if isinstance(v, np.ndarray) and v.nbytes >= LARGE and not v.dtype.hasobject}
    if not large:
        return value, NONE
    out, first = dict(value), 0
    for key, array in large.items():
        out[key] = Lifted(first, array.nbytes, array.dtype.str, array.shape)
        first += array.nbytes
    flat = [array.reshape(-1).view(np.uint8) for array in large.values()]
    return out, flat[0] if len(flat) == 1 else np.concatenate(flat)


def lower(value: Any, beside: np.ndarray) -> Any:
    """The inverse. Arrays share their memory with `beside`, which may be read only."""
    if not isinstance(value, dict):
        return value
    return {k: _seen(v, beside) if isinstance(v, Lifted) else v for k, v in value.items()}


def _seen(at: Lifted, beside: np.ndarray) -> np.ndarray:
    some = beside[at.first : at.first + at.nbytes]
    if some.ctypes.data % np.dtype(at.dtype).alignment:
        some = some.copy()
    return some.view(at.dtype).reshape(at.shape)
