"""Parallelism, applied from outside: the model knows of one device.

Order: build on the meta device → compile, recompute (each block's forward) → shard (each block, then the whole) → allocate → initialise by name.
So the start is the same at any world size, and no rank ever holds an unsharded copy of more than one parameter.

    FSDP   one mesh of all ranks: each holds 1/n of every parameter, gathers a block before it is used, and drops it after
    HSDP   replicate x shard: gathers stay within a copy of the model, gradients are reduced in the copy and then summed over copies

Gradients are summed, never averaged: every rank divides its loss by the token count of the whole step beforehand. FSDP's way to say so,
set_gradient_divide_factor(1), is a PREMUL_SUM that gloo lacks, unless set_force_sum_reduction_for_comms(True) comes first; gloo's own AVG has
been a silent sum in some releases. Tests compare gradients: AdamW and clipping would hide a wrong scale.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from pipelines.format.errors import InputError
from trainer.run import Layout, Run

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class World:
    """This process among its peers. size 1 without a process group is the plain single-process case.

    mesh: the ranks as FSDP sees them (1-D), or HSDP (2-D: replicate, shard); None where nothing is sharded. behind: a gloo group of its own for
    what goes on beside training, since two threads must not share one.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None = None
    behind: dist.ProcessGroup | None = None

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Element-wise sum over ranks (float64), exact for whole numbers below 2^53."""
        if self.size == 1:
            return values
        tensor = torch.from_numpy(np.ascontiguousarray(values, np.float64)).to(self.device)
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()

    def gather(self, value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
        """One small object from each rank, in rank order."""
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value, group=group)
        return out


def neighbours(where: World) -> tuple[int, ...]:
    """Ranks of this machine, as torchrun numbers them: LOCAL_WORLD_SIZE in a row, this one the LOCAL_RANK-th."""
    first = where.rank - int(os.environ.get("LOCAL_RANK", 0))
    return tuple(range(first, min(first + int(os.environ.get("LOCAL_WORLD_SIZE", 1)), where.size))) if first >= 0 else (where.rank,)


@contextmanager
def world(device: Device, layout: Layout | None = None, alone: bool = False) -> Iterator[World]:
    """Join the process group that torchrun announces (RANK, WORLD_SIZE, LOCAL_RANK). One process on CUDA is a group of size 1; one on a CPU has
    none, unless `alone` asks for it (mixed precision is the group's). InputError where the layout does not fit the number of ranks.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    kind = device_of(device)
    place = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device("cpu")
    shape = _mesh_shape(layout or Layout(), size)
    if kind == "cuda":
        torch.cuda.set_device(place)
    ours = not dist.is_initialized() and (size > 1 or kind == "cuda" or alone)
    if ours:
        backend = "nccl" if kind == "cuda" else "gloo"
        store = dist.HashStore() if size == 1 else None
        dist.init_process_group(backend, rank=rank, world_size=size, store=store)
    try:
        if not dist.is_initialized():
            yield World(rank, size, place)
        else:
            # The mesh is named: with CUDA present, FSDP would otherwise pick it for a gloo group.
            mesh = dist.init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
            yield World(rank, size, place, mesh, dist.new_group(backend="gloo") if size > 1 else None)
    finally:
        if ours:
            dist.destroy_process_group()


def _mesh_shape(layout: Layout, size: int) -> tuple[int, ...]:
    """(shard,) for FSDP, (replicate, shard) for HSDP."""
    shard = layout.shard or size // layout.replicate
    if layout.replicate * shard != size:
        raise InputError("the layout does not fit the number of processes", where="parallel", found=f"replicate {layout.replicate} x shard {shard}",
                         allowed=f"a product of {size}", next="leave `shard` out to take what there is")  # fmt: skip
    return (shard,) if layout.replicate == 1 else (layout.replicate, shard)


def place(
    model: nn.Module, where: World, seed: int, bf16: bool = False, recompute: str | int = "none", compiler: str | None = None
) -> nn.Module:
    """A model built on the meta device, made real: sharded over the world's mesh when there is one, allocated, initialised.

    recompute: "none", "blocks", or the number of first blocks whose inner activations are not kept. compiler: the back end of torch.compile through
    which each block goes.
    """
    blocks: list[Any] = list(model.blocks)  # type: ignore[arg-type]
    # The first ones: when they are computed again, the activations of those behind them are gone already.
    again = recompute if isinstance(recompute, int) else len(blocks) if recompute == "blocks" else 0
    for i, block in enumerate(blocks):
        if compiler is not None:
            block.forward = _compiled(block.forward, compiler)
        if i < again:
            block.forward = _recomputed(block.forward)
    if where.mesh is not None:
        _shard(model, where.mesh, bf16)
    model.to_empty(device=where.device)
    initialise(model, seed)
    return model


def placed(model: nn.Module, where: World, run: Run) -> nn.Module:
    """`place` as a run asks for it."""
    compiled = where.device.type == "cuda" if run.compile == "auto" else run.compile
    return place(model, where, run.seed, in_bf16(run, where.device.type), run.recompute, "inductor" if compiled else None)


def device_of(said: Device) -> Literal["cpu", "cuda"]:
    """What `device: auto` is here: a GPU where there is one."""
    return said if said != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def in_bf16(run: Run, device: str) -> bool:
    """Whether a run computes in bf16 (weights, moments and sums of gradients stay float32)."""
    return run.precision == "bf16" or (run.precision == "auto" and device == "cuda")


class _Apart:
    """Attention, kept out of a block's graph: it is compiled by itself where that pays (FlexAttention), and new with every batch."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        self._attend = attend

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **more: Any) -> Tensor:
        return self._attend(*args, **more)


def _compiled(forward: Callable[..., Any], compiler: str) -> Callable[..., Any]:
    """A block's forward as compiled code, one for all blocks; lengths become symbols at the second batch."""
    graph = torch.compile(forward, backend=compiler)
    return lambda *args: graph(*(_Apart(a) if callable(a) and not isinstance(a, Tensor) else a for a in args))


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that keeps its inputs alone and runs again in the backward pass. It draws nothing, so no generator's state is kept."""
    from torch.utils.checkpoint import checkpoint

    return functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)


