"""Commands against oracles: the simulator that does as told scores 1, luck scores what the rules leave to it, and poses are read off frames."""

from __future__ import annotations

import re

import numpy as np
import pytest
from walkplan import Oracle, subject, values, world

from pipelines.sources.world import World
from trainer.evaluate import _imagined
from trainer.evaluate._moves import wrap
from trainer.evaluate._poses import Finder
from trainer.evaluate._simulated import Seen, simulators
from trainer.evaluate._walks import starts
from trainer.evaluate.commands import KEYS, PHRASES, Commands, commands, done, fits

COARSE = {"records": 3, "reach": 3.0, "pitch": 0.75, "turns": 12}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return world(tmp_path_factory.mktemp("walks"))


@pytest.fixture(scope="module")
def around(plan):
    found = starts(plan, "action", 3, 1)
    worlds = simulators("walker", Seen(plan.datasets[0]), found)
    return found, worlds


class Willing(Oracle):
    """Understands free commands too: it does one frame's share of what each kind asks for."""

    def __init__(self, plan, found, worlds) -> None:
        super().__init__(plan)
        asked = commands(found, worlds, "{command}")
        self.share = {(found[c.start].item, c.text): done(c.kind, c.thing, 3) / 3 for c in asked}
        self.item = ""

    def __call__(self, maker, asked):
        return [one for a in asked for one in (setattr(self, "item", a.id.split("/")[1]), super(Willing, self).__call__(maker, [a]))[1]]

    def move(self, text):
        return super().move(text) if "dx=" in text else self.share[self.item, text]


def test_a_model_that_understands_carries_out_every_command_and_one_that_does_not_none(plan, around, tmp_path, monkeypatch):
    monkeypatch.setattr(_imagined, "imagined", Willing(plan, *around))
    rows = Commands(**COARSE).run(subject(plan), str(tmp_path))
    assert set(values(rows, "commands").values()) == {1.0} and set(values(rows, "commands.simulator").values()) == {1.0}
    assert set(values(rows, "commands")) == {"held_out", "wasd", *(f"wasd:{k}" for k in KEYS), *(f"held_out:{k}" for k in PHRASES)}
    assert set(values(rows, "commands.zero_action").values()) == {0.0}
    n = {(r["metric"], r["split"]): r["n"] for r in rows}
    assert n["commands", "wasd"] == 12 and n["commands", "held_out:left"] == 6


def test_who_hears_only_actions_carries_out_keys_alone(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(_imagined, "imagined", Oracle(plan))
    rows = Commands(**COARSE).run(subject(plan), str(tmp_path))
    assert values(rows, "commands")["wasd"] == 1 and values(rows, "commands")["held_out"] == 0


def test_chance_is_the_share_of_the_searched_poses_and_small(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(_imagined, "imagined", Oracle(plan))
    luck = {r["split"]: r["chance"] for r in Commands(**COARSE).run(subject(plan), str(tmp_path)) if r["metric"] == "commands"}
    assert all(0 < v < 0.5 for v in luck.values()) and luck["wasd:w"] == luck["wasd:s"] < 0.15
    assert luck["wasd:a"] == pytest.approx(luck["wasd:d"], abs=0.01) and luck["wasd:a"] < 0.1


def test_poses_are_read_off_noisy_frames_of_any_pose(around):
    """Four of five to within the finest pitch, an eighth of a step; 19 of 20 to within 0.3 steps and 11 degrees."""
    found, worlds = around
    rng, fine, near = np.random.default_rng(0), [], []
    for start, walk in zip(found, worlds, strict=True):
        finder = Finder(walk, start.poses[0], 2.0, 0.5, 16)
        moves = np.stack([*rng.uniform(-1.5, 1.5, (2, 20)), rng.uniform(-3, 3, 20)], axis=1)
        read = finder.found(finder.shown(moves))
        off = np.abs(read - moves)
        turned = np.abs(wrap(off[:, 2])) <= np.pi / 16
        fine += list((off[:, :2].max(axis=1) <= 0.126) & turned)
        near += list((off[:, :2].max(axis=1) <= 0.3) & turned)
    assert np.mean(fine) >= 0.8 and np.mean(near) >= 0.95


def test_a_frame_of_the_grid_is_found_exactly(around):
    found, worlds = around
    finder = Finder(worlds[0], found[0].poses[0], 1.0, 0.5, 8)
    assert len(finder.moves) == 5 * 5 * 8
    some = finder.moves[[0, 37, 111, 199]]
    read = finder.found(worlds[0].seen(finder._poses(some), noise=False))
    assert np.allclose(read[:, :2], some[:, :2]) and np.allclose(wrap(read[:, 2] - some[:, 2]), 0)


def test_rules_ask_for_direction_and_distance():
    assert fits("forward", np.array([0.8, 0.3, 0.1])) and not fits("forward", np.array([0.7, 0, 0])) and not fits("forward", np.array([0.8, 0.9, 0]))
    assert not fits("forward", np.array([2, 0, 1.0])) and fits("back", np.array([-2, 0, 0])) and not fits("back", np.array([2, 0, 0]))
    assert fits("left", np.array([0.5, 0, 0.5])) and not fits("left", np.array([0, 0, -0.5])) and not fits("left", np.array([2, 0, 0.5]))
    assert fits("right", np.array([0, 0, -3.0])) and not fits("right", np.array([0, 0, 0.2]))
    thing = (3.0, 0.0)
    assert fits("goto", np.array([0.75, 0, 2.0]), thing) and not fits("goto", np.array([0.5, 0, 0]), thing)
    assert fits("goto", np.array([2.2, 0, 0]), thing)
    for kind in PHRASES:
        assert fits(kind, done(kind, (2.5, 2.0), 3), (2.5, 2.0)) and not fits(kind, np.zeros(3), (2.5, 2.0))


def test_no_free_command_has_been_said_in_the_data(around):
    """Verbs of the commands stand in no text of any kind of the world; so no training on it has met them."""
    said: set[str] = set()
    for kind in ("text", "image-text", "vqa", "action-video"):
        source = World(kind=kind, scenes=200, phrasing="plain" if kind == "action-video" else "both")
        for part in source.parts():
            for record in source.read(part.spec, "w"):
                said |= {w for s in record.segments if s.text for w in re.findall(r"[a-z]+", s.text.lower())}
    verbs = {"take", "walk", "go", "turn", "swing", "rush", "step", "steps"}
    assert "circle" in said and not said & verbs
    assert all(set(p.split()) & verbs for phrases in PHRASES.values() for p in phrases)


def test_a_template_holds_the_command_and_nothing_else(around):
    for wrong in ("action", "{what}", "{command} {n}"):
        with pytest.raises(ValueError):
            Commands(template=wrong)
    found, worlds = around
    assert "action: walk straight ahead" in {c.text for c in commands(found, worlds, Commands(template="action: {command}").template)}


def test_without_a_simulator_commands_are_refused(plan, tmp_path):
    with pytest.raises(Exception, match="scored by a simulator"):
        Commands(records=2, simulator="nobody").run(subject(plan), str(tmp_path))
