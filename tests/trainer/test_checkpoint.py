"""Checkpoints: whole or invisible whenever the writer dies, written while steps go on, told when they fail, and complete in what they keep."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import toyplan
from test_train import StopAt, lines, same_weights

from pipelines.format import storage
from pipelines.format.errors import InputError, Stopped, StorageError
from trainer import checkpoint, saver
from trainer.loop import train
from trainer.models import load


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toyplan.make(tmp_path_factory.mktemp("toyplan"), tokens=600, n=40)


@pytest.fixture(scope="module")
def whole(plan: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return train(toyplan.run(plan, tmp_path_factory.mktemp("whole"), ema={"decay": 0.9}))


class Publishing:
    """Stands before storage's publishing of checkpoint files: calls are numbered, and `act(number)` may raise or wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
        publish, self.calls = storage.Building.publish, 0

        def wrapped(building: storage.Building, root: str, name: str) -> str:
            if "checkpoints" in root:
                self.calls += 1
                act(self.calls)
            return publish(building, root, name)

        monkeypatch.setattr(storage.Building, "publish", wrapped)


def told() -> tuple[list[tuple[str, dict]], Callable[..., None]]:
    said: list[tuple[str, dict]] = []
    return said, lambda event, **fields: said.append((event, fields))


def fail(numbers: set[int]) -> Callable[[int], None]:
    def act(number: int) -> None:
        if number in numbers:
            raise OSError("the power went out")

    return act


