"""What a plan says: a row is a list of spans, and a span is one document for the model.

A `Span` names a piece of one record: which atoms, which of several captions, where a text is cut, what takes loss; `Spans` are many of them in
columns, as the planner makes them. Four words of a source's rules change how it is laid out or trained; they are kept in plan.json, so that
the trainer reads them where the plan was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.format.errors import InputError


class Specials(NamedTuple):
    """Ids of the structure tokens, as the encoding's card gives them: V … V+4 after a tokenizer of V ids, unless its recipe maps them."""

    bos: int
    eos: int
    boi: int
    eoi: int
    pad: int

    @classmethod
    def of(cls, encoding: dict[str, Any]) -> Specials:
        """From a card's `encoding`. A dataset without text says nothing of ids."""
        text = encoding.get("text")
        if not text:
            raise InputError("the encoding names no tokenizer, so structure tokens have no ids", allowed="at least one dataset with text")
        return cls(**{name: int(text["specials"][name]) for name in cls._fields})


@dataclass(frozen=True, slots=True)
class SourceRules:
    """How records of one source are laid out. `loss` and `both` have already decided each span's loss bits; they are kept to be read."""

    turns: Literal["chained", "isolated"] = "chained"
    history: Literal["noised", "clean_copy"] = "noised"
    loss: Literal["role", "text", "all"] = "role"
    both: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """One document of a packed row (C8). `count` is in atoms of the record, an image-text pair's chosen caption included.

    start:stop cuts the payload of a single atom that may be cut; otherwise it is 0:payload. `loss` has a bit per segment of the span, in
    the record's order. `caption` is the index of the chosen caption among the record's segments, or -1.
    """

    dataset: int
    source: int
    shard: int
    row: int
    first: int
    count: int
    caption: int
    start: int
    stop: int
    image_first: bool
    loss: tuple[bool, ...]
    epoch: int

    @property
    def payload(self) -> int:
        """Stored ids and latent rows, which is what budgets count."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Row:
    """One packed sequence. `seq` is its place in the order of consumption."""

    seq: int
    stage: int
    length: int
    payload: int
    cost: float
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Columns over spans, ordered by row; `bit_start` [n + 1] and `bits` are the loss lists. `text`, `loss_tokens`, `structure` are counts."""

    row_in_plan: NDArray[np.int64]
    dataset: NDArray[Any]
    source: NDArray[Any]
    shard: NDArray[Any]
    row: NDArray[Any]
    first: NDArray[Any]
    count: NDArray[Any]
    caption: NDArray[Any]
    start: NDArray[Any]
    stop: NDArray[Any]
    image_first: NDArray[np.bool_]
    epoch: NDArray[Any]
    text: NDArray[Any]
    loss_tokens: NDArray[Any]
    structure: NDArray[Any]
    bit_start: NDArray[np.int64]
    bits: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.source)
