"""A slice read through the block cache is the slice of the file, and neighbours cost one read."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from pipelines.format import storage
from pipelines.format.ranges import Ranges

DATA = bytes(range(256)) * 8


@given(st.integers(0, 2048), st.integers(1, 700), st.integers(1, 300), st.integers(1, 4))
def test_any_slice_through_any_blocks_is_right(start, n, block, kept):
    path = "memory://ranges/fixed"
    if not storage.exists(path):
        storage.publish(path, DATA)
    ranges = Ranges(block, kept)
    for at in (start, start // 2, start):
        assert bytes(ranges.read(path, at, at + n)) == DATA[at : at + n]


def test_neighbours_cost_one_read(monkeypatch):
    path = f"memory://ranges/{uuid.uuid4().hex}"
    storage.publish(path, DATA)
    reads = []
    whole = storage.read
    monkeypatch.setattr(storage, "read", lambda *a: reads.append(a) or whole(*a))
    ranges = Ranges()
    assert [bytes(ranges.read(path, k, k + 1)) for k in range(50)] == [DATA[k : k + 1] for k in range(50)]
    assert len(reads) == 1