def _shard(model: nn.Module, mesh: DeviceMesh, bf16: bool) -> None:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    # Inputs are not cast: bf16 would round times t to steps of 1/256. The model casts where it multiplies.
    types = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if bf16 else {}
    policy = MixedPrecisionPolicy(**types, cast_forward_inputs=False)
    for module in list(model.modules()):
        if bf16 and getattr(module, "full_precision", False):  # a unit of its own: a policy holds for all of a unit's parameters
            fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def last_micro_batch(model: nn.Module, last: bool) -> None:
    """Reduce gradients over ranks only after the last of a step's micro-batches."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(last)  # type: ignore[operator]


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Fill each parameter with normal numbers of the standard deviation `model.initial` names, from a generator of its own name and seed; buffers
    with zeros."""
    for buffer in model.buffers():
        buffer.zero_()
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        std = model.initial(name, parameter)  # type: ignore[operator]
        if std is None or std == 0:
            parameter.fill_(1.0 if std is None else 0.0)
            continue
        key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little") >> 1
        values = torch.empty(shape).normal_(0.0, std, generator=torch.Generator().manual_seed(key))
        assign(parameter, values)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a model is: its parameters and its persistent buffers (which every rank holds whole), by name."""
    out: dict[str, Tensor] = dict(model.named_parameters())
    for place, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                out[f"{place}.{name}" if place else name] = buffer
    return out


def whole(parts: dict[str, Tensor], where: World) -> dict[str, Tensor]:
    """Sharded tensors put together on rank 0's host, one after another (empty on other ranks). Collective."""
    out = {}
    for name, part in parts.items():
        full = part.full_tensor() if isinstance(part, DTensor) else part
        if where.rank == 0:
            out[name] = full.detach().cpu()
    return out


@torch.no_grad()
def assign(parameter: Tensor, values: Tensor) -> None:
    """Set a parameter, sharded or not, from its full values, which every rank holds."""
    if not isinstance(parameter, DTensor):
        parameter.copy_(values)
        return
    # Each rank takes its own piece: no communication.
    mesh = parameter.device_mesh
    full = DTensor.from_local(values.to(parameter.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    parameter.copy_(full.redistribute(placements=parameter.placements))


def clip(model: nn.Module, limit: float) -> float:
    """Scale gradients to a global norm of at most `limit`; the norm before."""
    total = nn.utils.clip_grad_norm_(model.parameters(), limit, foreach=True)
    return float(total.full_tensor() if isinstance(total, DTensor) else total)
