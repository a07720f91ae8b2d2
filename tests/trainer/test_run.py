"""The run document: what YAML may say, what names a run, how fast it learns when, and the command that starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import toyplan

from pipelines.format.document import dump, load, parse
from pipelines.format.errors import RecipeError
from trainer.run import Optim, Run
from trainer.stage import TRAIN

RUNS = [Path(__file__).parents[2] / "trainer/runs"]


@pytest.mark.parametrize("name", ["base", "tiny"])
def test_packaged_runs_read_and_come_back_from_their_resolved_form(name: str) -> None:
    run = load(Run, name, packaged=RUNS)
    assert run.name == name and parse(Run, dump(run)) == run


def test_an_unknown_key_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("plan: p\noutput: o\nmodel:\n  transfusion:\n    laters: 3\n")
    with pytest.raises(RecipeError, match="laters") as caught:
        load(Run, str(path))
    assert "run.yaml:5" in str(caught.value)


def test_a_run_extends_another_and_overrides_win(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("plan: p\noutput: o\nbatch: 8\nmodel: {transfusion: {size: 1m}}\noptim: {lr: 1e-3, clip: 2.0}\n")
    (tmp_path / "more.yaml").write_text("extends: base.yaml\noptim: {lr: 2e-3}\n")
    run = load(Run, str(tmp_path / "more.yaml"), ["seed=7"])
    assert (run.batch, run.optim.lr, run.optim.clip, run.seed, run.name) == (8, 2e-3, 2.0, 7, "more")


def test_null_over_a_base_s_value_is_a_value_where_the_key_takes_one(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("plan: p\noutput: o\ncheckpoint_every: 5\nbatch: 8\nmodel: {transfusion: {size: 1m}}\noptim: {clip: 2.0}\n")
    (tmp_path / "more.yaml").write_text("extends: base.yaml\ncheckpoint_every: null\noptim: {clip: null}\nbatch: null\n")
    run = load(Run, str(tmp_path / "more.yaml"))
    assert (run.checkpoint_every, run.optim.clip, run.batch) == (None, 1.0, 512)
    assert "extends" not in run.recipe()


def test_the_identity_leaves_out_places_and_speed_and_nothing_else() -> None:
    run = load(Run, "tiny", packaged=RUNS)
    same = run.model_copy(update={"output": "elsewhere", "threads": 4, "name": "x", "checkpoint_every": 5, "device": "cuda", "plan": "moved"})
    assert same.identity("p") == run.identity("p")
    for change in ({"seed": 1}, {"batch": 3}, {"steps": 9}, {"optim": Optim(lr=1.0)}):
        assert run.model_copy(update=change).identity("p") != run.identity("p")
    assert run.identity("q") != run.identity("p") != run.identity("p", "w")


def test_the_rate_warms_up_to_its_peak_and_ends_at_its_floor() -> None:
    optim = Optim(lr=1.0, warmup=0.1, final=0.05)
    rates = [optim.rate(s, 100) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[-1] == pytest.approx(0.05)
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert Optim(lr=1.0, warmup=4.0).rate(1, 1000) == pytest.approx(0.5)
    assert Optim(lr=1.0, schedule="constant").rate(99, 100) == 1.0


def test_an_estimate_counts_what_the_run_then_consumes(tmp_path: Path) -> None:
    from trainer.loop import train

    plan = toyplan.make(tmp_path, tokens=600, n=40)
    run = toyplan.run(plan, tmp_path / "run")
    said = TRAIN.plan(run)
    card = train(run)
    assert said.facts["steps"] == card["steps"] and said.facts["tokens"] == card["tokens"]["all"]
    assert said.facts["parameters"] == card["parameters"]["total"]
    assert said.facts["flops"] == pytest.approx(card["flops"], rel=0.15)
    assert "optimiser steps" in said.warnings[0]


@pytest.mark.slow
def test_the_command_trains_prints_its_card_and_ends_2_on_bad_input(tmp_path: Path) -> None:
    plan = toyplan.make(tmp_path, tokens=300, n=30)
    (tmp_path / "run.yaml").write_text(json.dumps(dump(toyplan.run(plan, tmp_path / "run", steps=3))))
    command = [sys.executable, "-m", "trainer", str(tmp_path / "run.yaml")]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 3 and (tmp_path / "run/model.safetensors").exists()
    refused = subprocess.run([*command, "batchh=3"], capture_output=True, text=True, env=environment)
    assert refused.returncode == 2 and "did you mean 'batch'" in refused.stderr and "Traceback" not in refused.stderr


def test_reading_a_run_document_loads_no_torch() -> None:
    code = "import sys, trainer.stage; assert 'torch' not in sys.modules and 'ray' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
