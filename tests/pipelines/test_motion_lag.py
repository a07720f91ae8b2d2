"""A log that lies a frame off its video is found by motion, and logs that fit are left alone."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.format.record import Record
from pipelines.media.child import close_children
from pipelines.media.images import encode_jpeg
from pipelines.motion_lag import SHORTEST, find_lag, motion
from pipelines.sources.frames_actions import FramesActions
from pipelines.sources.video_actions import VideoActions
from pipelines.stage import Rejected


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


def drive(seed: int, n: int = 200, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Grey frames [n, 32, 32] of a camera that pans over a random texture, with sensor noise, and how far it goes from each frame to the next:
    a speed that wanders, with stops, as hands and cars do."""
    rng = np.random.default_rng(seed)
    texture = rng.normal(size=(64, 1024))
    for axis in (0, 1):
        texture = sum(np.roll(texture, k, axis) for k in range(-2, 3)) / 5
    speed = np.abs(np.cumsum(rng.normal(size=n)) * 0.2 + rng.normal(size=n) * 0.5)
    speed[rng.uniform(size=n) < 0.15] = 0
    place = np.concatenate([[0], np.cumsum(speed)[:-1]])
    columns = (place[:, None] + np.arange(32)[None]) % 1023
    low = columns.astype(int)
    part = (columns - low)[:, None, :]
    frames = np.stack([texture[:32, c] for c in low]) * (1 - part) + np.stack([texture[:32, c + 1] for c in low]) * part
    return (frames + rng.normal(size=frames.shape) * 0.05 * noise).astype(np.float32) * 40 + 128, speed


def test_no_log_that_fits_is_called_shifted():
    sure = [find_lag(motion(f), speed) for f, speed in (drive(seed) for seed in range(200))]
    assert [i for i, lag in enumerate(sure) if lag is None or lag.sure] == []
    noisy = [find_lag(motion(f), np.random.default_rng(s).permutation(v)) for s, (f, v) in enumerate(map(drive, range(200)))]
    assert [i for i, lag in enumerate(noisy) if lag and lag.sure] == []  # actions that have nothing to do with the frames say nothing


def test_every_log_that_lies_a_frame_off_is_found_either_way():
    for seed in range(100):
        frames, speed = drive(seed)
        late, early = np.concatenate([speed[:1], speed[:-1]]), np.concatenate([speed[1:], speed[-1:]])
        for log, wanted in ((late, 1), (early, -1)):
            lag = find_lag(motion(frames), log)
            assert lag is not None and lag.sure and lag.best == wanted, (seed, wanted, lag)


def test_too_little_or_nothing_that_changes_says_nothing():
    frames, speed = drive(0)
    assert find_lag(motion(frames[: SHORTEST - 1]), speed) is None
    assert find_lag(motion(frames), np.ones(200)) is None and find_lag(np.zeros(199), speed) is None
    assert find_lag(motion(frames), np.full(200, np.nan)) is None


def film(frames: np.ndarray) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as box:
        stream = box.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 10)
        for i, f in enumerate(frames):
            grey = np.kron(np.clip(f, 0, 255).astype(np.uint8), np.ones((2, 2), np.uint8))
            picture = av.VideoFrame.from_ndarray(np.repeat(grey[:, :, None], 3, axis=2), format="rgb24")
            picture.pts = i
            box.mux(stream.encode(picture))
        box.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize("kind", ["video", "images"])
def test_sources_warn_or_reject_when_asked_and_say_nothing_otherwise(tmp_path: Path, kind: str):
    frames, speed = drive(3, 120)
    path = np.concatenate([[0], np.cumsum(speed)[:-1]])
    if kind == "video":
        (tmp_path / "pan.mp4").write_bytes(film(frames))
    else:
        (tmp_path / "images").mkdir()
        for i, f in enumerate(frames):
            grey = np.kron(np.clip(f, 0, 255).astype(np.uint8), np.ones((2, 2), np.uint8))
            (tmp_path / "images" / f"{i}.jpg").write_bytes(encode_jpeg(np.repeat(grey[:, :, None], 3, axis=2), 90))

    def found(by: int, check: str) -> tuple[list[Record], list[Rejected]]:
        x = np.roll(path, by) if by else path
        rows = [{"x": float(v), "y": 0.0, "yaw": 0.0} for v in x]
        (tmp_path / "pan.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        pose, goals = {"x": "x", "y": "y", "yaw": "yaw"}, {"max": 4, "stride": 20}
        keys = {"path": str(tmp_path), "pose": pose, "check_shift": check, "size": 32, "goals": goals}
        source = VideoActions(**keys) if kind == "video" else FramesActions(**keys, table="pan.jsonl", image="images/{row}.jpg", fps=10)
        out = [r for part in source.parts() for r in source.read(part.spec, "pan")]
        return [r for r in out if isinstance(r, Record)], [r for r in out if isinstance(r, Rejected)]

    for by in (1, -1):
        records, rejected = found(by, "reject")
        assert records == [] and [r.reason for r in rejected] == ["shifted"] and f"{by:+d} rows off" in rejected[0].detail
        warned = found(by, "warn")
        assert len(warned[0]) == 6 and warned[1] == [] and warned[0][0].fields["trajectory"]["shift"]["frames"] == by
    for check in ("no", "warn", "reject"):
        records, rejected = found(0, check)
        assert len(records) == 6 and rejected == [] and "shift" not in records[0].fields["trajectory"]
