"""Loss weights by scheme, flow error by time, and runs that are stopped, split or sharded under either."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import hand
import laid
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import toyplan
from pydantic import ValidationError
from test_attention import model

from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from pipelines.format import storage
from pipelines.format.errors import Stopped
from trainer import ledger, losses, parallel
from trainer.batch import Batch
from trainer.check import check
from trainer.flow import noised
from trainer.loop import train
from trainer.losses import SUMS, T_BINS, Weighing
from trainer.run import Flow, Loss, Run
from trainer.stream import Stream

# ---- weights by scheme ---------------------------------------------------------------------------------------------------------------------


def test_fixed_weights_are_the_papers_and_forget_everything() -> None:
    weighing = Weighing(Loss())
    weighing.update(5.0, 0.1)
    assert weighing.weights(10, 1000) == (1.0, 3.0) and weighing.state() == {}


def test_token_share_is_one_mean_over_all_trained_tokens() -> None:
    w = Weighing(Loss(scheme="token_share", text=1.0, flow=2.0)).weights(30, 10)
    text_sum, flow_sum = 60.0, 5.0
    assert w.text * text_sum / 30 + w.flow * flow_sum / 10 == pytest.approx((text_sum + 2 * flow_sum) / 40)
    assert Weighing(Loss(scheme="token_share")).weights(0, 0) == (0.0, 0.0)


def test_centering_is_the_papers_formula_one_step_late() -> None:
    """c = a L_flow + (1 - a) L_text; target = mu target + (1 - mu) c; each weight is target / its loss."""
    loss = Loss(scheme="centering", alpha=0.3, mu=0.9)
    weighing, target = Weighing(loss), None
    assert weighing.weights(9, 9) == (loss.text, loss.flow)
    for text, flow in ((4.0, 0.8), (3.0, 0.9), (2.5, 0.5)):
        weighing.update(text, flow)
        c = 0.3 * flow + 0.7 * text
        target = c if target is None else 0.9 * target + 0.1 * c
        assert weighing.weights(1, 1) == (pytest.approx(target / text), pytest.approx(target / flow))


def test_centering_brings_both_losses_to_one_size() -> None:
    weighing = Weighing(Loss(scheme="centering"))
    for _ in range(5):
        weighing.update(6.0, 0.2)
    w = weighing.weights(1, 1)
    assert w.text * 6.0 == pytest.approx(w.flow * 0.2)


def test_a_step_without_one_kind_of_target_leaves_that_mean_as_it_was() -> None:
    weighing = Weighing(Loss(scheme="centering"))
    weighing.update(4.0, None)
    assert weighing.weights(5, 0) == (1.0, 3.0)  # no flow loss was seen yet
    weighing.update(4.0, 1.0)
    weighing.update(2.0, None)
    w = weighing.weights(5, 5)
    assert w.flow / w.text == pytest.approx(2.0 / 1.0)


def test_a_loss_of_zero_gives_a_finite_weight() -> None:
    weighing = Weighing(Loss(scheme="centering"))
    weighing.update(0.0, 1.0)
    assert np.isfinite(weighing.weights(1, 1)).all()


def test_a_weighing_goes_on_from_its_state_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    one = Weighing(Loss(scheme="centering"))
    for _ in range(7):
        one.update(*rng.uniform(0.1, 5, 2))
    two = Weighing(Loss(scheme="centering"), json.loads(json.dumps(one.state())))
    for _ in range(7):
        means = rng.uniform(0.1, 5, 2)
        one.update(*means)
        two.update(*means)
        assert one.weights(3, 4) == two.weights(3, 4)


def test_schemes_have_names_and_numbers_in_range() -> None:
    with pytest.raises(ValidationError):
        Loss(scheme="uncertainty")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        Loss(scheme="centering", mu=1.0)


# ---- flow error by time --------------------------------------------------------------------------------------------------------------------


def account(batch: Batch, flow: Flow) -> np.ndarray:
    seen = noised(flow, batch, seed=0)
    net = model(width=16, heads=2, kv_heads=1)
    with torch.no_grad():
        return losses.sums(losses.errors(net(batch, seen.z, seen.t, seen.dropped), batch, seen, flow), 3).numpy()


def binned(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Error and count by source and bin."""
    of = dict(zip(SUMS, sums.T, strict=True))
    return tuple(np.stack([of[f"flow_{what}_t{k}"] for k in range(T_BINS)], axis=1) for what in ("sum", "count"))  # type: ignore[return-value]


