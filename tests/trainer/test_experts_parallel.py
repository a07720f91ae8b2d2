"""Experts over two gloo processes: gradients, counts and biases of one, an empty rank included, and routers that stay in fp32 under bf16 shards."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import hand
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from test_parallel import rows_of

from trainer import losses, parallel
from trainer.flow import noised
from trainer.models.experts import after_step, balance_loss, layers_of
from trainer.models.transfusion import Transfusion, TransfusionModel
from trainer.run import Flow, Loss

EXPERTS = {"count": 9, "granularity": 8, "top_k": 4, "balance_weight": 0.1}
SHAPE = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "embedding_std": 0.5, "ffn": "moe"}


def made(where: parallel.World, balance: str, bf16: bool = False) -> TransfusionModel:
    with torch.device("meta"):
        model = Transfusion(**SHAPE, experts={**EXPERTS, "balance": balance}).build(hand.VOCAB, hand.WIDTH, hand.PATCHES)
    parallel.place(model, where, seed=0, bf16=bf16)
    head = model.latent_out.weight  # starts at zero, which would leave most gradients zero
    parallel.assign(head, torch.randn(head.shape, generator=torch.Generator().manual_seed(1)))
    return model


def step(where: parallel.World, model: TransfusionModel, micro: int, empty: bool = False) -> np.ndarray:
    """Gradients of one step over five rows, all of them rank 0's when `empty`, in micro-batches; the loads are kept as the loop keeps them."""
    batch = rows_of(where.rank, where.size) if not empty else rows_of(0, 1) if where.rank == 0 else hand.batch([[]] * 5, length=64)
    counts = where.sum(losses.counts(batch, 1).astype(np.float64))
    chosen: Any = 0.0
    for i in range(0, len(batch.seq), micro):
        part = batch.rows(i, min(i + micro, len(batch.seq)))
        seen = noised(Flow(), part, seed=0)
        parallel.last_micro_batch(model, i + micro >= len(batch.seq))
        out = model(part, seen.z, seen.t, seen.dropped)
        found = losses.errors(out, part, seen, Flow())
        loss = losses.objective(Loss(), found, counts[0, 4], counts[0, 5]) + balance_loss(model, out.routed, counts[:, :3].sum())
        loss.backward()
        chosen = chosen + out.routed.counts.double()
    total = where.sum(chosen.numpy())
    after_step(model, torch.from_numpy(total))
    return total


def steps(where: parallel.World, balance: str, micro: int, empty: bool = False) -> dict[str, Any]:
    """Two steps: the second's balance loss knows the first's loads."""
    model = made(where, balance)
    for _ in range(2):
        model.zero_grad()
        total = step(where, model, micro, empty)
    grads = {n: p.grad for n, p in model.named_parameters()}
    whole = {n: (g.full_tensor() if hasattr(g, "full_tensor") else g).detach().clone() for n, g in grads.items()}
    return {"grads": whole, "counts": total, "kept": [(m.load.clone(), m.bias.clone()) for m in layers_of(model)]}


def rounded(where: parallel.World) -> list[str]:
    """Types that routers and experts compute in, of a model sharded in bf16."""
    model, found = made(where, "aux", bf16=True), []
    first = layers_of(model)[0]
    first.router.register_forward_pre_hook(lambda m, args: found.append(f"router {m.weight.dtype}"))
    first.experts.register_forward_pre_hook(lambda m, args: found.append(f"experts {m.up.dtype}"))
    total = step(where, model, micro=5)
    assert total.sum() > 0 and all(torch.isfinite(p.grad.full_tensor()).all() for p in model.parameters())
    return [*found, *(f"gradient {p.grad.dtype}" for n, p in model.named_parameters() if "router" in n)]


def worker(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with parallel.world("cpu") as where:
        result = {
            "aux": steps(where, "aux", micro=1), "bias": steps(where, "bias", micro=3), "empty": steps(where, "aux", micro=5, empty=True),
            "bf16": rounded(where),
        }  # fmt: skip
        torch.save(result, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("experts")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, (2, port, str(folder)), nprocs=2)
    return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["aux", "bias", "empty"])
def test_two_processes_route_balance_and_learn_as_one(two: list[dict[str, Any]], case: str) -> None:
    one = steps(parallel.World(0, 1, torch.device("cpu")), "bias" if case == "bias" else "aux", micro=5)
    for rank in two:
        assert np.array_equal(rank[case]["counts"], one["counts"])
        for found, expected in zip(rank[case]["kept"], one["kept"], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for name, expected in one["grads"].items():
        difference = (two[0][case]["grads"][name] - expected).norm() / expected.norm()
        assert float(difference) <= 1e-5, name
    assert any(bool(load.any()) for load, _ in one["kept"]) and any(bool(bias.any()) for _, bias in one["kept"]) == (case == "bias")


@pytest.mark.slow
def test_routers_stay_in_fp32_where_everything_else_is_bf16(two: list[dict[str, Any]]) -> None:
    assert two[0]["bf16"] == ["router torch.float32", "experts torch.bfloat16", "gradient torch.float32", "gradient torch.float32"]
