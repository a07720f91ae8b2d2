"""The texts of an audit: the parent's text through the tokenizer that travels with the dataset, against the ids that are stored.

In: drawn segments with the parent's records, some hundred together. Out: a problem for each whose ids are not the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from encode.decode import dataset_tokenizer
from encode.encoder import LoadedTokenizer
from pipelines.format.dataset import Dataset
from pipelines.format.errors import VerifyError
from pipelines.format.record import Record

Asked = tuple[Record, int, str]  # the encoded record, which of its segments, the parent's text


class TextAudit:
    """Holds the tokenizer, which is loaded with the first texts."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.equal = dataset, 0

    @cached_property
    def tokenizer(self) -> LoadedTokenizer:
        assert self.dataset.encoding is not None
        loaded, said = dataset_tokenizer(self.dataset), self.dataset.encoding["text"]["tokenizer_sha256"]
        if loaded.sha256 != said:
            raise VerifyError("the tokenizer is not the one that made these ids", where=self.dataset.path, found=loaded.sha256, allowed=said)
        return loaded

    def check(self, i: int, asked: list[Asked]) -> Iterator[dict[str, Any]]:
        """Texts of shard i."""
        for (record, k, _), ids in zip(asked, self.tokenizer.encode([text for *_, text in asked]) if asked else (), strict=True):
            stored = self.dataset.array(i, record.segments[k])
            if len(ids) == len(stored) and (ids == stored).all():
                self.equal += 1
                continue
            n = min(len(ids), len(stored))
            at = int(np.append(ids[:n] != stored[:n], True).argmax())
            there = f"{stored[at] if at < len(stored) else 'the end'}, the tokenizer gives {ids[at] if at < len(ids) else 'the end'}"
            what = f"shard {i}, record {record.id}, segment {k}: ids are not those of the parent's text: from id {at} on ({there})"
            file = self.dataset.shards[i].tokens_file or self.dataset.shards[i].index
            yield {"file": file, "what": what, "shard": i, "record": record.id, "segment": k}