def test_errors_by_time_are_those_of_the_images_in_each_bin() -> None:
    batch, _ = laid.pack(np.random.default_rng(0))
    flow = Flow(shift=2.0, predict="v")
    seen = noised(flow, batch, seed=0)
    net = model(width=16, heads=2, kv_heads=1)
    with torch.no_grad():
        prediction = net(batch, seen.z, seen.t).flow
    error = (prediction - (batch.latents - seen.noise)).square().mean(dim=1)
    expected, count = np.zeros((3, 10)), np.zeros((3, 10))
    for i, image in enumerate(batch.latent_image.tolist()):
        if batch.image_loss[image]:
            cell = int(batch.source.reshape(-1)[batch.latent_slot[i]]), min(int(float(seen.t[image]) * 10), 9)
            expected[cell] += float(error[i])
            count[cell] += 1
    sums = losses.sums(losses.errors(net(batch, seen.z, seen.t), batch, seen, flow), 3).numpy()
    found = binned(sums)
    assert np.allclose(found[0], expected, rtol=1e-4) and np.array_equal(found[1], count) and (count.sum(axis=0) > 0).sum() > 3


@pytest.mark.parametrize("seed", range(4))
def test_bins_add_up_to_the_flow_loss_and_its_targets(seed: int) -> None:
    batch, _ = laid.pack(np.random.default_rng(seed))
    sums = account(batch, Flow())
    error, count = binned(sums)
    assert np.allclose(error.sum(axis=1), sums[:, SUMS.index("flow_sum")], rtol=1e-12)
    assert np.array_equal(count.sum(axis=1), losses.counts(batch, 3)[:, losses.COUNTS.index("flow_targets")])


def test_bins_do_not_depend_on_packing_nor_on_how_a_batch_is_cut() -> None:
    batch, rows = laid.pack(np.random.default_rng(1))
    docs = [d for row in rows for d in row]
    whole = account(batch, Flow())
    apart = account(hand.batch([[d] for d in docs], max(map(len, docs))), Flow())
    parts = sum(account(batch.rows(i, i + 1), Flow()) for i in range(2))
    for other in (apart, parts):
        assert np.array_equal(binned(whole)[1], binned(other)[1]) and np.allclose(whole, other, rtol=1e-4)


def test_a_time_of_one_falls_in_the_last_bin() -> None:
    batch = hand.batch([[hand.document("b I e", np.random.default_rng(0))]])
    seen = noised(Flow(), batch, seed=0, t=np.array([1.0]))
    net = model()
    found = losses.errors(net(batch, seen.z, seen.t), batch, seen, Flow())
    assert found.flow_bin.tolist() == [9] * hand.PATCHES


# ---- in runs ---------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toyplan.make(tmp_path_factory.mktemp("plan"), tokens=600, n=120)


def lines(run: str | Path) -> list[dict]:
    """What a run says of its losses, weights and tokens; nothing that knows the clock."""
    said = ("step", "loss", "text", "flow", "weight", "tokens", "lr", "grad_norm")
    text = storage.read(storage.join(str(run), "metrics.jsonl")).decode()
    return [{k: v for k, v in json.loads(line).items() if k.partition("/")[0] in said} for line in text.splitlines()]


class StopAt:
    """As an event that is set once `step` steps were asked about."""

    def __init__(self, step: int) -> None:
        self.left = step

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


def centred(plan: str, output: Path, **changes) -> Run:
    loss = {"scheme": "centering", "mu": 0.8, "alpha": 0.3}
    return toyplan.run(plan, output, loss=loss, steps=10, **changes)


