"""A run is the same run however it is launched, and a lost process costs time and no number."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pixelplan
import pytest
import toyplan

from pipelines.engine import open_job
from pipelines.format import storage
from pipelines.format.errors import BudgetError, HeadwaterError, InputError, Stopped, TemporaryError
from trainer import outcome
from trainer.__main__ import main
from trainer.loop import train
from trainer.models.load import read_weights
from trainer.stage import TRAIN


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toyplan.make(tmp_path_factory.mktemp("toyplan"), tokens=1200, n=60)


@pytest.fixture(scope="module")
def alone(plan: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return train(toyplan.run(plan, tmp_path_factory.mktemp("alone"), steps=8))


def losses(root: Any) -> list[float]:
    return [json.loads(line)["loss"] for line in storage.read(storage.join(str(root), "metrics.jsonl")).splitlines()]


def close(a: Any, b: Any) -> bool:
    """As two ways to add the same numbers in float32 are."""
    mine, theirs = losses(a), losses(b)
    return len(mine) == len(theirs) and all(x == pytest.approx(y, rel=1e-4) for x, y in zip(mine, theirs, strict=True))


def launched(run: Any, **keys: Any) -> tuple[str, list[str]]:
    """The stage as a command would run it; (folder, lines of the log)."""
    log = Path(run.output).parent / f"{Path(run.output).name}.log"
    with open_job(run.engine, log_path=str(log), **keys) as job:
        path = TRAIN.run(run, job)
    return path, [line.get("line", line["event"]) for line in map(json.loads, log.read_text().splitlines())]


def mine() -> dict[int, str]:
    """pid -> command line of every process that this one started, directly or not."""
    parent, line = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            line[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    found: set[int] = set()
    while more := {pid for pid, above in parent.items() if pid not in found and (above in found or above == os.getpid())}:
        found |= more
    return {pid: line.get(pid, "") for pid in found}


def kill_one(root: Path, named: str) -> threading.Thread:
    """Kill the newest of the processes that train, once the run has a checkpoint."""

    def watch() -> None:
        until = time.monotonic() + 90
        while time.monotonic() < until and not list(root.glob("checkpoints/*/complete.json")):
            time.sleep(0.01)
        chosen = [pid for pid, line in mine().items() if named in line and "torch.distributed.run" not in line]
        os.kill(max(chosen), signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_two_processes_here_train_what_one_does_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
    """By latents that both make while training, against one process that reads them."""
    plan = pixelplan.plan(pixelplan.curated(tmp_path, n=20), "f32", tokens=700, kinds=("image-text", "video"), storage="f32")
    alone = train(pixelplan.run(plan, tmp_path / "alone", steps=6))
    run = pixelplan.run(plan, tmp_path / "run", latents="encode", processes=2, steps=6, checkpoint_every=2, retries=2)
    killer = kill_one(tmp_path / "run", "-m trainer")
    path, said = launched(run)
    killer.join(5)
    assert close(path, alone["path"])
    assert "a process was lost" in said and any(line.startswith("resumed step=") for line in said)
    assert not (tmp_path / "run" / outcome.NAME).exists()


class Fake:
    """A job whose launches end as a list says; a launch may leave an error, as a process does."""

    def __init__(self, *ends: Any) -> None:
        self.ends, self.stop, self.said, self.asked = list(ends), threading.Event(), [], []
        self.gpus = 0.0

    def launch(self, argv: list[str], processes: int = 1, where: str = "local", env: Any = None, **more: Any) -> int:
        self.asked.append((argv, processes, where, more))
        end = self.ends.pop(0)
        if isinstance(end, HeadwaterError):
            storage.replace(env[outcome.VARIABLE], json.dumps(end.as_dict()).encode())
            return 1
        return int(end)

    def log(self, event: str, **fields: Any) -> None:
        self.said.append(event)


def test_a_lost_process_is_tried_again_and_an_error_of_ours_is_not(plan: str, tmp_path: Path) -> None:
    run = toyplan.run(plan, tmp_path / "run", processes=2, retries=2)
    job = Fake(1, TemporaryError("the store is away"), 0)
    assert TRAIN.run(run, job) == run.output and job.said == ["a process was lost"] * 2
    job = Fake(BudgetError("the plan is empty", where="plan", next="plan again"), 0)
    with pytest.raises(BudgetError, match="the plan is empty") as caught:
        TRAIN.run(run, job)
    assert caught.value.exit == 3 and caught.value.next == "plan again" and job.ends == [0]
    with pytest.raises(HeadwaterError, match="status 1"):
        TRAIN.run(run, Fake(1, 1, 1))
    assert not storage.exists(outcome.place(run.output))


def test_what_a_process_gets_is_the_whole_document_and_reads_back(plan: str, tmp_path: Path) -> None:
    from trainer.__main__ import _document

    run = toyplan.run(plan, tmp_path / "run", processes=2, engine="ray", nodes=3, resources={"cpus": 2})
    job = Fake(0)
    TRAIN.run(run, job)
    (argv, processes, where, each), = job.asked
    assert _document(argv[2:]) == run and (processes, where, each) == (6, "ray", {"cpus": 2, "gpus": 0.0})
    with pytest.raises(InputError, match="several machines"):
        TRAIN.run(run.model_copy(update={"engine": "local"}), Fake(0))


def test_where_and_in_how_many_processes_is_no_part_of_a_run_s_identity(plan: str, tmp_path: Path) -> None:
    run = toyplan.run(plan, tmp_path / "run")
    more = toyplan.run(plan, tmp_path / "run", processes=8, nodes=2, retries=3, engine="ray", resources={"cpus": 4})
    assert run.identity("p") == more.identity("p")


def test_the_command_takes_a_document_in_place_of_a_file_and_leaves_what_stopped_it(
    plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv(outcome.VARIABLE, outcome.place(str(tmp_path / "run")))
    text = json.dumps(toyplan.run(str(tmp_path / "nowhere"), tmp_path / "run").recipe())
    assert main([text]) == 2
    error = outcome.take(str(tmp_path / "run"))
    assert error is not None and error.exit == 2 and "no artifact here" in error.what
    lines: list[str] = []
    assert main([json.dumps(toyplan.run(plan, tmp_path / "run").recipe()), "steps=2"], tell=lines.append) == 0
    assert any(line.startswith("step ") for line in lines) and capsys.readouterr().out == ""
    stop = threading.Event()
    stop.set()
    assert main([json.dumps(toyplan.run(plan, tmp_path / "other").recipe())], stop, lines.append) == 143
    assert outcome.take(str(tmp_path / "run")) is None  # being stopped is no error


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_of_ray_train_one_of_them_killed_train_what_one_process_does(ray_session: None, plan: str, alone: dict, tmp_path: Path) -> None:
    run = toyplan.run(plan, tmp_path / "run", processes=2, steps=8, engine="ray", checkpoint_every=2, retries=1)
    killer = kill_one(tmp_path / "run", "RayTrainWorker")
    path, said = launched(run)
    killer.join(5)
    assert close(path, alone["path"])
    assert "a process was lost" in said and any(line.startswith("resumed step=") for line in said)
    card = storage.read_json(storage.join(path, "run.json"))
    assert card["tokens"] == alone["tokens"] and card["fingerprint"] == alone["fingerprint"]
    mine, theirs = read_weights(path), read_weights(alone["path"])
    assert all(mine[name].allclose(theirs[name], rtol=1e-3, atol=1e-4) for name in theirs)


@pytest.mark.ray
@pytest.mark.slow
def test_a_stop_reaches_the_workers_of_ray_train_and_leaves_a_checkpoint(ray_session: None, plan: str, tmp_path: Path) -> None:
    run = toyplan.run(plan, tmp_path / "run", engine="ray", checkpoint_every=2)

    def watch(stop: threading.Event) -> None:
        while not list((tmp_path / "run").glob("checkpoints/*/complete.json")):
            time.sleep(0.01)
        stop.set()

    with open_job("ray") as job:
        threading.Thread(target=watch, args=(job.stop,), daemon=True).start()
        with pytest.raises(Stopped):
            TRAIN.run(run, job)
    assert list((tmp_path / "run").glob("checkpoints/*/complete.json")) and not (tmp_path / "run/run.json").exists()
