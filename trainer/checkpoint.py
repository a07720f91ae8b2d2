"""Checkpoints: complete or invisible, readable at any world size.

    checkpoints/step-00001200/.metadata, __<rank>_<part>.distcp     torch.distributed.checkpoint: every rank writes its own pieces
    checkpoints/step-00001200/complete.json                         written last: {step, consumed, fingerprint, files: [{path, bytes, sha256}]}

A folder without its marker, or whose files are not of the sizes it says, is not a checkpoint; it is named and passed over. The data position is
the step. No generator state exists (every draw is keyed), so model, optimizer and step are all there is to resume. Pieces are written to
local scratch and published like any other file, so a run may live on an object store.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict

from pipelines.format import storage
from pipelines.format.document import canon, sha256_hex
from pipelines.format.errors import InputError, VerifyError
from trainer.parallel import World

FOLDER, MARKER = "checkpoints", "complete.json"


class Checkpoint(NamedTuple):
    """A complete checkpoint: its folder and what its marker says."""

    path: str
    marker: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps done: the next step to run."""
        return int(self.marker["step"])


def save(root: str, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, where: World, facts: dict[str, Any]) -> str:
    """Write the checkpoint of `step` steps done. `facts` go into the marker. Collective: every rank calls it."""
    folder = storage.join(root, FOLDER, f"step-{step:08d}")
    if where.rank == 0:
        storage.delete(storage.join(folder, MARKER))  # a leftover of a run that was rewound must not vouch for new pieces
    weights, moments = get_state_dict(model, optimizer)
    # All ranks of a host share one scratch folder, and each publishes what it wrote; rank 0 the metadata.
    scratch = where.gather(tempfile.mkdtemp(prefix="headwater-checkpoint-") if where.rank == 0 else None)[0]
    try:
        with _quiet():
            dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=scratch, no_dist=where.size == 1)
        mine = [p for p in sorted(Path(scratch).iterdir()) if p.name.startswith(f"__{where.rank}_") or (where.rank == 0 and p.name == ".metadata")]
        files = [entry for part in where.gather([_publish(root, folder, p) for p in mine]) for entry in part]
    finally:
        if where.rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)
    if where.rank == 0:
        marker = {**facts, "step": step, "files": sorted(files, key=lambda f: f["path"])}
        storage.replace(storage.join(folder, MARKER), canon(marker), scratch=root)
    where.gather(None)  # nobody goes on before the marker stands
    return folder


def _publish(root: str, folder: str, piece: Path) -> dict[str, Any]:
    data = piece.read_bytes()
    storage.publish(storage.join(folder, piece.name), data, scratch=root)
    return {"path": piece.name, "bytes": len(data), "sha256": sha256_hex(data)}


def newest(root: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint of a run, and the folders passed over because they are not complete."""
    folder = storage.join(root, FOLDER)
    if not storage.exists(folder):
        return None, []
    sizes: dict[str, dict[str, int]] = {}
    for path, size, _ in storage.listing(folder) + _hidden(folder):
        step, slash, name = path.partition("/")
        if slash and step.startswith("step-"):
            sizes.setdefault(step, {})[name] = size
    passed: list[str] = []
    for step in sorted(sizes, reverse=True):
        path = storage.join(folder, step)
        if MARKER in sizes[step]:
            marker = storage.read_json(storage.join(path, MARKER))
            if all(_size(path, f["path"]) == f["bytes"] for f in marker["files"]):
                return Checkpoint(path, marker), passed
        passed.append(path)
    return None, passed


def _hidden(folder: str) -> list[tuple[str, int, str]]:
    """Folders that hold nothing but `.metadata` are unfinished checkpoints too, and listings pass hidden files over."""
    return [] if not storage.is_local(folder) else [
        (f"{p.parent.name}/{p.name}", p.stat().st_size, "") for p in storage.local(folder).glob("step-*/.metadata")
    ]  # fmt: skip


def _size(path: str, name: str) -> int:
    place = storage.join(path, name)
    return storage.size(place) if storage.exists(place) else -1


def load(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer | None, where: World, verify: bool = True) -> None:
    """Fill model and optimizer, whatever world size wrote them. Collective. Without an optimizer only weights are read."""
    with tempfile.TemporaryDirectory(prefix="headwater-checkpoint-") as scratch:
        folder = _at_hand(checkpoint, scratch, verify)
        if optimizer is None:
            state: dict[str, Any] = {"model": get_model_state_dict(model)}
        else:
            weights, moments = get_state_dict(model, optimizer)
            state = {"model": weights, "optimizer": moments}
        try:
            with _quiet():
                dcp.load(state, checkpoint_id=folder, no_dist=where.size == 1)
        except (RuntimeError, KeyError, dcp.CheckpointException) as e:
            raise InputError("the checkpoint does not fit the model", where=checkpoint.path, found=str(e).splitlines()[0]) from e
        if optimizer is None:
            model.load_state_dict(state["model"])
        else:
            set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def _at_hand(checkpoint: Checkpoint, scratch: str, verify: bool) -> str:
    """The checkpoint as a local folder, its bytes checked against the marker."""
    for entry in checkpoint.marker["files"]:
        place = storage.join(checkpoint.path, entry["path"])
        if not verify and storage.is_local(checkpoint.path):
            continue
        data = storage.read(place)
        if sha256_hex(data) != entry["sha256"]:
            raise VerifyError("a checkpoint file differs from its marker", where=place, next="remove that step's folder and resume again")
        if not storage.is_local(checkpoint.path):
            storage.publish(storage.join(scratch, entry["path"]), data, scratch=scratch)
    return str(storage.local(checkpoint.path)) if storage.is_local(checkpoint.path) else scratch


def full_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The whole model on rank 0's host, by parameter name (empty on other ranks). Collective."""
    return dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)))  # type: ignore[arg-type]


def prune(root: str, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints, marker first, so that a half-removed one is not taken for whole."""
    folder = storage.join(root, FOLDER)
    steps = sorted({p.partition("/")[0] for p, _, _ in storage.listing(folder) if p.endswith(f"/{MARKER}")})
    for step in steps[: max(len(steps) - keep, 0)]:
        path = storage.join(folder, step)
        names = [f["path"] for f in storage.read_json(storage.join(path, MARKER))["files"]]
        for name in (MARKER, *names):
            storage.delete(storage.join(path, name))
        if storage.is_local(path):
            with suppress(OSError):
                storage.local(path).rmdir()


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns that a single process saves without a process group, which is what we asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
