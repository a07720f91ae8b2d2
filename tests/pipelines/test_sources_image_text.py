"""Sources of captioned images: every pair once, whatever file is broken beside it; hostile tables and archives reach nothing outside."""

import csv
import gzip
import io
import json
import os
import tarfile
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import image_rows, tar_stream
from pipelines.format.errors import InputError, Reject
from pipelines.format.storage import publish
from pipelines.sources import image_tar
from pipelines.sources.image_folder import ImageFolder
from pipelines.sources.image_parquet import ImageParquet
from pipelines.sources.image_tar import ImageTar
from pipelines.sources.jsonl import Jsonl
from pipelines.sources.parquet_text import ParquetText
from pipelines.tar_stream import members
from tests.pipelines.test_sources_text import read
from tests.toys import jpeg


def named(record):
    return [(s.member, s.text) for s in record.segments if s.kind == "text"]


def folder(root, rows, images=("a.jpg", "b.jpg", "c.jpg"), table="pairs.jsonl"):
    for i, name in enumerate(images):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(i))
    (root / table).write_text("\n".join(json.dumps(r) for r in rows))
    return str(root)


def test_a_pair_is_an_image_and_named_captions_each_an_atom_of_its_own(tmp_path):
    path = folder(tmp_path, [{"image": "b.jpg", "alts": ["one", " two ", ""], "long": "three", "lic": "CC0", "page": "u"}])
    fields = {"original": "alts", "long": "long"}
    (record,), rejects = read(ImageFolder(path=path, captions="pairs.jsonl", caption_fields=fields, licence_field="lic", url_field="page"))
    assert named(record) == [("original", "one"), ("caption2", "two"), ("long", "three")] and not rejects
    assert [(s.kind, s.atom, s.role) for s in record.segments] == [("image", 0, "target"), *[("text", i, "target") for i in (1, 2, 3)]]
    assert (record.origin, record.licence, record.url, record.data) == ("b.jpg", "CC0", "u", "image-text")
    assert record.segments[0].payload == jpeg(1) and record.segments[0].shape == (32, 32, 3)
    assert record.group == sha256(jpeg(1)).hexdigest()


def test_rows_keep_the_order_of_the_table_and_an_image_named_twice_has_two_ids(tmp_path):
    path = folder(tmp_path, [{"image": i, "caption": f"{i} {k}"} for k, i in enumerate(["c.jpg", "a.jpg", "c.jpg"])])
    records, _ = read(ImageFolder(path=path, captions="pairs.jsonl"))
    assert [r.origin for r in records] == ["c.jpg", "a.jpg", "c.jpg#2"]
    assert records[0].group == records[2].group and len({r.id for r in records}) == 3


def test_what_cannot_be_read_costs_itself_alone(tmp_path):
    rows = [{"image": n, "caption": "x y"} for n in ("a.jpg", "empty.jpg", "cut.jpg", "page.jpg", "missing.jpg", "../secret.jpg", "/etc/passwd")]
    rows += [{"image": "b.jpg"}, {"image": "b.jpg", "caption": ""}, {"caption": "no image"}, {"image": "b.jpg", "caption": 7}, ["list"]]
    path = folder(tmp_path / "in", rows)
    (tmp_path / "secret.jpg").write_bytes(jpeg(9))
    (tmp_path / "in/empty.jpg").write_bytes(b"")
    (tmp_path / "in/cut.jpg").write_bytes(jpeg(4)[:-20])
    (tmp_path / "in/page.jpg").write_bytes(b"<html>")
    with open(tmp_path / "in/pairs.jsonl", "a") as f:
        f.write('\n{"image": "c.jpg", "caption"\n{"image": "c.jpg", "caption": "last"}')
    records, rejects = read(ImageFolder(path=path, captions="pairs.jsonl"))
    assert [r.origin for r in records] == ["a.jpg", "c.jpg"]
    assert [r.reason for r in rejects] == ["truncated", "truncated", "invalid_image", "unreadable", "not_allowed", "not_allowed", "unreadable",
                                           "empty", "unreadable", "unreadable", "unreadable", "unreadable"]  # fmt: skip
    assert len(records) + len(rejects) == len(rows) + 2


