"""The tokenizer of a source, and how many bytes of text a token stands for: what turns nats a token into bits a byte.

Tokenizers are read here alone for evaluations, so that all of them take a text that spells a structure token for ordinary text, as encoding does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.format import storage
from pipelines.format.errors import InputError


def source_dataset(plan: Any, source: str) -> Any:
    """The first dataset of a source with held-out rows; None when nothing of it is held out."""
    if source not in plan.sources:
        raise InputError("the plan has no such source", found=source, allowed=", ".join(plan.sources))
    rows = plan.held_out(source)
    return plan.datasets[plan.row(rows[0], "heldout").spans[0].dataset] if rows else None


def tokenizer_of(plan: Any, source: str) -> Any:
    """The tokenizer that the encoded dataset of a source carries."""
    dataset = source_dataset(plan, source)
    if dataset is None:
        raise InputError("the source has no held-out rows", found=source, allowed=", ".join(plan.sources), next="raise held_out.fraction")
    return dataset_tokenizer(dataset)


def dataset_tokenizer(dataset: Any) -> Any:
    """The tokenizer that an encoded dataset carries."""
    return tokenizer_at(storage.join(dataset.path, "tokenizer.json"))


def tokenizer_at(path: str) -> Any:
    """A tokenizer.json, set as the encode stage sets it: no truncation, no padding, and no text becomes a special token by spelling it."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(storage.read(path).decode())
    found.no_truncation()
    found.no_padding()
    found.encode_special_tokens = True  # is no part of the file
    return found


class ByteCounter:
    """Bytes of UTF-8 text behind token ids: by table for byte-level tokenizers (one character of a token is one byte; a token that was added stands
    as it is written), by decoding otherwise."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.table: np.ndarray | None = None
        if type(tokenizer.decoder).__name__ == "ByteLevel":
            vocabulary = tokenizer.get_vocab(with_added_tokens=False)
            sizes = {i: len(token) for token, i in vocabulary.items()}
            sizes |= {i: len(token.content.encode()) for i, token in tokenizer.get_added_tokens_decoder().items()}
            self.table = np.zeros(max(sizes, default=-1) + 1, np.int64)
            self.table[list(sizes)] = list(sizes.values())

    def count(self, ids: Sequence[int] | np.ndarray) -> int:
        """Bytes that these ids of one document decode to."""
        if self.table is not None:
            return int(self.table[np.asarray(ids, np.int64)].sum()) if len(ids) else 0
        return len(self.tokenizer.decode(list(map(int, ids)), skip_special_tokens=False).encode())
