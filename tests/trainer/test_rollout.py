"""Roll-outs against oracles: who does as told is right at every horizon, who hears nothing is told apart; an untrained model runs the same twice."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from walkplan import Oracle, subject, values, world

from trainer.evaluate import _imagined
from trainer.evaluate._items import item_path
from trainer.evaluate._simulated import Seen, simulators
from trainer.evaluate._walks import starts
from trainer.evaluate.rollout import Rollout, others_of
from trainer.generate.recipe import Sampling

GRAIN = 0.0025  # mean square of the difference of two draws of noise is 12² / 255² / 2 = 0.0011, in pixels of [0, 1]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return world(tmp_path_factory.mktemp("walks"))


def test_starts_hold_the_walk_as_it_was(plan):
    found = starts(plan, "action", 6, 4)
    seen = Seen(plan.datasets[0])
    worlds = simulators("walker", seen, found)
    for start, walk in zip(found, worlds, strict=True):
        now = start.record.fields["frame"]
        assert np.abs(walk.walked(range(now, now + 5)) - start.poses).max() <= 1e-6
        assert np.abs(seen.latents(walk.frames(range(now - 3, now + 1))) - np.stack(start.context)).max() < 1e-6
        assert np.abs(seen.latents(walk.frames(range(now + 1, now + 5))) - np.stack(start.frames)).max() < 1e-6
        assert np.abs(walk.moved(start.poses[:-1], start.moves)[:, :2] - start.poses[1:, :2]).max() < 1e-5
        assert start.wording.numbers()["dx"] is not None and start.spacing == 1.0


def test_trajectories_come_round_before_any_gives_a_second_start(plan):
    some, more = starts(plan, "action", 5, 3), starts(plan, "action", 12, 3)
    assert [s.item for s in some] == [s.item for s in more[:5]]
    walks = [s.record.origin.split("@")[0] for s in more]
    whole = len(set(walks))
    assert len(set(walks[:whole])) == whole


def test_a_horizon_that_nothing_has_is_refused_with_the_longest_there_is(plan):
    with pytest.raises(Exception, match="8 the most"):
        starts(plan, "action", 4, 9)


def test_a_model_that_does_as_told_is_right_at_every_horizon(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(_imagined, "imagined", Oracle(plan))
    rows = Rollout(records=8, horizon=5).run(subject(plan), str(tmp_path))
    for k in range(1, 6):
        split = f"horizon:{k}"
        assert values(rows, "rollout.pixel")[split] < GRAIN
        assert values(rows, "rollout.pixel.counterfactual")[split] < 1e-4  # the same frame with the same noise, but for three decimals of text
        assert values(rows, "rollout.pixel.other_action")[split] > 0.02
        assert values(rows, "rollout.latent")[split] < 0.3 * values(rows, "rollout.latent.copy")[split]
        assert values(rows, "rollout.follows")[split] == values(rows, "rollout.follows.counterfactual")[split] == 1
    assert np.allclose(list(values(rows, "rollout.pixel.zero_action").values()), list(values(rows, "rollout.pixel.copy").values()), atol=0.003)


def test_a_model_that_hears_nothing_is_no_better_than_the_present_frame(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(_imagined, "imagined", Oracle(plan, deaf=True))
    rows = Rollout(records=8, horizon=3, shown=0).run(subject(plan), str(tmp_path))
    for k in (1, 2, 3):
        split = f"horizon:{k}"
        mine, other, none = (values(rows, f"rollout.latent{c}")[split] for c in ("", ".other_action", ".zero_action"))
        assert mine == other == none
        assert values(rows, "rollout.pixel")[split] == pytest.approx(values(rows, "rollout.pixel.copy")[split], abs=0.003)
        assert values(rows, "rollout.follows")[split] == 0.5


def test_items_are_what_the_rows_are_means_of(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(_imagined, "imagined", Oracle(plan))
    rows = Rollout(records=4, horizon=2, pixels=False).run(subject(plan), str(tmp_path))
    assert not any("pixel" in r["metric"] or "psnr" in r["metric"] for r in rows)
    for metric in ("rollout.latent", "rollout.latent.copy", "rollout.follows"):
        table = pq.read_table(item_path(str(tmp_path), metric)).to_pylist()
        for split, value in values(rows, metric).items():
            here = [r["value"] for r in table if r["split"] == split]
            assert len(here) == 4 and np.mean(here) == pytest.approx(value)


def test_without_a_simulator_nothing_is_said_of_what_it_would_show(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(_imagined, "imagined", Oracle(plan))
    rows = Rollout(records=3, horizon=2, simulator=None, shown=0).run(subject(plan), str(tmp_path))
    metrics = {r["metric"] for r in rows}
    assert "rollout.follows" in metrics and not any("counterfactual" in m for m in metrics)


def test_a_simulator_that_shows_another_world_is_refused(plan, monkeypatch):
    found = starts(plan, "action", 2, 2)
    from pipelines.world.service_walker import Walker

    now = Walker.now
    monkeypatch.setattr(Walker, "now", lambda self: 255 - now(self))
    with pytest.raises(Exception, match="does not show what the data hold"):
        simulators("walker", Seen(plan.datasets[0]), found)


def test_others_move_otherwise_and_stay_on_the_floor(plan):
    found = starts(plan, "action", 8, 3)
    worlds = simulators("walker", Seen(plan.datasets[0]), found)
    for i, j in enumerate(others_of(found, worlds)):
        poses = [found[i].poses[:1]]
        for move in found[j].moves:
            poses.append(worlds[i].moved(poses[-1], move[None]))
        assert i != j and np.abs(found[i].moves[0] - found[j].moves[0]).max() >= 0.5
        assert worlds[i].inside(np.concatenate(poses)).all()


def test_an_untrained_model_runs_the_same_twice_whatever_the_batch_and_leaves_a_page(plan, tmp_path):
    rows = [
        Rollout(records=3, horizon=2, sampling=Sampling(steps=2), batch=b, shown=2).run(subject(plan), str(tmp_path / str(b))) for b in (64, 64, 2)
    ]
    assert rows[0] == rows[1]
    assert np.allclose([r["value"] for r in rows[0]], [r["value"] for r in rows[2]], rtol=1e-3)
    page = (tmp_path / "64" / "rollouts.html").read_text()
    # per start: four given frames and, of two steps each, the truth, three roll-outs and the simulator's frames
    assert page.count("<img ") == 2 * (4 + 2 * 5) and "<script" not in page
