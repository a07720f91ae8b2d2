"""A slice read through the block cache is the slice of the file, and neighbours cost one read."""

import uuid

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from pipelines.format import storage
from pipelines.format.ranges import RangedFile, Ranges

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


def test_a_ranged_file_reads_what_is_asked_for_and_no_more(monkeypatch):
    path = f"memory://ranges/{uuid.uuid4().hex}"
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"n": list(range(1000)), "text": [f"{i} " * 500 for i in range(1000)]}), sink, compression=None, use_dictionary=False)
    storage.publish(path, sink.getvalue().to_pybytes())
    size, read = storage.size(path), 0
    whole = storage.read

    def counted(place, start, stop):
        nonlocal read
        read += stop - start
        return whole(place, start, stop)

    monkeypatch.setattr(storage, "read", counted)
    assert pq.ParquetFile(RangedFile(path, size)).read(["n"])["n"].to_pylist() == list(range(1000))
    assert 0 < read < size / 10
    file = RangedFile(path, size)
    assert file.seek(-4, 2) == size - 4 and file.read() == b"PAR1" and file.read() == b"" and file.seek(-4, 1) == size - 4 == file.tell()
