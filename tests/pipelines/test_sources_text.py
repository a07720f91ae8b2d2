"""Sources of text: every document once, from the place it lies at, whatever the packing; and what a hostile file can and cannot cost."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipelines import bounded, row_groups
from pipelines.format.errors import InputError
from pipelines.format.record import Record
from pipelines.listing import byte_ranges
from pipelines.sources import jsonl
from pipelines.sources.jsonl import Jsonl
from pipelines.sources.parquet_text import ParquetText
from pipelines.stage import Rejected


def read(source, name="test"):
    found = [item for part in source.parts() for item in source.read(json.loads(json.dumps(part.spec)), name)]
    good = [i for i in found if isinstance(i, Record)]
    return good, [i for i in found if isinstance(i, Rejected)]


def texts(records):
    return [r.segments[0].text for r in records]


DOCS = [f"document {i} ä漢\n" + "x" * (i * 7 % 50) for i in range(40)]


def body(docs=DOCS):
    return "".join(json.dumps({"text": d, "meta": {"url": f"http://a/{i}"}}, ensure_ascii=False) + "\n" for i, d in enumerate(docs)).encode()


def test_plain_gzip_and_zstd_give_the_same_documents(tmp_path):
    for end, pack in {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}.items():
        folder = tmp_path / f"f{end}"
        folder.mkdir()
        (folder / f"a.jsonl{end}").write_bytes(pack(body()))
        records, rejects = read(Jsonl(path=str(folder), url_field="meta.url"))
        assert texts(records) == DOCS and not rejects
        assert [r.url for r in records] == [f"http://a/{i}" for i in range(40)]


@pytest.mark.parametrize("step", [1, 7, 64, 100, 10_000])
def test_byte_ranges_of_any_size_give_every_document_once(tmp_path, monkeypatch, step):
    (tmp_path / "a.jsonl").write_bytes(b"\n" + body() + b'{"text": "no newline at the end"}')
    whole, _ = read(Jsonl(path=str(tmp_path)))
    monkeypatch.setattr(jsonl, "byte_ranges", lambda item: byte_ranges(item, step))
    source = Jsonl(path=str(tmp_path))
    assert len(source.parts()) == -(-(tmp_path / "a.jsonl").stat().st_size // step)
    records, rejects = read(source)
    assert texts(records) == [*DOCS, "no newline at the end"] and not rejects
    assert [r.id for r in records] == [r.id for r in whole]


def test_an_origin_is_the_first_byte_of_a_plain_line_and_the_ordinal_of_a_packed_one(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(body())
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(body()))
    data = body()
    records, _ = read(Jsonl(path=str(tmp_path)))
    for record in records[:40]:
        at = int(record.origin.removeprefix("a.jsonl#"))
        assert json.loads(data[at:].split(b"\n")[0])["text"] == record.segments[0].text
    assert [r.origin for r in records[40:]] == [f"b.jsonl.gz#{i}" for i in range(40)]


def test_one_file_and_its_folder_give_the_same_ids(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(body())
    assert [r.id for r in read(Jsonl(path=str(tmp_path)))[0]] == [r.id for r in read(Jsonl(path=str(tmp_path / "a.jsonl")))[0]]


def test_each_bad_line_costs_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "MAX_LINE", 4096)
    monkeypatch.setattr(bounded.lines, "__defaults__", (0, None, 4096))
    bad = [
        b"not json", b'{"text": 5}', b'{"other": "x"}', b'{"text": ""}', b'"a string"', b'{"text": "\\ud800"}', b'\xff\xfe{"text": "x"}',
        b'{"text": "' + b"y" * 9000 + b'"}', b"[" * 3000,
    ]  # fmt: skip
    good = body(["kept one"]).strip()
    lines = [line for b in bad for line in (b, good)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    records, rejects = read(Jsonl(path=str(tmp_path)))
    assert texts(records) == ["kept one"] * len(bad)
    assert [r.reason for r in rejects] == ["unreadable", "unreadable", "unreadable", "empty", "unreadable", "unreadable", "unreadable",
                                           "too_large", "unreadable"]  # fmt: skip
    assert len({r.origin for r in rejects}) == len(bad)


@pytest.mark.parametrize(("end", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_a_cut_archive_gives_what_came_before_the_cut_and_says_that_it_is_cut(tmp_path, end, pack):
    docs = [os.urandom(500).hex() for _ in range(400)]
    data = pack(body(docs))
    (tmp_path / f"a.jsonl{end}").write_bytes(data[: len(data) // 2])
    records, rejects = read(Jsonl(path=str(tmp_path)))
    assert texts(records) == docs[: len(records)] and 100 < len(records) < 300
    assert [r.reason for r in rejects] == ["truncated"]


def test_a_damaged_archive_and_an_empty_one_are_told(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"<html>not found</html>")
    (tmp_path / "b.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + b"\xff" * 50)
    (tmp_path / "c.jsonl").write_bytes(b"")
    records, rejects = read(Jsonl(path=str(tmp_path)))
    assert not records and [(r.origin.split("#")[0], r.reason) for r in rejects] == [("a.jsonl.gz", "unreadable"), ("b.jsonl.zst", "unreadable")]


@pytest.mark.parametrize(("end", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_a_bomb_stops_at_its_ratio_and_the_records_before_it_stay(tmp_path, monkeypatch, end, pack):
    monkeypatch.setattr(bounded, "FREE", 1 << 20)
    (tmp_path / f"a.jsonl{end}").write_bytes(pack(body(["first"]) + b"\n" * (8 << 20)))
    records, rejects = read(Jsonl(path=str(tmp_path)))
    assert texts(records) == ["first"]
    assert [r.reason for r in rejects] == ["too_large"]


def test_an_archive_has_an_absolute_limit_too(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "MAX_UNPACKED", 100_000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(body([os.urandom(500).hex() for _ in range(300)])))
    records, rejects = read(Jsonl(path=str(tmp_path)))
    assert 0 < len(records) < 100 and [r.reason for r in rejects] == ["too_large"]


def test_kept_fields_and_licences_travel_and_a_missing_kept_field_is_a_reject(tmp_path):
    rows = [{"text": "a", "id": 7, "lic": "CC0"}, {"text": "b", "id": 8, "lic": None}, {"text": "c"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records, rejects = read(Jsonl(path=str(tmp_path), id_field="id", licence_field="lic", licence="MIT"))
    assert [(r.fields, r.licence) for r in records] == [({"source_id": 7}, "CC0"), ({"source_id": 8}, "MIT")]
    assert [r.reason for r in rejects] == ["unreadable"] and "text" in rejects[0].detail


def test_a_folder_without_such_files_is_an_error_that_names_them(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(InputError, match="jsonl"):
        Jsonl(path=str(tmp_path)).parts()


def test_a_text_field_that_no_first_line_has_is_refused_with_those_there_are(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x", "url": "u"}\n' * 3)
    with pytest.raises(InputError, match="body, url"):
        Jsonl(path=str(tmp_path)).parts()
    (tmp_path / "b.jsonl").write_text('{"text": "x"}')
    assert len(read(Jsonl(path=str(tmp_path)))[0]) == 1


def table(path, rows, group=10, **columns):
    columns = columns or {"text": [f"row {i}" for i in range(rows)], "url": [f"u{i}" for i in range(rows)]}
    pq.write_table(pa.table(columns), path, row_group_size=group)


def test_parquet_rows_keep_their_ordinals_across_parts(tmp_path, monkeypatch):
    table(tmp_path / "a.parquet", 55)
    table(tmp_path / "b.parquet", 5)
    whole, _ = read(ParquetText(path=str(tmp_path), url_field="url"))
    assert [r.origin for r in whole[:55]] == [f"a.parquet#{i}" for i in range(55)]
    monkeypatch.setattr(row_groups, "PART_BYTES", 300)
    source = ParquetText(path=str(tmp_path), url_field="url")
    assert len(source.parts()) > 3
    records, rejects = read(source)
    assert [(r.id, r.url, texts([r])) for r in records] == [(r.id, r.url, texts([r])) for r in whole] and not rejects


def test_a_missing_column_is_an_error_with_the_columns_there_are(tmp_path):
    table(tmp_path / "a.parquet", 5)
    with pytest.raises(InputError, match="text, url"):
        ParquetText(path=str(tmp_path), text_field="content").parts()


def test_a_file_that_is_no_parquet_and_a_row_group_beyond_reason_cost_one_reject_each(tmp_path, monkeypatch):
    table(tmp_path / "a.parquet", 20, text=["x" * 1000] * 10 + [str(i) * 4000 for i in range(10)])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    monkeypatch.setattr(row_groups, "MAX_ROW_GROUP", 20_000)
    records, rejects = read(ParquetText(path=str(tmp_path)))
    assert len(records) == 10
    assert [(r.origin, r.reason) for r in rejects] == [("a.parquet#10", "too_large"), ("b.parquet", "unreadable")]


def test_flipped_bytes_in_parquet_data_cost_a_row_group_not_the_file(tmp_path):
    table(tmp_path / "a.parquet", 30, text=[f"row {i} " + os.urandom(40).hex() for i in range(30)])
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    at = data.index(b"PAR1") + 40
    data[at : at + 60] = b"\xff" * 60
    (tmp_path / "a.parquet").write_bytes(data)
    records, rejects = read(ParquetText(path=str(tmp_path)))
    assert len(rejects) == 1 and [r.origin for r in records] == [f"a.parquet#{i}" for i in range(10, 30)]


DATA = os.environ.get("HEADWATER_DATA")


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA is not set")
def test_real_corpora_are_read_whole():
    records, rejects = read(Jsonl(path=str(Path(str(DATA), "text/jsonl/c4")), url_field="url"))
    assert len(records) == 20 and not rejects
    plain, packed = (read(Jsonl(path=str(Path(str(DATA), f"text/jsonl/dolma/multiple_files__cc_en_head-0091.jsonl{e}"))))[0] for e in ("", ".gz"))
    assert texts(plain) == texts(packed) and len(plain) > 5
