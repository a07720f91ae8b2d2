"""Planning against oracles: with the true simulator, or a model that is as good, the method reaches the goal; without one it does not."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from walkplan import Oracle, subject, values, world

from trainer.evaluate import _imagined
from trainer.evaluate._items import item_path
from trainer.evaluate._lpips import LAYERS, Lpips
from trainer.evaluate.planning import Planning
from trainer.generate.recipe import Sampling

SMALL = {"goals": 6, "repeats": 1, "samples": 60}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return world(tmp_path_factory.mktemp("walks"))


def test_with_the_true_simulator_the_goal_is_reached(plan, tmp_path, monkeypatch):
    """120 samples, five rounds: most goals to within half a step of the 8 by 8 floor, where a plan of the prior ends four steps off."""
    monkeypatch.setattr(Planning, "_imagined_cost", lambda self, maker, start, far: lambda plans, round_: np.zeros(len(plans)))
    rows = Planning(goals=12, optimisation_steps=5).run(subject(plan), str(tmp_path))
    (reached,) = values(rows, "planning.position.simulator").values()
    (lost,) = values(rows, "planning.position.random").values()
    ends = [r["value"] for r in pq.read_table(item_path(str(tmp_path), "planning.position.simulator")).to_pylist()]
    turned = [r["value"] for r in pq.read_table(item_path(str(tmp_path), "planning.yaw.simulator")).to_pylist()]
    assert np.median(ends) < 0.25 and np.mean(np.array(ends) < 0.5) >= 0.6 and np.median(turned) < 0.1
    assert reached < 0.5 * lost and lost > 2.5


def test_a_model_that_does_as_told_plans_as_the_simulator_does(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(_imagined, "imagined", Oracle(plan))
    rows = Planning(**SMALL).run(subject(plan), str(tmp_path))
    for metric in ("ate", "rpe", "position", "yaw"):
        mine, true = values(rows, f"planning.{metric}")["held_out"], values(rows, f"planning.{metric}.simulator")["held_out"]
        assert mine == pytest.approx(true, abs=0.1)  # actions are said to three decimals
    assert values(rows, "planning.position")["held_out"] < values(rows, "planning.position.random")["held_out"]


def test_a_model_that_hears_nothing_plans_as_one_that_costs_tell_nothing(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(_imagined, "imagined", Oracle(plan, deaf=True))
    rows = Planning(**SMALL).run(subject(plan), str(tmp_path))
    blind, knowing = values(rows, "planning.position.uninformed")["held_out"], values(rows, "planning.position.simulator")["held_out"]
    assert values(rows, "planning.position")["held_out"] == blind > 1.2 * knowing


@pytest.mark.parametrize("score", ["latent", "pixel"])
def test_scores_agree_where_latents_are_pixels(plan, tmp_path, monkeypatch, score):
    monkeypatch.setattr(_imagined, "imagined", Oracle(plan))
    rows = Planning(goals=3, samples=30, repeats=1, score=score).run(subject(plan), str(tmp_path))
    assert values(rows, "planning.position.simulator")["held_out"] < values(rows, "planning.position.random")["held_out"]


def test_all_samples_of_a_goal_are_asked_together_repeats_with_them(plan, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(_imagined, "imagined", lambda maker, asked: (calls.append(asked), Oracle(plan)(maker, asked))[1])
    Planning(goals=2, samples=10, repeats=3, steps=4, simulator=None).run(subject(plan), str(tmp_path))
    assert [len(c) for c in calls] == [30, 30] and {len(a.actions) for a in calls[0]} == {4} and {len(a.context) for a in calls[0]} == {4}
    assert sorted({a.sample for a in calls[0]}) == [0, 1, 2] and len({a.id for a in calls[0]}) == 10


def test_the_same_run_plans_the_same_and_writes_an_item_a_goal(plan, tmp_path):
    part = Planning(goals=2, samples=6, repeats=2, steps=2, sampling=Sampling(steps=2))
    rows = part.run(subject(plan), str(tmp_path))
    assert rows == part.run(subject(plan), str(tmp_path))
    table = pq.read_table(item_path(str(tmp_path), "planning.ate")).to_pylist()
    assert len(table) == 2 and np.mean([r["value"] for r in table]) == pytest.approx(values(rows, "planning.ate")["held_out"])


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"samples": 4}, {"score": "lpips"}, {"weights": "w"}, {"prior": "mars"}):
        with pytest.raises(ValueError):
            Planning(**wrong)
    assert Planning(prior={"mean": [1, 0, 0], "deviation": [0.1, 0.1, 0.1]})._prior().mean[0] == 1


def weights(folder) -> Lpips:
    """Random weights under the published names, in the two files as they are published."""
    from safetensors.torch import save_file

    torch.manual_seed(5)
    made = Lpips()
    for layer in made.weighed:
        torch.nn.init.uniform_(layer.weight, 0, 1)
    state = made.state_dict()
    save_file({k: v for k, v in state.items() if k.startswith("features")}, folder / "alexnet.safetensors")
    torch.save({f"lin{i}.model.1.weight": state[f"weighed.{i}.weight"] for i in range(5)}, folder / "alex.pth")
    return made


def test_lpips_has_the_published_shape_and_reads_published_names(tmp_path):
    made = weights(tmp_path)
    read = Lpips.load(str(tmp_path))
    assert sum(p.numel() for p in read.features.parameters()) == 2_469_696  # torchvision's alexnet.features
    assert sum(p.numel() for p in read.weighed.parameters()) == 64 + 192 + 384 + 256 + 256
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), read.state_dict().values(), strict=True))
    shapes = [tuple(x.shape[1:]) for x in read._activations(torch.zeros(1, 3, 64, 64))]
    assert shapes == [(64, 15, 15), (192, 7, 7), (384, 3, 3), (256, 3, 3), (256, 3, 3)]  # as AlexNet has them at 64 pixels


def test_lpips_is_the_formula_written_out(tmp_path):
    weights(tmp_path)
    judge = Lpips.load(str(tmp_path))
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 3, 40, 40, 3), np.uint8)
    found = judge.to_one(a, b[0])
    x, y = (torch.from_numpy(p).permute(0, 3, 1, 2).float() / 127.5 - 1 for p in (a, b[:1]))
    wanted = np.zeros(3)
    for layer, (f, g) in enumerate(zip(judge._activations(x), judge._activations(y), strict=True)):
        f, g = (v / (v.norm(dim=1, keepdim=True) + 1e-10) for v in (f, g))
        weigh = judge.weighed[layer].weight.view(1, -1, 1, 1)
        wanted += (((f - g) ** 2) * weigh).sum(dim=1).mean(dim=(1, 2)).detach().numpy()
    assert np.allclose(found, wanted, rtol=1e-5) and len(LAYERS) == 5
    assert judge.to_one(a, a[1])[1] == 0 and (judge.to_one(a, a[1])[[0, 2]] > 0).all()


def test_lpips_names_what_is_missing_and_refuses_what_is_too_small(tmp_path):
    weights(tmp_path)
    with pytest.raises(Exception, match="larger pictures"):
        Lpips.load(str(tmp_path)).to_one(np.zeros((1, 16, 16, 3), np.uint8), np.zeros((16, 16, 3), np.uint8))
    (tmp_path / "alex.pth").unlink()
    with pytest.raises(Exception, match=r"lin0.model.1.weight"):
        Lpips.load(str(tmp_path))
    torch.save({"a": print}, tmp_path / "alex.pth")  # code, which weights_only does not run
    with pytest.raises(Exception, match="cannot be read"):
        Lpips.load(str(tmp_path))


def test_lpips_plans_too(plan, tmp_path, monkeypatch):
    weights(tmp_path)
    monkeypatch.setattr(_imagined, "imagined", Oracle(plan))
    rows = Planning(goals=2, samples=12, repeats=1, score="lpips", weights=str(tmp_path)).run(subject(plan), str(tmp_path))
    assert values(rows, "planning.ate")["held_out"] > 0
