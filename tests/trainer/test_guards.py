"""Guards: they see what is broken and what jumps, let alone what is merely noisy, name the sequence, and come through a resumption unchanged."""

from __future__ import annotations

import json
import math
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import toyplan
from test_train import StopAt, lines

from mixtures.plan import Plan
from pipelines.format.errors import Stopped
from trainer import guards, metrics, parallel, stream
from trainer.guards import Blame, Diverged, Guard, Trouble
from trainer.loop import train
from trainer.run import Guards


def watched(config: Guards, values: list[float], name: str = "text") -> list[Trouble | None]:
    guard = Guard(config)
    return [guard.look({name: x}) for x in values]


def noisy(n: int, seed: int = 0) -> list[float]:
    """A loss that falls from 6 to 2, with noise of 5 %."""
    rng = np.random.default_rng(seed)
    return ((2 + 4 * np.exp(-np.arange(n) / 150)) * (1 + 0.05 * rng.standard_normal(n))).tolist()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toyplan.make(tmp_path_factory.mktemp("toyplan"), tokens=2400, n=150)


def test_noise_and_a_falling_loss_are_no_spikes_in_sixty_thousand_steps() -> None:
    assert not any(any(watched(Guards(), noisy(2000, seed))) for seed in range(20))  # 40 thousand
    heavy = np.exp(0.3 * np.random.default_rng(1).standard_normal(20_000)).tolist()  # gradient norms are log-normal
    assert sum(t is not None for t in watched(Guards(), heavy, "grad_norm")) == 0


def test_a_spike_is_seen_in_either_loss_and_in_the_gradient_and_says_what_it_may_have_been() -> None:
    for name in guards.WATCHED:
        values = [*noisy(400), 40.0]
        *before, last = watched(Guards(spike="stop"), values, name)
        assert not any(before) and last is not None and last.stop and last.figure == name and last.found == 40.0
        past = np.array(values[-129:-1])
        spread = 1.4826 * np.median(abs(past - np.median(past)))
        assert last.allowed == pytest.approx(np.median(past) + 20 * max(spread, 0.02 * np.median(past)))


def test_spikes_do_not_hide_one_another_and_a_change_that_lasts_becomes_normal() -> None:
    quiet = [1.0 + 0.01 * (i % 3) for i in range(128)]
    assert all(watched(Guards(), [*quiet, *[9.0] * 20])[-20:]), "a mean and a deviation would have swallowed the later ones"
    assert watched(Guards(), [*quiet, *[9.0] * 200])[-1] is None


def test_little_history_no_history_and_other_settings() -> None:
    assert watched(Guards(), [1.0] * 31 + [99.0])[-1] is None and watched(Guards(), [1.0] * 32 + [99.0])[-1] is not None
    assert watched(Guards(window=8), [1.0] * 8 + [99.0])[-1] is not None
    assert watched(Guards(spike="off"), [1.0] * 40 + [99.0])[-1] is None
    assert [t.stop for t in watched(Guards(spike="stop", patience=3), [1.0] * 40 + [99.0] * 3)[-3:] if t] == [False, False, True]
    assert watched(Guards(), [1.0] * 40 + [-99.0])[-1] is None, "a loss that falls is no spike"


def test_what_is_no_number_stops_at_once_unless_asked_not_to() -> None:
    for x in (math.nan, math.inf, -math.inf):
        (trouble,) = watched(Guards(), [x], "grad_norm")
        assert trouble is not None and trouble.stop and trouble.kind == "nan"
        assert watched(Guards(nan="off"), [x]) == [None]
    guard = Guard(Guards(nan="off"))
    guard.look({"text": math.nan})
    assert not guard.past["text"], "what is no number is no history"


def test_a_guard_that_is_replayed_goes_on_as_one_that_was_not() -> None:
    rng = np.random.default_rng(3)
    drawn = [dict(zip(guards.WATCHED, rng.lognormal(0, 1.2, 3).tolist(), strict=True)) for _ in range(300)]
    steps = [{k: x for k, x in step.items() if k != "flow" or rng.random() < 0.3} for step in drawn]
    config = Guards(spike="stop", factor=2.0, window=32, patience=3)
    whole = Guard(config)
    told = [whole.look(s) for s in steps]
    assert sum(t is not None for t in told) > 3 and any(t.stop for t in told if t)
    for cut in (1, 40, 150, 299):
        again = Guard(config)
        again.replay([{"step": i, **s} for i, s in enumerate(steps[:cut])])
        assert [again.look(s) for s in steps[cut:]] == told[cut:], cut


def test_a_resumed_run_has_the_history_of_its_metrics_up_to_its_checkpoint(tmp_path: Path) -> None:
    values = noisy(100)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "text": x, "grad_norm": 1.0}) + "\n" for i, x in enumerate(values)))
    where = parallel.World(0, 1, torch.device("cpu"))
    guard = guards.resumed(Guards(), str(tmp_path), 60, where)
    assert list(guard.past["text"]) == values[:60] and not guard.past["flow"]
    assert not guards.resumed(Guards(), str(tmp_path), 0, where).past["text"], "a run that begins anew has none"


