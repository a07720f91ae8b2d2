"""What clips look like in numbers, and the filters that read them: known pictures, known numbers."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.filters.black import Black
from pipelines.filters.clip_length import ClipLength
from pipelines.filters.letterbox import Letterbox
from pipelines.filters.motion import Motion
from pipelines.filters.static import Static
from pipelines.filters.video_size import VideoSize
from pipelines.format.errors import InputError
from pipelines.format.record import Record
from pipelines.media.child import close_children
from pipelines.media.measures import bars, measures, small
from pipelines.sources.video_folder import VideoFolder
from tests.pipelines.clips import film, scene


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


def grey(*values: int, height: int = 90, width: int = 160) -> list[np.ndarray]:
    return [np.full((height, width), v, np.uint8) for v in values]


def framed(picture: np.ndarray, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> np.ndarray:
    out = picture.copy()
    out[:top] = 0
    out[len(out) - bottom :] = 0
    out[:, :left] = 0
    out[:, out.shape[1] - right :] = 0
    return out


def test_light_blackness_and_change_are_shares_of_one():
    fields, scores = measures(grey(0, 255, 255, 51))
    assert fields["frames"] == {"luma": [0, 1, 1, 0.2], "black": [1, 0, 0, 0], "motion": [None, 1, 0, 0.8]}
    assert scores == {"luma": 0.55, "black": 0.25, "bars": 0, "motion": 0.6, "motion_min": 0.6, "frozen": pytest.approx(1 / 3, abs=1e-4)}
    assert "motion" not in measures(grey(7))[1]


def test_the_least_moving_patch_is_found_where_the_rest_moves():
    still = np.random.default_rng(0).integers(0, 255, (90, 160), dtype=np.uint8)
    moved = still.copy()
    moved[:, 40:] = np.roll(still, 9, axis=0)[:, 40:]
    _, scores = measures([still, moved])
    assert scores["motion_min"] == 0 and scores["motion"] > 0.1


@pytest.mark.parametrize("sides", [(10, 10, 0, 0), (12, 0, 0, 0), (0, 0, 50, 50), (5, 5, 20, 20), (0, 9, 0, 30)])
def test_bars_are_found_on_the_sides_where_they_are(sides):
    pictures = [small(framed(p, *sides)) for p in scene(1, 4, width=160, height=90)]
    assert bars(pictures) == pytest.approx((sides[0] / 90, sides[1] / 90, sides[2] / 160, sides[3] / 160))


def test_neither_a_night_sky_nor_a_title_nor_one_dark_frame_is_a_bar():
    sky = np.zeros((90, 160), np.uint8)
    sky[60:80, 100:118] = 220
    title = np.zeros((90, 160), np.uint8)
    title[30:50, 20:90:3] = 255
    lit = grey(128)[0]
    assert bars([sky]) == bars([title]) == bars([framed(lit, top=20), lit]) == bars(grey(0, 3)) == (0, 0, 0, 0)
    assert bars([framed(lit, 9, 9), grey(0)[0]]) == (0.1, 0.1, 0, 0)  # a black frame says nothing
    assert bars([framed(grey(60)[0] // 2 + 0, 9, 9)])[:2] == (0.1, 0.1)


def clip_of(pictures: list[np.ndarray], tmp_path: Any, **source: Any) -> list[Record]:
    (tmp_path / "x.mp4").write_bytes(film(pictures, options={"crf": "18"}))
    return [r for r in VideoFolder(path=str(tmp_path), fps=5, **source).read({"files": ["x.mp4"]}, "films") if isinstance(r, Record)]


def test_filters_tell_synthetic_videos_apart(tmp_path):
    moving = list(scene(1, 60, width=320, height=264, speed=3))
    good = clip_of(moving, tmp_path)[0]
    black = clip_of([p // 32 for p in moving], tmp_path)[0]
    still = clip_of(moving[:1] * 60, tmp_path)[0]
    boxed = clip_of([framed(p, top=32, bottom=32) for p in moving], tmp_path)[0]
    slides = clip_of([moving[0]] * 20 + [moving[30]] * 20 + [moving[50]] * 20, tmp_path)[0]
    tall = clip_of([framed(p, left=80, right=80) for p in moving], tmp_path)[0]
    filters = [Black(), Static(), Motion(), Letterbox(), VideoSize()]
    said = {n: [f.reason(r) for f in filters] for n, r in (("good", good), ("black", black), ("still", still), ("boxed", boxed), ("tall", tall))}
    assert said["good"] == [None] * 5
    assert said["black"][0] == "black.share"
    assert said["still"] == [None, "static", "motion.min", None, None]
    assert said["boxed"] == [None, None, None, "letterbox.rows", None] and said["tall"][3] == "letterbox.columns"
    assert Static().reason(slides) == "static" and Motion().reason(slides) is None
    assert Motion(max=good.scores["motion"] * 0.9).reason(good) == "motion.max"
    assert Motion(min_patch=0.5).reason(good) == "motion.min_patch"
    assert Black(min_luma=0.9).reason(good) == "black.luma" and Black(max_share=0, picture=0).reason(good) == "black.share"
    assert VideoSize(min_side=265).reason(good) == "video_size.min_side" and VideoSize(max_aspect=1.2).reason(good) == "video_size.max_aspect"


def test_what_is_measured_is_the_whole_picture_as_a_player_shows_it(tmp_path):
    record = clip_of([framed(p, left=40, right=40) for p in scene(2, 20, width=320, height=132)], tmp_path, size=64, mode="center_crop")[0]
    assert record.fields["shown"] == [320, 132] and record.fields["bars"] == pytest.approx([0, 0, 0.125, 0.125], abs=0.01)
    assert record.segments[0].shape == (64, 64, 3)


def test_a_clip_of_one_frame_moves_neither_too_little_nor_too_much(tmp_path):
    record = clip_of(list(scene(1, 20)), tmp_path, frames_per_clip=1)[0]
    assert Static().reason(record) is None and Motion(min=0.5, max=0.6).reason(record) is None


def test_a_record_without_measures_stops_the_job_and_says_why(tmp_path):
    record = clip_of(list(scene(1, 20)), tmp_path, measure=False)[0]
    assert record.scores == {} and "shown" not in record.fields
    for f in (Black(), Static(), Motion(), Letterbox(), VideoSize()):
        with pytest.raises(InputError, match="measure: true"):
            f.reason(record)


def test_clip_length_counts_seconds_and_frames(tmp_path):
    record = clip_of(list(scene(1, 60)), tmp_path)[0]  # two seconds, ten frames
    right = {"min_seconds": 2, "max_seconds": 2, "min_frames": 10, "max_frames": 10}
    assert [ClipLength(**{k: v}).reason(record) for k, v in right.items()] == [None] * 4
    wrong = {"min_seconds": 2.1, "max_seconds": 1.9, "min_frames": 11, "max_frames": 9}
    assert [ClipLength(**{k: v}).reason(record) for k, v in wrong.items()] == [f"clip_length.{k}" for k in wrong]
    bare = dataclasses.replace(record, fields={})
    assert ClipLength(max_seconds=1.8).reason(bare) is None and ClipLength(max_seconds=1.7).reason(bare) == "clip_length.max_seconds"
    with pytest.raises(ValueError, match="at least one"):
        ClipLength()


def test_bars_are_taken_off_before_the_resize_and_what_is_left_is_measured(tmp_path):
    pictures = [framed(p, top=44, bottom=44, left=30) for p in scene(3, 30, width=320, height=264)]
    plain = clip_of(pictures, tmp_path, size=64, mode="border")[0]
    record = clip_of(pictures, tmp_path, size=64, mode="border", crop_bars=True)[0]
    assert Letterbox().reason(plain) == "letterbox.rows" and Letterbox().reason(record) is None
    width, height = record.fields["shown"]
    assert 286 <= width <= 290 and 172 <= height <= 176 and record.fields["bars"] == [0, 0, 0, 0]
    assert record.fields["cropped"] == pytest.approx([44 / 264, 44 / 264, 30 / 320, 0], abs=0.008)
    assert record.fields["frames"]["black"] == [0] * 5 and max(plain.fields["frames"]["black"]) > 0.3
    pixels = np.asarray(Image.open(io.BytesIO(record.segments[0].payload or b"")).convert("L"))
    assert pixels[20:44].min() > 30 and pixels[0].min() > 200  # no black left; white padding stays


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_motion_vectors_say_how_far_blocks_move(codec, tmp_path):
    noise = np.random.default_rng(5).integers(0, 255, (48, 80, 3), np.uint8).repeat(4, 0).repeat(4, 1)  # 320 × 192
    fast = [np.roll(noise, 4 * i, axis=1) for i in range(60)]
    half = [np.concatenate([noise[:, :160], np.roll(noise[:, 160:], 4 * i, axis=1)], axis=1) for i in range(60)]
    said = {"motion_vectors": True, "frames_per_clip": 10}
    moving, partly, still = (_vectors_of(p, codec, tmp_path, said) for p in (fast, half, [noise] * 60))
    assert moving.scores["vectors"] == pytest.approx(4 / (320 + 192), rel=0.35)  # four pixels a frame; references further back reach further
    assert partly.scores["vectors"] == pytest.approx(moving.scores["vectors"] / 2, rel=0.35) and partly.scores["vectors_min"] < 1e-5
    assert still.scores["vectors"] < 1e-5
    assert [Motion(by="vectors").reason(r) for r in (moving, still)] == [None, "motion.min"]
    assert Motion(by="vectors", min_patch=0.0001).reason(partly) == "motion.min_patch"


def _vectors_of(pictures: list[np.ndarray], codec: str, tmp_path: Any, said: dict[str, Any]) -> Record:
    (tmp_path / "x.mp4").write_bytes(film(pictures, codec=codec, options={"bf": "0", "refs": "1", "crf": "12", "q": "3"}))
    found = [r for r in VideoFolder(path=str(tmp_path), fps=5, **said).read({"files": ["x.mp4"]}, "films") if isinstance(r, Record)]
    assert [r.origin for r in found] == ["x.mp4@0-2000"]
    return found[0]


def test_a_codec_without_vectors_is_missing_them(tmp_path):
    (tmp_path / "x.webm").write_bytes(film(scene(1, 30), codec="libvpx", container="webm"))
    record = next(VideoFolder(path=str(tmp_path), motion_vectors=True).read({"files": ["x.webm"]}, "films"))
    assert isinstance(record, Record) and "vectors" not in record.scores
    assert Motion(by="vectors").reason(record) is None and Motion(by="vectors", missing="drop").reason(record) == "motion.missing"
