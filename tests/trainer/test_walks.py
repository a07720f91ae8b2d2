"""Navigation sets, which have no simulator: starts, units and plans of trajectories that were recorded in metres."""

from __future__ import annotations

import numpy as np
import pytest
from pixelplan import carry_out
from walkplan import make, subject, values

from pipelines.curate import ACTION_VIDEO
from pipelines.format.errors import InputError
from pipelines.media.images import encode_png
from pipelines.recipe import Recipe
from pipelines.world import motion
from pipelines.world.render import view
from pipelines.world.scene import make_scene
from trainer.evaluate._plans import poses_of
from trainer.evaluate._simulated import Seen, simulators
from trainer.evaluate._walks import starts
from trainer.evaluate.commands import Commands
from trainer.evaluate.planning import Planning
from trainer.evaluate.rollout import Rollout
from trainer.generate.recipe import Sampling

SPACING, FRAMES = 0.25, 16


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Walks of the world as a recorder of robots would have kept them: frames by number, positions in metres of a quarter of a step each."""
    root = tmp_path_factory.mktemp("nav")
    for i in range(10):
        poses = motion.walk(make_scene(1, i), FRAMES)
        folder = root / "raw" / f"walk@{i}"  # a name that must not be taken for an observation's
        folder.mkdir(parents=True)
        for k, picture in enumerate(view(make_scene(1, i), poses)):
            (folder / f"{k}.png").write_bytes(encode_png(picture))
        np.savez(folder / "traj_data.npz", position=poses[:, :2] * SPACING, yaw=poses[:, 2])
    goals = {"context": 4, "min": 0, "max": 8, "backward": True, "each": 1, "horizon": 64}
    source = {"trajectory_folder": {"path": str(root / "raw"), "spacing": SPACING, "fps": 4.0, "goals": goals, "size": 32}}
    return make(root, carry_out(ACTION_VIDEO, Recipe, name="nav", source=source, output=str(root / "curated")))


def test_moves_are_in_the_units_of_the_text_and_poses_in_those_of_the_recording(plan):
    found = starts(plan, "action", 4, 8)
    assert len({s.record.group for s in found}) == len(found)
    for start in found:
        scene = make_scene(1, int(start.record.origin.split("@")[1].split("#")[0]))
        at = round(4 * [s.time_s for s in start.record.segments if s.kind == "latents"][3])
        walk = motion.walk(scene, FRAMES)[at : at + 9]
        assert start.spacing == pytest.approx(SPACING, abs=1e-4)
        assert np.allclose(start.poses[:, :2], walk[:, :2] * SPACING, atol=1e-5)
        assert np.allclose(start.moves[0], motion.relative(walk[0], walk[1]), atol=1e-3)
        assert start.wording.horizon == 64 and "rel_t=+0.016" in start.wording.say(start.moves[0])
        own = start.record.fields["action"]
        assert start.wording.say(np.array([own["dx"], own["dy"], own["dyaw"]]), start.record.fields["offset"]) == start.wording.text


def test_arms_without_the_source_pass_when_they_may_and_are_refused_when_not(plan, tmp_path):
    for part in (Rollout, Planning, Commands):
        assert part(source="walks", required=False).run(subject(plan), str(tmp_path)) == []
        with pytest.raises(InputError, match="no such source"):
            part(source="walks").run(subject(plan), str(tmp_path))


def test_there_is_no_simulator_and_roll_outs_say_so_by_leaving_it_out(plan, tmp_path):
    assert simulators("walker", Seen(plan.datasets[0]), starts(plan, "action", 2, 2)) is None
    rows = Rollout(records=2, horizon=2, sampling=Sampling(steps=2)).run(subject(plan), str(tmp_path))
    assert not any("counterfactual" in r["metric"] for r in rows) and values(rows, "rollout.latent.copy")["horizon:1"] > 0


def test_plans_are_judged_in_waypoints_against_the_recorded_path(plan, tmp_path, monkeypatch):
    """A cost that knows where the goal is finds it: what is left is that the path was no straight line."""

    def knows(self, maker, start, far):
        from trainer.evaluate._moves import between

        goal = between(start.poses[:1], start.poses[-1:])[0] / np.array([start.spacing, start.spacing, 1])
        return lambda plans, round_: np.abs(poses_of(plans, self.steps)[:, -1, :2] - goal[:2]).sum(axis=1)

    monkeypatch.setattr(Planning, "_imagined_cost", knows)
    rows = Planning(goals=4, optimisation_steps=6, prior="world").run(subject(plan), str(tmp_path))
    assert values(rows, "planning.position")["held_out"] < 0.3 < values(rows, "planning.position.random")["held_out"]
    assert not any("simulator" in r["metric"] for r in rows)
    assert values(rows, "planning.ate")["held_out"] < values(rows, "planning.ate.random")["held_out"]


def test_a_released_prior_runs_on_a_model(plan, tmp_path):
    rows = Planning(goals=1, samples=8, repeats=1, prior="recon", sampling=Sampling(steps=2)).run(subject(plan), str(tmp_path))
    assert {r["metric"] for r in rows} == {f"planning.{m}{c}" for m in ("ate", "rpe", "position", "yaw") for c in ("", ".random", ".uninformed")}
