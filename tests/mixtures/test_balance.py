"""Rows of alike cost stand side by side, and nothing else about a plan changes."""

from collections import Counter

import numpy as np
import pytest

from mixtures.check import check
from mixtures.plan import Plan, make_plan
from tests.mixtures.sets import dataset, mixture


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    rng, root = np.random.default_rng(3), tmp_path_factory.mktemp("sets")
    texts = [int(n) for n in np.where(rng.random(900) < 0.2, rng.integers(50, 120, 900), rng.integers(2, 12, 900))]
    return {"text": dataset(root / "text", "text", texts, "text"), "video": dataset(root / "video", "video", [8] * 200, "video")}


def rows(path):
    plan = Plan.open(path)
    return [plan.row(i) for i in range(plan.sequences())]


@pytest.mark.parametrize("n", [2, 16, 40, 10_000])
def test_each_run_of_rows_is_ordered_by_cost_and_holds_the_same_rows(sets, tmp_path, n):
    entries = {k: {"dataset": path, "epochs": 1} for k, path in sets.items()}
    before = rows(make_plan(mixture(entries, tmp_path / "a", sequence_length=128)))
    after = rows(make_plan(mixture(entries, tmp_path / f"b{n}", sequence_length=128, balance=n)))
    assert [r.seq for r in after] == list(range(len(before))) and len(before) > 40
    for a in range(0, len(before), n):
        one, two = before[a : a + n], after[a : a + n]
        assert Counter((r.spans, r.length) for r in one) == Counter((r.spans, r.length) for r in two)
        assert [r.cost for r in two] == sorted(r.cost for r in two)
    assert check(str(tmp_path / f"b{n}"), {"deep": True}) == []


def test_ranks_that_work_side_by_side_wait_less_and_the_card_says_how_much(sets, tmp_path):
    entries = {k: {"dataset": path, "epochs": 1} for k, path in sets.items()}
    plan = Plan.open(make_plan(mixture(entries, tmp_path / "p", sequence_length=128, balance=64)))
    said = plan.card["balance"]
    cost = np.array([r.cost for r in rows(plan.path)])
    side_by_side = cost[: len(cost) // 8 * 8].reshape(-1, 8)
    assert said["wait"] == pytest.approx((side_by_side.max(1) / side_by_side.mean(1)).mean(), abs=0.05)
    assert 1 <= said["wait"] < 1 + (said["wait_before"] - 1) / 2


def test_rows_of_two_stages_do_not_change_places(sets, tmp_path):
    stages = [{"until": "35%", "share": {"text": 1}}, {"until": 1, "share": {"text": "20%", "video": "80%"}}]
    entries = {k: {"dataset": path, "max_epochs": 3} for k, path in sets.items()}
    made = rows(make_plan(mixture(entries, tmp_path / "p", total=9000, stages=stages, balance=50)))
    assert [r.stage for r in made] == sorted(r.stage for r in made) and len({r.stage for r in made}) == 2
