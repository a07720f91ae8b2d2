"""Real files that broke somebody's decoder, through the functions and through whole stages: each one good output or a reason, and none lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.format.errors import Reject
from pipelines.media import images, still
from pipelines.media.child import close_children
from tests.pipelines.hostile_corpus import through

DATA = os.environ.get("HEADWATER_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="HEADWATER_DATA names no real files")
PICTURES, VIDEOS = Path(str(DATA), "images_nasty"), Path(str(DATA), "video")


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def run(*argv: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "pipelines.commands", "run", *argv, "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 3), done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def conserved(card: dict[str, Any], files_in: int) -> None:
    assert card["in"] == card["written"] + sum(card["filtered"].values()) + sum(card["rejected"].values())
    assert card["in"] >= files_in - 2  # of clips, one file may give several; a suffix that is no video's is not asked for


def test_every_picture_is_made_small_or_has_a_reason_and_is_guarded_on_the_way():
    found: Counter[str] = Counter()
    for path in files(PICTURES):
        try:
            still.verify(path.read_bytes())
            jpeg, shape, _ = still.resized(path.read_bytes(), 64, "center_crop", 90, True, images.MAX_PIXELS)
            assert shape == (64, 64, 3) and jpeg.startswith(b"\xff\xd8")
            found["pixels"] += 1
        except Reject as e:
            assert e.detail, path
            found[e.reason] += 1
    assert found["pixels"] > 100 and set(found) <= {"pixels", "invalid_image", "truncated", "too_large"}, found


@pytest.mark.parametrize("door", ["path", "bytes"])
def test_every_video_gives_frames_or_a_reason(door, tmp_path):
    found: Counter[str] = Counter()
    for path in files(VIDEOS):
        one = through(door, path.read_bytes(), tmp_path)
        assert one.said == "frames" or one.detail, path
        found[one.said] += 1
    assert found["frames"] > 40 and set(found) <= {"frames", "truncated", "unreadable", "not_allowed"}, found


@pytest.mark.slow
def test_a_stage_over_the_pictures_loses_none(tmp_path):
    rows = []
    for path in files(PICTURES):
        rel = path.relative_to(PICTURES)
        (tmp_path / "in" / rel).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, tmp_path / "in" / rel)
        rows.append({"image": str(rel), "caption": "words of a picture"})
    (tmp_path / "in/pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    card = run("image-text", "-c", "captions", f"source.image_folder.path={tmp_path}/in", f"output={tmp_path}/out")
    conserved(card, len(rows))
    assert card["in"] == len(rows) and set(card["rejected"]) <= {"invalid_image", "truncated", "too_large", "unreadable"}, card


@pytest.mark.slow
def test_a_stage_over_the_videos_loses_none(tmp_path):
    ours = [f"source.video_folder.path={VIDEOS}", "source.video_folder.size=64", "source.video_folder.min_frames=1", f"output={tmp_path}/out"]
    card = run("video", "-c", "video_folder", *ours)
    conserved(card, len([p for p in files(VIDEOS) if p.suffix.lower() in (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".ts")]))
    assert card["written"] > 40 and set(card["rejected"]) <= {"truncated", "unreadable", "not_allowed", "too_short"}, card