@pytest.mark.parametrize("table", ["t.jsonl", "t.json", "t.csv", "t.tsv", "t.jsonl.gz", "t.json.gz", "t.csv.gz"])
def test_every_kind_of_table_gives_the_same_pairs(tmp_path, table):
    rows = [{"image": i, "caption": c} for i, c in [("a.jpg", 'said "hi",\nthen left'), ("c.jpg", "ä漢 tab\there")]]
    path = folder(tmp_path, [])
    text = io.StringIO(newline="")
    if ".jsonl" in table:
        text.write("\n".join(map(json.dumps, rows)))
    elif ".json" in table:
        json.dump(rows, text, ensure_ascii=False, indent=1)
    else:
        writer = csv.DictWriter(text, ["image", "caption"], delimiter="," if ".csv" in table else "\t")
        writer.writeheader()
        writer.writerows(rows)
    data = text.getvalue().encode("utf-8-sig" if table == "t.csv" else "utf-8")
    (tmp_path / table).write_bytes(gzip.compress(data) if table.endswith("gz") else data)
    records, rejects = read(ImageFolder(path=path, captions=table))
    assert [(r.origin, *named(r)) for r in records] == [(r["image"], ("original", r["caption"])) for r in rows] and not rejects


def test_a_wildcard_takes_several_tables_each_with_images_beside_it(tmp_path):
    for sub in ("one", "two"):
        folder(tmp_path / sub, [{"image": "a.jpg", "caption": sub}])
    records, _ = read(ImageFolder(path=str(tmp_path), captions="*/pairs.jsonl"))
    assert [r.origin for r in records] == ["one/a.jpg", "two/a.jpg"]
    with pytest.raises(InputError, match="no such table"):
        ImageFolder(path=str(tmp_path), captions="none.jsonl").parts()


def test_a_caption_column_that_no_row_has_is_refused_with_those_there_are(tmp_path):
    path = folder(tmp_path, [{"image": "a.jpg", "alt": "x"}])
    with pytest.raises(InputError, match="image, alt"):
        ImageFolder(path=path, captions="pairs.jsonl").parts()


def test_parts_are_small_and_rows_appended_to_a_table_change_no_earlier_part(tmp_path, monkeypatch):
    rows = [{"image": f"{i}.jpg", "caption": f"number {i}"} for i in range(10)]
    path = folder(tmp_path, rows[:8], [r["image"] for r in rows])
    monkeypatch.setattr(image_rows, "PART_FILES", 4)
    source = ImageFolder(path=path, captions="pairs.jsonl")
    before = source.parts()
    folder(tmp_path, rows, [])
    after = source.parts()
    assert [len(p.inputs) for p in after] == [4, 4, 2] and after[:2] == before
    folder(tmp_path, [rows[0] | {"caption": "changed it"}, *rows[1:]], [])
    assert source.parts()[0].spec["digest"] != after[0].spec["digest"]


def test_without_a_table_a_text_file_beside_each_image_is_its_caption(tmp_path):
    folder(tmp_path, [], ("a.jpg", "sub/b.png.jpg", "c.jpg", "d.jpg"))
    (tmp_path / "a.txt").write_text("a cat\n")
    (tmp_path / "sub/b.png.caption").write_text("a dog")
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\xff")
    records, rejects = read(ImageFolder(path=str(tmp_path)))
    assert [(r.origin, *named(r)) for r in records] == [("a.jpg", ("original", "a cat")), ("sub/b.png.jpg", ("original", "a dog"))]
    assert [(r.origin, r.reason) for r in rejects] == [("c.jpg", "empty"), ("d.jpg", "unreadable")]


def sources_of(root):
    yield ImageFolder(path=f"{root}/table", captions="pairs.jsonl")
    yield ImageFolder(path=f"{root}/beside")
    yield ImageTar(path=f"{root}/tars")
    yield ImageTar(path=f"{root}/tars/s.tar.gz")
    yield Jsonl(path=f"{root}/text")
    yield Jsonl(path=f"{root}/text/a.jsonl.gz")
    yield ParquetText(path=f"{root}/parquet/t.parquet")


def test_an_object_store_gives_the_same_records_as_a_folder(tmp_path, s3_bucket):
    cells = io.BytesIO()
    pq.write_table(pa.table({"text": ["x", "y"]}), cells)
    files = {
        "table/img/a.jpg": jpeg(0), "table/b.jpg": jpeg(1), "beside/c.jpg": jpeg(2), "beside/c.txt": b"see", "parquet/t.parquet": cells.getvalue(),
        "table/pairs.jsonl": b'{"image": "b.jpg", "caption": "x"}\n{"image": "img/a.jpg", "caption": "y"}',
        "tars/s.tar.gz": gzip.compress(tar(SAMPLES)), "text/a.jsonl.gz": gzip.compress(b'{"text": "t"}'), "text/b.jsonl": b'{"text": "u"}',
    }  # fmt: skip
    roots = [str(tmp_path), "memory://same-records", f"{s3_bucket}/same-records"]
    for root in roots:
        for name, data in files.items():
            publish(f"{root}/{name}", data)
    local, *others = ([read(source) for source in sources_of(root)] for root in roots)
    assert [len(records) for records, _ in local] == [2, 1, 2, 2, 2, 1, 2]
    for other in others:
        assert other == local


