"""Flat Arrow arrays as numpy arrays by their buffers: pyarrow's own `to_numpy` imports pandas wherever that is installed, which is 0.3 s of a
processor before the first sample of a resumed job, and 0.5 s more when another program keeps the disk busy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def flat(array: pa.Array, nulls: int | None = None) -> NDArray[Any]:
    """Numbers or booleans as numpy: read-only, and no copy where there are neither booleans nor nulls. `nulls` is what a null becomes; without it
    there may be none."""
    found, valid = array.buffers()[:2][::-1] if len(array) else (None, None)
    start, stop = array.offset, array.offset + len(array)
    if pa.types.is_boolean(array.type):
        values: NDArray[Any] = _bits(found, start, stop)
    else:
        dtype = np.dtype(array.type.to_pandas_dtype())  # the name is all that it has to do with pandas
        values = np.frombuffer(found, dtype, len(array), start * dtype.itemsize) if found is not None else np.zeros(len(array), dtype)
    if not array.null_count:
        return values
    assert nulls is not None, f"{array.null_count} nulls in {array.type}"
    return np.where(_bits(valid, start, stop), values, values.dtype.type(nulls))


def _bits(buffer: pa.Buffer | None, start: int, stop: int) -> NDArray[np.bool_]:
    if buffer is None:
        return np.zeros(stop - start, np.bool_)
    return np.unpackbits(np.frombuffer(buffer, np.uint8), count=stop, bitorder="little")[start:].astype(np.bool_)
