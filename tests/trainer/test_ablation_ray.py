"""An ablation on Ray gives the results of one in process, to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.engine import open_job
from tests.trainer.asked import HeldOut
from tests.trainer.test_ablation import ARMS, Job, made
from trainer.ablate_stage import ABLATE

TWO = {"few": ARMS["few"], "with_text": ARMS["with_text"]}


@pytest.mark.ray
def test_arm_runs_on_ray_leave_the_results_of_arm_runs_here(tmp_path):
    HeldOut(str(tmp_path), 60)
    here = ABLATE.run(made(str(tmp_path), arms=TWO, seeds=[0], output=str(tmp_path / "here")), Job())
    there = made(str(tmp_path), arms=TWO, seeds=[0], output=str(tmp_path / "there"), engine="ray", resources={"cpus": 1})
    with open_job("ray", log_path=str(tmp_path / "log.jsonl")) as job:
        ABLATE.run(there, job)
    assert Path(here, "results.parquet").read_bytes() == (tmp_path / "there/results.parquet").read_bytes()
    said = (tmp_path / "log.jsonl").read_text()
    assert said.count('"event": "arm"') == 2