def tar(entries, form=tarfile.USTAR_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as t:
        for name, content, *more in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in (more[0] if more else {}).items():
                setattr(info, key, value)
            t.addfile(info, io.BytesIO(content))
    return out.getvalue()


SAMPLES = [
    ("000/x.jpg", jpeg(0)), ("000/x.txt", b"first"), ("000/x.json", json.dumps({"url": "u0", "more": {"caption": "deep"}}).encode()),
    ("000/y.txt", b"second"), ("000/y.jpg", jpeg(1)), ("000/notes.md", b"ignored"), ("lonely.txt", b"no image"),
]  # fmt: skip


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("end", [".tar", ".tar.gz", ".tgz"])
def test_members_of_one_stem_are_one_sample_in_every_form_of_tar(tmp_path, form, end):
    long = "d" * 90 + "/" + "n" * 90
    data = tar([*SAMPLES, (f"{long}.jpg", jpeg(2)), (f"{long}.txt", "漢字".encode())], form)
    (tmp_path / f"s{end}").write_bytes(gzip.compress(data) if end != ".tar" else data)
    fields = {"original": "txt", "deep": "json.more.caption"}
    records, rejects = read(ImageTar(path=str(tmp_path), caption_fields=fields, url_field="json.url"))
    assert [(r.origin, named(r), r.url) for r in records] == [
        (f"s{end}!000/x.jpg", [("original", "first"), ("deep", "deep")], "u0"),
        (f"s{end}!000/y.jpg", [("original", "second")], None),
        (f"s{end}!{long}.jpg", [("original", "漢字")], None),
    ]
    assert [(r.origin, r.reason) for r in rejects] == [(f"s{end}!lonely", "unreadable")]


@pytest.mark.parametrize(
    "entry",
    [
        ("../out.jpg", jpeg(7)), ("/abs.jpg", jpeg(7)), ("a/../../b.jpg", jpeg(7)), ("a\\b.jpg", jpeg(7)),
        ("link.jpg", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("hard.jpg", b"", {"type": tarfile.LNKTYPE, "linkname": "000/x.jpg"}),
        ("dev.jpg", b"", {"type": tarfile.CHRTYPE}), ("fifo.jpg", b"", {"type": tarfile.FIFOTYPE}), ("000/x.jpg", jpeg(7)),
        ("n" * 240 + "/" + "m" * 30 + ".jpg", jpeg(7)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_that_points_outside_or_is_no_plain_file_is_one_reject(tmp_path, entry, form):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/s.tar").write_bytes(tar([*SAMPLES[:2], entry, *SAMPLES[3:5]], form))
    records, rejects = read(ImageTar(path=str(tmp_path / "in")))
    assert [r.origin for r in records] == ["s.tar!000/x.jpg", "s.tar!000/y.jpg"]
    assert [r.reason for r in rejects] == ["not_allowed"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "s.tar"]


def test_a_tar_cut_anywhere_says_so_and_gives_only_whole_samples():
    data = tar(SAMPLES[:2] + SAMPLES[3:5])
    whole = dict(members(io.BytesIO(data), (".jpg", ".txt")))
    marked = data.rindex(jpeg(1)[-20:]) + 20
    for stop in range(0, marked, 97):
        got = {}
        with pytest.raises(Reject) as caught:
            for name, content in members(io.BytesIO(data[:stop]), (".jpg", ".txt")):
                got[name] = content
        assert caught.value.reason == "truncated"
        assert all(whole[name] == content for name, content in got.items())


def test_a_cut_tar_keeps_its_whole_samples_and_costs_one_reject(tmp_path):
    data = tar(SAMPLES[:2] + SAMPLES[3:5])
    (tmp_path / "s.tar").write_bytes(data[: data.index(b"second") + 600])
    records, rejects = read(ImageTar(path=str(tmp_path)))
    assert [r.origin for r in records] == ["s.tar!000/x.jpg"] and [r.reason for r in rejects] == ["truncated"]


def test_headers_that_ask_for_memory_are_refused_before_it_is_given(monkeypatch):
    info = tarfile.TarInfo("x.jpg")
    info.size = 8**11 - 1
    with pytest.raises(Reject, match="truncated"):  # the limit turns it into a member to pass over; the stream ends first
        list(members(io.BytesIO(info.tobuf(tarfile.USTAR_FORMAT)), (".jpg",)))
    info.type = tarfile.XHDTYPE
    with pytest.raises(Reject, match="too_large"):
        list(members(io.BytesIO(info.tobuf(tarfile.USTAR_FORMAT)), (".jpg",)))
    monkeypatch.setattr(tar_stream, "MAX_MEMBER", 100)
    assert [type(c) for _, c in members(io.BytesIO(tar(SAMPLES[:2])), (".jpg", ".txt"))] == [Reject, bytes]


def test_members_without_end_under_one_stem_cost_that_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(image_tar, "MAX_SAMPLE", 20_000)
    (tmp_path / "s.tar").write_bytes(tar([*((f"x.{i}.jpg", jpeg(1).ljust(8_000, b"x")) for i in range(4)), *SAMPLES[:2]]))
    records, rejects = read(ImageTar(path=str(tmp_path)))
    assert [r.origin for r in records] == ["s.tar!000/x.jpg"]
    assert [r.reason for r in rejects] == ["too_large", "empty"]  # the third member is one too many, the fourth has no caption


def test_a_name_is_known_again_however_many_came_between(monkeypatch):
    monkeypatch.setattr(tar_stream, "_FRESH", 7)
    names = tar_stream._Names()
    assert not any(names.has(f"{i:05}.jpg") for i in range(1_000))
    assert all(names.has(f"{i:05}.jpg") for i in range(1_000)) and not names.has("x")
    assert len(names._new) < 7 and names._old.tolist() == sorted(set(names._old.tolist()))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12), st.floats(0, 1))
def test_any_damage_to_a_tar_is_members_or_a_reject(flips, cut):
    data = bytearray(tar([("a.jpg", b"x" * 600), ("long" * 40 + ".txt", b"y" * 100), ("b.txt", b"z")], tarfile.PAX_FORMAT))
    for where, value in flips:
        data[int(where * (len(data) - 1))] = value
    try:
        for name, content in members(io.BytesIO(bytes(data[: 512 + int(cut * len(data))])), (".jpg", ".txt")):
            assert isinstance(content, Reject) or (not name.startswith("/") and ".." not in name.split("/"))
    except Reject:
        pass


def test_parquet_cells_may_be_bytes_structs_or_lists_of_them(tmp_path):
    cells = {
        "bytes": [jpeg(0), b"junk", None],
        "struct": [{"bytes": jpeg(0), "path": "a"}, {"bytes": b"junk", "path": "b"}, {"bytes": None, "path": "c"}],
        "list": [[jpeg(0), jpeg(1)], [b"junk"], []],
    }
    for name, column in cells.items():
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"image": column, "text": [["one", "two"]] * 3, "n": [1, 2, 3]}), tmp_path / name / "a.parquet")
        records, rejects = read(ImageParquet(path=str(tmp_path / name), caption_fields={"original": "text"}, keep=("n",)))
        assert [(r.origin, named(r), r.fields) for r in records] == [("a.parquet#0", [("original", "one"), ("caption2", "two")], {"n": 1})]
        assert [(r.origin, r.reason) for r in rejects] == [("a.parquet#1", "invalid_image"), ("a.parquet#2", "unreadable")]


