"""What `pipelines verify` looks at in a tokenizer's folder: its files are those that its card names, and the tokenizer loads.

In: the folder and {"deep": bool}. Out: a list of {"file", "what"}, empty when all is well.
"""

from __future__ import annotations

from typing import Any

from encode.encoders.text_tokens import JsonTokenizer
from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import HeadwaterError
from pipelines.format.manifest import read_card


def check(path: str, options: dict[str, Any]) -> list[dict[str, str]]:
    """Sizes, hashes and whether it loads: a tokenizer is so small that `deep` makes no difference."""
    problems = []
    for entry in read_card(path)["files"]:
        where = storage.join(path, entry["path"])
        data = storage.read(where) if storage.exists(where) else None
        if data is None or len(data) != entry["bytes"] or sha256_hex(data) != entry["sha256"]:
            problems.append({"file": entry["path"], "what": "missing" if data is None else "differs from its card"})
            continue
        try:
            JsonTokenizer(data, {}, where)
        except HeadwaterError as e:
            problems.append({"file": entry["path"], "what": e.what})
    return problems
