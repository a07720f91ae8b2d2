"""An IsoFLOP sweep: every arm spends its budget, all share one plan, sizes and rates follow their rules."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipelines.format.document import parse
from pipelines.format.errors import RecipeError
from trainer.ablation import Ablation, arm_runs, plan_paths
from trainer.models.flops import training_flops
from trainer.scaling import Isoflop

RUN = {"model": {"transfusion": {"width": 96, "heads": 4, "layers": 3, "ffn": "shared", "ffn_width": 384, "tie_embeddings": True}}, "batch": 2}
MIX = {"sequence_length": 256, "sources": {"text": {"dataset": "out/text"}, "pairs": {"dataset": "out/pairs"}}}
LADDER = {"widths": [32, 48, 64, 96, 128], "aspect": 32, "head": 16}
MOE = {"ffn": "moe", "experts": {"count": 16, "granularity": 4, "top_k": 4}}
SMALL: dict[str, Any] = {
    "budgets": [1e11, 3e11],
    "share": {"text": 0.5, "pairs": 0.5},
    "sizes": LADDER,
    "shape": {"vocab": 1024, "channels": 48, "patches": 16},
    "families": {"dense": {}, "moe": {"model": MOE, "budgets": [2e11]}},
    "lr": {"lr": 2e-3, "width": 96},
}


def sweep(**changes: Any) -> Isoflop:
    return parse(Isoflop, {**SMALL, **changes})


def test_every_arm_spends_its_budget_by_the_trainers_own_count():
    import torch

    from trainer.models.transfusion import Transfusion

    config = sweep()
    for point in config.points(RUN, MIX).values():
        with torch.device("meta"):
            model = Transfusion.model_validate({**RUN["model"]["transfusion"], **point.model}).build(1024, 48, 16)
        read = point.steps * point.batch * 256 * 0.98
        spent = training_flops(model, round(read / 2), round(read / 2), round(read / 2), round(read * 128))
        assert spent == pytest.approx(point.budget, rel=0.5 / point.steps + 0.001), point.arm
        assert model.parameters_by_use()["active_text"] == point.active
        assert point.tokens_6nd == pytest.approx(point.budget / (6 * point.active))


def test_all_arms_share_one_plan_that_the_longest_run_fits_into_at_any_scale():
    config = sweep()
    points = config.points(RUN, MIX)
    longest = max(p.steps * p.batch * 256 * 0.98 for p in points.values())
    for scale in (1, 0.37):
        arms = config.arms(RUN, MIX, scale)
        assert list(arms) == list(points) and len(arms) == 15
        (tokens,) = {tuple(a["tokens"].items()) for a in arms.values()}
        assert longest < sum(n for _, n in tokens) * scale < 1.03 * longest
        document = {"run": RUN, "mixture": MIX, "scale": scale, "arms": arms, "output": "out"}
        ablation = parse(Ablation, document)
        assert len(set(plan_paths(ablation).values())) == 1
        for item in arm_runs(ablation):
            assert item.run.steps == points[item.arm].steps and item.run.optim.lr == points[item.arm].lr


def test_sizes_rise_within_a_budget_and_budgets_within_a_family():
    points = list(sweep().points(RUN, MIX).values())
    for family, budgets in {"dense": [1e11, 3e11], "moe": [2e11]}.items():
        some = [p for p in points if p.family == family]
        assert sorted({p.budget for p in some}) == budgets
        for budget in budgets:
            sizes = [p for p in some if p.budget == budget]
            assert len(sizes) == 5 and [p.active for p in sizes] == sorted(p.active for p in sizes)
            assert [p.tokens for p in sizes] == sorted((p.tokens for p in sizes), reverse=True)
    assert {p.sparsity for p in points if p.family == "moe"} == {4.0} and {p.sparsity for p in points if p.family == "dense"} == {1.0}


def test_mixtures_of_experts_have_the_active_size_of_their_dense_twins_and_say_their_total():
    points = sweep(budgets=[2e11]).points(RUN, MIX)
    for size in ("l2w32", "l4w128"):
        dense, moe = points[f"dense-2e11-{size}"], points[f"moe-2e11-{size}"]
        assert moe.active == pytest.approx(dense.active, rel=0.05) and moe.total > 1.5 * dense.total


def test_the_paper_ladder_holds_both_published_optima_inside_every_budget():
    budgets = {6e18: (288e6, 685e6), 6e19: (894e6, 1503e6), 3e20: (1598e6, 2215e6), 1e21: (3385e6, 4944e6)}  # language, vision: arXiv 2603.03276
    run = {"model": {"transfusion": {"size": "1.5b", "ffn": "per_modality"}}}
    mixture = {"sequence_length": 4096, "sources": {"text": {}, "pairs": {}}}
    points = parse(Isoflop, {"budgets": list(budgets), "share": SMALL["share"], "near": {}}).points(run, mixture)
    for budget, (language, vision) in budgets.items():
        sizes = [p.active for p in points.values() if p.budget == budget]
        assert len(sizes) >= 5 and min(sizes) < language and max(sizes) > vision


def test_rates_and_batches_follow_the_stated_rules():
    by_width = {p.size: p.lr for p in sweep().points(RUN, MIX).values()}
    assert by_width["l3w96"] == 2e-3 and by_width["l2w48"] == 4e-3 and by_width["l2w32"] == 6e-3
    compute = sweep(budgets=[1e19], families={"dense": {}}, lr={"rule": "compute"}, batch={"rule": "compute"}).points(RUN, MIX)
    assert all(p.lr == pytest.approx(0.3118 * 1e19**-0.125, rel=1e-3) for p in compute.values())
    assert {p.batch for p in compute.values()} == {round(0.2920 * 1e19**0.3271 / 256)}
    assert all(math.isclose(p.lr, 1e-2) for p in sweep(lr={"lr": 5e-2, "rule": "constant"}).points(RUN, MIX).values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"share": {"text": 0.5}}, "add up to 0.5"),
        ({"sizes": ["1m", "10m", "30m", "100m"]}, "4 sizes"),
        ({"sizes": ["1m", "10m", "30m", "100m", "2m"]}, "no size '2m'"),
        ({"sizes": {"widths": [40, 64], "head": 16}}, "width 40 must be a multiple"),
        ({"budget": [1e11]}, "did you mean 'budgets'"),
    ],
)
def test_a_sweep_that_cannot_answer_is_refused(changes, said):
    with pytest.raises(RecipeError, match=said):
        sweep(**changes)


def test_a_share_of_a_source_that_the_mixture_lacks_is_refused():
    with pytest.raises(ValueError, match="no source 'video'"):
        sweep(share={"text": 0.5, "video": 0.5}).arms(RUN, MIX)
