"""Raw video from a folder: clips, damage, parts by time."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import pipelines.clips as clips_room
import pipelines.sources.video_folder as room
from pipelines.format.record import Record
from pipelines.media.child import close_children
from pipelines.sources.video_folder import VideoFolder
from pipelines.stage import Rejected
from tests.pipelines.clips import clip, number

DATA = os.environ.get("HEADWATER_DATA")


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


def read(source: VideoFolder) -> tuple[list[Record], list[Rejected]]:
    found = [r for part in source.parts() for r in source.read(part.spec, "films")]
    return [r for r in found if isinstance(r, Record)], [r for r in found if isinstance(r, Rejected)]


def shown(record: Record) -> list[int]:
    import numpy as np

    return [number(np.asarray(Image.open(io.BytesIO(s.payload or b"")))) for s in record.segments]


def test_a_clip_is_a_record_of_frames_a_second_apart(tmp_path):
    (tmp_path / "a").mkdir()
    data = clip(300)
    (tmp_path / "a" / "x.mp4").write_bytes(data)
    records, rejected = read(VideoFolder(path=str(tmp_path), frames_per_clip=4, size=48, quality=95))
    assert rejected == [] and [r.origin for r in records] == ["a/x.mp4@0-4000", "a/x.mp4@4000-8000", "a/x.mp4@8000-10000"]
    assert [shown(r) for r in records] == [[0, 30, 60, 90], [120, 150, 180, 210], [240, 270]]
    first = records[0]
    assert first.data == "video" and first.group == hashlib.sha256(data).hexdigest() and {r.group for r in records} == {first.group}
    assert [(s.kind, s.role, s.atom, s.shape, s.dtype) for s in first.segments] == [("image", "target", i, (48, 48, 3), "jpeg") for i in range(4)]
    assert [s.time_s for s in records[1].segments] == pytest.approx([4, 5, 6, 7])


def test_clip_length_may_be_said_in_seconds_and_short_ends_dropped(tmp_path):
    (tmp_path / "x.webm").write_bytes(clip(135, codec="libvpx", container="webm"))
    records, _ = read(VideoFolder(path=str(tmp_path), fps=2, clip_seconds=2, min_frames=2, size=48, quality=95))
    assert [shown(r) for r in records] == [[0, 15, 30, 45], [60, 75, 90, 105]]
    with pytest.raises(ValueError, match="holds no frame"):
        VideoFolder(path=str(tmp_path), fps=0.1, clip_seconds=2)


def test_a_file_too_short_for_any_clip_is_counted(tmp_path):
    (tmp_path / "x.mp4").write_bytes(clip(20))
    records, rejected = read(VideoFolder(path=str(tmp_path), min_frames=2))
    assert records == [] and [(r.origin, r.reason) for r in rejected] == [("x.mp4", "too_short")]


def test_a_damaged_file_is_its_good_clips_and_one_reject(tmp_path):
    data = clip(300, container="matroska", options={"g": "30"})
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "good.mkv").write_bytes(data)
    (tmp_path / "none.mp4").write_bytes(b"")
    (tmp_path / "page.mp4").write_text("<html>not found</html>")
    records, rejected = read(VideoFolder(path=str(tmp_path), frames_per_clip=2, size=48, quality=95))
    by_file = Counter(r.fields["video"] for r in records)
    assert by_file["good.mkv"] == 5 and 1 <= by_file["cut.mkv"] < 5
    assert [(r.origin, r.reason) for r in rejected] == [("cut.mkv", "truncated"), ("none.mp4", "truncated"), ("page.mp4", "not_allowed")]
    good = {r.origin.split("@")[1]: shown(r) for r in records if r.fields["video"] == "good.mkv"}
    assert all(shown(r) == good[r.origin.split("@")[1]] for r in records if r.fields["video"] == "cut.mkv" and len(r.segments) == 2)


def test_parts_by_time_give_the_clips_of_the_whole_file_once(tmp_path, monkeypatch):
    (tmp_path / "x.mp4").write_bytes(clip(450))
    source = VideoFolder(path=str(tmp_path), fps=1, frames_per_clip=2, size=48)
    whole = [(r.id, [s.payload for s in r.segments]) for r in read(source)[0]]
    monkeypatch.setattr(room, "LONG_BYTES", 1)
    monkeypatch.setattr(clips_room, "RANGE_CLIPS", 3)
    parts = source.parts()
    assert [(p.spec["first"], p.spec["stop"]) for p in parts] == [(0, 6), (6, 12), (12, None)]
    assert [(r.id, [s.payload for s in r.segments]) for r in read(source)[0]] == whole


def test_damage_of_a_file_that_parts_share_is_counted_once(tmp_path, monkeypatch):
    data = clip(450, container="matroska", options={"g": "15"})
    (tmp_path / "x.mkv").write_bytes(data[: len(data) * 3 // 4])
    monkeypatch.setattr(room, "LONG_BYTES", 1)
    monkeypatch.setattr(clips_room, "RANGE_CLIPS", 2)
    source = VideoFolder(path=str(tmp_path), fps=1, frames_per_clip=2, size=48)
    records, rejected = read(source)
    assert len(source.parts()) > 1 and len(records) > 2 and [r.reason for r in rejected] == ["truncated"]


def test_reading_twice_gives_the_same_bytes(tmp_path):
    (tmp_path / "x.mp4").write_bytes(clip(100))
    source = VideoFolder(path=str(tmp_path), size=48)
    once, again = read(source)[0], read(source)[0]
    assert once == again and [s.payload for r in once for s in r.segments] == [s.payload for r in again for s in r.segments]


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA names no real files")
def test_every_real_file_is_clips_or_a_reason():
    folder = Path(str(DATA)) / "video"
    records, rejected = read(VideoFolder(path=str(folder), size=64))
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and f.name.lower().endswith(room.SUFFIXES)}
    made, failed = {r.fields["video"] for r in records}, {r.origin: r.reason for r in rejected}
    assert made | failed.keys() == files
    assert {"damaged/empty.mp4", "damaged/text_named.mp4", "damaged/nasa_last70pct_no_header.mp4"} <= failed.keys() - made
    assert {"damaged/frog_first50pct.webm", "damaged/rabbit320_first60pct.mp4", "damaged/frog_bitflips.webm"} <= failed.keys() & made
    assert failed["exoplayer/sample_fragmented_clearkey.mp4"] == "not_allowed"
    assert len(made - failed.keys()) >= 45


def test_an_object_store_gives_the_records_of_the_local_folder(tmp_path, s3_bucket):
    from pipelines.format import storage

    data = clip(90)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").write_bytes(data)
    storage.publish(f"{s3_bucket}/films/a/x.mp4", data)
    local, remote = (read(VideoFolder(path=p, size=48))[0] for p in (str(tmp_path), f"{s3_bucket}/films"))
    assert local == remote and len(local) == 1
    assert [s.payload for s in local[0].segments] == [s.payload for s in remote[0].segments]
