"""What `pipelines verify` and `pipelines view` ask of a generation: files against the card, pictures against the lines, and the page. No torch."""

from __future__ import annotations

import json
from typing import Any

from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.manifest import read_card

LINES, LATENTS, PAGE = "generated.jsonl", "latents.npz", "index.html"


def check(path: str, options: dict[str, Any]) -> list[dict[str, str]]:
    """What `pipelines verify` finds wrong with a generation: files against the card, pictures against the lines."""
    root, problems = read_card(path)["path"], []
    for entry in read_card(path)["files"]:
        where = storage.join(root, entry["path"])
        if not storage.exists(where) or sha256_hex(storage.read(where)) != entry["sha256"]:
            problems.append({"file": entry["path"], "what": "differs from its card" if storage.exists(where) else "missing"})
    if problems:
        return problems
    for line in map(json.loads, storage.read(storage.join(root, LINES)).splitlines()):
        for piece in (p for k in ("prompt", "pieces", "truth") for p in line.get(k, []) if "sha256" in p):
            where = storage.join(root, piece["image"])
            if not storage.exists(where) or sha256_hex(storage.read(where)) != piece["sha256"]:
                problems.append({"file": piece["image"], "what": "differs from its line" if storage.exists(where) else "missing"})
    return problems


def pages(path: str) -> list[tuple[str, str]]:
    """The page that was written, for `pipelines view`."""
    return [(PAGE, storage.read(storage.join(read_card(path)["path"], PAGE)).decode())]
