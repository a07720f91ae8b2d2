"""Raw video from tables, tars and lists: the same clips as from a folder, pieces between two times, and one reject for each that cannot be had."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from hashlib import sha256
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.media.child import close_children
from pipelines.sources.video_actions import VideoActions
from pipelines.sources.video_folder import VideoFolder
from pipelines.sources.video_table import VideoTable, seconds
from pipelines.sources.video_tar import VideoTar
from pipelines.stage import Rejected
from tests.fault_server import Answer, FaultServer, ranged
from tests.pipelines.clips import clip
from tests.pipelines.test_clips import CUTS, four, where
from tests.pipelines.test_sources_action import POSE, _table, rows
from tests.pipelines.test_sources_video import shown

LOOK = {"size": 48, "quality": 95, "frames_per_clip": 4}
QUICK = {"backoff": 0.01, "attempts": 2, "deadline": 3, "grace": 0.3, "robots": False}
FILMS = {"a.mp4": clip(300), "b.webm": clip(150, codec="libvpx", container="webm", first=1000), "c.mp4": clip(90, first=2000)}


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    for name, data in FILMS.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def web(monkeypatch, tmp_path):
    def script(seen):
        name = seen.path.strip("/")
        if name in FILMS:
            return ranged(seen, FILMS[name])
        return {
            "busy.mp4": Answer(b"", 503),
            "page.mp4": Answer(b"<html>no film</html>"),
            "no.mp4": Answer(FILMS["a.mp4"], headers={"X-Robots-Tag": "noai"}),
            "large.mp4": Answer(b"\0" * 1000, times=300),
        }.get(name)

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with FaultServer(script) as s:
        monkeypatch.setenv("HEADWATER_FETCH_PRIVATE", f"{s.address}:{s.port}")
        yield s


def read(source):
    found = [r for part in source.parts() for r in source.read(json.loads(json.dumps(part.spec)), "films")]
    return [r for r in found if isinstance(r, Record)], [r for r in found if isinstance(r, Rejected)]


def table(folder, rows, name="rows.jsonl"):
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_table_of_paths_gives_the_clips_of_the_folder(films, name):
    expected, _ = read(VideoFolder(path=str(films), **LOOK))
    path = table(films, [{"url": n, "text": f"about {n}"} for n in sorted(FILMS)], name)
    records, rejected = read(VideoTable(path=path, caption_fields={"original": "text"}, **LOOK))
    assert rejected == []
    assert [[s.payload for s in r.segments] for r in records] == [[s.payload for s in r.segments] for r in expected]
    assert [r.group for r in records] == [r.group for r in expected]
    assert [r.origin.replace(f"{name}#{n}", f) for n, f in enumerate(sorted(FILMS)) for r in records if r.origin.startswith(f"{name}#{n}@")] == [
        r.origin for r in expected
    ]
    assert records[0].fields["captions"] == {"original": "about a.mp4"} and records[0].fields["video"] == "a.mp4"


def test_a_row_may_mean_a_piece_which_is_cut_up_from_its_own_beginning(films):
    rows = [
        {"url": "a.mp4", "start": 1.5, "end": "0:06.5"},
        {"url": "a.mp4", "start": "8", "end": 99},
        {"url": "a.mp4", "start": 20, "end": 30},
        {"url": "a.mp4", "start": 5, "end": 5},
        {"url": "a.mp4", "start": "soon", "end": 5},
        {"url": "a.mp4", "start": None, "end": 2},
    ]
    records, rejected = read(VideoTable(path=table(films, rows), start="start", end="end", **LOOK))
    assert {r.origin: shown(r) for r in records} == {
        "rows.jsonl#0@1500-5500": [45, 75, 105, 135],
        "rows.jsonl#0@5500-6500": [165],
        "rows.jsonl#1@8000-10000": [240, 270],
        "rows.jsonl#5@0-2000": [0, 30],
    }
    assert [(r.origin, r.reason) for r in rejected] == [
        ("rows.jsonl#2", "too_short"),
        ("rows.jsonl#3", "unreadable"),
        ("rows.jsonl#4", "unreadable"),
    ]


def test_a_piece_is_cut_where_the_film_is_and_no_clip_leaves_it(tmp_path):
    (tmp_path / "x.mp4").write_bytes(four())
    rows = [{"url": "x.mp4", "start": 1, "end": 7}]
    source = VideoTable(path=table(tmp_path, rows), start="start", end="end", shots={}, min_seconds=0.3, **LOOK)
    records, rejected = read(source)
    cuts = [round(1000 * c / 30) for c in CUTS]
    assert rejected == [] and where(records) == [f"{a}-{b}" for a, b in pairwise([1000, *cuts, 7000])]


def test_a_table_of_urls_fetches_each_film_once_and_says_what_could_not_be_had(films, web, tmp_path):
    names = ["a.mp4", "a.mp4", "gone.mp4", "b.webm", "busy.mp4", "page.mp4", "no.mp4", "large.mp4", "c.mp4"]
    rows = [{"url": web.url("/" + n), "sha": sha256(FILMS[n]).hexdigest() if n in FILMS else None} for n in names]
    rows += [{"url": web.url("/c.mp4"), "sha": "0" * 64}, {"url": None, "sha": None}, {"url": "http://127.0.0.1:1/x.mp4", "sha": None}]
    source = VideoTable(path=table(films, rows), digest_field="sha", fetch={**QUICK, "max_bytes": 200_000}, **LOOK)
    records, rejected = read(source)
    assert {r.origin.partition("@")[0] for r in records} == {f"rows.jsonl#{n}" for n in (0, 1, 3, 8)}
    assert [(int(r.origin.rpartition("#")[2]), r.reason) for r in rejected] == [
        (2, "fetch_permanent"),
        (4, "fetch_transient"),
        (5, "not_allowed"),
        (6, "opt_out"),
        (7, "too_large"),
        (9, "hash_mismatch"),
        (10, "unreadable"),
        (11, "not_allowed"),
    ]
    assert web.asked("/a.mp4") == 1
    first = records[0]
    assert first.group == first.fields["fetch"]["sha256"] == sha256(FILMS["a.mp4"]).hexdigest() and first.url == web.url("/a.mp4")
    assert not list(tmp_path.rglob("headwater-fetch-*"))
    again = source.again(source.parts()[0].spec, ["rows.jsonl#4"])
    assert [r.origin for r in source.read(again, "films")] == ["rows.jsonl#4"] and web.asked("/busy.mp4") == 4


def test_how_patiently_films_are_fetched_is_no_part_of_the_recipe(films):
    def hashed(**more):
        source = VideoTable(path="t.jsonl", **more)
        return source.hashed(source.model_dump(mode="json"))

    assert hashed() == hashed(scratch="/big", fetch={"patience": 9, "concurrency": 1})
    assert hashed() != hashed(fetch={"max_bytes": 5})


@pytest.mark.parametrize(("value", "expected"), [(3, 3), ("3.5", 3.5), ("1:02", 62), ("1:00:02.25", 3602.25), (None, None), ("", None)])
def test_times_of_tables(value, expected):
    assert seconds(value) == expected


@pytest.mark.parametrize("value", ["x", "-1", -1, "1:2:3:4", "1:x", "nan", "inf", "1e400", True, [1], "9" * 400])
def test_what_is_no_time_is_a_reject(value):
    with pytest.raises(Reject):
        seconds(value)


def tar(members, cut=None):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()[:cut]


SAMPLES = [
    ("000.mp4", FILMS["a.mp4"]), ("000.json", b'{"caption": "first", "url": "https://example.org/a", "n": 1}'), ("000.txt", b"a text"),
    ("001.json", b'{"caption": "no film"}'),
    ("002.webm", FILMS["b.webm"]), ("002.txt", "größer".encode()),
    ("003.txt", b"\xff\xfe\xfd"), ("003.mp4", FILMS["c.mp4"]),
    ("004.mp4", b"#EXTM3U\n"),
]  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_of_samples_gives_each_film_s_clips_with_what_is_said_of_it(tmp_path, packed):
    path = tmp_path / ("s.tar.gz" if packed else "s.tar")
    data = tar(SAMPLES)
    path.write_bytes(gzip.compress(data) if packed else data)
    look = {**LOOK, "caption_fields": {"original": "txt", "title": "json.caption"}, "keep": ("json.n",), "url_field": "json.url"}
    records, rejected = read(VideoTar(path=str(path), **look))
    n = path.name
    assert [r.origin for r in records[:3]] == [f"{n}!000.mp4@0-4000", f"{n}!000.mp4@4000-8000", f"{n}!000.mp4@8000-10000"]
    assert records[0].fields["captions"] == {"original": "a text", "title": "first"} and records[0].fields["json.n"] == 1
    assert records[0].url == "https://example.org/a" and records[0].group == sha256(FILMS["a.mp4"]).hexdigest()
    assert records[3].fields["captions"] == {"original": "größer"}
    assert [(r.origin, r.reason) for r in rejected] == [
        (f"{n}!001", "unreadable"), (f"{n}!003.mp4", "unreadable"), (f"{n}!004.mp4", "not_allowed")
    ]  # fmt: skip


def test_a_tar_that_is_cut_gives_the_films_before_the_cut(tmp_path):
    data = tar(SAMPLES)
    (tmp_path / "s.tar").write_bytes(data[: len(data) // 2])
    records, rejected = read(VideoTar(path=str(tmp_path), **LOOK))
    assert {r.origin.partition("@")[0] for r in records} <= {"s.tar!000.mp4", "s.tar!002.webm"} and records
    assert rejected[-1].reason == "truncated" and rejected[-1].origin == "s.tar"


def test_a_film_larger_than_a_member_may_be_in_memory_passes_through_scratch(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.tar_stream.MAX_MEMBER", 1000)
    (tmp_path / "s.tar").write_bytes(tar([("000.mp4", FILMS["a.mp4"]), ("000.json", b"x" * 2000)]))
    records, rejected = read(VideoTar(path=str(tmp_path), **LOOK))
    assert len(records) == 3 and [r.reason for r in rejected] == ["too_large"]


def test_a_list_of_films_on_the_web_gives_the_clips_of_the_folder(films, web, tmp_path):
    expected, _ = read(VideoFolder(path=str(films), **LOOK))
    path = tmp_path / "films.txt"
    path.write_text("a.mp4\nb.webm\ngone.mp4\nc.mp4\n")
    source = VideoFolder(path=str(path), listed={"prefix": web.url("/"), "fetch": QUICK}, **LOOK)
    records, rejected = read(source)
    assert [[s.payload for s in r.segments] for r in records] == [[s.payload for s in r.segments] for r in expected]
    assert [r.reason for r in rejected] == ["fetch_permanent"] and rejected[0].origin.endswith("/gone.mp4")
    assert not list(tmp_path.rglob("headwater-fetch-*"))


def test_an_object_store_gives_the_clips_of_the_folder_and_leaves_no_scratch(films, s3_bucket, tmp_path, monkeypatch):
    from pipelines.format import storage

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for name, data in FILMS.items():
        storage.publish(f"{s3_bucket}/anywhere/{name}", data, scratch=f"{s3_bucket}/scratch")
    here, _ = read(VideoFolder(path=str(films), **LOOK))
    there, rejected = read(VideoFolder(path=f"{s3_bucket}/anywhere", **LOOK))
    assert rejected == [] and [r.id for r in there] == [r.id for r in here]
    assert [[s.payload for s in r.segments] for r in there] == [[s.payload for s in r.segments] for r in here]
    assert not list(tmp_path.rglob("headwater-fetch-*"))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_drives_of_a_list_are_fetched_with_their_tables_and_give_the_samples_of_the_folder(tmp_path, monkeypatch, suffix):
    folder = tmp_path / "drives"
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.mp4").write_bytes(FILMS["c.mp4"])
        _table(folder / f"{n}{suffix}", rows(12))
    keys = {"pose": POSE, "time": "t", "goals": {"max": 1}, "size": 48, "quality": 95}
    expected, _ = read(VideoActions(path=str(folder), **keys))

    def script(seen):
        path = folder / seen.path.strip("/")
        return ranged(seen, path.read_bytes()) if path.exists() and path.name != f"1{suffix}" else None

    names = [f"{n}{s}" for n in range(3) for s in (".mp4", suffix)]
    (tmp_path / "files.txt").write_text("\n".join([*names, "3.mp4"]))
    with FaultServer(script) as s:
        monkeypatch.setenv("HEADWATER_FETCH_PRIVATE", f"{s.address}:{s.port}")
        source = VideoActions(path=str(tmp_path / "files.txt"), listed={"prefix": s.url("/"), "fetch": QUICK}, **keys)
        records, rejected = read(source)
        base = s.url("/")
        assert s.asked("/0.mp4") == 1, rejected
    assert [[x.payload or x.text for x in r.segments] for r in records] == [
        [x.payload or x.text for x in r.segments] for r in expected if "1." not in r.origin
    ]
    assert [(r.origin.removeprefix(base), r.reason) for r in rejected] == [("1.mp4", "fetch_permanent"), ("3.mp4", "missing_table")]
    assert source.again(source.parts()[1].spec, [rejected[0].origin]) is not None
