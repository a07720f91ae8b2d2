"""Video with actions: frame folders and video files with aligned tables."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from pipelines.action_text import ActionText
from pipelines.clocks import stretch
from pipelines.format.errors import InputError
from pipelines.format.record import Record
from pipelines.media.child import close_children
from pipelines.media.images import encode_jpeg
from pipelines.sources.frames_actions import FramesActions
from pipelines.sources.trajectory_folder import TrajectoryFolder
from pipelines.sources.video_actions import VideoActions
from pipelines.stage import Rejected
from tests.pipelines.clips import clip, number, painted
from tests.pipelines.lerobot_folders import lerobot_v3

DATA = os.environ.get("HEADWATER_DATA")
POSE = {"x": "x", "y": "y", "yaw": "yaw"}


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


def read(source: Any) -> tuple[list[Record], list[Rejected]]:
    found = [r for part in source.parts() for r in source.read(part.spec, "walks")]
    return [r for r in found if isinstance(r, Record)], [r for r in found if isinstance(r, Rejected)]


def shown(record: Record) -> list[int]:
    return [number(np.asarray(Image.open(io.BytesIO(s.payload)))) for s in record.segments if s.payload]


def rows(n: int, **more: Any) -> list[dict[str, Any]]:
    turn = 2 * math.pi / n
    return [{"x": math.cos(i * turn), "y": math.sin(i * turn), "yaw": i * turn + math.pi / 2, "t": i * 0.25, "a": i / 10, **more} for i in range(n)]


def walk(folder: Path, n: int = 20, table: list[dict[str, Any]] | None = None) -> None:
    (folder / "images").mkdir(parents=True)
    for i in range(n):
        (folder / "images" / f"{i:06}.jpg").write_bytes(encode_jpeg(painted(i), 95))
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in table or rows(n)))


def frames(path: Path | str, **keys: Any) -> FramesActions:
    keys = {"pose": POSE, "time": "t", "goals": {"max": 4, "backward": True}, **keys}
    return FramesActions(path=str(path), **{"table": "*.jsonl", "image": "images/{row:06}.jpg", "size": 48, "quality": 95, **keys})


def test_the_action_in_words_leads_from_the_last_context_frame_to_the_goal(tmp_path):
    walk(tmp_path / "w")
    records, rejected = read(frames(tmp_path))
    assert rejected == [] and len(records) == 17
    circle = rows(20)
    for r in records:
        *context, goal = shown(r)
        at = context[-1]
        assert context == [at - 3, at - 2, at - 1, at] and goal == at + r.fields["offset"] and r.origin == f"w/log.jsonl#{at}~0"
        said = ActionText().parse(r.segments[4].text or "")
        assert said is not None and said["rel_t"] == pytest.approx(r.fields["offset"] / 128, abs=6e-4)
        a, b = circle[at], circle[goal]
        x = a["x"] + said["dx"] * math.cos(a["yaw"]) - said["dy"] * math.sin(a["yaw"])
        y = a["y"] + said["dx"] * math.sin(a["yaw"]) + said["dy"] * math.cos(a["yaw"])
        assert (x, y) == pytest.approx((b["x"], b["y"]), abs=2e-3)


def test_samples_of_a_trajectory_share_its_frames_and_its_group(tmp_path):
    walk(tmp_path / "w")
    records, _ = read(frames(tmp_path, goals={"max": 4, "each": 4}))
    payloads = {s.payload for r in records for s in r.segments if s.payload}
    assert len(payloads) <= 20 < sum(1 for r in records for s in r.segments if s.payload)
    assert len({r.group for r in records}) == 1 and len({r.id for r in records}) == len(records)


def test_what_is_wrong_with_rows_is_counted_and_costs_only_what_would_show_it(tmp_path):
    table = rows(40)
    table[10]["x"] = None
    table[25]["t"] = table[24]["t"]
    for row in table[30:]:
        row["t"] += 60
    walk(tmp_path / "w", 40, table)
    (tmp_path / "w" / "images" / "000005.jpg").unlink()
    (tmp_path / "w" / "images" / "000035.jpg").write_bytes(b"\xff\xd8 cut")
    records, rejected = read(frames(tmp_path, goals={"max": 1}))
    wrong = {(r.origin.rpartition("#")[2], r.reason) for r in rejected}
    assert wrong == {("5", "missing_frame"), ("10", "bad_action"), ("25", "duplicate_time"), ("30", "gap"), ("35", "invalid_image")}
    seen = {tuple(shown(r)) for r in records}
    assert not any(5 in s or 25 in s or 35 in s or s[-2] == 10 or s[-1] == 10 for s in seen)
    assert (21, 22, 23, 24, 26) in seen and (11, 12, 13, 14, 15) in seen
    assert not any(s[0] < 30 <= s[-1] for s in seen) and (30, 31, 32, 33, 34) in seen


def test_a_stretch_without_room_for_a_sample_says_so(tmp_path):
    walk(tmp_path / "w", 4)
    records, rejected = read(frames(tmp_path))
    assert records == [] and [(r.origin, r.reason) for r in rejected] == [("w/log.jsonl#0", "too_short")]


def test_times_break_at_pauses_and_backward_jumps_only():
    times = np.array([0, 1, 2, 30, 31, 32, 5, 6, 7, np.nan, 8.0])
    found, problems = stretch(times, None, None)
    assert found == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 10]]
    assert [(row, reason) for row, reason, _ in problems] == [(3, "gap"), (6, "clock_back"), (9, "bad_time")]
    assert stretch(times[:3], ["a", "a", "b"], None) == ([[0, 1], [2]], [])
    assert stretch(times[:4], None, 100.0) == ([[0, 1, 2, 3]], [])


def test_a_donkeycar_tub_reads_as_it_is(tmp_path):
    (tmp_path / "images").mkdir()
    lines = []
    for i in range(30):
        name = f"{i}_cam_image_array_.jpg"
        if i not in (12, 13):
            (tmp_path / "images" / name).write_bytes(encode_jpeg(painted(i), 95))
        driven = {"user/angle": i / 100, "user/throttle": 0.3}
        lines.append({"_timestamp_ms": 1706111016186 + 50 * i, "_session_id": "s", "cam/image_array": name, **driven})
    (tmp_path / "catalog_0.catalog").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = FramesActions(
        path=str(tmp_path), table="*.catalog", image="images/{cam/image_array}", time="_timestamp_ms", time_unit="ms", episode="_session_id",
        actions={"steer": "user/angle", "throttle": "user/throttle"}, goals={"max": 1}, size=48, quality=95,
    )  # fmt: skip
    records, rejected = read(source)
    assert Counter(r.reason for r in rejected) == {"missing_frame": 2}
    assert records[0].segments[4].text == "action: steer=+0.030, throttle=+0.300"
    assert len(records) == 26 - 6 and [s.time_s for s in records[0].segments if s.payload] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_an_episode_is_never_split_between_parts(tmp_path, monkeypatch):
    import pipelines.sources.frames_actions as room
    from pipelines.listing import runs

    for name in "abc":
        walk(tmp_path / name, 8)
    monkeypatch.setattr(room, "runs", lambda inputs: runs(inputs, max_bytes=1))
    parts = frames(tmp_path).parts()
    assert [p.spec["tables"] for p in parts] == [["a/log.jsonl"], ["b/log.jsonl"], ["c/log.jsonl"]]
    assert [len(p.inputs) for p in parts] == [9, 9, 9]


def test_images_outside_the_source_are_missing_not_read(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(encode_jpeg(painted(1), 95))
    walk(tmp_path / "data" / "w", 6, rows(6, image="../../secret.jpg"))
    records, rejected = read(frames(tmp_path / "data", image="{image}"))
    assert records == [] and Counter(r.reason for r in rejected) == {"missing_frame": 6}


def test_a_template_must_name_what_there_is(tmp_path):
    with pytest.raises(ValidationError, match="template names speed"):
        frames(tmp_path, template="action: speed={speed}")
    with pytest.raises(ValidationError, match="backward needs a pose"):
        frames(tmp_path, pose=None, actions={"a": "a"})


# ---- video files -----------------------------------------------------------------------------------------------------------------------------


def _table(path: Path, table: list[dict[str, Any]]) -> None:
    if path.suffix == ".csv":
        with open(path, "w", newline="") as f:
            writer = csv.DictWriter(f, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(table), path)
    elif path.suffix == ".npz":
        np.savez(path, **{k: np.array([r[k] for r in table]) for k in table[0]})
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in table))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".npz"])
def test_a_video_meets_its_table_by_time(tmp_path, suffix):
    (tmp_path / "drive.mp4").write_bytes(clip(90))
    _table(tmp_path / f"drive{suffix}", rows(12))
    records, rejected = read(VideoActions(path=str(tmp_path), pose=POSE, time="t", goals={"max": 1}, size=48, quality=95))
    assert rejected == [] and len(records) == 8
    wanted = [round(i * 7.5) for i in range(12)]  # every quarter of a second at 30 a second; halves go to the earlier frame
    assert all(abs(a - b) <= 1 for r, at in zip(records, range(3, 11), strict=True) for a, b in zip(shown(r), wanted[at - 3 : at + 2], strict=True))


def test_rows_without_times_are_frames_by_number(tmp_path):
    (tmp_path / "drive.mp4").write_bytes(clip(15, ticks=[i * 33 + (i % 3) * 9 for i in range(15)]))
    _table(tmp_path / "drive.jsonl", rows(17))
    records, rejected = read(VideoActions(path=str(tmp_path), actions={"a": "a"}, goals={"max": 1}, size=48, quality=95))
    assert [shown(r) for r in records] == [[i, i + 1, i + 2, i + 3, i + 4] for i in range(11)]
    assert [r.segments[4].text for r in records][:2] == ["action: a=+0.300", "action: a=+0.400"]
    assert Counter(r.reason for r in rejected) == {"missing_frame": 2}


def test_rows_that_lie_between_frames_are_misaligned(tmp_path):
    (tmp_path / "drive.mp4").write_bytes(clip(20, ticks=[i * 50 if i < 10 else 2000 + i * 50 for i in range(20)]))
    _table(tmp_path / "drive.jsonl", [{"t": i * 0.05, "a": 0.0} for i in range(60)])
    records, rejected = read(VideoActions(path=str(tmp_path), actions={"a": "a"}, time="t", goals={"max": 1}, size=48))
    assert Counter(r.reason for r in rejected).keys() <= {"misaligned", "missing_frame"} and len(records) > 0
    assert Counter(r.reason for r in rejected)["misaligned"] > 20


def test_a_video_without_its_table_is_counted(tmp_path):
    (tmp_path / "a.mp4").write_bytes(clip(10))
    assert [(r.origin, r.reason) for r in read(VideoActions(path=str(tmp_path), actions={"a": "a"}))[1]] == [("a.mp4", "missing_table")]


def _lerobot(folder: Path, version: str = "v2.1") -> None:
    info = {
        "codebase_version": version, "total_episodes": 3, "chunks_size": 2, "fps": 10,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {"cam": {"dtype": "video"}, "action": {"dtype": "float32"}},
    }  # fmt: skip
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    (folder / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "Pick up the bottle."}\n')
    for episode in (0, 2):  # a sample of a larger dataset
        known = {"episode_chunk": episode // 2, "episode_index": episode, "video_key": "cam"}
        data, video = (folder / str(info[k]).format(**known) for k in ("data_path", "video_path"))
        data.parent.mkdir(parents=True)
        video.parent.mkdir(parents=True)
        stamps = np.arange(30, dtype=np.float32) / np.float32(10)
        actions = [[float(i), float(-i)] for i in range(30)]
        pq.write_table(pa.table({"action": actions, "timestamp": stamps, "task_index": [0] * 30}), data)
        video.write_bytes(clip(30, fps=10, first=100 * episode))


def test_a_lerobot_folder_reads_by_its_own_card(tmp_path):
    _lerobot(tmp_path)
    source = VideoActions(path=str(tmp_path), actions={"arm": "action"}, goals={"max": 1, "combine": "last"}, size=48, quality=95)
    records, rejected = read(source)
    assert rejected == [] and len(records) == 2 * 26 and len({r.group for r in records}) == 2
    for i, r in enumerate(records):
        at = i % 26 + 3
        assert shown(r) == [r.fields["episode"] * 100 + j for j in range(at - 3, at + 2)]
        assert r.segments[4].text == f"action: arm0=+{at}.000, arm1={-at:+d}.000" and r.fields["task"] == "Pick up the bottle."
    with pytest.raises(InputError, match="no such camera"):
        VideoActions(path=str(tmp_path), actions={"a": "action"}, camera="wrist").parts()


def test_a_lerobot_of_another_age_is_refused_in_words(tmp_path):
    _lerobot(tmp_path, "v4.0")
    with pytest.raises(InputError, match="LeRobot version"):
        VideoActions(path=str(tmp_path), actions={"a": "action"}).parts()


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA names no real files")
def test_real_robots_cars_and_tables_read():
    folder = Path(str(DATA)) / "action_video"
    car = FramesActions(
        path=str(folder / "donkeycar"), table="*.catalog", image="images/{cam/image_array}", time="_timestamp_ms", time_unit="ms",
        actions={"steer": "user/angle", "throttle": "user/throttle"}, goals={"max": 8, "stride": 20}, size=64,
    )  # fmt: skip
    records, rejected = read(car)
    assert Counter(r.reason for r in rejected)["missing_frame"] == 800 and len(records) > 50
    humanoid = VideoActions(path=str(folder / "unitree_g1_lerobot"), actions={"a": "action"}, goals={"max": 8, "stride": 40}, size=64)
    records, rejected = read(humanoid)
    assert rejected == [] and len(records) == 6 + 7 and len(records[0].fields["action"]) == 26
    moved = {"dx": "actions[0]", "dy": "actions[1]"}
    arm = VideoActions(path=str(folder / "language_table"), actions=moved, goals={"max": 4, "combine": "sum"}, size=64)
    records, rejected = read(arm)
    assert rejected == [] and len(records) == 13


def test_an_object_store_gives_the_samples_of_the_local_folder(tmp_path, s3_bucket):
    from pipelines.format import storage

    walk(tmp_path / "walks" / "w", 8)
    _lerobot(tmp_path / "robot")
    (tmp_path / "arm").mkdir()
    lerobot_v3(tmp_path / "arm")
    walk(tmp_path / "nwm" / "w", 8)
    for i in range(8):
        (tmp_path / "nwm" / "w" / "images" / f"{i:06}.jpg").rename(tmp_path / "nwm" / "w" / f"{i}.jpg")
    np.savez(tmp_path / "nwm" / "w" / "traj_data.npz", position=np.arange(16.0).reshape(8, 2), yaw=np.zeros(8))
    for file in tmp_path.rglob("*"):
        if file.is_file():
            storage.publish(f"{s3_bucket}/{file.relative_to(tmp_path)}", file.read_bytes())
    makes: dict[str, Any] = {"walks": frames, "nwm": lambda p: TrajectoryFolder(path=str(p), size=48)}
    makes |= dict.fromkeys(("robot", "arm"), lambda p: VideoActions(path=str(p), actions={"a": "action"}, size=48, goals={"stride": 5}))
    for name, make in makes.items():
        local, remote = read(make(tmp_path / name)), read(make(f"{s3_bucket}/{name}"))
        assert local == remote and len(local[0]) > 0 and local[1] == []
