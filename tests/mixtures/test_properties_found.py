"""Properties of plans that random ones broke once, each with its smallest case."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixtures.plan import Plan, make_plan
from pipelines.format.errors import BudgetError
from tests.mixtures.sets import dataset, mixture
from tests.mixtures.worlds import Rows


def plan_of(path: Path, sources: dict[str, dict[str, Any]], **keys: Any) -> Plan:
    return Plan.open(make_plan(mixture(sources, path, **keys)))


def test_the_order_of_lines_decides_nothing_where_two_remainders_are_equal(tmp_path):
    sources = {k: {"dataset": dataset(tmp_path / k, "text", [5, 6], k), "epochs": 0.5} for k in ("a", "b")}  # 5.5 tokens each
    plans = [plan_of(tmp_path / str(i), dict(order)) for i, order in enumerate((sources.items(), reversed(sources.items())))]
    assert plans[0].card["fingerprint"] == plans[1].card["fingerprint"]
    assert [p.card["sources"]["a"]["wanted"] for p in plans] == [6, 6]
    assert plans[0].card["files"] == plans[1].card["files"]


def test_the_number_of_passes_that_a_refusal_names_is_enough_where_passes_differ(tmp_path):
    sizes = [(4, *sizes) for sizes in np.random.default_rng(0).integers(0, 30, (20, 3)).tolist()]  # captions are drawn anew in each pass
    data = dataset(tmp_path / "pairs", "image-text", sizes, "pairs")
    for seed in range(8):
        for tokens in range(900, 1100, 20):
            source = {"dataset": data, "tokens": tokens}
            with pytest.raises(BudgetError) as e:
                plan_of(tmp_path / "refused", {"x": source}, seed=seed)
            named = re.search(r"max_epochs=(\d+)", str(e.value.next))
            assert named
            plan_of(tmp_path / f"{seed}-{tokens}", {"x": {**source, "max_epochs": int(named[1])}}, seed=seed)


def test_no_unit_is_carried_over_more_than_a_few_packing_windows(tmp_path):
    lengths = np.random.default_rng(1).integers(5, 40, 6000).tolist()
    plan = plan_of(tmp_path / "p", {"x": {"dataset": dataset(tmp_path / "d", "text", lengths, "d"), "epochs": 3, "max_epochs": 3}})
    mine, window = Rows(plan).of(0), plan.sequences() / 32
    for epoch in range(2):
        end, begin = mine["at"][mine["epoch"] == epoch].max(), mine["at"][mine["epoch"] == epoch + 1].min()
        assert end - begin <= 4 * window
