"""TensorBoard and W&B: the lines of metrics.jsonl, each step once however often the run was cut off; never imported unasked."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import toyplan
from test_train import StopAt

from pipelines.format.errors import InputError, Stopped
from trainer import loggers
from trainer.loop import train
from trainer.run import Logs


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toyplan.make(tmp_path_factory.mktemp("toyplan"), tokens=600, n=40)


def lines(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]


class Service:
    """A stand-in for W&B that keeps what a server would: per run id, the lines by step, and where the run stands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.begun: list[dict[str, Any]] = []
        self.finished = 0
        module = types.ModuleType("wandb")
        module.init, module.Settings = self.init, lambda **settings: settings  # type: ignore[attr-defined]
        module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("wandb", None)
        monkeypatch.setitem(sys.modules, "wandb", module)

    def init(self, **given: Any) -> Any:
        self.begun.append(given)
        kept = self.runs.setdefault(given["id"], [])

        def finish() -> None:
            self.finished += 1

        return types.SimpleNamespace(step=kept[-1][0] + 1 if kept else 0, log=lambda line, step: kept.append((step, line)), finish=finish)


def test_wandb_gets_each_step_once_with_the_figures_of_the_file(plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch)
    run = toyplan.run(plan, tmp_path / "run", checkpoint_every=4, log={"wandb": {"project": "toys", "mode": "offline"}})
    with pytest.raises(Stopped):
        train(run, stop=StopAt(7))
    (tmp_path / "run/checkpoints/step-00000007/complete.json").unlink()  # as if killed on the way: step 4 to 7 are done again
    train(run)
    ((identity, got),) = service.runs.items()
    assert [step for step, _ in got] == [line["step"] for line in lines(tmp_path / "run")]
    for (_, logged), line in zip(got, lines(tmp_path / "run"), strict=True):
        assert logged["loss"] == line["loss"] and "step" not in logged
    assert service.begun[0]["project"] == "toys" and service.begun[0]["resume"] == "allow" and service.finished == 2
    assert identity == json.loads((tmp_path / "run/run.json").read_text())["fingerprint"][:16]


def test_every_thins_out_what_others_get_and_not_the_file(plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch)
    train(toyplan.run(plan, tmp_path, log={"wandb": {"project": "toys"}, "every": 5}, steps=12))
    ((_, got),) = service.runs.items()
    assert [step for step, _ in got] == [0, 5, 10] and len(lines(tmp_path)) == 12


def test_a_run_that_fails_ends_its_loggers_too(plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch)
    with pytest.raises(Stopped):
        train(toyplan.run(plan, tmp_path, log={"wandb": {"project": "toys"}}), stop=StopAt(3))
    ((_, got),) = service.runs.items()
    assert service.finished == 1 and [step for step, _ in got] == [0, 1, 2]


@pytest.mark.parametrize(("key", "package", "asked"), [("tensorboard", "tensorboard", True), ("wandb", "wandb", {"project": "p"})])
def test_an_absent_package_is_named_before_the_first_step(
    plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, package: str, asked: Any
) -> None:
    find = loggers.importlib.util.find_spec
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(InputError, match=f"log.{key} needs a package") as caught:
        train(toyplan.run(plan, tmp_path / "run", log={key: asked}))
    assert f"pip install {package}" in str(caught.value.next) and not (tmp_path / "run").exists()


def test_tensorboard_needs_a_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(InputError, match="folder of this machine"):
        loggers.check(Logs(tensorboard=True), "memory://runs/x")
    loggers.check(Logs(tensorboard="somewhere"), "memory://runs/x")


def test_nothing_is_imported_unasked() -> None:
    code = "import sys, trainer.loop; print([m for m in ('tensorboard', 'wandb', 'torch.utils.tensorboard') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_tensorboard_reads_each_step_once_after_a_kill(plan: str, tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = toyplan.run(plan, tmp_path / "run", checkpoint_every=4, log={"tensorboard": True})
    with pytest.raises(Stopped):
        train(run, stop=StopAt(7))
    (tmp_path / "run/checkpoints/step-00000007/complete.json").unlink()
    train(run)
    events = reading.EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    for key in ("loss", "grad_norm", "tokens/clips"):
        got = [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars(key)]
        assert got == [(line["step"], line[key]) for line in lines(tmp_path / "run")], key
