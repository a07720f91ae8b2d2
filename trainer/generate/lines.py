"""Prompts from a file of JSON lines, one a line, every mistake told with its line.

    {"id": "a", "prompt": "a red cube on", "tokens": 40}
    {"id": "b", "prompt": ["a red cube", {"paint": true}], "source": "pairs"}
    {"id": "c", "prompt": [{"latents": "frames.npz", "name": "0"}, {"ids": [17, 4]}, {"paint": true}], "text_as": "action"}
    {"id": "d", "prompt": [{"image": "photo.jpg"}, "Question: what is left of the house? Answer:"]}

`source` names the source of the plan whose `history` holds (default: noised). Files lie beside the prompts: latents as an encoder stores them (.npy,
or .npz with a name), or pictures, which the service `latents` turns into the plan's own.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from pipelines.format import storage
from pipelines.format.errors import InputError, Reject
from trainer.generate.asked import Asked
from trainer.generate.prompt import PAINT, Piece, Prompt
from trainer.generate.recipe import Generate, named_files

KEYS = {"id", "prompt", "source", "tokens", "images", "text_as", "images_as", "history", "window"}


def from_file(config: Generate, plan: Any, looks: bool = True) -> list[Asked]:
    """A prompt a line. InputError with the line where one cannot be read, or an id comes twice."""
    assert config.prompts is not None
    folder, out, seen = storage.absolute(config.prompts.rpartition("/")[0] or "."), [], dict[str, int]()
    seen_as = encoded(named_files(config.prompts, ("image",)), plan, looks)
    for number, line in enumerate(storage.read(config.prompts).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{config.prompts}:{number}"
        try:
            said = json.loads(line)
        except ValueError as e:
            raise InputError("not a line of JSON", where=where, found=str(e)) from None
        if not isinstance(said, dict) or set(said) - KEYS or "prompt" not in said:
            raise InputError("not a prompt", where=where, found=sorted(said) if isinstance(said, dict) else said, allowed=", ".join(sorted(KEYS)))
        made = _of_line(said, config, plan, partial(_piece, folder=folder, where=where, seen_as=seen_as), where, str(said.get("id", number)))
        if made.prompt.id in seen:
            raise InputError("two prompts of one id would get the same draws", where=where, found=made.prompt.id, next=f"line {seen[made.prompt.id]}")
        seen[made.prompt.id] = number
        out.append(made)
    return out


def _of_line(said: dict[str, Any], config: Generate, plan: Any, piece: Callable[[Any], Piece], where: str, id: str) -> Asked:
    pieces = said["prompt"] if isinstance(said["prompt"], list) else [said["prompt"]]
    read = tuple(map(piece, pieces))
    source = str(said.get("source", ""))
    if source and source not in plan.sources:
        raise InputError("the plan has no such source", where=where, found=source, allowed=", ".join(plan.sources))
    own: dict[str, Any] = {"history": plan.rules(source).history if source else "noised", "tokens": config.tokens, "images": config.images}
    if any(p is PAINT for p in read) and "tokens" not in said:
        own["tokens"] = own["images"] = 0  # a prompt that says what is to be made ends there unless it says otherwise
    own |= {k: said[k] for k in KEYS - {"id", "prompt", "source"} if k in said}
    allowed = {"text_as": ("caption", "action"), "images_as": ("context", "frame"), "history": ("noised", "clean_copy")}
    for key, value in own.items():
        good = value in allowed[key] if key in allowed else isinstance(value, int) and not isinstance(value, bool) and value >= (key == "window")
        if not good:
            raise InputError(f"`{key}` of a prompt", where=where, found=value, allowed=", ".join(allowed.get(key, ("a whole number from 0",))))
    return Asked(Prompt(id, read, **own), source)


def _piece(said: Any, folder: str, where: str, seen_as: dict[str, np.ndarray]) -> Piece:
    match said:
        case str():
            return said
        case {"paint": True, **rest} if not rest:
            return PAINT
        case {"ids": [*ids], **rest} if not rest and all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            return np.array(ids, np.int32)
        case {"latents": str(name), **rest} if not set(rest) - {"name"}:
            return _latents(storage.resolve(name, folder), rest.get("name"), where)  # type: ignore[arg-type]
        case {"image": str(name), **rest} if not rest:
            if (path := storage.resolve(name, folder)) not in seen_as:
                raise InputError("no such picture", where=where, found=path)
            return seen_as[path]
    allowed = 'text, {"ids": […]}, {"latents": FILE, "name": …}, {"image": FILE}, {"paint": true}'
    raise InputError("not a piece of a prompt", where=where, found=said, allowed=allowed)


def encoded(files: list[str], plan: Any, looks: bool) -> dict[str, np.ndarray]:
    """Latents of pictures by file, made by the encoder that the plan's latents are of, which a service offers. InputError for what is no picture."""
    data = next((d for d in plan.datasets if (d.encoding or {}).get("image")), None)
    if not files or data is None:
        return {}
    if not looks:
        image = data.encoding["image"]
        return dict.fromkeys(files, np.zeros((image["tokens"], image["width"]), np.float32))
    found = next((e for e in entry_points(group="pipelines.services") if e.name == "latents"), None)
    if found is None:
        said = "no installed package turns pictures into latents"
        raise InputError(said, where=files[0], next='give {"latents": FILE}, or install the encode package')
    encoder, pixels = found.load()(data.card), []
    for file in files:
        try:
            pixels.append(encoder.read(storage.read(file)))
        except Reject as e:
            raise InputError("this is no picture", where=file, found=str(e)) from None
    return dict(zip(files, encoder.load()(np.stack(pixels)), strict=True))


def _latents(path: str, name: str | None, where: str) -> np.ndarray:
    try:
        found: Any = np.load(io.BytesIO(storage.read(path)), allow_pickle=False)
        found = found if isinstance(found, np.ndarray) else found[name]
    except (ValueError, KeyError, OSError, InputError) as e:
        raise InputError("latents that cannot be read", where=where, found=f"{path}: {e}", allowed=".npy, or .npz and a name in it") from None
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.floating) or not np.isfinite(found).all():
        raise InputError("latents of an image are finite numbers [n, C]", where=where, found=f"{path}: {found.dtype} {list(found.shape)}")
    return found.astype(np.float32)
