"""Two and four gloo processes: the gradients of one, the start of one, and runs that move between world sizes and layouts. Gradients, not losses:
AdamW and clipping would hide a wrong scale."""

from __future__ import annotations

import json
import os
import socket
from itertools import product
from pathlib import Path
from typing import Any

import hand
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import toyplan
from test_train import StopAt, lines

from pipelines.format import storage
from pipelines.format.errors import InputError, Stopped
from trainer import checkpoint, losses, parallel
from trainer.batch import Batch
from trainer.checkpoint import full_weights
from trainer.flow import noised
from trainer.loop import train
from trainer.models import experts, load
from trainer.models.transfusion import Transfusion, TransfusionModel
from trainer.run import Flow, Layout, Loss

SHAPE = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "embedding_std": 0.5, "output_skip": True}
MOE = {"ffn": "moe", "experts": {"count": 8, "top_k": 3, "granularity": 8, "balance_weight": 1.0}}
ROWS, EMPTY, TEXT_ONLY = 13, 3, 1  # of each four rows the fourth is empty and the second holds no image: so it is with the ranks of four


def rows_of(rank: int, world: int) -> Batch:
    """A rank's share of the rows: ranks hold unlike numbers of tokens. Of four ranks one has no rows and one no images; of two one no images."""
    rng = np.random.default_rng(0)
    rows: list[list[hand.Document]] = []
    for i in range(ROWS):
        shapes = hand.SHAPES[:2] if i % 4 == TEXT_ONLY else hand.SHAPES
        row = [hand.document(shapes[(i + k) % len(shapes)], rng, h=10 * i + k, condition=1) for k in range(2)]
        rows.append([] if i % 4 == EMPTY else row)
    mine = rows[rank::world]
    return hand.batch([*mine, *([[]] * (-(-ROWS // world) - len(mine)))], length=64)


def built(
    where: parallel.World, bf16: bool = False, recompute: str | int = "none", compiler: str | None = None, **shape: Any
) -> TransfusionModel:
    """The small model, with a flow head that is not zero: zero would leave most gradients zero."""
    with torch.device("meta"):
        model = Transfusion(**{**SHAPE, **shape}).build(hand.VOCAB, hand.WIDTH, hand.PATCHES)
    parallel.place(model, where, 0, bf16, recompute, compiler)
    for name, tensor in parallel.tensors(model).items():
        drawn = torch.Generator().manual_seed(1)
        if name == "latent_out.weight":
            parallel.assign(tensor, torch.randn(tensor.shape, generator=drawn))
        elif name.endswith(".load"):  # as if a step had been made: the balance of experts is that of the step before
            parallel.assign(tensor, torch.rand(tensor.shape, generator=drawn) * 50)
    return model


def gradients(where: parallel.World, accumulate: int, **how: Any) -> dict[str, torch.Tensor]:
    """The gradients of one step over rows_of(all ranks) in `accumulate` micro-batches, whole on every rank; and their norm, as clipping saw it."""
    model = built(where, **how)
    batch = rows_of(where.rank, where.size)
    counts = where.sum(losses.counts(batch, 1).astype(np.float64))
    micro = -(-len(batch.seq) // accumulate)
    starts, chosen = range(0, len(batch.seq), micro), 0.0
    assert len(starts) == accumulate
    for i in starts:
        part = batch.rows(i, min(i + micro, len(batch.seq)))
        seen = noised(Flow(cfg_drop={"caption": 0.5}), part, seed=0)
        parallel.last_micro_batch(model, i + micro >= len(batch.seq))
        out = model(part, seen.z, seen.t, seen.dropped)
        loss = losses.objective(Loss(), losses.errors(out, part, seen, Flow()), counts[0, -2], counts[0, -1])
        if out.routed is not None:
            loss = loss + experts.balance_loss(model, out.routed, counts[:, :3].sum())
            chosen = chosen + out.routed.counts
        loss.backward()
    out = {n: _whole(p.grad) for n, p in model.named_parameters()}
    norm = parallel.clip(model, 0.01)
    clipped = torch.stack([_whole(p.grad).norm() for p in model.parameters()]).norm()
    load = {"chosen": torch.from_numpy(where.sum(chosen.double().numpy()))} if isinstance(chosen, torch.Tensor) else {}
    return {**out, **load, "norm": torch.tensor(norm), "norm after clipping": clipped}


def _whole(grad: Any) -> torch.Tensor:
    assert grad is not None and grad.dtype == torch.float32
    return (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).detach().clone()


def cases(world: int) -> dict[str, tuple[Layout, int, dict[str, Any]]]:
    """What is compared at a world size: layout x accumulation x precision, then feed-forwards and recomputation."""
    layouts = {"fsdp": Layout(), "hsdp": Layout(replicate=2)}  # of two processes hsdp is two whole copies
    out: dict[str, tuple[Layout, int, dict[str, Any]]] = {}
    for (name, layout), accumulate, bf16 in product(layouts.items(), (1, 4), (False, True)):
        if (world, name, accumulate) != (2, "hsdp", 1):
            out[f"{name} x{accumulate} {'bf16' if bf16 else 'fp32'}"] = layout, accumulate, {"bf16": bf16}
    out["fsdp shared ffn"] = Layout(), 4, {"ffn": "shared"}
    out["fsdp mixture of transformers"] = Layout(), 1, {"ffn": "mot"}
    out["fsdp experts"] = Layout(), 4, MOE
    out["hsdp experts recomputed"] = layouts["hsdp"], 4, {**MOE, "recompute": 1}
    out["hsdp experts bf16"] = layouts["hsdp"], 1, {**MOE, "bf16": True}
    out["hsdp all recomputed bf16"] = layouts["hsdp"], 4, {"recompute": "blocks", "bf16": True}
    return out


def worker(rank: int, ports: tuple[int, int], folder: str) -> None:
    """One of four processes. First two of them are a world, then all: starting a process costs more than all it does here."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    for world, port, jobs in ((2, ports[0], (_gradients, _train, _failing)), (4, ports[1], (_gradients, _go_on))):
        if rank < world:
            os.environ |= {"WORLD_SIZE": str(world), "MASTER_PORT": str(port)}
            with parallel.world("cpu"):
                for job in jobs:
                    job(rank, world, folder)


def _gradients(rank: int, world: int, folder: str) -> None:
    result: dict[str, Any] = {}
    for name, (layout, accumulate, how) in cases(world).items():
        with parallel.world("cpu", layout) as where:
            result[name] = gradients(where, accumulate, **how)
    with parallel.world("cpu", Layout(replicate=2)) as where:
        result["start"] = full_weights(built(where))
    if rank == 0:
        torch.save(result, f"{folder}/gradients-{world}.pt")


def _train(rank: int, world: int, folder: str) -> None:
    told = json.loads(Path(folder, "told.json").read_text())
    train(toyplan.run(told["plan"], Path(folder, "two"), ema={"decay": 0.9}))
    for name in told["stopped"]:
        try:
            train(toyplan.run(told["plan"], Path(folder, name), ema={"decay": 0.9}), stop=StopAt(4))
        except Stopped:
            Path(folder, f"{name}-{rank}").touch()


def _failing(rank: int, world: int, folder: str) -> None:
    """The last rank cannot write its piece of the first checkpoint; rank 0 notes what it is told."""
    told, said, publish = json.loads(Path(folder, "told.json").read_text()), [], storage.Building.publish

    def wrapped(building: storage.Building, root: str, name: str) -> str:
        if "step-00000002" in root:
            raise OSError("no space left")
        return publish(building, root, name)

    if rank == world - 1:
        storage.Building.publish = wrapped  # type: ignore[method-assign]
    run = toyplan.run(told["plan"], Path(folder, "failing"), steps=5, checkpoint_every=2)
    train(run, log=lambda event, **fields: said.append([event, {k: str(v) for k, v in fields.items()}]))
    storage.Building.publish = publish  # type: ignore[method-assign]
    Path(folder, f"failing-{rank}.json").write_text(json.dumps(said))


def _go_on(rank: int, world: int, folder: str) -> None:
    """As two copies cut in two: load what the last world left, write it anew elsewhere, and go on a few steps."""
    told = json.loads(Path(folder, "told.json").read_text())
    run = toyplan.run(told["plan"], Path(folder, "two-four-one"), ema={"decay": 0.9}, parallel={"replicate": 2})
    with parallel.world("cpu", run.parallel) as where:
        _copied(run, where, Path(folder, "copy"))
    try:
        train(run, stop=StopAt(5))
    except Stopped:
        Path(folder, f"four-{rank}").touch()


def _copied(run: Any, where: parallel.World, to: Path) -> None:
    from mixtures.plan import Plan
    from trainer.ema import Ema
    from trainer.optim import adamw

    found, _ = checkpoint.newest(run.output)
    assert found is not None
    model = parallel.placed(load.build(run, load.shape_of(Plan.open(run.plan))), where, run)
    optimizer, ema = adamw(run.optim, model), Ema(run.ema, model)
    checkpoint.load(found, model, optimizer, where, ema)
    checkpoint.write(str(to), found.step, checkpoint.state_of(model, optimizer, ema), where, {"fingerprint": "a copy"})


def free_ports() -> tuple[int, int]:
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        return a.getsockname()[1], b.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that several processes did: gradients at two and at four, and a run that went from two to four."""
    folder = tmp_path_factory.mktemp("several")
    plan = toyplan.make(folder, tokens=600, n=40)
    train(toyplan.run(plan, folder / "one", ema={"decay": 0.9}))
    with pytest.raises(Stopped):
        train(toyplan.run(plan, folder / "one-two-one", ema={"decay": 0.9}), stop=StopAt(3))
    (folder / "told.json").write_text(json.dumps({"plan": plan, "stopped": ["one-two-one", "two-four-one"]}))
    mp.spawn(worker, (free_ports(), str(folder)), nprocs=4)
    return folder


@pytest.fixture(scope="module")
def several(folder: Path) -> dict[int, dict[str, dict[str, torch.Tensor]]]:
    return {world: torch.load(folder / f"gradients-{world}.pt") for world in (2, 4)}


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative distance of each gradient from b's."""
    assert a.keys() == b.keys()
    return {n: float((a[n] - b[n]).norm() / b[n].norm()) for n in b}


@pytest.mark.slow
@pytest.mark.parametrize(("world", "case"), [(world, name) for world in (2, 4) for name in cases(world) if "bf16" not in name])
def test_gradients_of_several_processes_are_those_of_one(several: dict, world: int, case: str) -> None:
    how = {k: v for k, v in cases(world)[case][2].items() if k in ("ffn", "experts")}
    one = gradients(parallel.World(0, 1, torch.device("cpu")), accumulate=1, **how)
    assert max(apart(several[world][case], one).values()) <= 1e-5
    assert float(one["norm after clipping"]) == pytest.approx(0.01, rel=1e-4) and float(one["norm"]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("world", "case"), [(world, name) for world in (2, 4) for name in cases(world) if "bf16" in name])
def test_gradients_in_bf16_are_as_near_to_the_truth_as_those_of_one_process(several: dict, world: int, case: str) -> None:
    """A weight's gradient is a product rounded to bf16 (by 2^-9 of itself), here one for each rank and micro-batch, summed in float32, there one for
    all. Roundings of p parts are independent, so their sum is off by about 2^-9 of the root of the parts' squares, no more than one part's
    product where parts do not cancel; a hidden state that falls on the other side of a rounding adds as much. Hence 4 x 2^-9 for each weight
    against the one process; and all in all no further from the float32 gradients than the one process is."""
    how = {k: v for k, v in cases(world)[case][2].items() if k in ("ffn", "experts")}
    exact = gradients(parallel.World(0, 1, torch.device("cpu")), accumulate=1, **how)
    with parallel.world("cpu", alone=True) as where:
        one = gradients(where, accumulate=1, bf16=True, **how)
    found = several[world][case]
    assert max(apart(found, one).values()) <= 4 * 2**-9
    whole = lambda of: torch.cat([g.reshape(-1) for g in of.values()])
    off = lambda of: float((whole(of) - whole(exact)).norm() / whole(exact).norm())
    assert off(one) > 1e-4 and off(found) <= 1.5 * off(one)


@pytest.mark.slow
def test_a_model_starts_the_same_at_any_world_size(several: dict) -> None:
    alone = built(parallel.World(0, 1, torch.device("cpu")))
    for world in several:
        for name, p in alone.named_parameters():
            assert torch.equal(several[world]["start"][name], p.detach()), name


@pytest.mark.slow
def test_a_run_may_move_between_world_sizes_and_layouts(folder: Path) -> None:
    plan = json.loads((folder / "told.json").read_text())["plan"]
    assert all((folder / f"{name}-{rank}").exists() for name in ("one-two-one", "two-four-one") for rank in (0, 1))
    assert all((folder / f"four-{rank}").exists() for rank in range(4))
    for name in ("one-two-one", "two-four-one"):
        train(toyplan.run(plan, folder / name, ema={"decay": 0.9}))
    expected, average = lines(folder / "one"), load.read_weights(str(folder / "one"), ema=True)
    for name in ("two", "one-two-one", "two-four-one"):
        found = lines(folder / name)
        assert [line["tokens"] for line in found] == [line["tokens"] for line in expected], name
        for a, b in zip(found, expected, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5), (name, a["step"])
        for key, value in load.read_weights(str(folder / name), ema=True).items():
            assert torch.allclose(value, average[key], rtol=1e-3, atol=1e-5), (name, key)


@pytest.mark.slow
def test_a_rank_that_cannot_write_is_told_by_all_and_stops_nobody(folder: Path) -> None:
    for rank in (0, 1):
        said = json.loads((folder / f"failing-{rank}.json").read_text())
        failed = [fields for event, fields in said if event == "checkpoint failed"]
        assert [f["step"] for f in failed] == ["2"] and "rank 1: OSError: no space left" in failed[0]["why"]
        assert [fields["step"] for event, fields in said if event == "checkpoint"] == ["4"]
    assert len(lines(folder / "failing")) == 5


@pytest.mark.slow
def test_what_four_processes_read_is_to_the_bit_what_two_wrote(folder: Path) -> None:
    before, after = (checkpoint.at(str(folder / run / "checkpoints/step-00000004")) for run in ("two-four-one", "copy"))
    assert before is not None and after is not None
    kept = checkpoint.shapes(before)
    assert kept == checkpoint.shapes(after) and {n.partition(".")[0] for n in kept} == {"model", "optimizer", "ema"}
    read = []
    for found in (before, after):
        tensors = {name: torch.full(shape, torch.nan) for name, shape in kept.items()}
        checkpoint._fill(found, tensors, parallel.World(0, 1, torch.device("cpu")))
        read.append(tensors)
    assert all(torch.equal(read[0][n], read[1][n]) for n in kept)


def test_a_layout_that_is_not_the_worlds_is_refused() -> None:
    with pytest.raises(InputError, match="does not fit"), parallel.world("cpu", Layout(replicate=2)):
        pass
    assert [parallel._mesh_shape(Layout(replicate=r), 8) for r in (1, 2, 8)] == [(8,), (2, 4), (8, 1)]


@pytest.mark.parametrize("how", [{"recompute": "blocks"}, {"recompute": 1}])
def test_recomputation_changes_no_bit_of_a_gradient_and_keeps_less(how: dict[str, Any]) -> None:
    one = parallel.World(0, 1, torch.device("cpu"))
    plain, again = gradients(one, 1), gradients(one, 1, **how)
    assert all(torch.equal(plain[n], again[n]) for n in plain)
    assert _kept(how) < 0.8 * _kept({})


def _kept(how: dict[str, Any]) -> int:
    """Bytes of activations that a forward pass keeps for the backward one."""
    model, batch, kept = built(parallel.World(0, 1, torch.device("cpu")), **how), rows_of(0, 1), {}
    own = {p.data_ptr() for p in model.parameters()}
    seen = noised(Flow(), batch, seed=0)

    def keep(t: torch.Tensor) -> torch.Tensor:
        if t.data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        losses.errors(model(batch, seen.z, seen.t, seen.dropped), batch, seen, Flow())
    return sum(kept.values())


@pytest.mark.slow
def test_compiled_blocks_give_the_same_gradients_and_are_compiled_once_more_when_lengths_change() -> None:
    """Traced and differentiated as compiled code is, without the minutes of writing C++; sharded, so that compiling meets FSDP too."""
    from torch._dynamo.utils import counters

    batches = [hand.pack(np.random.default_rng(i), rows=1 + i % 3) for i in range(5)]
    one = _many(built(parallel.World(0, 1, torch.device("cpu"))), batches)
    with parallel.world("cpu", alone=True) as where:
        model = built(where, compiler="aot_eager")
        found = _many(model, batches[:2])
        frames = counters["frames"]["ok"]
        found += _many(model, batches[2:])
        assert counters["frames"]["ok"] == frames > 0, "a batch of another shape was compiled anew"
    for a, b in zip(found, one, strict=True):
        assert max(apart(a, b).values()) <= 1e-5


def _many(model: TransfusionModel, batches: list[Batch]) -> list[dict[str, torch.Tensor]]:
    out = []
    for batch in batches:
        seen = noised(Flow(), batch, seed=0)
        losses.objective(Loss(), losses.errors(model(batch, seen.z, seen.t), batch, seen, Flow()), 100, 100).backward()
        out.append({n: _whole(p.grad) for n, p in model.named_parameters()})
        model.zero_grad()
    return out
