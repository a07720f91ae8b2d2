"""Tables of numbers in every form give the same columns; hostile ones give a reason."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import columns
from pipelines.columns import numbers, read_columns, texts, widths
from pipelines.format.errors import Reject

T = [0.0, 0.1, 0.2]
A = [[1.0, -2.0], [3.5, 0.0], [0.25, 9.0]]


def _write(folder, name: str) -> str:
    path = folder / name
    rows = [{"t": t, "a": a} for t, a in zip(T, A, strict=True)]
    if name.endswith((".jsonl", ".catalog")):
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif name == "rows.json":
        path.write_text(json.dumps(rows))
    elif name == "columns.json":
        path.write_text(json.dumps({"t": T, "a": A, "episode": 7}))
    elif name.endswith(".parquet"):
        pq.write_table(pa.table({"t": T, "a": A}), path)
    elif name.endswith(".npz"):
        np.savez(path, t=np.array(T), a=np.array(A, np.float32))
    return str(path)


@pytest.mark.parametrize("name", ["x.jsonl", "x.catalog", "rows.json", "columns.json", "x.parquet", "x.npz"])
def test_one_table_in_every_form_gives_the_same_columns(tmp_path, name):
    table = read_columns(_write(tmp_path, name))
    assert table.rows == 3 and widths(table, "a") == 2 and widths(table, "t") == 0
    assert numbers(table, "t") == pytest.approx(T)
    assert numbers(table, "a[0]") == pytest.approx([1, 3.5, 0.25]) and numbers(table, "a[1]") == pytest.approx([-2, 0, 9])


def test_csv_numbers_are_numbers_and_the_rest_is_nan(tmp_path):
    (tmp_path / "x.csv").write_text("t,a,name\n0.0,1.5,x.jpg\n0.1,,y.jpg\n0.2,inf,z.jpg\n")
    table = read_columns(str(tmp_path / "x.csv"))
    assert numbers(table, "t") == pytest.approx([0, 0.1, 0.2]) and texts(table, "name") == ["x.jpg", "y.jpg", "z.jpg"]
    assert numbers(table, "a")[0] == 1.5 and np.isnan(numbers(table, "a")[1:]).all()


def test_a_matrix_without_a_name_is_counted_row_by_row(tmp_path):
    poses = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    np.save(tmp_path / "p.npy", poses)
    table = read_columns(str(tmp_path / "p.npy"))
    assert widths(table, "") == 16 and numbers(table, "[7]").tolist() == [7, 23]


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "x.npz"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path, name):
    table = read_columns(_write(tmp_path, name))
    with pytest.raises(Reject, match="no column 'speed'; there are: t, a"):
        numbers(table, "speed")


def test_an_element_beyond_the_list_is_no_number(tmp_path):
    with pytest.raises(Reject):
        numbers(read_columns(_write(tmp_path, "x.npz")), "a[2]")
    assert np.isnan(numbers(read_columns(_write(tmp_path, "x.jsonl")), "a[2]")).all()


def test_headers_that_ask_for_too_much_are_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "MAX_BYTES", 1 << 20)
    lie = io.BytesIO()
    np.lib.format.write_array_header_1_0(lie, {"descr": "<f8", "fortran_order": False, "shape": (1 << 39,)})
    (tmp_path / "lie.npy").write_bytes(lie.getvalue())
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as z, z.open("a.npy", "w") as f:
        np.lib.format.write_array_header_1_0(f, {"descr": "|u1", "fortran_order": False, "shape": (1 << 24,)})
        f.write(bytes(1 << 24))
    for name, reason in (("lie.npy", "truncated"), ("bomb.npz", "too_large")):
        with pytest.raises(Reject) as e:
            read_columns(str(tmp_path / name))
        assert e.value.reason == reason


def test_nothing_is_unpickled(tmp_path):
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    np.save(tmp_path / "evil.npy", np.array([Evil()], object), allow_pickle=True)
    np.savez(tmp_path / "evil.npz", a=np.array([Evil()], object))
    for name in ("evil.npy", "evil.npz"):
        with pytest.raises(Reject) as e:
            read_columns(str(tmp_path / name))
        assert e.value.reason == "not_allowed"
    assert not canary.exists()


@pytest.mark.parametrize("name", ["x.parquet", "x.npz", "x.npy", "x.json"])
def test_rubbish_is_unreadable(tmp_path, name):
    for rubbish in (b"", b"\x00" * 50, b"PAR1" + b"\xff" * 40, b"PK\3\4" + b"\1" * 60, b"{"):
        (tmp_path / name).write_bytes(rubbish)
        with pytest.raises(Reject) as e:
            read_columns(str(tmp_path / name))
        assert e.value.reason in ("unreadable", "truncated")
