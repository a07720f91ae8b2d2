"""Two gloo processes: the gradients of one, the start of one, and runs that move between world sizes. Gradients, not losses: AdamW and clipping
would hide a wrong scale."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import hand
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import toyplan
from test_train import StopAt, lines

from pipelines.format.errors import Stopped
from trainer import losses, parallel
from trainer.batch import Batch
from trainer.checkpoint import full_weights
from trainer.flow import noised
from trainer.loop import train
from trainer.models.transfusion import Transfusion, TransfusionModel
from trainer.run import Flow, Loss

SHAPE = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "embedding_std": 0.5, "output_skip": True}


def rows_of(rank: int, world: int) -> Batch:
    """A rank's share of five rows: ranks hold unlike numbers of tokens, and one of two has an empty row."""
    rng = np.random.default_rng(0)
    rows = [[hand.document(hand.SHAPES[(i + k) % len(hand.SHAPES)], rng, h=10 * i + k, condition=1) for k in range(2)] for i in range(5)]
    mine = rows[rank::world]
    return hand.batch([*mine, *([[]] * (-(-5 // world) - len(mine)))], length=64)


def gradients(where: parallel.World, micro: int) -> dict[str, torch.Tensor]:
    """The gradients of one step over rows_of(all ranks), in micro-batches of `micro` rows, whole on every rank."""
    with torch.device("meta"):
        model = Transfusion(**SHAPE).build(hand.VOCAB, hand.WIDTH, hand.PATCHES)
    parallel.place(model, where, seed=0)
    _stir(model)
    batch = rows_of(where.rank, where.size)
    counts = where.sum(losses.counts(batch, 1).astype(np.float64))
    starts = range(0, len(batch.seq), micro)
    for i in starts:
        part = batch.rows(i, min(i + micro, len(batch.seq)))
        seen = noised(Flow(cfg_drop={"caption": 0.5}), part, seed=0)
        parallel.last_micro_batch(model, i + micro >= len(batch.seq))
        found = losses.errors(model(part, seen.z, seen.t, seen.dropped), part, seen, Flow())
        losses.objective(Loss(), found, counts[0, -2], counts[0, -1]).backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    return {n: (g.full_tensor() if hasattr(g, "full_tensor") else g).detach().clone() for n, g in grads.items()}


def _stir(model: TransfusionModel) -> None:
    """The flow head starts at zero, which would leave most gradients zero."""
    head = model.latent_out.weight
    parallel.assign(head, torch.randn(head.shape, generator=torch.Generator().manual_seed(1)))


def worker(rank: int, world: int, port: int, job: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with parallel.world("cpu") as where:
        if job == "gradients":
            result: dict[str, Any] = {f"micro{m}": gradients(where, m) for m in (1, 3)}
            with torch.device("meta"):
                model = Transfusion(**SHAPE).build(hand.VOCAB, hand.WIDTH, hand.PATCHES)
            result["start"] = full_weights(parallel.place(model, where, seed=0))
            if rank == 0:
                torch.save(result, f"{folder}/result.pt")
        else:
            told = json.loads(Path(folder, "told.json").read_text())
            for name in told["runs"]:
                train(toyplan.run(told["plan"], Path(folder, name)))
            try:
                train(toyplan.run(told["plan"], Path(folder, "two-then-one")), stop=StopAt(6))
            except Stopped:
                Path(folder, f"stopped-{rank}").touch()


def spawn(world: int, job: str, folder: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, (world, port, job, str(folder)), nprocs=world)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("gradients")
    spawn(2, "gradients", folder)
    return torch.load(folder / "result.pt")


@pytest.mark.slow
@pytest.mark.parametrize("micro", [1, 3])
def test_gradients_of_two_processes_are_those_of_one(two: dict[str, Any], micro: int) -> None:
    one = gradients(parallel.World(0, 1, torch.device("cpu")), micro=5)
    for name, expected in one.items():
        difference = (two[f"micro{micro}"][name] - expected).norm() / expected.norm()
        assert float(difference) <= 1e-5, name


@pytest.mark.slow
def test_a_model_starts_the_same_at_any_world_size(two: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = Transfusion(**SHAPE).build(hand.VOCAB, hand.WIDTH, hand.PATCHES)
    alone = parallel.place(model, parallel.World(0, 1, torch.device("cpu")), seed=0)
    for name, p in alone.named_parameters():
        assert torch.equal(two["start"][name], p.detach()), name


@pytest.mark.slow
def test_a_run_may_move_between_world_sizes(tmp_path: Path) -> None:
    plan = toyplan.make(tmp_path, tokens=600, n=40)
    train(toyplan.run(plan, tmp_path / "one"))
    with pytest.raises(Stopped):
        train(toyplan.run(plan, tmp_path / "one-then-two"), stop=StopAt(6))
    (tmp_path / "told.json").write_text(json.dumps({"plan": plan, "runs": ["two", "one-then-two"]}))
    spawn(2, "train", tmp_path)
    assert (tmp_path / "stopped-0").exists() and (tmp_path / "stopped-1").exists()
    train(toyplan.run(plan, tmp_path / "two-then-one"))
    expected = lines(tmp_path / "one")
    for name in ("two", "one-then-two", "two-then-one"):
        found = lines(tmp_path / name)
        assert [line["tokens"] for line in found] == [line["tokens"] for line in expected], name
        for a, b in zip(found, expected, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5), (name, a["step"])
