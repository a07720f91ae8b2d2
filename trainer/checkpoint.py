"""Checkpoints: complete or invisible, readable at any world size and layout.

    checkpoints/step-00001200/.metadata, __<rank>_<part>.distcp     torch.distributed.checkpoint: every rank writes its own pieces
    checkpoints/step-00001200/complete.json     written last: {step, fingerprint, recipe, shape, consumed, carried, files: [{path, bytes, sha256}]}

A folder without its marker, or whose files are not of the sizes it says, is not a checkpoint; it is named and passed over. What is kept: weights,
buffers, optimizer, moving average, and in the marker the data position (the step, no more), the account, and what else is carried from step to
step. No generator state exists: every draw is keyed. `saver.Saver` writes them while training goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict

from pipelines.format import storage
from pipelines.format.document import canon
from pipelines.format.errors import HeadwaterError, InputError, StorageError, VerifyError
from trainer.ema import Ema
from trainer.parallel import World, tensors
from trainer.pieces import Reader, Writer, digest, quiet

FOLDER, MARKER = "checkpoints", "complete.json"
FAILURES = (Exception, CheckpointException)  # the latter is torch's, and no Exception


class Checkpoint(NamedTuple):
    """A complete checkpoint: its folder and what its marker says."""

    path: str
    marker: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps done: the next step to run."""
        return int(self.marker["step"])


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None = None) -> dict[str, Any]:
    """All tensors of a checkpoint, as they lie on this rank (no copy)."""
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, **({} if ema is None else {"ema": ema.weights})}


def write(root: str, step: int, state: dict[str, Any], where: World, facts: dict[str, Any]) -> str:
    """Write the checkpoint of `step` steps done, of tensors on the host. `facts` go into the marker. Collective, over `where.behind` alone;
    when one rank fails, all raise."""
    folder = storage.join(root, FOLDER, f"step-{step:08d}")
    _agreed(where, lambda: _clear(folder) if where.rank == 0 else None)
    pieces = Writer(folder, root)
    with quiet():
        dcp.save(state, storage_writer=pieces, process_group=where.behind, no_dist=where.size == 1)
    files = [entry for part in where.gather(pieces.files, where.behind) for entry in part]
    marker = canon({**facts, "step": step, "files": sorted(files, key=lambda f: f["path"])})
    # Nobody takes the checkpoint for written before the marker stands.
    _agreed(where, lambda: storage.replace(storage.join(folder, MARKER), marker, scratch=root) if where.rank == 0 else None)
    return folder


def _agreed(where: World, act: Callable[[], Any]) -> None:
    """Act on every rank; when one could not, none goes on."""
    failed: BaseException | None = None
    try:
        act()
    except Exception as e:
        failed = e
    told = next((said for said in where.gather(None if failed is None else f"{type(failed).__name__}: {failed}", where.behind) if said), None)
    if failed is not None:
        raise failed
    if told is not None:
        raise StorageError("another rank could not write", found=told)


def _clear(folder: str) -> None:
    """Leftovers of a save that broke off, or of a run that was rewound: the marker first, since it must not vouch for new pieces."""
    storage.delete(storage.join(folder, MARKER))
    storage.delete_tree(folder)


