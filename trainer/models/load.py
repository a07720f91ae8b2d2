"""From a run to its model: what is built, exported, and read back by evaluations, samplers and `init:`.

A finished run holds `model.safetensors` (all parameters, float32, by name) and in its card what to build. Nothing else is needed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import InputError, VerifyError
from pipelines.format.manifest import parent_path, read_card
from trainer.models.transfusion import TransfusionModel
from trainer.parallel import assign
from trainer.run import Run

if TYPE_CHECKING:
    from mixtures.plan import Plan

WEIGHTS = "model.safetensors"


def shape_of(plan: Any) -> dict[str, int]:
    """What a plan says of a model: ids (structure tokens included), channels and number of an image's latents. A plan without images has 1."""
    text = (plan.card.get("encoding") or {}).get("text") or {}
    image = (plan.card.get("encoding") or {}).get("image") or {}
    vocab = max([int(text.get("vocab", 0)), *(i + 1 for i in plan.specials)])
    return {"vocab": vocab, "channels": int(image.get("width", 1)), "patches": int(image.get("tokens", 1))}


def build(run: Run, shape: dict[str, int]) -> TransfusionModel:
    """The run's model on the meta device: parameters have shapes and no storage."""
    with torch.device("meta"):
        return run.model.build(**shape, predict=run.flow.predict)


def export(root: str, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Write model.safetensors; its entry for the card."""
    data = safetensors.torch.save({name: w.detach().float().contiguous().cpu() for name, w in weights.items()})
    storage.publish(storage.join(root, WEIGHTS), data, scratch=root)
    return {"path": WEIGHTS, "bytes": len(data), "sha256": sha256_hex(data)}


def read_weights(path: str) -> dict[str, Tensor]:
    """The weights of a finished run (its folder), checked against its card."""
    card = read_card(path)
    entry = next((f for f in card["files"] if f["path"] == WEIGHTS), None)
    if card["kind"] != "run" or entry is None:
        raise InputError("this is not a finished run", where=path, found=card["kind"], allowed=f"a folder with run.json and {WEIGHTS}")
    data = storage.read(storage.join(card["path"], WEIGHTS))
    if sha256_hex(data) != entry["sha256"]:
        raise VerifyError("the weights differ from the run's card", where=storage.join(path, WEIGHTS))
    return safetensors.torch.load(data)


def fill(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Set every parameter from `weights`, sharded or not. InputError where names or shapes differ."""
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: tuple(w.shape) for name, w in weights.items()}
    if wanted != found:
        differing = sorted(set(wanted.items()) ^ set(found.items()))[0]
        raise InputError("the weights do not fit the model", where=where, found=f"{differing[0]} {found.get(differing[0], 'absent')}",
                         allowed=f"{wanted.get(differing[0], 'absent')}")  # fmt: skip
    for name, parameter in model.named_parameters():
        assign(parameter, weights[name])


def load_model(path: str, device: str = "cpu") -> tuple[TransfusionModel, Run, Plan]:
    """A finished run's model in evaluation mode, its run document, and its plan (opened where the card says it lies)."""
    from mixtures.plan import Plan

    card = read_card(path)
    if card["kind"] != "run":
        raise InputError("this is not a run", where=path, found=card["kind"], allowed="a folder with run.json")
    run = Run.model_validate_json(json.dumps(card["recipe"]), strict=True)
    model = build(run, card["shape"]).to_empty(device=device)
    fill(model, read_weights(path), path)
    return model.eval(), run, Plan.open(parent_path(card, card["parents"][0]))
