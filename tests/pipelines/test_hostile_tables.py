"""Hostile archives and tables: each ends in one reject or one error, with bounded memory, and nothing is written anywhere."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipelines import columns
from pipelines.bounded import lines, opened
from pipelines.format.errors import Reject
from pipelines.tar_stream import members


def _member(name: str = "a.jpg", data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "", **more: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data), link
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def _pax(records: bytes, kind: bytes = b"x") -> bytes:
    info = tarfile.TarInfo("p")
    info.type, info.size = kind, len(records)
    return info.tobuf() + records + bytes(-len(records) % 512)


def _record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    size = len(body)
    while len(str(size).encode()) + len(body) != size:
        size = len(str(size).encode()) + len(body)
    return str(size).encode() + body


def _sized(size: int) -> bytes:
    out = bytearray(_member())
    out[124:136] = b"\x80" + size.to_bytes(11, "big")
    out[148:156] = b" " * 8
    out[148:156] = f"{sum(out[:512]):06o}\0 ".encode()
    return bytes(out)


TARS = {
    "outward": _member("../../etc/b.jpg"), "absolute": _member("/etc/b.jpg"), "inner dots": _member("a/../../b.jpg"),
    "backslashes": _member("..\\b.jpg"),
    "symbolic link": _member(kind=b"2", data=b"", link="/etc/passwd"), "hard link": _member(kind=b"1", data=b"", link="../x"),
    "link, then through it": _member("d", b"", b"2", "/tmp") + _member("d/evil.jpg"), "character device": _member(kind=b"3", data=b""),
    "block device": _member(kind=b"4", data=b""), "fifo": _member(kind=b"6", data=b""), "old sparse": _member(kind=b"S", data=b""),
    "unknown kind": _member(kind=b"Z"), "twice": _member() + _member(data=b"y"),
    "size of 8 EB": _sized(1 << 63), "size of 2^87": _sized((1 << 87) - 1),
    "pax path outward": _pax(_record("path", "../../x.jpg")) + _member(), "pax path absolute": _pax(_record("path", "/x.jpg")) + _member(),
    "pax size of 10^18": _pax(_record("size", "9" * 18)) + _member(), "pax size negative": _pax(_record("size", "-1")) + _member(),
    "pax bomb": _pax(b"", b"x")[:124] + b"77777777777\0" + _pax(b"")[136:], "pax length lies": _pax(b"99999999 path=x\n") + _member(),
    "pax length none": _pax(b"x path=x\n") + _member(),
    "pax sparse": _pax(_record("GNU.sparse.major", "1") + _record("GNU.sparse.name", "b.jpg")) + _member(),
    "long name of 1 MB": _pax(b"n" * (1 << 20), b"L") + _member(), "name of 300": _pax(b"n" * 300 + b".jpg", b"L") + _member(),
    "bad checksum": b"\1" + _member()[1:], "name of NUL": _pax(_record("path", "a\0b.jpg")) + _member(), "not a tar": b"PK\3\4" * 500,
}  # fmt: skip


@pytest.mark.parametrize("name", TARS)
def test_no_member_of_a_malicious_tar_gets_out_of_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good, rejects = [], 0
    tracemalloc.start()
    try:
        for member, content in members(io.BytesIO(TARS[name] + bytes(1024)), (".jpg",)):
            if isinstance(content, Reject):
                rejects += 1
            else:
                good.append(member)
    except Reject:
        rejects += 1
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert 1 <= rejects <= 2 and len(TARS) >= 25
    assert all(not m.startswith("/") and ".." not in m.split("/") and "\0" not in m and "\\" not in m for m in good)
    assert list(tmp_path.iterdir()) == []


def _npy(header: str) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


def _repeated() -> bytes:
    """4,000 times one megabyte, stored once."""
    out = io.BytesIO()
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(4000, np.int32)), pa.array(["x" * (1 << 20)]))
    with pq.ParquetWriter(out, pa.schema([("a", column.type)]), use_dictionary=True, store_schema=False, compression="zstd") as writer:
        writer.write_table(pa.table({"a": column}))
    return out.getvalue()


def _npz(**how: object) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **how) as archive:
        archive.writestr("a.npy", _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}") + bytes(8))
    return out.getvalue()


TABLES = {
    "claims.npy": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (500000000000,)}"),
    "negative.npy": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"),
    "nested.npy": _npy("(" * 4000),
    "minus.npy": _npy("-" * 9000 + "1"),
    "object.npy": _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + b"cos\nsystem\n",
    "type.npy": _npy("{'descr': [['a']], 'fortran_order': False, 'shape': (1,)}"),
    "code.npy": _npy("__import__('os').system('true')"),
    "lzma.npz": _npz(compression=zipfile.ZIP_LZMA),
    "directory.npz": b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, 900 << 20, 0, 0),
    "deep.json": b"[" * 1_000_000,
    "repeated.parquet": _repeated(),
    "cut.parquet": _repeated()[:-9],
    "footer.parquet": b"PAR1" + b"\xff" * 64 + struct.pack("<I", 60) + b"PAR1",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_hostile_table_is_one_reject(name, tmp_path):
    (tmp_path / name).write_bytes(TABLES[name])
    with pytest.raises(Reject) as e:
        columns.read_columns(str(tmp_path / name))
    assert e.value.reason in ("unreadable", "too_large", "truncated", "not_allowed")


def test_numbers_no_float_can_hold_are_no_numbers(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": 1' + "0" * 400 + '}\n{"x": 2}\n')
    got = columns.numbers(columns.read_columns(str(tmp_path / "a.jsonl")), "x")
    assert np.isnan(got[0]) and got[1] == 2
    json.dumps(float(got[1]))


@pytest.mark.parametrize(("end", "pack"), [("gz", lambda d: gzip.compress(d, 9)), ("zst", lambda d: zstandard.compress(d, 19))])
def test_a_bomb_of_one_line_is_refused_within_its_buffers(tmp_path, end, pack):
    (tmp_path / f"a.jsonl.{end}").write_bytes(pack(bytes(200 << 20)))
    tracemalloc.start()
    with pytest.raises(Reject) as e, opened(str(tmp_path / f"a.jsonl.{end}")) as stream:
        for _, line in lines(stream):
            assert line is None
    assert e.value.reason == "too_large" and tracemalloc.get_traced_memory()[1] < 96 << 20
    tracemalloc.stop()
