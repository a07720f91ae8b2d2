"""The card: what an artifact is, written last. No card, no artifact.

`manifest.json` (datasets), `plan.json`, `run.json` and `ablation.json` are one form: what it was made of (parents with fingerprints, the resolved
recipe, the code's version), what it holds (records, bytes, tokens, per source) and what became of what came in. ≤ 64 KB, no clock, no host.
Whatever grows with the data (the shard table, latent statistics) is a file that the card names with its hash.
"""

from __future__ import annotations

import functools
import json
from importlib import metadata
from typing import Any

from pipelines.format import storage
from pipelines.format.document import canon, sha256_hex
from pipelines.format.errors import ConflictError, InputError
from pipelines.format.part import FORMAT
from pipelines.format.storage import join

CARDS = {"manifest.json": "dataset", "plan.json": "plan", "run.json": "run", "ablation.json": "ablation"}
MAX_BYTES = 64 << 10


@functools.cache
def code_version() -> str:
    """The installed version of this project."""
    try:
        return metadata.version("headwater")
    except metadata.PackageNotFoundError:  # run from a bare checkout
        return "0+checkout"


def card(
    kind: str,
    name: str,
    fingerprint: str,
    recipe: dict[str, Any],
    *,
    parents: list[dict[str, str]] | None = None,
    stages: dict[str, int] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """A card with the keys that all artifacts share; `facts` are the rest (records, bytes, tokens, sources, in, written …)."""
    head = {"format": FORMAT, "kind": kind, "name": name, "fingerprint": fingerprint, "recipe": recipe, "parents": parents or []}
    return {**head, "code": {"version": code_version(), "stages": stages or {}}, **facts}


def publish_card(root: str, file: str, card: dict[str, Any], recipe_fingerprint: str | None = None) -> str:
    """Write a card atomically. One made by another recipe is never replaced: that is a conflict (exit 6). Returns its path."""
    assert file in CARDS or file.startswith("manifest-"), file
    data = json.dumps(card, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    assert len(data) <= MAX_BYTES, f"{file} has {len(data):,} bytes; put what grows into a file that it names"
    path = join(root, file)
    if recipe_fingerprint is not None:
        refuse_other_recipe(root, file, recipe_fingerprint)
    storage.replace(path, data, scratch=root)
    storage.sweep(root)
    return path


def refuse_other_recipe(root: str, file: str, recipe_fingerprint: str) -> None:
    """Raise ConflictError when the artifact at `root` was made by a different recipe."""
    path = join(root, file)
    if not storage.exists(path):
        return
    found = storage.read_json(path).get("recipe_fingerprint")
    if found != recipe_fingerprint:
        raise ConflictError(
            "the output already holds an artifact made by another recipe",
            where=path,
            found=f"recipe {str(found)[:16]}",
            allowed=f"recipe {recipe_fingerprint[:16]}",
            next="choose another `output`, or remove that folder first",
        )


def read_card(path: str) -> dict[str, Any]:
    """The card of the artifact at `path` (its folder, or the card file itself), with `path` and `card_file` added."""
    for file in CARDS:
        if path.endswith("/" + file):
            path = path[: -len(file) - 1]
        where = join(path, file)
        if storage.exists(where):
            found = storage.read_json(where)
            if not isinstance(found, dict) or found.get("format") != FORMAT:
                version = found.get("format") if isinstance(found, dict) else type(found).__name__
                raise InputError("this card is of a format that is not read", where=where, found=version, allowed=FORMAT)
            return {**found, "path": path, "card_file": file}
    raise InputError(
        "no artifact here", where=path, allowed=" or ".join(CARDS), next=f"if a job is still writing it: pipelines status {path}"
    )


def parent(path: str, of: str, fingerprint: str) -> dict[str, str]:
    """How a card names what it was made of: the path relative to the artifact, and the fingerprint."""
    return {"path": storage.relative(storage.absolute(path), storage.absolute(of)), "fingerprint": fingerprint}


def parent_path(card: dict[str, Any], entry: dict[str, str]) -> str:
    """The place of a parent named in a card read by `read_card`."""
    return storage.resolve(entry["path"], storage.absolute(card["path"]))


def file_entry(root: str, name: str, data: bytes) -> dict[str, Any]:
    """Publish a small file of an artifact and return its entry for the card's `files`."""
    storage.publish(join(root, name), data, scratch=root)
    return {"path": name, "bytes": len(data), "sha256": sha256_hex(data)}


def dataset_fingerprint(encoding: dict[str, Any] | None, shards: list[Any]) -> str:
    """sha256 of (format, encoding, every shard's hashes): the same data has the same fingerprint wherever it lies."""
    rows = [[s.index_sha256, s.tokens_sha256, s.data_sha256] for s in shards]
    return sha256_hex(canon({"format": FORMAT, "encoding": encoding, "shards": rows}))
