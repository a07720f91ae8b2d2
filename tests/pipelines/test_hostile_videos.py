"""Hostile videos through every door: frames or a reason, in time, in bounds, and nothing else is read or called."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.format.errors import Reject
from pipelines.media.child import MEMORY, WALL_S, Child, ChildDied, Kind, close_children
from pipelines.media.video import frames_every
from tests.pipelines import hostile
from tests.pipelines.hostile_corpus import DOORS, Outcome, canary, through

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watches pipes and processes as Linux shows them")
REASONS = {"frames", "truncated", "unreadable", "not_allowed", "too_large", "timeout"}


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


def judged(found: dict[str, Outcome], touched: list[str]) -> None:
    assert touched == []
    for name, one in found.items():
        assert one.said in REASONS and (one.said == "frames" or one.detail), (name, one.said, one.detail)
        assert one.seconds < WALL_S + 2 and one.peak < MEMORY >> 20, (name, one.seconds, one.peak)
        assert b"canary words" not in one.pixels, name


@pytest.mark.parametrize("door", DOORS)
def test_playlists_scripts_and_descriptions_are_refused_at_every_door_and_nothing_is_opened(door, tmp_path):
    with canary(tmp_path) as watched:
        texts = {**hostile.texts(watched.pipe, watched.url), **{f"{k} by its words": v for k, v in hostile.texts(watched.file, watched.url).items()}}
        found = {name: through(door, data, tmp_path) for name, data in texts.items()}
    judged(found, watched.touched)
    assert {one.said for one in found.values()} <= {"not_allowed", "truncated", "unreadable"}
    if door in ("path", "bytes", "open file"):
        assert {one.said for name, one in found.items() if "nothing" not in name} == {"not_allowed"}


@pytest.mark.parametrize("door", ["bytes", "open file"])
@pytest.mark.parametrize("family", ["boxes", "matroska"])
def test_files_whose_headers_lie_end_in_frames_or_a_reason(family, door, tmp_path):
    with canary(tmp_path) as watched:
        found = {name: through(door, data, tmp_path) for name, data in getattr(hostile, family)(watched.pipe, watched.url).items()}
    judged(found, watched.touched)
    if family == "boxes":
        assert found["encrypted"].said in ("not_allowed", "unreadable")
        assert found["timescale 1"].said != "timeout"


@pytest.mark.parametrize("name", list(hostile.streams("", "")))
def test_streams_that_decoders_stumble_over_end_in_frames_or_a_reason(name, tmp_path):
    with canary(tmp_path) as watched:
        one = through("path", hostile.streams(watched.file, watched.url)[name](), Path(tmp_path))
    judged({name: one}, watched.touched)
    expected = {
        "h264 of 16384 x 8192": {"too_large"},
        "magicyuv in avi": {"not_allowed", "unreadable"},
        "ansi art in avi": {"not_allowed", "unreadable"},
    }
    assert one.said in expected.get(name, REASONS), one


@pytest.mark.parametrize("name", ["sizes change in mid-stream", "sizes change in avi", "sizes change in mkv"])
def test_pictures_whose_size_changes_in_mid_stream_come_at_one_size_only(name):
    got = frames_every(hostile.streams("", "")[name](), 30)
    assert len({array.shape for _, array in got.frames}) <= 1 and got.frames
    assert got.stopped is not None and got.stopped.reason == "not_allowed" and "pictures change" in got.stopped.detail


def test_a_child_takes_no_more_memory_than_its_kind_allows():
    film = hostile.muxed("mp4", "libx264", [(8192, 4320)] * 2, preset="ultrafast")
    one = Child(kind=Kind(memory=700 << 20))
    args = {"container": "mov", "max_pixels": 1 << 26, "max_seconds": 99, "max_frames_in_file": 99, "fps": 30, "start": 0.0, "stop": None}
    try:
        with suppress(Reject, ChildDied):
            list(one.call("pipelines.media.frames:sample", {**args, "max_frames": 4}, film, wall_s=20))
        if one.alive:
            status = Path(f"/proc/{one.pid}/status").read_text()
            assert int(status.split("VmPeak:")[1].split()[0]) <= 700 << 10
    finally:
        one.close()
