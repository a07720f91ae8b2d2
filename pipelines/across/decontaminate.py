"""Training text that repeats what models are tested on: records that share a run of words with an evaluation set leave, named by the set.

In: candidates, and sets of texts given by path. Out: the ids of records that share `n_grams` words in a row (13, as for GPT-3: Brown et
al., "Language Models are Few-Shot Learners", 2020, appendix C) with a set, as `decontaminate.<set>`; of several sets hit, the first in the
recipe is named. Text is simplified before it is compared (lower case, no punctuation, digits folded), so spacing and case hide nothing. A
test item shorter than `n_grams` words counts as one run of its own length, when it has at least `min_words`.

A set is a file or folder of `.txt` (a document each), `.jsonl` or `.parquet` (fields named by `text_fields`), or a curated dataset; with
`held_out`, of a dataset only the groups on that side of the split, and a candidate whose own group is held out is left alone: it will not
be trained on. Every worker holds the hashes of the sets (8 bytes a run); a candidate's runs are compared with them at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.across.reference_text import reference_files, reference_texts
from pipelines.format.chance import held_out
from pipelines.format.document import Document, Percent
from pipelines.format.errors import InputError
from pipelines.format.record import Record
from pipelines.shingles import runs, words_simplified
from pipelines.stage import Across, Map, Reduce
from pipelines.words import text_of


class HeldOut(Document):
    """The side of the split that a mixture keeps from training: the same two numbers as there."""

    fraction: Percent
    seed: int = 0


class ReferenceSet(Document):
    """One set of texts. `text_fields` are keys or columns whose texts are items of their own (question, answer)."""

    path: str
    text_fields: tuple[str, ...] = ("text",)
    held_out: HeldOut | None = None


class Decontaminate(Across):
    """`against`: name → set. `n_grams` words in a row that are shared; shorter items count whole from `min_words` on."""

    again: ClassVar[tuple[int, ...]] = (0,)
    against: dict[str, ReferenceSet] = Field(min_length=1)
    n_grams: int = Field(13, ge=1)
    min_words: int = Field(8, ge=1)
    language: str = "eng"

    def rounds(self) -> Sequence[tuple[Map, Reduce | None]]:
        """One round: every record is judged where it is, and no worker holds what other parts lose."""
        return [(self._hits, None)]

    def files(self) -> list[str]:
        return [path for reference in self.against.values() for path in reference_files(reference.path)]

    def _hits(self, records: Iterable[Record], told: list[list[Any]]) -> Iterator[tuple[str, str]]:
        sides = [s.held_out for s in self.against.values() if s.held_out is not None]
        for record in records:
            if any(held_out(record.group, side.fraction, side.seed) for side in sides):
                continue
            name = self.hit(text_of(record))
            if name is not None:
                yield record.id, f"decontaminate.{name}"

    def hit(self, text: str) -> str | None:
        """The first set that shares a run of words with this text."""
        words = words_simplified(text, self.language)
        here: dict[int, NDArray[np.uint64]] = {}
        for name, reference in self.against.items():
            for length, known in _hashes(reference, self.n_grams, self.min_words, self.language, name).items():
                if length not in here:
                    here[length] = runs(words, length)
                if (known[np.minimum(np.searchsorted(known, here[length]), len(known) - 1)] == here[length]).any():
                    return name
        return None


@lru_cache(maxsize=64)
def _hashes(reference: ReferenceSet, n_grams: int, min_words: int, language: str, name: str) -> dict[int, NDArray[np.uint64]]:
    """Run length → sorted hashes; made once per process."""
    found: dict[int, list[NDArray[np.uint64]]] = {}
    side = reference.held_out
    for text in reference_texts(reference.path, reference.text_fields, (side.fraction, side.seed) if side else None):
        words = words_simplified(text, language)
        length = min(len(words), n_grams)
        if length >= min(min_words, n_grams):
            found.setdefault(length, []).append(runs(words, length))
    if not found:
        raise InputError("this set has no text to compare with", where=f"against.{name}", found=reference.path, allowed=f"items of {min_words} words")
    return {length: np.unique(np.concatenate(hashes)) for length, hashes in found.items()}
