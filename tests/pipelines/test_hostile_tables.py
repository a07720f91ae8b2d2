"""Hostile archives and tables: a reason or one clear error each, and memory that is bounded whatever they claim."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipelines import columns
from pipelines.bounded import lines, opened
from pipelines.columns import read_columns
from pipelines.format.errors import Reject
from pipelines.parquet_pages import dictionary_bytes
from pipelines.tar_stream import members
from tests.peak import peak_bytes
from tests.pipelines.hostile_tars import GOOD, by_tarfile, tars

REPO = Path(__file__).parents[2]
REST_IS_LOST = ("a size", "a negative", "a PAX", "a wrong", "noise", "no end")


def test_an_archive_of_pythons_own_comes_through():
    assert [c for _, c in members(io.BytesIO(by_tarfile()), (".jpg",))] == [GOOD] * 3


@pytest.mark.parametrize("name", tars())
def test_no_evil_member_gets_through_and_the_good_one_does(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    got: list[tuple[str, bytes | Reject]] = []
    stopped = None
    try:
        got.extend(members(io.BytesIO(tars()[name]), (".jpg",)))
    except Reject as e:
        stopped = e
    whole = [content for _, content in got if isinstance(content, bytes)]
    assert whole == [GOOD]
    assert all(c.reason in ("not_allowed", "too_large", "unreadable") for _, c in got if isinstance(c, Reject))
    assert (stopped is not None) == name.startswith(REST_IS_LOST), (name, stopped)
    assert stopped is None or stopped.reason in ("truncated", "unreadable", "too_large")
    assert list(tmp_path.iterdir()) == []


def _shared_text(path: Path, size: int = 24 << 20, rows: int = 20_000) -> None:
    table = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * size]))})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30, store_schema=False)


def test_the_size_of_a_dictionary_is_read_from_its_page(tmp_path):
    for n in (5, 1000, 300_000):
        _shared_text(tmp_path / "t.parquet", n, 10)
        data = (tmp_path / "t.parquet").read_bytes()
        chunk = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0).column(0)
        assert dictionary_bytes(chunk, lambda at, k, data=data: data[at : at + k]) == n + 4
        assert dictionary_bytes(chunk, lambda at, k: b"\xff" * k) > 1 << 30


MEASURED = """
    import json, resource, sys
    resource.setrlimit(resource.RLIMIT_AS, ({cap} << 20, {cap} << 20))
    from itertools import islice
    from pipelines.columns import read_columns
    from pipelines.format.errors import HeadwaterError, Reject
    from pipelines.listing import Input
    from pipelines.row_groups import group_runs, numbered_rows
    from pipelines.table import scan
    from tests.peak import most_held
    out = {{}}
    for name in sys.argv[2:]:
        path = sys.argv[1] + "/" + name
        try:
            if name.startswith("rows"):
                last = [row for row in islice(scan(path), 300_000)][-1]
                out[name] = last.problem.reason if last.problem else "rows"
            elif name.startswith("groups"):
                spec = {{"file": name, "groups": [0, 1], "row": 0}}
                *_, (_, row) = islice(numbered_rows(sys.argv[1], spec, ["text"]), 20)
                out[name] = row.reason if isinstance(row, Reject) else "rows"
            else:
                read_columns(path)
                out[name] = "table"
        except Reject as e:
            out[name] = e.reason
    print(json.dumps([out, most_held() >> 20]))
