"""Checkpoints of a fit: one file each, complete or invisible.

    checkpoints/step-00001200-<sha256, 16 digits>.safetensors        every tensor that the next step depends on, under a flat name

In: named tensors and a step. Out: a file that appears at once and whole under a name that holds its own hash. One that was cut off or changed is
passed over, and the one before it is used. No generator state exists, since every draw follows from seed and step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import ConflictError

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{16})\.safetensors")
KEEP = 2


def save(root: str, step: int, tensors: Mapping[str, Any], recipe: str) -> str:
    """Publish the state after `step` steps, and remove all but the newest two. `recipe` is the fingerprint of what is being fitted."""
    from safetensors.torch import save as packed

    data = packed({k: v.detach().cpu().contiguous() for k, v in sorted(tensors.items())}, metadata={"recipe": recipe, "step": str(step)})
    place = storage.join(root, FOLDER, f"step-{step:08d}-{sha256_hex(data)[:16]}.safetensors")
    storage.publish(place, data, scratch=root)
    for _, old in found(root)[KEEP:]:
        storage.delete(storage.join(root, FOLDER, old))
    return place


def found(root: str) -> list[tuple[int, str]]:
    """(step, file name) of what is there, newest first."""
    folder = storage.join(root, FOLDER)
    if not storage.exists(folder):
        return []
    matches = [_NAME.fullmatch(name) for name, _, _ in storage.listing(folder)]
    return sorted(((int(m[1]), m[0]) for m in matches if m), reverse=True)


def newest(root: str, recipe: str) -> tuple[int, dict[str, Any], list[str]]:
    """(steps done, tensors, files passed over because they are damaged); (0, {}, …) when there is nothing to go on from."""
    from safetensors.torch import load

    passed: list[str] = []
    for step, name in found(root):
        place = storage.join(root, FOLDER, name)
        data = storage.read(place)
        if not name.endswith(f"-{sha256_hex(data)[:16]}.safetensors"):
            passed.append(place)
            continue
        said = _metadata(data).get("recipe")
        if said != recipe:
            raise ConflictError(
                "the output holds checkpoints of another fit",
                where=place,
                found=f"recipe {str(said)[:16]}",
                allowed=f"recipe {recipe[:16]}",
                next="choose another `output`, or remove that folder first",
            )
        return step, load(data), passed
    return 0, {}, passed


def _metadata(data: bytes) -> dict[str, str]:
    """The header's words: safetensors begins with the length of its JSON header."""
    import json

    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length]).get("__metadata__", {}))


def clear(root: str) -> None:
    """Remove all: the artifact is finished."""
    for _, name in found(root):
        storage.delete(storage.join(root, FOLDER, name))
    if storage.is_local(root) and storage.exists(storage.join(root, FOLDER)):
        storage.delete_tree(storage.join(root, FOLDER))
