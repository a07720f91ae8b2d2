"""Parallelism, applied from outside: the model knows of one device.

Order: build on the meta device → shard (each block, then the whole) → allocate → initialise by parameter name. So the start is the same at any
world size, and no rank ever holds an unsharded copy of more than one parameter.

Gradients are summed, never averaged: every rank divides its loss by the token count of the whole step beforehand. FSDP's way to say so,
set_gradient_divide_factor(1), is a PREMUL_SUM that gloo lacks, unless set_force_sum_reduction_for_comms(True) comes first; gloo's own AVG has
been a silent sum in some releases. Tests compare gradients: AdamW and clipping would hide a wrong scale.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class World:
    """This process among its peers. size 1 without a process group is the plain single-process case."""

    rank: int
    size: int
    device: torch.device
    group: bool = False

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Element-wise sum over ranks (float64), exact for whole numbers below 2^53."""
        if self.size == 1:
            return values
        tensor = torch.from_numpy(np.ascontiguousarray(values, np.float64)).to(self.device)
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()

    def gather(self, value: Any) -> list[Any]:
        """One small object from each rank, in rank order."""
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value)
        return out


def neighbours(where: World) -> tuple[int, ...]:
    """Ranks of this machine, as torchrun numbers them: LOCAL_WORLD_SIZE in a row, this one the LOCAL_RANK-th."""
    first = where.rank - int(os.environ.get("LOCAL_RANK", 0))
    return tuple(range(first, min(first + int(os.environ.get("LOCAL_WORLD_SIZE", 1)), where.size))) if first >= 0 else (where.rank,)


@contextmanager
def world(device: Device) -> Iterator[World]:
    """Join the process group that torchrun announces (RANK, WORLD_SIZE, LOCAL_RANK); none for one CPU process, one of size 1 on CUDA."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    ours = not dist.is_initialized() and (size > 1 or kind == "cuda")
    if ours:
        backend = "nccl" if kind == "cuda" else "gloo"
        store = dist.HashStore() if size == 1 else None
        dist.init_process_group(backend, rank=rank, world_size=size, store=store)
    try:
        yield World(rank, size, place, dist.is_initialized())
    finally:
        if ours:
            dist.destroy_process_group()


def place(model: nn.Module, where: World, seed: int, bf16: bool = False) -> nn.Module:
    """A model built on the meta device, made real: sharded over the world's ranks when there is a group, allocated, initialised."""
    if where.group:
        _shard(model, where, bf16)
    model.to_empty(device=where.device)
    initialise(model, seed)
    return model


def _shard(model: nn.Module, where: World, bf16: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    # The mesh is named: with CUDA present, FSDP would otherwise pick it for a gloo group.
    mesh = init_device_mesh(where.device.type, (where.size,))
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