def test_a_stopped_run_goes_on_with_the_weights_of_one_that_was_not(plan: str, tmp_path: Path) -> None:
    train(centred(plan, tmp_path / "whole"))
    whole = lines(tmp_path / "whole")
    with pytest.raises(Stopped):
        train(centred(plan, tmp_path / "cut"), stop=StopAt(4))  # type: ignore[arg-type]
    marker = storage.read_json(str(next((tmp_path / "cut/checkpoints").glob("*/complete.json"))))
    assert sorted(marker["carried"]["loss"]) == ["flow", "target", "text"]
    assert float.fromhex(marker["carried"]["loss"]["text"]) == whole[3]["text"]
    train(centred(plan, tmp_path / "cut"))
    assert lines(tmp_path / "cut") == whole
    weights = [(line["weight/text"], line["weight/flow"]) for line in whole]
    assert weights[0] == (1.0, 3.0) and len(set(weights)) > 5
    for before, line in pairwise(whole):
        if "flow" in before:
            assert line["weight/text"] * before["text"] == pytest.approx(line["weight/flow"] * before["flow"])
        assert line["loss"] == pytest.approx(line["weight/text"] * line["text"] + line["weight/flow"] * line.get("flow", 0.0))


def test_micro_batches_do_not_change_a_centred_run(plan: str, tmp_path: Path) -> None:
    train(centred(plan, tmp_path / "whole"))
    train(centred(plan, tmp_path / "parts", micro_batch=1))
    for a, b in zip(lines(tmp_path / "whole")[:4], lines(tmp_path / "parts")[:4], strict=True):
        assert a["weight/flow"] == pytest.approx(b["weight/flow"], rel=1e-3) and a["text"] == pytest.approx(b["text"], rel=1e-3)


def test_a_run_over_clean_copies_consumes_what_its_plan_takes(tmp_path: Path) -> None:
    videos, texts = (toyplan.dataset(str(tmp_path / data), data, 60) for data in ("video", "text"))
    sources = {"clips": {"dataset": videos, "tokens": 600, "history": "clean_copy"}, "words": {"dataset": texts, "tokens": 300}}
    plan = make_plan(Mixture.model_validate({"sequence_length": 64, "sources": sources}), str(tmp_path / "plan"))
    opened, seen = Plan.open(plan), ledger.Seen(2)
    for batch, position in Stream(opened, 4):
        seen.add(batch, position)
    assert ledger.check(opened, seen, 4, 0, position) == []
    card, found = storage.read_json(storage.join(plan, "plan.json")), train(toyplan.run(plan, tmp_path / "run"))
    for name, source in card["sources"].items():
        assert found["sources"][name]["tokens"]["all"] == source["taken"], name
    assert (found["structure"], found["padding"]) == (card["structure"], card["padding"])
    assert check(found["path"], {}) == []
    assert sum(ledger.tokens(opened, step=found["steps"], batch=4).values()) == lines(tmp_path / "run")[-1]["tokens"]


def worker(rank: int, port: int, plan: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with parallel.world("cpu"):
        train(centred(plan, Path(folder, "two")))
        with suppress(Stopped):
            train(centred(plan, Path(folder, "two-then-one")), stop=StopAt(4))  # type: ignore[arg-type]


@pytest.mark.slow
def test_centred_runs_and_errors_by_time_are_those_of_any_number_of_processes(plan: str, tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, (port, plan, str(tmp_path)), nprocs=2)
    train(centred(plan, tmp_path / "one"))
    assert not (tmp_path / "two-then-one/run.json").exists()
    train(centred(plan, tmp_path / "two-then-one"))
    expected = lines(tmp_path / "one")
    assert any(name.startswith("weight/") for name in expected[0])
    for name in ("two", "two-then-one"):
        for a, b in zip(lines(tmp_path / name), expected, strict=True):
            assert a.keys() == b.keys() and all(a[key] == pytest.approx(b[key], rel=1e-4) for key in a if key != "grad_norm"), (name, a["step"])


def test_the_scheme_is_part_of_a_run_s_name_unless_it_is_what_always_held(plan: str, tmp_path: Path) -> None:
    name = lambda **loss: toyplan.run(plan, tmp_path, loss=loss).identity("p")
    assert name() == name(scheme="fixed") == name(alpha=0.5) != name(scheme="token_share") != name(scheme="centering")
    assert name(scheme="centering") != name(scheme="centering", mu=0.9)
    assert toyplan.run(plan, tmp_path, loss={"scheme": "centering"}).recipe()["loss"]["scheme"] == "centering"