DATA = os.environ.get("HEADWATER_DATA")


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA is not set")
@pytest.mark.parametrize(
    ("where", "table", "fields", "n"),
    [
        ("coco_captions", "pairs.jsonl", {"original": "captions"}, 80),
        ("openstax_alt", "*/pairs.jsonl", {"original": "alt", "long": "caption"}, 174),
        ("us_gov_alt_18f", "pairs.jsonl", {"original": "alts"}, 214),
        ("mdn_alt", "pairs.jsonl", {"original": "alts"}, 21),
    ],
)
def test_real_pairs_are_read_whole(where, table, fields, n):
    path = Path(str(DATA), "image_text", where)
    records, rejects = read(ImageFolder(path=str(path), captions=table, caption_fields=fields))
    assert len(records) == n == sum(len(f.read_text().splitlines()) for f in path.glob(table)) and not rejects


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA is not set")
def test_real_parquet_and_tars_are_read():
    where = str(Path(str(DATA), "image_text/parquet_bytes"))
    found, rejects = read(ImageParquet(path=where, image_field="image_bytes", caption_fields={"original": "text"}))
    assert len(found) == 3 and not rejects
    found, rejects = read(ImageTar(path=str(Path(str(DATA), "image_text/wds_tars"))))
    assert (len(found), {r.reason for r in rejects}) == (0, {"empty", "unreadable"}) and len(rejects) == 15  # no captions; videos
