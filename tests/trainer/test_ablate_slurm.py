"""Submitting an ablation to SLURM: once, whatever happens in between. sbatch and squeue are stand-ins on PATH that write down what they are asked."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from pipelines.format.errors import HeadwaterError, RecipeError, TemporaryError
from tests.trainer.test_ablation import ARMS, made
from trainer import ablate_launch
from trainer.ablation import Ablation, arm_runs

TWO = {"few": ARMS["few"], "with_text": ARMS["with_text"]}


class Cluster:
    """A folder of programs on PATH."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.bin = root, root / "bin"
        self.bin.mkdir()
        monkeypatch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
        self.offers("sbatch", 'n=$(grep -c sbatch "$LOG"); echo $((76 + n))')

    def offers(self, name: str, does: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/bash\nLOG={self.root}/asked\necho "{name} $@" >> "$LOG"\n{does}\n')
        path.chmod(0o755)

    def asked(self, name: str) -> list[str]:
        path = self.root / "asked"
        return [line for line in path.read_text().splitlines() if line.startswith(name)] if path.exists() else []

    @property
    def note(self) -> Path:
        return self.root / "a/jobs/submitted.json"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    return Cluster(tmp_path, monkeypatch)


def ask(cluster: Cluster, **keys) -> None:
    config: Ablation = made(str(cluster.root), arms=TWO, seeds=[0], output=str(cluster.root / "a"), slurm={"submit": True, **keys})
    ablate_launch.train_all(config, None, {}, arm_runs(config))


def submitted(cluster: Cluster, **keys) -> None:
    with pytest.raises(TemporaryError, match="2 arm-runs are submitted as job"):
        ask(cluster, **keys)


def test_the_same_command_does_not_submit_what_is_already_waiting_or_running(cluster):
    cluster.offers("squeue", "echo '  77_[0-1] cpu toy me PD'")
    submitted(cluster)
    scripts = (cluster.root / "a/jobs/arms.sbatch").stat().st_mtime_ns
    for _ in range(2):
        with pytest.raises(TemporaryError, match="2 arm-runs are left, and job 77 is alive") as told:
            ask(cluster)
        assert "submitted as" not in str(told.value) and "slurm.submit=again" in str(told.value)
    assert cluster.asked("squeue") == ["squeue -h -j 77"] * 2 and len(cluster.asked("sbatch")) == 2
    assert (cluster.root / "a/jobs/arms.sbatch").stat().st_mtime_ns == scripts  # nothing that the job will read has changed


@pytest.mark.parametrize("gone", ["true", "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", "echo CLUSTER: big"])
def test_what_a_job_left_undone_is_submitted_when_the_job_is_gone(cluster, gone):
    submitted(cluster)
    cluster.offers("squeue", gone)
    submitted(cluster)
    assert json.loads(cluster.note.read_text())["arms"] == "79"
    assert [line.split()[-1].rpartition("/")[2] for line in cluster.asked("sbatch")] == ["arms.sbatch", "report.sbatch"] * 2


@pytest.mark.parametrize("silent", [None, "echo Unable to contact slurm controller >&2; exit 1", "exit 3", "exec sleep 30"])
def test_where_squeue_cannot_say_nothing_is_submitted_and_the_error_says_how_to_go_on(cluster, silent, monkeypatch):
    monkeypatch.setattr(ablate_launch, "SQUEUE_SECONDS", 0.5)
    submitted(cluster)
    if silent is not None:
        cluster.offers("squeue", silent)
    with pytest.raises(HeadwaterError, match="job 77, and nobody says whether it is alive") as told:
        ask(cluster)
    assert not isinstance(told.value, TemporaryError) and "slurm.submit=again" in str(told.value) and str(cluster.note) in str(told.value)
    assert len(cluster.asked("sbatch")) == 2
    submitted(cluster, submit="again")
    cluster.note.unlink()
    submitted(cluster)
    assert len(cluster.asked("sbatch")) == 6


def test_a_job_of_one_of_several_clusters_is_asked_for_there(cluster):
    cluster.offers("sbatch", 'echo "77;big"')
    cluster.offers("squeue", "echo CLUSTER: big; echo 77_0")
    submitted(cluster)
    with pytest.raises(TemporaryError, match="job 77 is alive"):
        ask(cluster)
    assert cluster.asked("squeue") == ["squeue -h -j 77 -M big"] and "--clusters=big --dependency=afterok:77" in cluster.asked("sbatch")[1]


def test_a_job_that_was_not_taken_is_not_remembered_and_arms_that_were_are_though_their_report_was_not(cluster):
    cluster.offers("sbatch", "echo no such partition >&2; exit 1")
    with pytest.raises(HeadwaterError, match="no such partition"):
        ask(cluster)
    assert not cluster.note.exists()
    cluster.offers("sbatch", 'case "$*" in *report*) exit 1;; esac; echo 77')
    cluster.offers("squeue", "echo 77_0")
    with pytest.raises(HeadwaterError, match="sbatch did not take the job"):
        ask(cluster)
    with pytest.raises(TemporaryError, match="job 77 is alive"):
        ask(cluster)


def test_a_command_that_ended_while_sbatch_was_asked_leaves_a_question_not_a_second_job(cluster, monkeypatch):
    real = subprocess.run

    def ended(arguments, **keys):
        real(arguments, **keys)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", ended)
    with pytest.raises(KeyboardInterrupt):
        ask(cluster)
    monkeypatch.setattr(subprocess, "run", real)
    with pytest.raises(HeadwaterError, match="ended before sbatch answered") as told:
        ask(cluster)
    assert len(cluster.asked("sbatch")) == 1 and "slurm.submit=again" in str(told.value)


def test_writing_the_scripts_asks_nobody_and_submit_is_yes_no_or_again(cluster):
    submitted(cluster)
    with pytest.raises(TemporaryError, match="scripts for 2 arm-runs are written"):
        ask(cluster, submit=False)
    assert len(cluster.asked("sbatch")) == 2 and not cluster.asked("squeue")
    with pytest.raises(RecipeError, match="submit"):
        ask(cluster, submit="twice")
