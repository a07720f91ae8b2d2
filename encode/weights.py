"""Published weights, from a local folder or a hub id: JSON, safetensors and tokenizers' word lists only, never code, never pickle.

In: what a recipe names. Out: a local folder, its JSON files, and one hash of what the network is, without loading a tensor.
"""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from encode.encoder import Machine
from pipelines.format.document import fingerprint
from pipelines.format.errors import InputError

FILES = ("*.json", "*.safetensors", "merges.txt", "spiece.model", "tokenizer.model")


@lru_cache(maxsize=8)
def folder(weights: str, files: tuple[str, ...] = FILES) -> Path:
    """The local folder of `weights`; a hub id (`owner/name`) is downloaded into the hub's own cache first, as far as its `files` go."""
    path = Path(weights)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(weights, allow_patterns=list(files)))
    except Exception as e:  # no network, no such repository, a gated one: the hub has a dozen classes for it
        raise InputError(
            "these weights are neither a local folder nor a hub id that can be fetched",
            where=weights,
            found=f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:200],
            next="download the model's folder (config.json, preprocessor_config.json, *.safetensors) and name its path",
        ) from None


def subfolder(weights: str, name: str, files: tuple[str, ...]) -> Path:
    """The folder of a model that may stand alone or as part `name` of a pipeline; of a pipeline on the hub no other part is downloaded."""
    path = folder(weights, files)
    return path / name if (path / name / "config.json").is_file() else path


def read_json(weights: str, *names: str) -> dict[str, Any]:
    """The first of the named JSON files that the folder has."""
    for name in names:
        path = folder(weights) / name
        if path.is_file():
            return dict(json.loads(path.read_bytes()))
    raise InputError(f"{' or '.join(names)} is missing", where=folder(weights), next="name a complete model folder")


def tensors_sha256(weights: str) -> str:
    """One hash over config.json and all safetensors files, by name. Costs a read, 1.5 GB a second, once per process and state of a file."""
    files = [folder(weights) / "config.json", *sorted(folder(weights).glob("*.safetensors"))]
    if len(files) < 2:
        raise InputError("no *.safetensors there", where=folder(weights), next="convert the weights; pickled ones are never loaded")
    return fingerprint([[p.name, file_sha256(p, p.stat().st_size, p.stat().st_mtime_ns)] for p in files])


@lru_cache(maxsize=64)
def file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    digest = sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def pretrained(name: str, weights: str, machine: Machine, unread: tuple[str, ...] = ()) -> Any:
    """A frozen model of the class `name` of transformers on its device, from safetensors alone. InputError when a tensor it needs is not in
    the files: the library would put random numbers there and go on. `unread` are parts of names whose tensors nothing here reads."""
    import torch
    import transformers

    options = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
    dtype = torch.bfloat16 if machine.dtype == "bf16" else torch.float32
    log = transformers.utils.logging
    log.disable_progress_bar()  # loading takes a second; stderr belongs to our own progress
    before = log.get_verbosity()
    log.set_verbosity_error()  # it lists every tensor of a text tower that a vision tower has no use for
    try:
        model, told = getattr(transformers, name).from_pretrained(str(folder(weights)), dtype=dtype, **options)
    except (OSError, ValueError, RuntimeError) as e:
        raise InputError("these weights cannot be loaded", where=weights, found=f"{type(e).__name__}: {e}"[:300]) from None
    finally:
        log.set_verbosity(before)
    refused(name, weights, told, unread)
    return model.to(machine.device).eval().requires_grad_(False)


def refused(name: str, where: str, told: dict[str, Any], unread: tuple[str, ...] = ()) -> None:
    """InputError where what a library says of its loading names tensors that it made up."""
    missing = sorted(key for key in told["missing_keys"] if not any(part in key for part in unread))
    lacking = missing + sorted(str(k) for k in told["mismatched_keys"])
    if lacking:
        raise InputError(f"the weights lack tensors of a {name}", where=where, found=", ".join(lacking[:5]))
