"""Navigation trajectories in their own layout: the arithmetic of Navigation World Models, from the pickle to the words."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

import pipelines.sources.trajectory_folder as room
from pipelines.action_text import ActionText
from pipelines.actions import SPACING
from pipelines.format.errors import InputError
from pipelines.format.record import Record
from pipelines.format.shard import ShardWriter
from pipelines.listing import runs
from pipelines.media.child import close_children
from pipelines.media.images import encode_jpeg
from pipelines.sources.trajectory_folder import TrajectoryFolder
from pipelines.stage import Rejected
from tests.pipelines.clips import number, painted

DATA = os.environ.get("HEADWATER_DATA")


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


def walk(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A random walk with turns beyond ±π, in metres."""
    rng = np.random.default_rng(seed)
    yaw = np.cumsum(rng.normal(size=n) * 0.4)
    steps = rng.uniform(0, 0.6, n)
    return np.cumsum(np.stack([steps * np.cos(yaw), steps * np.sin(yaw)], axis=1), axis=0) + rng.uniform(-100, 100, 2), yaw


def folder(root: Path, seed: int = 0, n: int = 90, save: str = "pkl", images: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    root.mkdir(parents=True)
    position, yaw = walk(seed, n)
    for i in range(n if images is None else images):
        (root / f"{i}.jpg").write_bytes(encode_jpeg(painted(i), 95))
    data = {"position": position, "yaw": yaw}
    if save == "pkl":
        (root / "traj_data.pkl").write_bytes(pickle.dumps(data, 4))
    elif save == "npz":
        np.savez(root / "traj_data.npz", **data)
    else:
        (root / "traj_data.json").write_text(json.dumps({k: v.tolist() for k, v in data.items()}))
    return position, yaw


def read(source: Any) -> tuple[list[Record], list[Rejected]]:
    found = [r for part in source.parts() for r in source.read(part.spec, "nwm")]
    return [r for r in found if isinstance(r, Record)], [r for r in found if isinstance(r, Rejected)]


def source(path: Path, **keys: Any) -> TrajectoryFolder:
    return TrajectoryFolder(path=str(path), **{"spacing": "recon", "size": 48, "quality": 95, **keys})


def shown(record: Record) -> list[int]:
    return [number(np.asarray(Image.open(io.BytesIO(s.payload)))) for s in record.segments if s.payload]


def formulas(position: np.ndarray, yaw: np.ndarray, now: int, goal: int, spacing: float) -> list[float]:
    """From the formulas, and from nothing of ours: world to local coordinates by the rotation matrix of the current yaw, divided by the waypoint
    spacing; the difference of angles wrapped by sine and cosine; the offset in frames over 128."""
    c, s = math.cos(yaw[now]), math.sin(yaw[now])
    rotation = np.array([[c, -s], [s, c]])
    local = (position[goal] - position[now]) @ rotation / spacing
    turn = math.atan2(math.sin(yaw[goal] - yaw[now]), math.cos(yaw[goal] - yaw[now]))
    return [local[0], local[1], turn, (goal - now) / 128]


@pytest.mark.parametrize("name", SPACING)
def test_our_numbers_are_those_of_the_formulas_to_a_millionth(tmp_path, name):
    truth = {f"t{i}": folder(tmp_path / f"t{i}", seed=i) for i in range(2)}
    records, rejected = read(source(tmp_path, spacing=name, goals={"min": 0, "max": 64, "backward": True, "each": 4, "stride": 6}))
    assert rejected == [] and len(records) == 2 * 15 * 4
    for r in records:
        position, yaw = truth[r.origin.partition("#")[0]]
        *context, goal = shown(r)
        now = context[-1]
        assert context == [now - 3, now - 2, now - 1, now] and goal == now + r.fields["offset"]
        wanted = formulas(position, yaw, now, goal, SPACING[name])
        said = r.fields["action"]
        assert [said[k] for k in ("dx", "dy", "dyaw", "rel_t")] == pytest.approx(wanted, abs=1e-6)
        parsed = ActionText().parse(r.segments[4].text or "")
        assert parsed is not None and list(parsed.values()) == pytest.approx(wanted, abs=0.0005 + 1e-9)


def test_from_words_back_to_the_pose_errs_by_less_than_was_printed(tmp_path):
    position, yaw = folder(tmp_path / "t", seed=7)
    spacing = 0.38
    for r in read(source(tmp_path, spacing=spacing))[0]:
        now = int(r.origin.rpartition("#")[2].partition("~")[0])
        goal = now + r.fields["offset"]
        said = ActionText().parse(r.segments[4].text or "")
        assert said is not None
        c, s = math.cos(yaw[now]), math.sin(yaw[now])
        x = position[now] + spacing * np.array([said["dx"] * c - said["dy"] * s, said["dx"] * s + said["dy"] * c])
        assert np.hypot(*(x - position[goal])) <= spacing * 0.0005 * math.sqrt(2) + 1e-9
        assert abs(math.remainder(yaw[now] + said["dyaw"] - yaw[goal], 2 * math.pi)) <= 0.0005 + 1e-9


def test_goals_are_uniform_over_what_is_in_reach_zero_included(tmp_path):
    folder(tmp_path / "t", n=200)
    records, _ = read(source(tmp_path, goals={"min": 0, "max": 8, "backward": True, "each": 40}))
    inner = [r.fields["offset"] for r in records if 11 <= int(r.origin.rpartition("#")[2].partition("~")[0]) < 192]
    counts = Counter(inner)
    assert set(counts) == set(range(-8, 9))
    expected = len(inner) / 17
    chi2 = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi2 < 39.3  # 16 degrees of freedom, one in a thousand


@pytest.mark.parametrize("save", ["npz", "json"])
def test_conversions_of_the_pickle_give_the_same_samples(tmp_path, save):
    folder(tmp_path / "a" / "t", n=20)
    folder(tmp_path / "b" / "t", n=20, save=save)
    a, b = (read(source(tmp_path / x))[0] for x in "ab")
    assert len(a) == 68 and [(r.segments, r.fields) for r in a] == [(r.segments, r.fields) for r in b]


def test_a_pickle_that_is_a_program_costs_its_trajectory_and_runs_nothing(tmp_path):
    folder(tmp_path / "good", n=12)
    folder(tmp_path / "evil", n=12)
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    (tmp_path / "evil" / "traj_data.pkl").write_bytes(pickle.dumps({"position": Evil(), "yaw": np.zeros(12)}))
    records, rejected = read(source(tmp_path))
    assert not canary.exists() and {r.origin.partition("#")[0] for r in records} == {"good"}
    assert [(r.origin, r.reason) for r in rejected] == [("evil", "not_allowed")] and "system" in rejected[0].detail


def test_rows_without_a_frame_and_data_without_a_column_are_counted(tmp_path):
    folder(tmp_path / "short", n=20, images=15)
    folder(tmp_path / "other", n=20)
    (tmp_path / "other" / "traj_data.pkl").write_bytes(pickle.dumps({"pos": np.zeros((20, 2))}))
    records, rejected = read(source(tmp_path))
    assert Counter(r.reason for r in rejected) == {"missing_frame": 5, "unreadable": 1} and len(records) > 0
    assert all(max(shown(r)) < 15 for r in records)


def test_only_the_trajectories_of_a_split_are_read(tmp_path):
    for name in "abc":
        folder(tmp_path / name, n=8)
    (tmp_path / "train.txt").write_text("a\nc\n")
    assert {r.origin[0] for r in read(source(tmp_path, trajectories="train.txt"))[0]} == {"a", "c"}
    (tmp_path / "train.txt").write_text("a\nz\n")
    with pytest.raises(InputError, match="not here"):
        source(tmp_path, trajectories="train.txt").parts()


def test_a_trajectory_is_never_split_between_parts(tmp_path, monkeypatch):
    for name in "abc":
        folder(tmp_path / name, n=8)
    monkeypatch.setattr(room, "runs", lambda inputs: runs(inputs, max_bytes=1))
    parts = source(tmp_path).parts()
    assert [(p.spec["tables"], len(p.inputs)) for p in parts] == [([f"{x}/traj_data.pkl"], 9) for x in "abc"]


def test_an_unknown_spacing_says_which_are_known(tmp_path):
    with pytest.raises(ValidationError, match="recon, scand, tartan"):
        source(tmp_path, spacing="mars")


def test_a_hundred_samples_of_an_observation_cost_rows_and_no_pixels(tmp_path):
    folder(tmp_path / "t", n=40)
    pixels, tars, rows = {}, {}, {}
    for each in (1, 100):
        records, _ = read(source(tmp_path, goals={"min": 0, "max": 36, "backward": True, "each": each}, size=96))
        with ShardWriter(str(tmp_path / f"out{each}"), 0, 0, False) as shard:
            for r in records:
                shard.add(r)
            found, _ = shard.publish()
        with tarfile.open(tmp_path / f"out{each}" / str(found.data)) as tar:
            pixels[each] = sum(m.size for m in tar if m.name.endswith(".jpg"))
        tars[each], rows[each] = int(found.data_bytes or 0), found.records
    assert rows[100] == 100 * rows[1]
    assert pixels[100] <= 1.03 * pixels[1]  # the goals of a single sample may leave a frame or two unused
    naive = pixels[1] / 40 * 5 * rows[100]
    per_sample = (tars[100] - tars[1]) / (rows[100] - rows[1])
    print(f"pixels {pixels[1]} -> {pixels[100]} bytes, tar {tars[1]} -> {tars[100]}, {per_sample:.0f} a sample; copies would take {naive:.0f}")
    assert per_sample <= 2560  # its JSON in the tar, a header and padding


def real_walks() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Positions in metres and yaw of real paths: a car's minute by GPS and gyroscope (comma2k19), and two camera paths."""
    data = Path(str(DATA))
    ecef = np.load(data / "action_only/comma2k19_segment40/global_pose/frame_positions.npy")
    up = ecef[0] / np.linalg.norm(ecef[0])
    east = np.cross([0, 0, 1.0], up)
    east /= np.linalg.norm(east)
    car = np.stack([(ecef - ecef[0]) @ east, (ecef - ecef[0]) @ np.cross(up, east)], axis=1)
    out = {"car": (car[:300], np.arctan2(*np.gradient(car, axis=0).T[::-1])[:300])}
    for name in ("00", "01"):
        pose = np.load(data / f"action_video/camera_paths_lingbot/{name}/poses.npy").astype(np.float64)
        out[f"camera{name}"] = (pose[:200, [2, 0], 3], np.arctan2(pose[:200, 0, 2], pose[:200, 2, 2]))
    return out


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA names no real files")
def test_real_paths_come_back_from_words_within_what_was_printed(tmp_path):
    worst, longest = 0.0, 0.0
    for name, (position, yaw) in real_walks().items():
        (tmp_path / name).mkdir()
        for i in range(len(yaw)):
            (tmp_path / name / f"{i}.jpg").write_bytes(encode_jpeg(painted(i), 95))
        (tmp_path / name / "traj_data.pkl").write_bytes(pickle.dumps({"position": position, "yaw": yaw}, 2))
        spacing = float(np.median(np.hypot(*np.diff(position, axis=0).T))) or 1.0
        records, rejected = read(source(tmp_path / name, spacing=spacing, goals={"min": 0, "max": 64, "backward": True, "stride": 3}))
        assert rejected == [] and len(records) > 60
        for r in records:
            now, goal = shown(r)[3], shown(r)[4]
            wanted = formulas(position, yaw, now, goal, spacing)
            assert [r.fields["action"][k] for k in ("dx", "dy", "dyaw", "rel_t")] == pytest.approx(wanted, abs=1e-6)
            said = ActionText().parse(r.segments[4].text or "")
            assert said is not None
            worst = max(worst, *(abs(said[k] - w) for k, w in zip(("dx", "dy", "dyaw", "rel_t"), wanted, strict=True)))
            longest = max(longest, abs(wanted[0]))
    print(f"worst error {worst:.6f} of what three digits can say, longest dx {longest:.1f} spacings")
    assert worst <= 0.0005 + 1e-9