"""


def _write_bombs(folder: Path) -> dict[str, set[str]]:
    """Files by name, with what may come of each."""
    zeros, deep = bytes(1 << 20), b"[" * 2_000_000
    with gzip.open(folder / "rows.jsonl.gz", "wb") as f:
        for _ in range(90):
            f.write(zeros)
    with pa.CompressedOutputStream(str(folder / "rows.csv.zst"), "zstd") as f:
        f.write(b"a,b\n")
        for _ in range(90):
            f.write(zeros)
    (folder / "rows.jsonl").write_bytes(deep + b"\n" + b'{"a":' * 500_000 + b"\n")
    (folder / "rows_list.json").write_bytes(b"[" + deep)
    (folder / "rows.csv").write_bytes(b"a,b\n" + b'"' + b"x" * (20 << 20) + b'",1\n')
    (folder / "rows_wide.csv").write_bytes(b"," * 1_000_000 + b"\n" + b"," * 1_000_000 + b"\n")
    (folder / "rows_open.csv").write_bytes(b'a,b\n"' + b"x\n" * (10 << 20))
    (folder / "deep.json").write_bytes(deep)
    (folder / "digits.json").write_bytes(b'{"a": [' + b"9" * 100_000 + b"]}")
    (folder / "deep.npy").write_bytes(b"\x93NUMPY\1\0" + (9000).to_bytes(2, "little") + (b"{'descr': " + b"(" * 8900).ljust(9000))
    (folder / "minus.npy").write_bytes(b"\x93NUMPY\1\0" + (9000).to_bytes(2, "little") + (b"{'shape': " + b"-" * 8900 + b"1}").ljust(9000))
    (folder / "long.npy").write_bytes(b"\x93NUMPY\2\0" + (1 << 31).to_bytes(4, "little") + b"x" * 99)
    lie = io.BytesIO()
    np.lib.format.write_array_header_1_0(lie, {"descr": "<f8", "fortran_order": False, "shape": (1 << 20, 1 << 20)})
    (folder / "lie.npy").write_bytes(lie.getvalue())
    (folder / "negative.npy").write_bytes(lie.getvalue().replace(b"(1048576, 1048576)", b"(-1, -8)          ") + bytes(64))
    good = io.BytesIO()
    np.save(good, np.zeros(100_000))
    for name, kind in (("lzma.npz", zipfile.ZIP_LZMA), ("bzip2.npz", zipfile.ZIP_BZIP2), ("flipped.npz", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(folder / name, "w", kind) as z:
            z.writestr("a.npy", good.getvalue())
    data = bytearray((folder / "flipped.npz").read_bytes())
    data[50:80] = bytes(255 - b for b in data[50:80])
    (folder / "flipped.npz").write_bytes(data)
    _shared_text(folder / "shared.parquet")
    _shared_text(folder / "groups.parquet")
    pq.write_table(
        pa.table({f"c{i}": pa.array(np.zeros(1_500_000)) for i in range(100)}), folder / "wide.parquet", compression="zstd", use_dictionary=False
    )
    return {
        "rows.jsonl.gz": {"too_large", "unreadable"}, "rows.csv.zst": {"too_large", "unreadable"}, "rows.jsonl": {"unreadable"},
        "rows_list.json": {"unreadable", "truncated", "too_large"}, "rows.csv": {"too_large"}, "rows_wide.csv": {"rows", "too_large", "unreadable"},
        "rows_open.csv": {"too_large", "unreadable", "truncated"}, "deep.json": {"unreadable"}, "digits.json": {"unreadable"},
        "deep.npy": {"unreadable"}, "minus.npy": {"unreadable"}, "long.npy": {"unreadable"}, "lie.npy": {"truncated"},
        "negative.npy": {"unreadable", "truncated"}, "lzma.npz": {"not_allowed"}, "bzip2.npz": {"not_allowed"}, "flipped.npz": {"unreadable"},
        "shared.parquet": {"too_large"}, "groups.parquet": {"rows"}, "wide.parquet": {"too_large"},
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_every_bomb_ends_in_a_reason_within_two_gigabytes(tmp_path):
    expected = _write_bombs(tmp_path)
    script = textwrap.dedent(MEASURED.format(cap=3072))
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), *expected], capture_output=True, text=True, timeout=300, cwd=REPO)
    assert done.returncode == 0, done.stderr[-2000:]
    found, peak = json.loads(done.stdout)
    assert not {name: said for name, said in found.items() if said not in expected[name]}, found
    assert peak < 2048, peak


def test_text_tables_have_a_limit_of_bytes_and_of_rows(tmp_path, monkeypatch):
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n' * 100)
    assert read_columns(str(tmp_path / "t.jsonl")).rows == 100
    monkeypatch.setattr(columns, "MAX_TEXT_ROWS", 99)
    with pytest.raises(Reject, match="rows"):
        read_columns(str(tmp_path / "t.jsonl"))
    monkeypatch.setattr(columns, "MAX_TEXT", 800)
    with pytest.raises(Reject, match="bytes as text"):
        read_columns(str(tmp_path / "t.jsonl"))


def test_numbers_no_float_can_hold_are_no_numbers(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": 1' + "0" * 400 + '}\n{"x": 2}\n')
    got = columns.numbers(columns.read_columns(str(tmp_path / "a.jsonl")), "x")
    assert np.isnan(got[0]) and got[1] == 2
    json.dumps(float(got[1]))


def refused_as_too_large(path):
    with pytest.raises(Reject) as e, opened(path) as stream:
        for _, line in lines(stream):
            assert line is None
    assert e.value.reason == "too_large"


@pytest.mark.parametrize(("end", "pack"), [("gz", lambda d: gzip.compress(d, 9)), ("zst", lambda d: zstandard.compress(d, 19))])
def test_a_bomb_of_one_line_is_refused_within_its_buffers(tmp_path, end, pack):
    (tmp_path / f"a.jsonl.{end}").write_bytes(pack(bytes(200 << 20)))
    assert peak_bytes(refused_as_too_large, str(tmp_path / f"a.jsonl.{end}")) < 96 << 20
