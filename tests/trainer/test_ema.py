"""The moving average of the weights: the formula, its ramp, its place in a run and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toyplan
from test_train import StopAt, lines
from torch import nn

from pipelines.format.errors import InputError, Stopped
from trainer.ema import Ema
from trainer.evaluate._subject import Subject
from trainer.loop import train
from trainer.models.load import read_weights
from trainer.run import Ema as Config


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toyplan.make(tmp_path_factory.mktemp("toyplan"), tokens=600, n=40)


def test_the_average_is_the_recurrence_with_its_ramp() -> None:
    model = nn.Linear(3, 2)
    ema, by_hand = Ema(Config(decay=0.5), model), {n: p.detach().double().clone() for n, p in model.named_parameters()}
    for step in range(1, 30):
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn(p.shape)
        ema.update(step)
        d = min(0.5, (1 + step) / (10 + step))
        by_hand = {n: d * by_hand[n] + (1 - d) * p.detach() for n, p in model.named_parameters()}
    assert all(torch.allclose(ema.weights[n].double(), by_hand[n], atol=1e-6) for n in by_hand)
    assert ema.decay_at(0) == 0.1 and ema.decay_at(8) == 0.5 == ema.decay_at(10**6)


def test_an_average_changes_nothing_of_the_run_it_watches_and_survives_a_stop(plan: str, tmp_path: Path) -> None:
    train(toyplan.run(plan, tmp_path / "without"))
    card = train(toyplan.run(plan, tmp_path / "with", ema={"decay": 0.8}))
    with pytest.raises(Stopped):
        train(toyplan.run(plan, tmp_path / "stopped", ema={"decay": 0.8}), stop=StopAt(5))
    train(toyplan.run(plan, tmp_path / "stopped", ema={"decay": 0.8}))
    assert lines(tmp_path / "without") == lines(tmp_path / "with") == lines(tmp_path / "stopped")
    last, average, resumed = (read_weights(str(tmp_path / n), ema) for n, ema in (("with", False), ("with", True), ("stopped", True)))
    assert average.keys() == last.keys() and all(torch.equal(average[k], resumed[k]) for k in average)
    assert not any(torch.equal(average[k], last[k]) for k in average if average[k].ndim == 2)
    assert [f["path"] for f in card["files"]] == ["model.safetensors", "ema.safetensors"]
    subject = Subject.load(str(tmp_path / "with"), ema=True)
    assert all(torch.equal(p, average[n]) for n, p in subject.model.named_parameters())
    with pytest.raises(InputError, match="no moving average"):
        read_weights(str(tmp_path / "without"), ema=True)


def test_an_average_is_part_of_what_a_run_is_and_old_runs_keep_their_names(plan: str, tmp_path: Path) -> None:
    run = toyplan.run(plan, tmp_path)
    assert run.identity("p") == "9106343218f3f1e90550a207a51a3b3a2f3c16eae2b8a3b3629151d9a4c48b9e"
    assert run.identity("p") != run.model_copy(update={"ema": Config()}).identity("p")
    for faster in ({"recompute": "blocks"}, {"compile": True}, {"parallel": {"replicate": 2}}):
        assert toyplan.run(plan, tmp_path, **faster).identity("p") == run.identity("p")