def test_blame_falls_on_what_is_no_number_or_else_on_more_error_than_targets_explain() -> None:
    sums, targets = np.ones((3, 2, 2)), np.ones((3, 2, 2))
    sums[2, 1, 0] = 50
    found = Blame([7, 8, 9], sums, targets)
    assert found.worst("text") == ([1], [9]) and found.worst("grad_norm") == ([], [])
    targets[2, 1, 0] = 50  # many targets explain much error
    assert Blame([7, 8, 9], sums, targets).worst("flow") == ([0, 1], [7, 8, 9])
    sums[0, 0, 1] = np.nan
    assert Blame([7, 8, 9], sums, targets).worst("text") == ([0], [7])


def test_an_error_of_a_large_step_is_short_and_ends_in_a_command() -> None:
    blamed = Blame(list(range(512, 1024)), np.ones((512, 1, 2)), np.ones((512, 1, 2)))
    blamed.sums[3, 0, 0] = 9000
    said = guards.error(Trouble("spike", "text", 21.5, 4.0, True), 1, blamed, ["web"], "out/plan")
    assert str(said).splitlines()[0] == "step 1: text is far above where it has been"
    assert said.where == "sequences [515] of the step's 512 to 1023" and said.found == "text 21.5, most of it from sources web"
    assert said.allowed == "up to 4" and "pipelines inspect out/plan --seq 515" in str(said.next) and said.exit == 1


def poison(monkeypatch: pytest.MonkeyPatch, victim: int, source: int, value: float) -> None:
    read = stream.Reader.sequence

    def poisoned(self, seq, split="train"):
        documents = read(self, seq, split)
        for d in documents:
            if seq == victim and d.source == source and len(d.latents):
                d.latents[0, 0] = value
        return documents

    monkeypatch.setattr(stream.Reader, "sequence", poisoned)


def victim_of(plan: str, source: str, after: int) -> tuple[int, int]:
    opened = Plan.open(plan)
    number = opened.sources.index(source)
    return next(i for i in range(after, opened.sequences()) if any(span.source == number for span in opened.row(i).spans)), number


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_a_broken_latent_is_traced_to_its_sequence(plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int | None) -> None:
    victim, clips = victim_of(plan, "clips", 9)
    poison(monkeypatch, victim, clips, math.nan)
    with pytest.raises(Diverged, match=f"step {victim // 4}: the loss is not a number") as caught:
        train(toyplan.run(plan, tmp_path, micro_batch=micro_batch))
    assert caught.value.found == "sources clips" and str(caught.value.where).startswith(f"sequences [{victim}] of the step's")
    assert f"pipelines inspect {plan} --seq {victim}" in str(caught.value.next)
    assert [line["step"] for line in lines(tmp_path)] == list(range(victim // 4)), "the lines before it are there"


def test_an_outlier_stops_or_is_gone_over_as_the_run_says_and_a_resumed_run_judges_alike(
    plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, clips = victim_of(plan, "clips", 4 * 40)
    poison(monkeypatch, victim, clips, 3e4)
    stopping = {"guards": {"spike": "stop"}, "checkpoint_every": 16}
    with pytest.raises(Diverged, match=f"step {victim // 4}: flow is far above") as caught:
        train(toyplan.run(plan, tmp_path / "a", **stopping))
    assert f"[{victim}]" in str(caught.value.where) and "sources clips" in str(caught.value.found)
    for _ in range(2):  # once from the newest checkpoint, where the guard's history is that of the metrics; once stopped on the way
        with pytest.raises(Stopped):
            train(toyplan.run(plan, tmp_path / "b", **stopping), stop=StopAt(18))
    for name in ("a", "b"):
        with pytest.raises(Diverged) as again:
            train(toyplan.run(plan, tmp_path / name, **stopping))
        assert str(again.value) == str(caught.value), name
    said = []
    train(toyplan.run(plan, tmp_path / "a", guards={"spike": "warn"}), log=lambda event, **f: said.append((event, f)))
    spikes = [f for event, f in said if event == "spike"]
    assert spikes[0]["step"] == victim // 4 and spikes[0]["spike"] == "flow" and spikes[0]["flow"] > spikes[0]["spike_above"]
    marked = [line for line in metrics.lines_before(str(tmp_path / "a"), 10_000) if "spike" in line]
    assert [line["step"] for line in marked] == [f["step"] for f in spikes]


def two(rank: int, port: int, plan: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    victim, clips = victim_of(plan, "clips", 9)
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, victim, clips, math.nan)
        try:
            train(toyplan.run(plan, Path(folder, "run")))
        except Diverged as e:
            Path(folder, f"said-{rank}").write_text(str(e))


@pytest.mark.slow
def test_two_ranks_stop_together_with_one_and_the_same_error(plan: str, tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(two, (port, plan, str(tmp_path)), nprocs=2)
    victim, _ = victim_of(plan, "clips", 9)
    first = victim // 4 * 4
    said = [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and f"sequences [{victim}] of the step's {list(range(first, first + 4))}" in said[0]
