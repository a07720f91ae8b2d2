"""Clips kept as files: the span that the frames show, playable alone, and at home in a dataset through all that is made of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import pipelines.clips as room
from encode.chain import rows
from pipelines.check_dataset import check
from pipelines.commands import main
from pipelines.format.dataset import Dataset
from pipelines.format.record import Record
from pipelines.media.child import close_children
from pipelines.sources.video_folder import VideoFolder
from pipelines.stage import Rejected
from tests.pipelines.clips import clip, film, number, scene


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


def read(source: VideoFolder) -> list[Record | Rejected]:
    return [r for part in source.parts() for r in source.read(part.spec, "films")]


def played(record: Record | Rejected) -> list[tuple[float, np.ndarray]]:
    assert isinstance(record, Record) and record.segments[-1].kind == "video"
    with av.open(io.BytesIO(record.segments[-1].payload or b"")) as box:
        assert [s.type for s in box.streams] == ["video"]
        return [(float((f.pts or 0) * f.time_base), f.to_ndarray(format="rgb24")) for f in box.decode(video=0)]


@pytest.mark.parametrize("how", [{}, {"codec": "libvpx-vp9", "container": "webm"}, {"codec": "mjpeg", "container": "mov"}, {"rotation": 180}])
def test_a_kept_clip_shows_every_frame_of_its_span_at_its_time(how, tmp_path):
    (tmp_path / "x.mp4").write_bytes(clip(100, **how))
    records = read(VideoFolder(path=str(tmp_path), fps=2, clip_seconds=1.5, overlap=0.5, keep_clip={"crf": 10}, size=48))
    upright = slice(None, None, -1) if how.get("rotation") else slice(None)
    assert len(records) == 3
    for record, first, behind in zip(records, (0, 30, 60), (45, 75, 100), strict=True):
        frames = played(record)
        assert [number(a[upright, upright]) for _, a in frames] == list(range(first, behind))
        assert [t for t, _ in frames] == pytest.approx([i / 30 for i in range(behind - first)], abs=0.0011)
        assert isinstance(record, Record) and record.segments[-1].role == "context" and record.segments[-1].time_s == pytest.approx(first / 30)
        assert record.segments[-1].shape == (48, 64, 3) and all(s.kind == "image" for s in record.segments[:-1])


def test_a_kept_clip_keeps_to_its_shot_and_to_the_size_asked_for(tmp_path):
    noise = np.random.default_rng(0).integers(0, 12, (2, 252, 320, 3), np.uint8)  # more than a buffer: two processes read the file at once
    pictures = [p // 2 + noise[i % 2] for s, n in ((0, 70), (1, 80)) for i, p in enumerate(scene(s, n, width=320, height=252))]
    (tmp_path / "x.mp4").write_bytes(film(pictures, options={"crf": "1", "bf": "2"}))
    assert (tmp_path / "x.mp4").stat().st_size > 1 << 20
    said: dict[str, Any] = {"path": str(tmp_path), "fps": 10, "frames_per_clip": 99, "size": 48, "shots": room.Shots()}
    records = read(VideoFolder(**said, keep_clip={"side": 100}))
    assert [len(played(r)) for r in records] == [70, 80] and {played(r)[0][1].shape for r in records} == {(78, 100, 3)}
    plain = [r for r in read(VideoFolder(**said)) if isinstance(r, Record)]
    frames = [[s.payload for s in r.segments if s.kind == "image"] for r in records if isinstance(r, Record)]
    assert frames == [[s.payload for s in r.segments] for r in plain]  # taking the clips disturbs nothing
    again = read(VideoFolder(**said, keep_clip={"side": 100}))
    assert [r.segments[-1].payload for r in again if isinstance(r, Record)] == [r.segments[-1].payload for r in records if isinstance(r, Record)]


def test_a_clip_that_cannot_be_kept_is_a_reject_of_its_own(tmp_path):
    (tmp_path / "x.mp4").write_bytes(film(scene(1, 90)))
    found = read(VideoFolder(path=str(tmp_path), clip_seconds=2, keep_clip={"max_bytes": 1000}))
    assert [(r.origin, r.reason) for r in found if isinstance(r, Rejected)] == [("x.mp4@0-2000", "no_clip"), ("x.mp4@2000-3000", "no_clip")]


def test_a_dataset_with_clips_is_verified_compacted_refined_and_encoded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    for i in range(3):
        (tmp_path / "films" / f"{i}.mp4").write_bytes(film(scene(i, 60)))
    Path("video.yaml").write_text("source: {video_folder: {path: films, size: 32, keep_clip: true}}\noutput: out/video\nengine: local\n")
    Path("again.yaml").write_text("source: {dataset: {path: out/video}}\nfilters: [{motion: {min: 0}}]\noutput: out/again\nengine: local\n")
    Path("small.yaml").write_text("dataset: out/video\noutput: out/small\nengine: local\n")
    for verb, recipe in (("video", "video.yaml"), ("video", "again.yaml"), ("compact", "small.yaml")):
        assert main(["run", verb, "-c", recipe]) == 0, capsys.readouterr()
    found = []
    for name in ("video", "again", "small"):
        dataset = Dataset.open(f"out/{name}")
        assert not list(check(f"out/{name}", {"deep": True}) or [])
        records = list(dataset.records(0, payloads=True))
        found.append([(r.id, r.segments[-1].kind, r.segments[-1].dtype, r.segments[-1].payload) for r in records])
        assert all(r.segments[-1].member and r.segments[-1].member.endswith(".mp4") for r in records)
    assert len(found[0]) == 3 and found[0] == found[1] == found[2]
    encoded = rows(Dataset.open("out/video"), 0, 0, 3)
    assert [[s.kind for s in r.segments] for r in encoded] == [["image", "image"]] * 3
    assert main(["view", "out/video"]) == 0 and "bytes</div>" in next(Path("out/view").rglob("index.html")).read_text()
    assert main(["inspect", "out/video", "-n", "1"]) == 0 and "video, context" in capsys.readouterr().out
