"""From a run to its model: what is built, exported, and read back by evaluations, samplers and `init:`.

A finished run holds `model.safetensors` (parameters and buffers, float32, by name), with `ema` also `ema.safetensors`, and in its card what to
build. A checkpoint holds the same in pieces, and what to build in its marker. So a start is one of three: a finished run, an unfinished one
(its newest complete checkpoint), or a checkpoint's folder.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from mixtures.span import Specials
from pipelines.format import storage
from pipelines.format.document import fingerprint, sha256_hex
from pipelines.format.errors import InputError, VerifyError
from pipelines.format.manifest import parent_path, read_card
from trainer import checkpoint
from trainer.ends import ends
from trainer.models.transfusion import TransfusionModel
from trainer.parallel import World, assign, tensors
from trainer.run import Run

if TYPE_CHECKING:
    from mixtures.plan import Plan

WEIGHTS, AVERAGE = "model.safetensors", "ema.safetensors"


class Start(NamedTuple):
    """Where weights come from: the place, what names them, and either the card of a finished run or a checkpoint."""

    path: str
    fingerprint: str
    card: dict[str, Any] | None = None
    checkpoint: checkpoint.Checkpoint | None = None


def start_of(path: str) -> Start:
    """What lies at `path`: a finished run, else an unfinished run's newest complete checkpoint, else a checkpoint. InputError for anything else."""
    if storage.exists(storage.join(path, "run.json")):
        card = read_card(path)
        return Start(card["path"], card["fingerprint"], card)
    found = checkpoint.at(path) or checkpoint.newest(path)[0]
    if found is None:
        raise InputError("no weights here", where=path, allowed="a run's folder, or a complete checkpoint's (checkpoints/step-…)",
                         next=f"pipelines inspect {path}")  # fmt: skip
    return Start(found.path, fingerprint(["checkpoint", found.marker["fingerprint"], found.step]), None, found)


def shape_of(plan: Any) -> dict[str, int]:
    """What a plan says of a model (see `ends`). InputError where it names no tokenizer."""
    encoding = plan.card.get("encoding") or {}
    Specials.of(encoding)
    return ends(encoding)


def build(run: Run, shape: dict[str, int]) -> TransfusionModel:
    """The run's model on the meta device: parameters have shapes and no storage."""
    with torch.device("meta"):
        return run.model.build(**shape, predict=run.flow.predict)


def export(root: str, weights: dict[str, Tensor], name: str = WEIGHTS) -> dict[str, Any]:
    """Write weights as float32 safetensors; their entry for the card."""
    data = safetensors.torch.save({name: w.detach().float().contiguous().cpu() for name, w in weights.items()})
    storage.publish(storage.join(root, name), data, scratch=root)
    return {"path": name, "bytes": len(data), "sha256": sha256_hex(data)}


def read_weights(path: str, ema: bool = False) -> dict[str, Tensor]:
    """The weights at `path` (see start_of), or their moving average, whole, checked against what vouches for them."""
    start = start_of(path)
    if start.checkpoint is not None:
        return checkpoint.read_weights(start.checkpoint, ema)
    assert start.card is not None
    name = AVERAGE if ema else WEIGHTS
    entry = next((f for f in start.card["files"] if f["path"] == name), None)
    if entry is None:
        what = "the run keeps no moving average of its weights" if ema else "this run holds no weights"
        raise InputError(what, where=path, allowed=f"a run with {name}")
    data = storage.read(storage.join(start.path, name))
    if sha256_hex(data) != entry["sha256"]:
        raise VerifyError("the weights differ from the run's card", where=storage.join(start.path, name))
    return safetensors.torch.load(data)


def begin(model: nn.Module, path: str, where: World, ema: bool = False) -> None:
    """Fill a model, sharded or not, from where `init:` points. Of a checkpoint every rank reads its own part. Collective."""
    start = start_of(path)
    if start.checkpoint is not None:
        checkpoint.load_weights(start.checkpoint, model, where, ema)
    else:
        fill(model, read_weights(path, ema), path)


def fill(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Set every parameter and buffer from `weights`, sharded or not. InputError where names or shapes differ."""
    own = tensors(model)
    wanted = {name: tuple(t.shape) for name, t in own.items()}
    found = {name: tuple(w.shape) for name, w in weights.items()}
    if wanted != found:
        differing = sorted(set(wanted.items()) ^ set(found.items()))[0]
        raise InputError("the weights do not fit the model", where=where, found=f"{differing[0]} {found.get(differing[0], 'absent')}",
                         allowed=f"{wanted.get(differing[0], 'absent')}")  # fmt: skip
    for name, tensor in own.items():
        assign(tensor, weights[name])


def rounded(model: nn.Module) -> None:
    """Weights to bf16, but of modules that compute in full precision: a rounded score of a router chooses another expert."""
    for module in model.modules():
        if not getattr(module, "full_precision", False):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)


def load_model(path: str, device: str = "cpu", ema: bool = False) -> tuple[TransfusionModel, Run, Plan]:
    """The model at `path` (see start_of) in evaluation mode, its run document, and its plan (opened where card or document says it lies)."""
    from mixtures.plan import Plan

    start = start_of(path)
    said = start.card if start.card is not None else start.checkpoint.marker  # type: ignore[union-attr]
    run = Run.model_validate_json(json.dumps(said["recipe"]), strict=True)
    model = build(run, said["shape"]).to_empty(device=device)
    begin(model, path, World(0, 1, torch.device(device)), ema)
    place = run.plan if start.card is None else parent_path(start.card, start.card["parents"][0])
    return model.eval(), run, Plan.open(place)
