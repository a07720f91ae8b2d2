"""Rows are written as they come: the same rows give the same file, an abandoned file leaves nothing, and a part's memory does not follow its size."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.format.dataset import Dataset
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Text
from pipelines.format.rows import GROUP_BYTES, ROW_GROUP, RowFile
from tests import toys

SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())])


def written(root, rows, name="x.parquet"):
    file = RowFile(str(root), SCHEMA)
    for row in rows:
        file.add(row, len(row["text"]))
    file.finish().publish(str(root), name)
    file.close()
    return root / name


@pytest.mark.parametrize("n", [0, 1, 1_023, 1_024, 9_999, 10_000, 10_001, 23_456])
def test_all_rows_are_there_in_order_in_groups_of_ten_thousand(tmp_path, n):
    rows = [{"n": i, "text": f"row {i}"} for i in range(n)]
    file = pq.ParquetFile(written(tmp_path, rows))
    assert file.read().to_pylist() == rows
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert [s for s in sizes if s] == [ROW_GROUP] * (n // ROW_GROUP) + ([n % ROW_GROUP] if n % ROW_GROUP else [])


def test_a_group_ends_earlier_where_its_rows_hold_much_text(tmp_path):
    text = "x" * (1 << 20)
    file = pq.ParquetFile(written(tmp_path, [{"n": i, "text": text} for i in range(70)]))
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sum(sizes) == 70 and max(sizes) << 20 <= GROUP_BYTES + (8 << 20)


def test_the_same_rows_give_the_same_bytes_as_one_table_written_whole(tmp_path):
    rows = [{"n": i, "text": f"row {i}"} for i in range(1_000)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "whole.parquet", compression="zstd", compression_level=3)
    assert written(tmp_path, rows).read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_file_that_is_left_unpublished_leaves_nothing_and_says_nothing(tmp_path, capfd):
    file = RowFile(str(tmp_path), SCHEMA)
    for i in range(20_001):
        file.add({"n": i, "text": "x"})
    file.close()
    del file
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [] and capfd.readouterr().err == ""


def test_a_part_that_ends_in_an_error_leaves_neither_shard_nor_rejects(tmp_path):
    def spoiled():
        with PartWriter(str(tmp_path), 0, fingerprint="x", keep_dropped=True) as w:
            for i in range(3):
                w.emit()
                w.drop(Record.make("s", f"o{i}", "text", [Text("t")]), "f", "f.why")
            raise KeyError

    with pytest.raises(KeyError):
        spoiled()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_rows_of_a_shard_are_the_rows_of_its_index(tmp_path):
    ds = Dataset.open(toys.curated(str(tmp_path / "d"), "vqa", n=7))
    assert list(ds.rows(0)) == ds.index(0).to_pylist()


_CHILD = """
import sys
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Text
from tests.peak import most_held
n, out = int(sys.argv[1]), sys.argv[2]
with PartWriter(out, 0, fingerprint="x") as w:
    for i in range(n):
        w.emit()
        record = Record.make("s", f"o{i}", "text", [Text(f"document {i}")])
        w.add(record) if i % 2 else w.drop(record, "f", "f.why")
    w.commit()
print(most_held() >> 20)
"""


def test_memory_of_a_part_does_not_follow_its_number_of_records(tmp_path):
    """As Python objects the rows of 60,000 records more would take 90 MB more."""
    peaks = []
    for n in (20_000, 80_000):
        argv = [sys.executable, "-c", _CHILD, str(n), str(tmp_path / str(n))]
        done = subprocess.run(argv, cwd=Path(__file__).parents[3], capture_output=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 40, peaks