def test_a_save_that_fails_at_any_file_leaves_the_checkpoint_before_it(plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = toyplan.run(plan, tmp_path / "run")
    with pytest.raises(Stopped):
        train(run, stop=StopAt(2))
    for number in (1, 2, 3):  # the piece, .metadata, the marker
        with monkeypatch.context() as m:
            Publishing(m, fail({number}))
            with pytest.raises(StorageError, match="power"):
                train(run, stop=StopAt(2))
        found, passed = checkpoint.newest(str(tmp_path / "run"))
        assert found is not None and found.step == 2 and len(passed) == (number > 1)
    with pytest.raises(Stopped):
        train(run, stop=StopAt(2))
    found, passed = checkpoint.newest(str(tmp_path / "run"))
    assert found is not None and found.step == 4 and passed == []


def test_a_failed_save_is_told_and_the_run_goes_on_to_the_same_numbers(
    whole: dict, plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, say = told()
    with monkeypatch.context() as m:
        Publishing(m, fail({1, 2}))
        train(toyplan.run(plan, tmp_path / "run", checkpoint_every=3, ema={"decay": 0.9}), log=say)
    failed = [f for e, f in said if e == "checkpoint failed"]
    assert [f["step"] for f in failed] == [3, 6] and "power" in failed[0]["why"]
    assert [f["step"] for e, f in said if e == "checkpoint"] == [9, 12, 15]
    assert lines(tmp_path / "run") == lines(whole["path"]) and same_weights(tmp_path / "run", whole["path"])


def test_too_many_failed_saves_in_a_row_end_the_run(plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Publishing(monkeypatch, fail(set(range(1, 100))))
    with pytest.raises(StorageError, match="3 checkpoints in a row"):
        train(toyplan.run(plan, tmp_path / "run", checkpoint_every=2))
    assert len(lines(tmp_path / "run")) == 8


def test_steps_go_on_while_a_checkpoint_is_written_and_it_holds_the_step_it_was_taken_at(
    whole: dict, plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = threading.Event()

    def slow(number: int) -> None:
        if number == 1:
            assert going.wait(20), "no step was made while the checkpoint was written"

    Publishing(monkeypatch, slow)
    steps: list[int] = []

    class Watched(StopAt):
        def is_set(self) -> bool:  # looked at once a step
            steps.append(1)
            if len(steps) == 6:
                going.set()
            return super().is_set()

    run = toyplan.run(plan, tmp_path / "run", checkpoint_every=3, ema={"decay": 0.9}, keep=9)
    said, say = told()
    with pytest.raises(Stopped):
        train(run, log=say, stop=Watched(8))
    steps_saved = [f["step"] for e, f in said if e == "checkpoint"]
    assert steps_saved == [3, 6, 8]
    for step in ("step-00000006", "step-00000008"):
        checkpoint._clear(str(tmp_path / "run/checkpoints" / step))
    train(run)
    assert lines(tmp_path / "run") == lines(whole["path"]) and same_weights(tmp_path / "run", whole["path"])


def test_a_stop_waits_for_the_save_under_way_and_a_failure_does_too(plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(number: int) -> None:
        time.sleep(0.15)

    Publishing(monkeypatch, slow)
    with pytest.raises(Stopped):
        train(toyplan.run(plan, tmp_path / "stopped", checkpoint_every=3), stop=StopAt(4))
    assert sorted(p.name for p in (tmp_path / "stopped/checkpoints").iterdir()) == ["step-00000003", "step-00000004"]

    class Broken(StopAt):
        def is_set(self) -> bool:
            if super().is_set():
                raise ZeroDivisionError
            return False

    with pytest.raises(ZeroDivisionError):
        train(toyplan.run(plan, tmp_path / "broken", checkpoint_every=3), stop=Broken(4))
    found, passed = checkpoint.newest(str(tmp_path / "broken"))
    assert found is not None and found.step == 3 and not passed
    assert not [t for t in threading.enumerate() if t.name.startswith("checkpoint")]


def test_no_generator_is_drawn_from_so_none_is_kept(plan: str, tmp_path: Path) -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    with pytest.raises(Stopped):
        train(toyplan.run(plan, tmp_path / "run", checkpoint_every=2, recompute="blocks"), stop=StopAt(5))
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    train(toyplan.run(plan, tmp_path / "run"))
    train(toyplan.run(plan, tmp_path / "whole"))
    assert lines(tmp_path / "run") == lines(tmp_path / "whole") and same_weights(tmp_path / "run", tmp_path / "whole")
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    train(toyplan.run(plan, tmp_path / "again", steps=3))
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_leftovers_of_a_wider_run_and_unfinished_folders_are_cleared_away(plan: str, tmp_path: Path) -> None:
    run, folder = toyplan.run(plan, tmp_path / "run", checkpoint_every=3, keep=1), tmp_path / "run/checkpoints"
    for step in ("step-00000002", "step-00000003"):
        (folder / step).mkdir(parents=True)
        (folder / step / "__7_0.distcp").write_bytes(b"left over")
    with pytest.raises(Stopped):
        train(run, stop=StopAt(4))
    assert [p.name for p in folder.iterdir()] == ["step-00000004"]
    assert sorted(p.name for p in (folder / "step-00000004").iterdir()) == [".metadata", "__0_0.distcp", "complete.json"]


@pytest.fixture
def stopped(plan: str, tmp_path: Path) -> Iterator[str]:
    with pytest.raises(Stopped):
        train(toyplan.run(plan, tmp_path / "stopped", ema={"decay": 0.5}), stop=StopAt(6))
    yield str(tmp_path / "stopped")


def test_weights_are_taken_from_a_run_a_stopped_run_or_a_checkpoint(stopped: str, plan: str, tmp_path: Path) -> None:
    folder = f"{stopped}/checkpoints/step-00000006"
    kept, average = load.read_weights(folder), load.read_weights(folder, ema=True)
    assert kept.keys() == average.keys() and not all(torch.equal(kept[k], average[k]) for k in kept)
    model = load.load_model(stopped)[0]
    assert all(torch.equal(kept[n], p) for n, p in model.named_parameters())
    model = load.load_model(folder, ema=True)[0]
    assert all(torch.equal(average[n], p) for n, p in model.named_parameters())
    first = {}
    for name, init, more in (("run", stopped, {}), ("folder", folder, {}), ("average", folder, {"init_ema": True})):
        card = train(toyplan.run(plan, tmp_path / name, init=init, steps=2, **more))
        first[name] = lines(tmp_path / name)[0]["loss"]
        assert card["parents"][1]["fingerprint"] == load.start_of(folder).fingerprint
    assert first["run"] == first["folder"] != first["average"]
    other = {"transfusion": {"layers": 1, "width": 32, "heads": 2, "ffn_width": 64, "norm": "layer", "activation": "relu2"}}
    with pytest.raises(InputError, match="another model"):
        train(toyplan.run(plan, tmp_path / "other", init=folder, model=other))
    with pytest.raises(InputError, match="no weights here"):
        train(toyplan.run(plan, tmp_path / "nothing", init=str(tmp_path)))


def test_weights_alone_are_exported_from_a_checkpoint(stopped: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import safetensors.torch

    from trainer import export

    for options, name, ema in (([], "model.safetensors", False), (["--ema"], "ema.safetensors", True)):
        assert export.main([stopped, str(tmp_path / "out"), *options]) == 0
        written, expected = safetensors.torch.load_file(tmp_path / "out" / name), load.read_weights(stopped, ema)
        assert written.keys() == expected.keys() and all(torch.equal(written[k], expected[k]) for k in expected)
    assert export.main([str(tmp_path), str(tmp_path / "out")]) == 2 and "no weights here" in capsys.readouterr().err


def test_a_checkpoint_in_an_object_store_is_read_by_ranges(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = toyplan.run(plan, Path("x")).model_copy(update={"output": "memory://runs/ranges"})
    with pytest.raises(Stopped):
        train(run, stop=StopAt(3))
    found, _ = checkpoint.newest("memory://runs/ranges")
    assert found is not None
    read, asked = storage.read, []
    monkeypatch.setattr(storage, "read", lambda path, start=0, stop=None: asked.append(stop) or read(path, start, stop))
    monkeypatch.setattr("trainer.pieces.READ_AHEAD", 512)
    weights = checkpoint.read_weights(found)
    assert all(torch.isfinite(w).all() for w in weights.values()) and all(stop is not None for stop in asked)


def test_a_copy_is_independent_of_what_it_was_taken_from_and_its_buffers_are_used_again(tmp_path: Path) -> None:
    from trainer.parallel import World

    keeper = saver.Saver(str(tmp_path), World(0, 1, torch.device("cpu")), 2, lambda *a, **k: None)
    live = torch.ones(3)
    first = keeper._staged({"a": live, "b": [live * 2, 5]}, "")
    live += 1
    assert first["a"].tolist() == [1, 1, 1] and first["b"][1] == 5
    second = keeper._staged({"a": live, "b": [live * 2, 5]}, "")
    assert second["a"].tolist() == [2, 2, 2] and second["a"].data_ptr() == first["a"].data_ptr()
