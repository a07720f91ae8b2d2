"""What `stats` counts from a plan's rows, against the plan gone through row by row; and the tree that a person reads."""

import json
import shutil

import numpy as np
import pytest

from mixtures.counted import STRETCHES, count, counted
from mixtures.plan import Plan, make_plan
from pipelines.commands import main
from pipelines.show_plan import bar, big, percent
from tests.mixtures.sets import dataset, mixture

rng = np.random.default_rng(11)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    root = tmp_path_factory.mktemp("counted")
    sets = {
        "prose": dataset(root / "text", "text", [int(n) for n in rng.integers(1, 300, 300)], "text"),
        "pairs": dataset(root / "pairs", "image-text", [(4, int(n)) for n in rng.integers(1, 30, 400)], "pairs"),
        "clips": dataset(root / "clips", "video", [int(n) for n in rng.integers(1, 30, 200)], "clips"),
        "asked": dataset(root / "vqa", "vqa", [(4, (3, 2), (2, 1))] * 150, "asked"),
    }
    entries = {n: {"dataset": d, "max_epochs": 3} for n, d in sets.items()}
    stages = [
        {"until": "75%", "share": {"prose": "60%", "pairs": "20%", "clips": "20%"}},
        {"until": "100%", "share": {"prose": "50%", "asked": "10%", "pairs": "40%"}},
    ]
    return make_plan(mixture(entries, total=12000, stages=stages, held_out={"fraction": "10%"}), str(root / "plan"))


def test_every_figure_is_that_of_the_rows_one_by_one(path):
    plan, found = Plan.open(path), count(path)
    rows = [plan.row(i) for i in range(plan.sequences())]
    for k, stage in enumerate(found["stages"]):
        mine = [r for r in rows if r.stage == k]
        assert stage["sequences"] == len(mine) and stage["padding"] == sum(64 - r.length for r in mine)
        costs = [r.cost / 64 for r in mine]
        assert stage["cost"]["mean"] == pytest.approx(np.mean(costs), rel=1e-5)
        assert stage["cost"]["max"] == pytest.approx(max(costs), abs=2 / 2048)
        assert stage["cost"]["p99"] == pytest.approx(np.quantile(costs, 0.99, method="inverted_cdf"), abs=2 / 2048)
        for i, name in enumerate(plan.sources):
            held = [s.payload for r in mine for s in r.spans if s.source == i]
            assert (stage["sources"][name]["tokens"], stage["sources"][name]["spans"]) == (sum(held), len(held))
            assert abs(stage["sources"][name]["wanted"] - sum(held)) <= 64
    for i, name in enumerate(plan.sources):
        spans = [s for r in rows for s in r.spans if s.source == i]
        goes_on = [s for s in spans if s.start > 0 or (s.first > 0 and s.caption < 0)]
        s = found["sources"][name]
        assert s["sequences"] == sum(any(x.source == i for x in r.spans) for r in rows)
        assert s["lost"] == sum(x.payload for x in goes_on)
        assert (s["cut"], s["drawn"]) == tuple(len({(x.shard, x.row) for x in some}) for some in (goes_on, spans))
    assert found["sources"]["prose"]["cut"] > 0 and found["sources"]["clips"]["lost"] > 0 and found["sources"]["pairs"]["cut"] == 0


def test_the_stretches_of_the_run_add_up_to_the_plan(path):
    plan = Plan.open(path)
    c = counted(plan)
    assert c.over.shape[0] == STRETCHES
    totals = c.over.sum(0)
    assert totals[:-2].tolist() == [plan.card["sources"][n]["tokens"]["all"] for n in plan.sources]
    assert totals[-2] == plan.card["tokens"]["all"] + plan.card["structure"] and totals[-1] == plan.sequences()
    assert c.lengths.sum(1).tolist() == [plan.card["sources"][n]["spans"] for n in plan.sources]
    i = plan.sources.index("asked")
    assert c.over[:700, i].sum() == 0 < c.over[800:, i].sum()


def test_stats_keeps_its_promised_keys_and_prints_each_source_and_stage(path, capfd):
    assert main(["stats", path, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert {"kind", "records", "tokens", "sources", "lineage", "counted"} <= said.keys() and said["kind"] == "plan"
    assert {"records", "tokens", "epochs", "wanted", "taken", "available"} <= said["sources"]["prose"].keys()
    assert main(["stats", path]) == 0
    told = capfd.readouterr().out
    for word in ("├─ asked", "└─ prose", "stage 2: 75.0 % to 100 %", "context lost", "held out, never trained on"):
        assert word in told


def test_a_plan_whose_rows_are_gone_still_says_what_its_card_says(path, tmp_path, capfd):
    shutil.copy(f"{path}/plan.json", tmp_path / "plan.json")
    assert main(["stats", str(tmp_path), "--json"]) == 0
    assert "counted" not in json.loads(capfd.readouterr().out)
    assert main(["stats", str(tmp_path), "--deep"]) != 0


def test_figures_are_read_at_a_glance():
    assert [big(n) for n in (0, 9_999_999, 12_345_678, 2_000_000_000_000)] == ["0", "9 999 999", "12.35 M", "2 T"]
    assert [percent(x) for x in (0, 0.00001, 0.0123, 0.5, 0.9931, 1)] == ["0 %", "< 0.01 %", "1.23 %", "50.0 %", "99.31 %", "100 %"]
    assert bar(1) == "█" * 20 and bar(0) == "" and bar(0.0001) == "▏" and bar(0.5) == "█" * 10
