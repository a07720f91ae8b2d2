"""What `pipelines verify` looks at in a decoder's folder: its files are those that its card names, and the weights fit their config.

In: the folder and {"deep": bool}. Out: a list of {"file", "what"}, empty when all is well. Without `deep` the big file's size is held against the
card and its header against the config; with it, every byte.
"""

from __future__ import annotations

from typing import Any

from pipelines.check_dataset import file_problems
from pipelines.format.errors import HeadwaterError
from pipelines.format.manifest import read_card


def check(path: str, options: dict[str, Any]) -> list[dict[str, str]]:
    """Files, hashes, and whether `decode` could load it."""
    problems: list[dict[str, str]] = []
    for entry in read_card(path)["files"]:
        deep = bool(options.get("deep")) or entry["path"] != "model.safetensors"
        problems += file_problems(path, entry["path"], entry["bytes"], entry["sha256"], deep)
    if problems:
        return problems
    from encode.reconstruction import layout

    try:
        if options.get("deep"):
            layout.read(path)
        else:
            layout.measures(path)
    except HeadwaterError as e:
        problems.append({"file": "model.safetensors", "what": e.what})
    return problems
