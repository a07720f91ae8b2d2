"""LeRobot v3.0: many episodes in one table and one video, each with its own frames, its own words and no neighbour's picture."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pipelines.sources.video_actions as room
from pipelines.format.errors import InputError
from pipelines.format.record import Record
from pipelines.listing import runs
from pipelines.media.child import close_children
from pipelines.sources.video_actions import VideoActions
from pipelines.stage import Rejected
from tests.pipelines.clips import clip, number
from tests.pipelines.lerobot_folders import CAMERAS, FILES, LENGTHS, lerobot_v3

DATA = os.environ.get("HEADWATER_DATA")
STARTS = (0, 30, 500)  # the number painted into each episode's first frame


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


def read(source: Any) -> tuple[list[Record], list[Rejected]]:
    found = [r for part in source.parts() for r in source.read(part.spec, "arm")]
    return [r for r in found if isinstance(r, Record)], [r for r in found if isinstance(r, Rejected)]


def shown(record: Record) -> list[int]:
    return [number(np.asarray(Image.open(io.BytesIO(s.payload)))) for s in record.segments if s.payload]


def arm(path: Any, **keys: Any) -> VideoActions:
    return VideoActions(path=str(path), **{"actions": {"arm": "action"}, "goals": {"max": 1, "combine": "last"}, "size": 48, "quality": 95, **keys})


def test_every_episode_shows_its_own_frames_and_says_its_own_actions_and_task(tmp_path):
    lerobot_v3(tmp_path)
    records, rejected = read(arm(tmp_path))
    assert rejected == [] and Counter(r.fields["episode"] for r in records) == {e: n - 4 for e, n in enumerate(LENGTHS)}
    for e in range(3):
        mine = [r for r in records if r.fields["episode"] == e]
        for at, r in enumerate(mine, 3):
            assert shown(r) == [STARTS[e] + i for i in range(at - 3, at + 2)]
            in_file = at + (30 if e == 1 else 0)
            assert r.segments[4].text == f"action: arm0=+{in_file}.000, arm1={-at:+d}.000"
            assert r.fields["task"] == ("Put it down." if at >= 15 else "Pick up the bottle.")
            assert [s.time_s for s in r.segments if s.payload] == pytest.approx([i / 10 for i in range(at - 3, at + 2)])
            assert r.origin == f"data/chunk-000/file-{FILES[e]:03}.parquet!{e}#{at}~0"
        assert len({r.group for r in mine}) == 1
    assert len({r.group for r in records}) == 3 and len({r.id for r in records}) == len(records)
    found = records[0].fields["trajectory"]
    assert (found["rows"], found["frames"], found["rows_met"], found["offset_s"], found["drift_s"]) == (30, 30, 30, 0.0, 0.0)
    assert found["tolerance_s"] == 0.05 and found["worst_s"] < 1e-4


def test_two_cameras_are_two_trajectories_of_one_group(tmp_path):
    lerobot_v3(tmp_path)
    records, rejected = read(arm(tmp_path, camera=CAMERAS))
    by_camera = {c: [r for r in records if r.fields["camera"] == c] for c in CAMERAS}
    assert rejected == [] and [len(v) for v in by_camera.values()] == [sum(LENGTHS) - 12] * 2
    for front, wrist in zip(*by_camera.values(), strict=True):
        assert shown(wrist) == [i + 1000 for i in shown(front)] and wrist.segments[4].text == front.segments[4].text
        assert wrist.group == front.group and wrist.id != front.id
    wrist_only = read(arm(tmp_path, camera=CAMERAS[1]))[0]
    assert [shown(r) for r in wrist_only] == [shown(r) for r in by_camera[CAMERAS[1]]]
    with pytest.raises(InputError, match="no such camera"):
        arm(tmp_path, camera="top").parts()


def test_an_episode_is_never_split_and_a_part_names_only_its_files(tmp_path, monkeypatch):
    lerobot_v3(tmp_path)
    whole = read(arm(tmp_path, camera=CAMERAS))
    monkeypatch.setattr(room, "runs", lambda inputs, group: runs(inputs, max_bytes=1, group=group))
    parts = arm(tmp_path, camera=CAMERAS).parts()
    assert [{e["index"] for e in p.spec["episodes"]} for p in parts] == [{0}, {1}, {2}]
    assert [len(p.spec["episodes"]) for p in parts] == [2, 2, 2]
    assert all(len(p.inputs) == 3 and all(f"file-00{FILES[i]}" in f[0] for f in p.inputs) for i, p in enumerate(parts))
    assert read(arm(tmp_path, camera=CAMERAS)) == whole


def test_only_the_groups_of_pictures_with_a_wanted_frame_are_decoded(tmp_path, monkeypatch):
    from pipelines.media import frames, pyav_frames

    lerobot_v3(tmp_path, keyframes=3)
    source = arm(tmp_path, goals={"context": 1, "max": 1, "stride": 12})
    fed: list[int] = []
    asked: list[int] = []
    monkeypatch.setattr("pipelines.video_alignment.stills", lambda f, numbers, **_: asked.extend(numbers) or iter(()))
    read(source)
    file = (tmp_path / f"videos/{CAMERAS[0]}/chunk-000/file-000.mp4").open("rb")
    original = pyav_frames._whole
    monkeypatch.setattr(pyav_frames, "_whole", lambda found: original([fed.append(f.pts) or f for f in found]))
    args = {"container": "mov", "numbers": asked[:6], "size": None, "max_pixels": 1 << 20, "max_seconds": 100, "max_frames_in_file": 1000}
    shown = list(frames.sample(args, file))
    assert len(shown) == 7 and 0 < len(fed) <= 30 < sum(LENGTHS[:2])


def test_a_start_that_is_a_frame_off_is_shifted_and_not_shown(tmp_path):
    lerobot_v3(tmp_path, start_error={1: -0.1})
    records, rejected = read(arm(tmp_path))
    assert {r.fields["episode"] for r in records} == {0, 2}
    assert [(r.reason, r.origin) for r in rejected] == [("shifted", "data/chunk-000/file-000.parquet!1")] and "-1.00 frames" in rejected[0].detail
    trusted = read(arm(tmp_path, match="time"))[0]
    assert {r.fields["episode"] for r in trusted} == {0, 1, 2}


def test_rounding_in_a_start_is_no_shift(tmp_path):
    for error in (1e-4, -1e-4, 0.02, -0.02):
        root = tmp_path / str(error)
        root.mkdir()
        lerobot_v3(root, start_error={1: error})
        records, rejected = read(arm(root))
        assert rejected == [] and len(records) == sum(LENGTHS) - 12
        second = [r for r in records if r.fields["episode"] == 1]
        assert shown(second[0]) == [30, 31, 32, 33, 34] and shown(second[-1])[-1] == 53
        assert second[0].fields["trajectory"]["offset_s"] == pytest.approx(error, abs=1e-5)


def test_a_video_that_ends_early_costs_the_rows_beyond_it(tmp_path):
    lerobot_v3(tmp_path)
    (tmp_path / f"videos/{CAMERAS[0]}/chunk-000/file-001.mp4").write_bytes(clip(20, fps=10, first=500))
    records, rejected = read(arm(tmp_path))
    assert Counter(r.reason for r in rejected) == {"missing_frame": 6}
    assert Counter(r.fields["episode"] for r in records) == {0: 26, 1: 20, 2: 16}


def test_a_missing_file_costs_its_episodes(tmp_path):
    lerobot_v3(tmp_path)
    (tmp_path / f"videos/{CAMERAS[0]}/chunk-000/file-001.mp4").unlink()
    records, rejected = read(arm(tmp_path))
    assert {r.fields["episode"] for r in records} == {0, 1}
    assert [(r.origin, r.reason) for r in rejected] == [("data/chunk-000/file-001.parquet!2", "missing_frame")]


@pytest.mark.parametrize("broken", [{"fps": None}, {"data_path": "x/{nothing}.parquet"}, {"video_path": 3}, {"data_path": "../../{file_index}"}])
def test_a_card_that_makes_no_sense_is_refused_in_words(tmp_path, broken):
    lerobot_v3(tmp_path)
    info = tmp_path / "meta/info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), **broken}))
    with pytest.raises(InputError, match="card"):
        arm(tmp_path).parts()


def test_a_folder_without_its_list_of_episodes_says_so(tmp_path):
    lerobot_v3(tmp_path)
    (tmp_path / "meta/episodes/chunk-000/file-000.parquet").unlink()
    with pytest.raises(InputError, match="list of episodes"):
        arm(tmp_path).parts()


def joined(old: Path, new: Path) -> None:
    """A v2.1 folder as v3.0: its episodes' rows in one table, its videos' packets in one file, not decoded."""
    info = json.loads((old / "meta/info.json").read_text())
    camera = next(name for name, f in info["features"].items() if f["dtype"] == "video")
    paths = {"data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"}
    paths["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    for folder in ("meta/episodes/chunk-000", "data/chunk-000", f"videos/{camera}/chunk-000"):
        (new / folder).mkdir(parents=True)
    (new / "meta/info.json").write_text(json.dumps({**info, **paths, "codebase_version": "v3.0"}))
    tasks = [json.loads(line) for line in (old / "meta/tasks.jsonl").read_text().splitlines()]
    pq.write_table(pa.table({"task_index": [t["task_index"] for t in tasks], "task": [t["task"] for t in tasks]}), new / "meta/tasks.parquet")
    rows, tables, start, at = [], [], 0.0, 0
    with av.open(str(new / f"videos/{camera}/chunk-000/file-000.mp4"), "w") as out:
        track = None
        for video in sorted(old.rglob("*.mp4")):
            episode = int(video.stem.rpartition("_")[2])
            table = pq.read_table(old / f"data/chunk-000/{video.stem}.parquet")
            with av.open(str(video)) as box:
                first = box.streams.video[0]
                base = first.time_base
                if track is None:
                    context = first.codec_context
                    track = out.add_mux_stream("av1", rate=info["fps"], width=context.width, height=context.height, time_base=base)
                for packet in box.demux(video=0):
                    if packet.dts is not None:
                        moved = round(start / float(base))
                        packet.pts, packet.dts, packet.stream = packet.pts + moved, packet.dts + moved, track
                        out.mux(packet)
            key = f"videos/{camera}/"
            rows.append({"episode_index": episode, "length": table.num_rows, "data/chunk_index": 0, "data/file_index": 0,
                         key + "chunk_index": 0, key + "file_index": 0, key + "from_timestamp": start,
                         key + "to_timestamp": start + table.num_rows / info["fps"]})  # fmt: skip
            start, at = start + table.num_rows / info["fps"], at + table.num_rows
            tables.append(table.set_column(table.schema.names.index("episode_index"), "episode_index", pa.array([episode] * table.num_rows)))
    pq.write_table(pa.concat_tables(tables, promote_options="permissive"), new / "data/chunk-000/file-000.parquet")
    pq.write_table(pa.Table.from_pylist(rows), new / "meta/episodes/chunk-000/file-000.parquet")


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA names no real files")
def test_a_real_robot_gives_the_same_samples_in_both_layouts(tmp_path):
    """Unitree G1, two episodes of AV1 video: the same frames to the byte and the same words, whether apart (v2.1) or joined (v3.0)."""
    old = Path(str(DATA)) / "action_video/unitree_g1_lerobot"
    joined(old, tmp_path)
    keys: dict[str, Any] = {"actions": {"a": "action"}, "goals": {"max": 8, "stride": 30}, "size": 64}
    (apart, none), (together, nothing) = read(VideoActions(path=str(old), **keys)), read(VideoActions(path=str(tmp_path), **keys))
    assert none == nothing == [] and len(apart) > 12
    by_place = {(r.fields["episode"], r.origin.rpartition("#")[2].partition("~")[0]): r for r in together}
    for r in apart:
        twin = by_place[r.fields["episode"], r.origin.rpartition("#")[2].partition("~")[0]]
        assert twin.fields["task"] == r.fields["task"] != ""
        assert [s.payload for s in twin.segments[:4]] == [s.payload for s in r.segments[:4]]
        if twin.fields["offset"] == r.fields["offset"]:  # goals are drawn by origin, which names the episode's file
            assert [(s.payload, s.text) for s in twin.segments] == [(s.payload, s.text) for s in r.segments]
