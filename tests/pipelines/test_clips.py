"""Clips by shots: exact to the frame, one answer for one file however it is shared, and whole when the file is not."""

from __future__ import annotations

import io
import itertools
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pipelines.clips as room
import pipelines.sources.video_folder as folder
from pipelines.format.record import Record
from pipelines.media.child import close_children
from pipelines.media.spans import spans
from pipelines.media.timeline import Table
from pipelines.sources.video_folder import VideoFolder
from pipelines.stage import Rejected
from tests.pipelines.clips import film, scene

STREAMS: dict[str, dict[str, Any]] = {
    "mp4, B-frames": {"options": {"g": "60", "bf": "3"}},
    "mp4, key frames at cuts only by chance": {"options": {"g": "500", "sc_threshold": "0", "bf": "2"}},
    "mkv": {"container": "matroska"},
    "ts": {"container": "mpegts"},
    "vp9, hidden frames": {"codec": "libvpx-vp9", "container": "webm", "options": {"lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "8"}},
    "avi": {"codec": "mpeg4", "container": "avi", "options": {"bf": "2"}},
}
DATA = os.environ.get("HEADWATER_DATA")
CUTS = [70, 131, 196]  # first frames of shots two to four, of 260 at 30 a second


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


def shots(lengths: list[int]) -> list[np.ndarray]:
    return [picture for seed, n in enumerate(lengths) for picture in scene(seed, n)]


def four(**how: Any) -> bytes:
    edges = [0, *CUTS, 260]
    return film(shots([b - a for a, b in itertools.pairwise(edges)]), **how)


def read(source: VideoFolder) -> tuple[list[Record], list[Rejected]]:
    found = [r for part in source.parts() for r in source.read(part.spec, "films")]
    return [r for r in found if isinstance(r, Record)], [r for r in found if isinstance(r, Rejected)]


def where(records: list[Record]) -> list[str]:
    return [r.origin.split("@")[1] for r in records]


def shot_of(payload: bytes | None) -> int:
    """Which scene a picture shows, by its colour."""
    mean = np.asarray(Image.open(io.BytesIO(payload or b"")), float).mean(axis=(0, 1))
    references = [np.mean([p.mean(axis=(0, 1)) for p in scene(seed, 1)], axis=0) for seed in range(5)]
    return int(np.argmin([np.abs(mean - r).sum() for r in references]))


def ms(frame: int) -> int:
    return round(1000 * frame / 30)


@pytest.mark.parametrize("detector", ["content", "adaptive"])
@pytest.mark.parametrize("name", STREAMS)
def test_a_shot_begins_with_its_first_frame_and_ends_before_the_next(name, detector, tmp_path):
    (tmp_path / "x.mp4").write_bytes(four(**STREAMS[name]))
    source = VideoFolder(path=str(tmp_path), fps=5, frames_per_clip=100, size=48, shots=room.Shots(detector=detector))
    records, rejected = read(source)
    edges = [0, *map(ms, CUTS)]
    found = [int(w.split("-")[0]) for w in where(records)]
    slack = 1 if name == "mkv" else 0  # Matroska's clock counts whole milliseconds
    assert rejected == [] and len(found) == 4 and all(abs(a - b) <= slack for a, b in zip(found, edges, strict=True))
    for n, record in enumerate(records):
        assert [shot_of(s.payload) for s in record.segments] == [n] * len(record.segments)
        start = found[n] / 1000
        assert [s.time_s for s in record.segments] == pytest.approx([start + i / 5 for i in range(len(record.segments))], abs=1 / 30 + 0.002)
        assert record.segments[0].time_s == pytest.approx(start, abs=0.0011)


def test_shots_of_a_video_of_uneven_rate_keep_their_exact_times(tmp_path):
    chance = random.Random(3)
    ticks = list(itertools.accumulate([0] + [chance.choice([20, 33, 50, 111]) for _ in range(149)]))
    (tmp_path / "x.mp4").write_bytes(film(shots([50, 50, 50]), ticks=ticks, options={"bf": "3"}))
    records, _ = read(VideoFolder(path=str(tmp_path), fps=4, size=48, frames_per_clip=99, min_seconds=0, shots=room.Shots()))
    assert where(records)[:2] == [f"0-{ticks[50]}", f"{ticks[50]}-{ticks[100]}"] and where(records)[2].startswith(f"{ticks[100]}-")
    assert [{shot_of(s.payload) for s in r.segments} for r in records] == [{0}, {1}, {2}]


def test_a_long_shot_is_cut_into_clips_that_share_the_overlap_and_cropped_at_cuts_only(tmp_path):
    (tmp_path / "x.mp4").write_bytes(film(shots([300, 90])))
    said = {"path": str(tmp_path), "fps": 2.0, "size": 48}
    long = VideoFolder(**said, clip_seconds=4, overlap=1, shots=room.Shots())
    assert where(read(long)[0]) == ["0-4000", "3000-7000", "6000-10000", "10000-13000"]
    records = read(VideoFolder(**said, frames_per_clip=99, min_seconds=2, shots=room.Shots(crop_seconds=0.5)))[0]
    assert where(records) == ["0-9500", "10500-13000"]
    assert [s.time_s for s in records[1].segments] == pytest.approx([10.5, 11, 11.5, 12, 12.5])


def test_fixed_clips_may_overlap_and_share_their_pictures(tmp_path):
    (tmp_path / "x.mp4").write_bytes(film(shots([300])))
    records, _ = read(VideoFolder(path=str(tmp_path), fps=1, frames_per_clip=4, overlap=2, size=48))
    assert where(records) == ["0-4000", "2000-6000", "4000-8000", "6000-10000"]  # and not 8000-10000, which shows nothing new
    assert [s.payload for s in records[0].segments[2:]] == [s.payload for s in records[1].segments[:2]]


def test_so_many_frames_lie_in_the_middles_of_equal_pieces(tmp_path):
    (tmp_path / "x.mp4").write_bytes(film(shots([300])))
    records, _ = read(VideoFolder(path=str(tmp_path), frames=4, clip_seconds=6, size=48))
    assert where(records) == ["0-6000", "6000-10000"] and "fps" not in records[0].fields and records[1].fields["seconds"] == 4.0
    assert [s.time_s for s in records[0].segments] == pytest.approx([0.733, 2.233, 3.733, 5.233], abs=0.02)
    assert [s.time_s for s in records[1].segments] == pytest.approx([6.5, 7.5, 8.5, 9.5])
    assert read(VideoFolder(path=str(tmp_path), frames=400, clip_seconds=60, size=48))[1][0].reason == "too_short"


@pytest.mark.parametrize("clip", [{"shots": room.Shots()}, {"shots": room.Shots(detector="adaptive", crop_seconds=0.1)}, {"overlap": 1.5}])
def test_the_records_are_the_same_however_the_file_is_shared(clip, tmp_path, monkeypatch):
    (tmp_path / "x.mp4").write_bytes(film(shots([70, 100, 45, 200, 65])))
    monkeypatch.setattr(room, "STRETCH_S", 3)
    monkeypatch.setattr(room, "RANGE_CLIPS", 1)
    source = VideoFolder(path=str(tmp_path), fps=2, frames_per_clip=4, min_seconds=0.5, size=48, **clip)

    def told() -> list[Any]:
        return [(r, [s.payload for s in r.segments]) for r in read(source)[0]]

    whole = told()
    monkeypatch.setattr(folder, "LONG_BYTES", 1)
    assert len(source.parts()) > 2 and told() == whole
    monkeypatch.setattr(room, "RANGE_CLIPS", 3)
    assert told() == whole
    begins = [int(w.split("-")[0]) for w in where([r for r, _ in whole])]
    assert begins == sorted(begins) and len({r.id for r, _ in whole}) == len(whole)


def test_a_damaged_file_is_its_good_shots_and_one_reject(tmp_path):
    data = four(container="matroska", options={"g": "30", "bf": "2"})
    chance = random.Random(7)
    (tmp_path / "good.mkv").write_bytes(data)
    for i in range(8):
        bad = bytearray(data[: chance.randrange(len(data) // 3, len(data))] if i % 2 == 0 else data)
        for _ in range(0 if i % 4 == 0 else 6):
            bad[chance.randrange(2000, len(bad))] ^= 1 << chance.randrange(8)
        (tmp_path / f"bad{i}.mkv").write_bytes(bad)
    records, rejected = read(VideoFolder(path=str(tmp_path), fps=5, frames_per_clip=99, min_seconds=0.5, size=48, shots=room.Shots()))
    good = {w: [s.payload for s in r.segments] for w, r in zip(where(records), records, strict=True) if r.fields["video"] == "good.mkv"}
    assert len(good) == 4 and {r.origin for r in rejected} <= {f"bad{i}.mkv" for i in range(8)}
    assert len(rejected) == len({r.origin for r in rejected})  # one a file
    for i in range(0, 8, 4):  # cut off and nothing else: whole shots are as they were, and the end is said
        mine = [r for r in records if r.fields["video"] == f"bad{i}.mkv"]
        assert f"bad{i}.mkv" in {r.origin for r in rejected}
        for n, r in enumerate(mine):
            payloads = [s.payload for s in r.segments]
            assert payloads == list(good.values())[n][: len(payloads)] and (n == len(mine) - 1 or r.origin.split("@")[1] in good)
    for r in records:  # whatever was flipped: frames of a clip go on without a gap
        times = [s.time_s or 0 for s in r.segments]
        assert all(abs(b - a - 0.2) < 0.05 for a, b in itertools.pairwise(times))


def test_settings_that_make_no_clip_are_refused():
    for wrong, said in (({"frames": 8}, "clip_seconds"), ({"overlap": 16}, "leaves nothing"), ({"fps": 0.1, "clip_seconds": 2}, "holds no frame")):
        with pytest.raises(ValueError, match=said):
            VideoFolder(path="x", **wrong)


def test_spans_cover_a_file_once_and_never_reach_past_a_cut():
    from fractions import Fraction

    chance = random.Random(1)
    for _ in range(200):
        base = Fraction(1, chance.choice([1000, 12800, 90000]))
        step = round(Fraction(1, chance.choice([24, 25, 30])) / base)
        n = chance.randrange(2, 400)
        first = chance.randrange(-50, 5000)
        pts = np.array([first + i * step for i in range(n)], np.int64)
        table = Table(pts, np.ones(n, bool), np.ones(n, bool), base, first, first + n * step, None)
        edges = sorted({0, n, *(chance.randrange(n) for _ in range(3))})
        shots = [[first + a * step, first + b * step, a > 0, b < n] for a, b in itertools.pairwise(edges)]
        rule: dict[str, Any] = {"fps": str(chance.choice([1, 2, 7])), "frames": chance.choice([None, 3])}
        rule |= {
            "length": str(Fraction(chance.randrange(2, 9), 2)),
            "overlap": "0",
            "least": "0",
            "crop": "0",
            "first": "0",
            "stop": None,
            "shots": shots,
        }
        found = list(spans(table, rule))
        for span in found:
            (a, b), *more = [(a, b) for a, b, _, _ in shots if a <= span.start < b]
            assert not more and span.stop <= b and all(a <= t < b for t in span.ticks) and len(set(span.ticks)) == len(span.ticks)
        if rule["frames"] is None:
            assert sum(s.stop - s.start for s in found) == n * step  # nothing twice, nothing left out


def test_another_decoder_takes_the_frames_of_the_same_shots(tmp_path):
    pytest.importorskip("decord")
    (tmp_path / "x.mp4").write_bytes(four(options={"g": "30", "bf": "2"}))
    said: dict[str, Any] = {"path": str(tmp_path), "fps": 4, "frames_per_clip": 99, "size": 48, "shots": room.Shots(), "crop_bars": True}
    by_pyav, by_decord = (read(VideoFolder(**said, **by))[0] for by in ({}, {"backend": "decord", "trusted": True}))
    assert where(by_pyav) == where(by_decord) and len(by_pyav) == 4
    assert [[s.time_s for s in r.segments] for r in by_pyav] == [[s.time_s for s in r.segments] for r in by_decord]
    assert [shot_of(s.payload) for r in by_decord for s in r.segments] == [shot_of(s.payload) for r in by_pyav for s in r.segments]


def test_pictures_are_cropped_framed_or_kept_at_the_quality_asked_for(tmp_path):
    (tmp_path / "x.mp4").write_bytes(film(scene(1, 30, width=160, height=96)))

    def first(**how: Any) -> tuple[tuple[int, ...], np.ndarray, int]:
        s = read(VideoFolder(path=str(tmp_path), **how))[0][0].segments[0]
        return s.shape, np.asarray(Image.open(io.BytesIO(s.payload or b""))), len(s.payload or b"")

    shapes = {mode: first(size=48, mode=mode)[0] for mode in ("center_crop", "border", "keep_ratio", "keep_ratio_largest")}
    assert shapes == {"center_crop": (48, 48, 3), "border": (48, 48, 3), "keep_ratio": (48, 80, 3), "keep_ratio_largest": (29, 48, 3)}
    assert first(size=None)[0] == (96, 160, 3)
    framed, cropped = first(size=48, mode="border")[1], first(size=48)[1]
    assert framed[:6].min() > 240 and framed[20:28].max() < 255 and cropped[:6].min() < 200  # white above, picture in the middle
    assert first(size=None, quality=30)[2] < first(size=None, quality=92)[2] < first(size=None, quality=100)[2]


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA names no real files")
def test_cuts_of_real_films_are_where_people_see_them():
    seen = {"cosmos/test_clip_10s.mp4": [4333, 8917], "daft/sample_video.mp4": [700, 1000, 2033, 2467], "exoplayer/roadtrip-vp92-10bit.webm": [1752]}
    for name, cuts in seen.items():
        source = VideoFolder(path=str(Path(str(DATA)) / "video" / name), min_seconds=0, size=32, clip_seconds=60, shots=room.Shots())
        records, rejected = read(source)
        assert rejected == [] and set(cuts) <= {int(w.split("-")[0]) for w in where(records)}
