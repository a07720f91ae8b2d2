"""Two encoders on two gloo processes: the gradients of one, though one of them sees no image of either kind."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import dualplan
import numpy as np
import torch
import torch.multiprocessing as mp

from mixtures.plan import Plan
from trainer import losses, parallel
from trainer.batch import Batch
from trainer.flow import noised
from trainer.models.load import shape_of
from trainer.models.transfusion import Transfusion
from trainer.run import Flow, Loss
from trainer.stream import Reader

SHAPE = {"layers": 1, "width": 32, "heads": 2, "ffn": "moe", "experts": {"count": 8, "granularity": 8, "top_k": 3}}


def rows_of(plan: Plan, rank: int, world: int) -> Batch:
    """Of two ranks the first has the images, the second words alone."""
    reader = Reader(plan)
    documents = [reader.document(s) for seq in range(24) for s in plan.row(seq).spans]
    rows = [[d] for d in documents if len(d.image_loss)][:6] + [[d] for d in documents if not len(d.image_loss)][:6]
    return reader.batch(rows[rank * len(rows) // world : (rank + 1) * len(rows) // world])


def gradients(where: parallel.World, plan: Plan, bf16: bool = False) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = Transfusion.model_validate(SHAPE).build(**shape_of(plan))
    parallel.place(model, where, 0, bf16)
    parallel.assign(model.latent_out.weight, torch.randn(5, 32, generator=torch.Generator().manual_seed(1)))
    batch = rows_of(plan, where.rank, where.size)
    counts = where.sum(losses.counts(batch, 4).astype(np.float64))
    seen = noised(Flow(), batch, seed=0)
    found = losses.errors(model(batch, seen.z, seen.t), batch, seen, Flow())
    losses.objective(Loss(), found, counts[:, -2].sum(), counts[:, -1].sum()).backward()
    full = lambda grad: (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).detach().clone()
    return {name: full(p.grad) for name, p in model.named_parameters()}


def worker(rank: int, port: int, plan: str, out: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with parallel.world("cpu") as where:
        found = [gradients(where, Plan.open(plan), bf16) for bf16 in (False, True)]
    if rank == 0:
        torch.save(found, out)


def test_sharded_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    plan = dualplan.make(tmp_path, tokens=900)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, (port, plan, str(tmp_path / "two.pt")), nprocs=2)
    with parallel.world("cpu") as where:
        alone = gradients(where, Plan.open(plan))
    two, rounded = torch.load(tmp_path / "two.pt")
    assert set(two) == set(alone) and alone["made_in.weight"].abs().sum() > 0 and alone["latent_in.weight"].abs().sum() > 0
    for name, grad in alone.items():
        assert torch.allclose(grad, two[name], atol=1e-6 + 1e-5 * float(grad.abs().max())), name
    for name in ("latent_in.weight", "made_in.weight", "latent_out.weight", "made_patch"):
        assert torch.cosine_similarity(alone[name].flatten(), rounded[name].flatten(), dim=0) > 0.99, name
