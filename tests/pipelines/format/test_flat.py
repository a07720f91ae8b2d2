"""Arrow arrays as numpy: the same values as pyarrow's own conversion gives, slices and nulls included."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipelines.format.flat import flat


@pytest.mark.parametrize("kind", [pa.bool_(), pa.int16(), pa.int32(), pa.int64(), pa.uint64(), pa.float32()])
@pytest.mark.parametrize(("start", "length"), [(0, 0), (0, 37), (3, 20), (9, 1), (37, 0)])
def test_values_are_those_of_arrow(kind: pa.DataType, start: int, length: int) -> None:
    array = pa.array([i % 3 == 0 if kind == pa.bool_() else i for i in range(37)], kind).slice(start, length)
    found = flat(array)
    assert found.tolist() == array.to_pylist() and found.dtype == np.dtype(kind.to_pandas_dtype())


def test_a_null_becomes_what_is_said_or_an_error() -> None:
    array = pa.array([None, 5, None, 7, None] * 5, pa.int64())
    assert flat(array.slice(1, 22), -1).tolist() == [-1 if x is None else x for x in array.slice(1, 22).to_pylist()]
    assert flat(pa.array([True, None, False, None]), 1).tolist() == [True, True, False, True]
    assert flat(array.slice(1, 1)).tolist() == [5]
    with pytest.raises(AssertionError, match="nulls"):
        flat(array)
