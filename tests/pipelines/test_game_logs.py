"""Keyboard and mouse beside a video, a line of JSON a tick, as contractors' Minecraft recordings come; and actions brought to the frames' clock."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

import pipelines
from pipelines.action_text import ActionText, keys_text, pressed
from pipelines.format.document import load
from pipelines.format.record import Record
from pipelines.media.child import close_children
from pipelines.recipe import Recipe
from pipelines.sources.video_actions import VideoActions
from pipelines.stage import Rejected
from tests.pipelines.clips import clip, number

TEMPLATE = "action: keys={keys}, buttons={buttons}, dx={dx:.1f}, dy={dy:.1f}"
KEYS: dict[str, Any] = {
    "words": {"keys": "keyboard.keys", "buttons": "mouse.buttons"},
    "actions": {"dx": "mouse.dx", "dy": "mouse.dy"},
    "template": TEMPLATE,
    "size": 48,
    "quality": 95,
}


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


def tick(i: int, **more: Any) -> dict[str, Any]:
    """One line as the recorder writes it: nested, with far more in it than is used."""
    keys = ["key.keyboard.w"] * (i % 3 > 0) + ["key.keyboard.space"] * (i % 4 == 1) + ["key.keyboard.left.shift"] * (i % 5 == 2)
    mouse = {"x": 640.0, "y": 360.0, "dx": i * 1.5, "dy": -float(i), "dwheel": 0.0, "buttons": [0] * (i % 2), "newButtons": []}
    keyboard = {"keys": keys[::-1], "newKeys": [], "chars": ""}
    return {"mouse": mouse, "keyboard": keyboard, "isGuiOpen": False, "tick": i, "milli": 1629475200000 + 50 * i, "hotbar": 0, **more}


def play(folder: Path, n: int = 60, log: list[dict[str, Any]] | None = None, frames: int | None = None) -> None:
    (folder / "run.mp4").write_bytes(clip(frames or n, fps=20))
    (folder / "run.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log or [tick(i) for i in range(n)]))


def read(source: Any) -> tuple[list[Record], list[Rejected]]:
    found = [r for part in source.parts() for r in source.read(part.spec, "game")]
    return [r for r in found if isinstance(r, Record)], [r for r in found if isinstance(r, Rejected)]


def shown(record: Record) -> list[int]:
    return [number(np.asarray(Image.open(io.BytesIO(s.payload)))) for s in record.segments if s.payload]


def game(path: Path, **keys: Any) -> VideoActions:
    return VideoActions(path=str(path), **{**KEYS, "goals": {"max": 1, "combine": "sum"}, **keys})


@pytest.mark.parametrize("clock", [{}, {"time": "milli", "time_unit": "ms", "time_from": "first_row"}])
def test_keys_and_mouse_become_words_that_are_read_back(tmp_path, clock):
    play(tmp_path)
    records, rejected = read(game(tmp_path, **clock))
    assert rejected == [] and len(records) == 56
    words = ActionText(TEMPLATE, ("keys", "buttons"))
    for at, r in enumerate(records, 3):
        said = words.parse(r.segments[4].text or "")
        log = tick(at)
        assert shown(r) == [at - 3, at - 2, at - 1, at, at + 1] and said is not None
        assert set(pressed(said["keys"])) == {k.removeprefix("key.keyboard.").removeprefix("left.") for k in log["keyboard"]["keys"]}
        assert (said["dx"], said["dy"]) == (log["mouse"]["dx"], log["mouse"]["dy"]) and said["buttons"] == ("0" if at % 2 else "none")
    assert records[10].segments[4].text == "action: keys=w+space, buttons=0, dx=+19.5, dy=-13.0"


def test_a_clock_of_the_day_without_its_start_says_that_the_video_ends(tmp_path):
    play(tmp_path, 20)
    records, rejected = read(game(tmp_path, time="milli", time_unit="ms"))
    assert records == [] and Counter(r.reason for r in rejected)["missing_frame"] == 20


def test_missing_keys_cost_their_row_and_no_keys_are_none(tmp_path):
    log = [tick(i) for i in range(30)]
    log[10]["keyboard"].pop("keys")
    log[20]["mouse"]["dx"] = None
    play(tmp_path, log=log, frames=30)
    records, rejected = read(game(tmp_path))
    assert [(r.origin, r.reason) for r in rejected] == [("run.jsonl#10", "bad_action"), ("run.jsonl#20", "bad_action")]
    assert any("keys=none" in (r.segments[4].text or "") for r in records)


def test_hands_off_is_idle_and_left_out(tmp_path):
    log = [tick(i) for i in range(100)]
    for row in log[40:70]:
        row["mouse"] |= {"dx": 0.0, "dy": 0.0, "buttons": []}
        row["keyboard"]["keys"] = []
    play(tmp_path, log=log, frames=100)
    records, rejected = read(game(tmp_path, max_idle=1.0, fps=20))
    assert Counter(r.reason for r in rejected) == {"idle": 30}
    assert not any(set(range(40, 70)) & set(shown(r)) for r in records) and records[0].fields["trajectory"]["idle"] == 30
    assert read(game(tmp_path, max_idle=1.5, fps=20))[1] == []


def test_wasd_strings_and_free_text_beside_a_video(tmp_path):
    (tmp_path / "walk.mp4").write_bytes(clip(24, fps=10))
    with open(tmp_path / "walk.csv", "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerows([["key", "say"], *(["WASD"[i // 6], "go to the house,\nplease" if i < 12 else ""] for i in range(24))])
    records, _ = read(game(tmp_path, words={"key": "key", "say": "say"}, actions={}, template="action: {key} ({say})", goals={"max": 1}))
    assert records[0].segments[4].text == "action: W (go to the house, please)" and records[-1].segments[4].text == "action: D (none)"


def test_over_several_rows_what_held_the_longest_is_said(tmp_path):
    (tmp_path / "walk.mp4").write_bytes(clip(12, fps=10))
    (tmp_path / "walk.jsonl").write_text("".join(json.dumps({"key": k}) + "\n" for k in "WWWWAADDDWWW"))
    keys = {"words": {"key": "key"}, "actions": {}, "template": "action: {key}"}
    by = {said: read(game(tmp_path, **keys, goals={"min": 4, "max": 4, "said": said, "context": 1}))[0] for said in ("first", "last", "most")}
    assert [r.segments[1].text for r in by["most"]] == [f"action: {k}" for k in "WWWAADDD"]
    assert [r.segments[1].text for r in by["first"]] == [f"action: {k}" for k in "WWWWAADD"]
    assert [r.segments[1].text for r in by["last"]] == [f"action: {k}" for k in "WAADDDWW"]


def test_a_log_that_starts_a_frame_late_is_shifted_unless_it_is_trusted(tmp_path):
    for by in (50, -50):
        log = [tick(i, t=(50 * i + by) / 1000) for i in range(60)]
        play(tmp_path, log=log)
        records, rejected = read(game(tmp_path, time="t"))
        assert records == [] and [(r.origin, r.reason) for r in rejected] == [("run.mp4", "shifted")]
        assert len(read(game(tmp_path, time="t", match="number"))[0]) == 56
        trusted = read(game(tmp_path, time="t", match="time"))[0]
        assert len(trusted) == 55 and all(r.segments[4].text == read_text(shown(r)[3] - by // 50) for r in trusted)


def read_text(i: int) -> str:
    log, words = tick(i), ActionText(TEMPLATE, ("keys", "buttons"))
    spoken = {"keys": keys_text(log["keyboard"]["keys"]), "buttons": keys_text(log["mouse"]["buttons"])}
    return words.write({**spoken, "dx": log["mouse"]["dx"], "dy": log["mouse"]["dy"]})


def test_clocks_that_drift_by_more_than_a_frame_are_rejected_unless_rows_are_frames(tmp_path):
    play(tmp_path, log=[tick(i, t=i * 0.05 * 1.05) for i in range(60)])
    records, rejected = read(game(tmp_path, time="t"))
    assert records == [] and [r.reason for r in rejected] == ["drift"] and "-0.14" in rejected[0].detail
    assert [shown(r)[0] for r in read(game(tmp_path, time="t", match="number"))[0]] == list(range(56))


# ---- the frames' clock -----------------------------------------------------------------------------------------------------------------------


def test_movements_between_two_frames_are_summed_and_none_is_lost(tmp_path):
    (tmp_path / "run.mp4").write_bytes(clip(20, fps=5))
    log = [{"t": i / 60, "mouse": {"dx": 1.0 + i % 7}} for i in range(240)]
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    keys = {"words": {}, "actions": {"dx": "mouse.dx"}, "template": "action: dx={dx:.1f}", "time": "t", "clock": "frames", "align": "between"}
    records, rejected = read(game(tmp_path, **keys, goals={"context": 1, "max": 3, "min": 3, "combine": "sum"}))
    assert rejected == [] and len(records) == 17
    for r in records:
        a, b = shown(r)
        assert b == a + 3 and r.fields["action"]["dx"] == sum(log[i]["mouse"]["dx"] for i in range(12 * a, 12 * b))


def test_frames_at_a_rate_take_interpolated_poses(tmp_path):
    (tmp_path / "run.mp4").write_bytes(clip(60, fps=30))
    rows = [{"t": i * 0.07, "x": i * 0.07, "y": 0.0, "yaw": 3.1 + i * 0.007} for i in range(30)]
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    keys = {"words": {}, "actions": {}, "template": None, "pose": {"x": "x", "y": "y", "yaw": "yaw"}, "time": "t"}
    records, rejected = read(game(tmp_path, **keys, clock="frames", align="linear", rate=5, goals={"context": 2, "max": 1}))
    assert rejected == [] and [shown(r) for r in records] == [[6 * i, 6 * i + 6, 6 * i + 12] for i in range(8)]
    for r in records:
        (x, _, _), (u, _, _) = r.fields["poses"]
        assert u - x == pytest.approx(0.2, abs=1e-6) and r.fields["action"]["dyaw"] == pytest.approx(0.02, abs=1e-6)
    assert records[0].fields["trajectory"]["log_rows"] == 30 and records[0].fields["trajectory"]["align"] == "linear"


def test_a_hole_in_the_log_leaves_frames_without_an_action(tmp_path):
    (tmp_path / "run.mp4").write_bytes(clip(60, fps=30))
    rows = [{"t": i / 30 + 0.001, "mouse": {"dx": 1.0}} for i in range(60) if not 20 <= i < 40]
    rows.insert(10, dict(rows[9]))
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    keys = {"words": {}, "actions": {"dx": "mouse.dx"}, "template": "action: dx={dx}", "time": "t", "clock": "frames", "max_distance": 0.02}
    records, rejected = read(game(tmp_path, **keys))
    assert Counter(r.reason for r in rejected) == {"bad_action": 20, "duplicate_time": 1}
    assert all(not 20 <= shown(r)[3] < 40 for r in records) and any(shown(r)[3] == 19 for r in records)


def test_keys_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(ValidationError, match="clock: frames"):
        game(tmp_path, align="linear")
    with pytest.raises(ValidationError, match="combine names speed"):
        game(tmp_path, goals={"combine": {"speed": "sum"}})
    with pytest.raises(ValidationError, match="two things"):
        game(tmp_path, pose={"x": "x", "y": "y", "yaw": "z"})


@pytest.mark.parametrize("name", ["action_video", "game_keys", "lerobot", "navigation", "rlds"])
def test_the_packaged_recipes_are_valid_and_explained(name):
    recipe = load(Recipe, name, [], packaged=[Path(pipelines.__file__).parent / "recipes"])
    assert recipe.source.data == "action-video"


@pytest.mark.parametrize("name", ["action_video", "arm", "robot", "widowx"])
def test_the_recipes_of_real_files_are_valid(name, repo):
    assert load(Recipe, str(repo / f"examples/real/{name}.yaml")).source.data == "action-video"
