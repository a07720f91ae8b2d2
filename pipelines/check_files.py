"""What `pipelines verify` looks at in a small artifact that is nothing but files (an entry list, a distance): they are those that its card names.

In: the folder and {"deep": bool}. Out: a list of {"file", "what"}, empty when all is well. Such files are read whole either way.
"""

from __future__ import annotations

from typing import Any

from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.manifest import read_card


def check(path: str, options: dict[str, Any]) -> list[dict[str, str]]:
    """Sizes and hashes of the files a card names."""
    problems = []
    for entry in read_card(path)["files"]:
        where = storage.join(path, entry["path"])
        data = storage.read(where) if storage.exists(where) else None
        if data is None or len(data) != entry["bytes"] or sha256_hex(data) != entry["sha256"]:
            problems.append({"file": entry["path"], "what": "missing" if data is None else "differs from its card"})
    return problems