def newest(root: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint of a run, and the folders passed over because they are not complete."""
    passed: list[str] = []
    for step, names in sorted(_steps(root).items(), reverse=True):
        path = storage.join(root, FOLDER, step)
        found = at(path) if MARKER in names else None
        if found is not None:
            return found, passed
        passed.append(path)
    return None, passed


def at(path: str) -> Checkpoint | None:
    """The checkpoint in a folder, if it is complete."""
    place = storage.join(path, MARKER)
    if not storage.exists(place):
        return None
    marker = storage.read_json(place)
    whole = all(_size(path, f["path"]) == f["bytes"] for f in marker["files"])
    return Checkpoint(path, marker) if whole else None


def _steps(root: str) -> dict[str, set[str]]:
    """Names of the files in each step's folder, complete or not."""
    folder = storage.join(root, FOLDER)
    found: dict[str, set[str]] = {}
    if storage.exists(folder):
        for path in [path for path, _, _ in storage.listing(folder)] + _hidden(folder):
            step, slash, name = path.partition("/")
            if slash and step.startswith("step-"):
                found.setdefault(step, set()).add(name)
    return found


def _hidden(folder: str) -> list[str]:
    """Folders that hold nothing but `.metadata` are unfinished checkpoints too, and listings pass hidden files over."""
    return [f"{p.parent.name}/{p.name}" for p in storage.local(folder).glob("step-*/.metadata")] if storage.is_local(folder) else []


def _size(path: str, name: str) -> int:
    place = storage.join(path, name)
    return storage.size(place) if storage.exists(place) else -1


def load(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer | None, where: World, ema: Ema | None = None, verify: bool = True
) -> None:
    """Fill model, optimizer and average, whatever world size and layout wrote them. Collective. Without an optimizer only weights are read."""
    if verify:
        _verify(checkpoint, where)
    if optimizer is None:
        load_weights(checkpoint, model, where)
        return
    state = state_of(model, optimizer, ema)
    _fill(checkpoint, state, where)  # the average, and weights whose tensors are the model's own, are filled in place
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def load_weights(checkpoint: Checkpoint, model: nn.Module, where: World, ema: bool = False) -> None:
    """Fill a model, and nothing else, from a checkpoint: its weights or their moving average (buffers are the model's either way)."""
    own, kept = tensors(model), shapes(checkpoint)
    wanted = {f"model.{name}": tuple(t.shape) for name, t in own.items()}
    found = {name: shape for name, shape in kept.items() if name.startswith("model.")}
    if wanted != found:
        name = sorted(set(wanted.items()) ^ set(found.items()))[0][0]
        was = f"{name.removeprefix('model.')} {found.get(name, 'absent')}"
        raise InputError("the weights do not fit the model", where=checkpoint.path, found=was, allowed=f"{wanted.get(name, 'absent')}")
    averaged = [name for name, _ in model.named_parameters()] if ema else []
    if ema and not any(name.startswith("ema.") for name in kept):
        raise InputError("the checkpoint keeps no moving average of the weights", where=checkpoint.path, next="leave init_ema out")
    _fill(checkpoint, {"model": {n: t.detach() for n, t in own.items() if n not in averaged}}, where)  # with an average: the buffers
    if ema:
        _fill(checkpoint, {"ema": {n: own[n].detach() for n in averaged}}, where)


def read_weights(checkpoint: Checkpoint, ema: bool = False) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint, whole, on this process alone, by name; needs no model."""
    kept = shapes(checkpoint)
    average = {name.removeprefix("ema.") for name in kept if name.startswith("ema.")}
    if ema and not average:
        raise InputError("the checkpoint keeps no moving average of the weights", where=checkpoint.path)
    out = {name.removeprefix("model."): torch.empty(shape) for name, shape in kept.items() if name.startswith("model.")}
    alone = World(0, 1, torch.device("cpu"))
    _fill(checkpoint, {"model": {n: t for n, t in out.items() if not (ema and n in average)}}, alone)
    if ema:
        _fill(checkpoint, {"ema": {n: out[n] for n in average}}, alone)
    return out


def shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a checkpoint holds, by its name there (model.…, optimizer.…, ema.…)."""
    kept = Reader(checkpoint.path).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in kept.items() if isinstance(entry, TensorStorageMetadata)}


def _fill(checkpoint: Checkpoint, state: dict[str, Any], where: World) -> None:
    try:
        with quiet():
            dcp.load(state, storage_reader=Reader(checkpoint.path), process_group=where.behind, no_dist=where.size == 1)
    except (RuntimeError, KeyError, ValueError, CheckpointException) as e:
        raise InputError("the checkpoint does not fit the model", where=checkpoint.path, found=str(e).splitlines()[0]) from e


def _verify(checkpoint: Checkpoint, where: World) -> None:
    """The bytes of every file against the marker, each rank its share. All ranks raise when one differs."""
    mine = checkpoint.marker["files"][where.rank :: where.size]
    bad = [entry["path"] for entry in mine if digest(storage.join(checkpoint.path, entry["path"])) != entry["sha256"]]
    if wrong := sorted(name for part in where.gather(bad) for name in part):
        raise VerifyError("a checkpoint file differs from its marker", where=storage.join(checkpoint.path, wrong[0]),
                          next="remove that step's folder and resume again")  # fmt: skip


def full_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The whole model on rank 0's host, by name, buffers included (empty on other ranks). Collective."""
    return dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)))  # type: ignore[arg-type]


def prune(root: str, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints, and unfinished ones older than the newest; markers first, so that a half-removed
    checkpoint is not taken for whole."""
    steps = _steps(root)
    complete = sorted(step for step, names in steps.items() if MARKER in names)
    kept = complete[-keep:]
    for step in steps:
        if kept and step < kept[-1] and step not in kept:
            _clear(storage.join(root, FOLDER, step))


def reason(error: BaseException) -> str:
    """Why a save failed, in a line."""
    if isinstance(error, CheckpointException):
        rank, (first, _) = min(error.failures.items())
        return f"rank {rank}: {type(first).__name__}: {first}".splitlines()[0]
    return (error.what if isinstance(error, HeadwaterError) else f"{type(error).__name__}: {error}").splitlines()[0]
