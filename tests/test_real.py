"""Real files of all five kinds go from their folders to two trained runs with the one command of examples/real, and nothing is lost on the way.

Runs where HEADWATER_DATA names the sample data, on a sample of it: a few records of each kind, good and damaged ones, in the same layout.
"""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.journey import prepare

PAIRS, ALTS, CAR_ROWS, CAR_FRAMES, ROBOT_ROWS, SHAPES, RAD = 12, 24, 60, 50, 60, 20, 60
VIDEOS = ("mdn/frog.webm", "mdn/pig.mp4", "mdn/rabbit320.mp4", "torchcodec/nasa_13013_rotated.mp4")
ROBOT = "action_video/unitree_g1_lerobot"


def copy(data: Path, sample: Path, paths: Iterable[str]) -> None:
    for rel in paths:
        (sample / rel).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data / rel, sample / rel)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def take_sample(data: Path, sample: Path) -> None:
    """The same folders with fewer records."""
    copy(data, sample, (str(p.relative_to(data)) for p in (data / "text/jsonl").rglob("*") if p.is_file()))
    for folder, n in (("image_text/coco_captions", PAIRS), ("image_text/us_gov_alt_18f", ALTS)):
        rows = (data / folder / "pairs.jsonl").read_text().splitlines()[:n]
        write(sample / folder / "pairs.jsonl", "\n".join(rows))
        copy(data, sample, (f"{folder}/{json.loads(row)['image']}" for row in rows))
    copy(data, sample, (f"video/{v}" for v in VIDEOS))
    copy(data, sample, (str(p.relative_to(data)) for p in (data / "video/damaged").iterdir()))
    tub = "action_video/donkeycar/tub_15"
    rows = (data / tub / "catalog_15.catalog").read_text().splitlines()[:CAR_ROWS]
    write(sample / tub / "catalog_15.catalog", "\n".join(rows))
    frames = [f"{tub}/images/{json.loads(row)['cam/image_array']}" for row in rows]
    copy(data, sample, [f for f in frames if (data / f).exists()][:CAR_FRAMES])
    copy(data, sample, (f"{ROBOT}/meta/info.json", f"{ROBOT}/meta/tasks.jsonl"))
    # The second episode: the first one's bytes fall to the held-out side of the journey's mixtures.
    video, table = (sorted((data / ROBOT / kind).rglob(f"*.{end}"))[1] for kind, end in (("videos", "mp4"), ("data", "parquet")))
    copy(data, sample, [str(video.relative_to(data))])
    (sample / table.relative_to(data)).parent.mkdir(parents=True)
    pq.write_table(pq.ParquetFile(table).read().slice(0, ROBOT_ROWS), sample / table.relative_to(data))
    shapes = [row for row in json.loads((data / "vqa/easy_vqa/train/questions.json").read_text()) if row[2] < SHAPES]
    write(sample / "vqa/easy_vqa/train/questions.json", json.dumps(shapes))
    copy(data, sample, (f"vqa/easy_vqa/train/images/{i}.png" for i in {row[2] for row in shapes}))
    rad = json.loads((data / "vqa/vqa_rad/qa.json").read_text())[:RAD]
    write(sample / "vqa/vqa_rad/qa.json", json.dumps(rad))
    copy(data, sample, (f"vqa/vqa_rad/images/{name}" for name in {row["image_name"] for row in rad}))


@pytest.fixture(scope="module")
def journey(real_data: Path, repo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Where the journey over the sample wrote, and what it printed."""
    work, sample = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("sample")
    take_sample(real_data, sample)
    argv = [sys.executable, str(repo / "examples/real/journey.py"), str(sample), "--work", str(work), "--engine", "local", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=work)
    assert done.returncode == 0, done.stderr[-3000:]
    return work, json.loads(done.stdout)


def test_every_document_of_the_journey_is_valid_and_stands_in_its_readme(repo):
    ready = prepare(runpy.run_path(str(repo / "examples/real/journey.py"))["steps"](Path("/data")))
    readme = (repo / "examples/real/README.md").read_text()
    for step, _, config in ready:
        assert f"examples/real/{Path(step.config).name}" in readme
        if step.run in ("text", "image-text", "video", "action-video", "vqa"):
            assert config.source.path.startswith("/data/")


@pytest.mark.slow
def test_every_record_of_every_source_is_accounted_for(journey):
    sources = {s["source"]: s for s in journey[1]["sources"]}
    assert {s["kind"] for s in sources.values()} == {"text", "image-text", "video", "action-video", "vqa"}
    for s in sources.values():
        assert s["in"] == s["written"] + sum(s["filtered"].values()) + sum(s["rejected"].values()), s
        assert s["written"] > 0, s
    assert (sources["real_image_text"]["in"], sources["real_alt_text"]["in"]) == (PAIRS, ALTS)
    assert sources["real_vqa"]["written"] == SHAPES


@pytest.mark.slow
def test_what_is_wrong_with_real_files_is_counted_by_its_reason(journey):
    sources = {s["source"]: s for s in journey[1]["sources"]}
    assert sources["real_text"]["filtered"]["exact_text"] > 0  # the same documents stand in several files
    assert sources["real_text"]["rejected"] == {"unreadable": 33}  # lines of attributes, without a text
    assert sources["real_video"]["rejected"] == {"truncated": 3, "not_allowed": 2, "unreadable": 1}  # the six damaged files
    assert sources["real_action_video"]["rejected"]["missing_frame"] == CAR_ROWS - CAR_FRAMES


@pytest.mark.slow
def test_an_image_is_64_tokens_of_pixels_and_256_of_the_tower(journey):
    sources = {s["source"]: s for s in journey[1]["sources"]}
    both = [s for s in sources.values() if "siglip2 tokens" in s]
    assert {s["kind"] for s in both} == {"image-text", "video", "action-video", "vqa"}
    for s in both:
        assert s["siglip2 tokens"] == 4 * s["pixels tokens"] and s["siglip2 tokens"] % 256 == 0
    assert sources["real_image_text"]["pixels tokens"] == 64 * PAIRS
    assert sources["real_robot"]["pixels tokens"] == 5 * 64 * sources["real_robot"]["written"]


@pytest.mark.slow
def test_losses_of_text_and_of_images_fall_in_fifty_steps(journey):
    for run, lines in journey[1]["runs"].items():
        assert [line["step"] for line in lines] == list(range(50))
        for kind in ("text", "flow"):
            first, last = ([line[kind] for line in part if kind in line] for part in (lines[:10], lines[-10:]))
            assert sum(last) / len(last) < sum(first) / len(first), (run, kind)


@pytest.mark.slow
def test_verify_deep_finds_nothing_in_a_curated_set_an_encoded_set_a_plan_and_a_run(journey):
    work, _ = journey
    code = "import sys\nfrom pipelines.commands import main\nassert not any(main(['verify', path, '--deep']) for path in sys.argv[1:])"
    paths = [f"out/real/{name}" for name in ("video", "robot_siglip2", "plan_siglip2", "run_siglip2")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, cwd=work)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
