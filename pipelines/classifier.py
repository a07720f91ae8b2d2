"""fastText models by path, loaded once per process: label → score of a text.

What comes in: a local path of a `.bin` or `.ftz` model, its sha256 when the recipe pins it. A model is data that C++ code parses; name only
files that you trust, and pin them.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import Any

from pipelines.extra import need
from pipelines.format import storage
from pipelines.format.errors import InputError

_PREFIX = "__label__"


class Classifier:
    """One model. `labels` are without their prefix."""

    def __init__(self, path: str) -> None:
        self._model: Any = need("fasttext.FastText", "fastText models")._FastText(path)
        self.labels = [label.removeprefix(_PREFIX) for label in self._model.labels]

    def scores(self, text: str, newline: str) -> dict[str, float]:
        """Label → score of every label, the whole text read as one line."""
        labels, scores = self._model.predict(text.replace("\n", newline), k=-1)
        return {label.removeprefix(_PREFIX): float(score) for label, score in zip(labels, scores, strict=True)}


@lru_cache(maxsize=8)
def classifier(path: str, digest: str | None) -> Classifier:
    """The model at `path`. `InputError` when it is not there, not the pinned one, or no model."""
    if not storage.is_local(path) or not storage.exists(path):
        raise InputError("no model here", where=path, allowed="a local fastText model (.bin, .ftz)", next="download it first; nothing here does")
    if digest is not None:
        found = sha256(storage.map_file(path)).hexdigest()
        if found != digest:
            raise InputError("this is not the model that the recipe pins", where=path, found=found, allowed=digest)
    try:
        return Classifier(str(storage.local(path)))
    except ValueError as error:
        raise InputError("this is no fastText model", where=path, found=error) from None
