"""`where`: which records of a dataset may be trained on, asked of the index alone.

    where:
      scores: {clip: {min: 0.28}}               # scores of `pipelines run score`, by name; ends included
      text_tokens: {min: 8, max: 2K}            # numeric columns of the index: text_tokens visual_tokens loss_tokens n_segments nbytes
      licence: [cc-by, cc0, null]               # allow-lists on its strings: id source group licence url data; null = records without one
      url: [commons.wikimedia.org]              # a member without `://` is a host, and stands for its subdomains too

What comes in: some columns of an index, in any slices. What goes out: one bit a record. All conditions hold together; a record that lacks a
value that is asked about is left out, unless the list has null. Held-out records are not filtered, so that arms with other filters are
measured on one set.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from pipelines.format.document import Document, Size

NUMBERS = ("text_tokens", "visual_tokens", "loss_tokens", "n_segments", "nbytes")
MEMBERS = 256  # of a list: the mixture is saved in plan.json, which holds 64 KB
STRINGS = ("id", "source", "group", "licence", "url", "data")


class Bound(Document):
    """What a score must lie within, ends included."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Bound:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"nothing lies between min {self.min:g} and max {self.max:g}")
        return self


class Range(Document):
    """What a count must lie within, ends included: sizes such as 2K."""

    min: Size | None = None
    max: Size | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Range:
        if self.min is None and self.max is None:
            raise ValueError("a range has min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"nothing lies between min {self.min:,} and max {self.max:,}")
        return self


class Where(Document):
    """Which records may be trained on. Keys are columns of the index (docs/formats.md)."""

    scores: dict[str, Bound] = {}
    text_tokens: Range | None = None
    visual_tokens: Range | None = None
    loss_tokens: Range | None = None
    n_segments: Range | None = None
    nbytes: Range | None = None
    id: list[str | None] | None = Field(None, min_length=1, max_length=MEMBERS)
    source: list[str | None] | None = Field(None, min_length=1, max_length=MEMBERS)
    group: list[str | None] | None = Field(None, min_length=1, max_length=MEMBERS)
    licence: list[str | None] | None = Field(None, min_length=1, max_length=MEMBERS)
    url: list[str | None] | None = Field(None, min_length=1, max_length=MEMBERS)
    data: list[str | None] | None = Field(None, min_length=1, max_length=MEMBERS)

    @field_validator(*STRINGS)
    @classmethod
    def _in_order(cls, members: list[str | None] | None) -> list[str | None] | None:
        """Lists are sets: the order of their members changes no plan and no fingerprint."""
        return None if members is None else sorted(set(members), key=lambda m: (m is not None, m or ""))

    @model_serializer(mode="wrap")
    def _only_what_is_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the columns that nothing is asked of: plans made before there were such keys keep their fingerprints."""
        said: dict[str, Any] = handler(self)
        return {k: v for k, v in said.items() if k == "scores" or v is not None}


def columns(where: Where) -> list[str]:
    """The columns of the index that `keep` reads."""
    return (["scores"] if where.scores else []) + [c for c in (*NUMBERS, *STRINGS) if getattr(where, c) is not None]


def keep(table: pa.Table, where: Where) -> NDArray[np.bool_] | None:
    """One bit for each record of a piece of an index; None when nothing is asked."""
    asked = columns(where)
    if not asked:
        return None
    out = np.ones(table.num_rows, np.bool_)
    if not table.num_rows:
        return out
    for name, bound in where.scores.items():
        found = pc.map_lookup(table["scores"], pa.scalar(name), "first")
        out &= _within(found, bound.min, bound.max)
    for column in asked:
        said = getattr(where, column)
        if column in NUMBERS:
            out &= _within(table[column], said.min, said.max)
        elif column in STRINGS:
            out &= _listed(table[column], said, hosts=column == "url")
    return out


def _within(values: pa.ChunkedArray, low: float | None, high: float | None) -> NDArray[np.bool_]:
    bits = pc.is_valid(values)
    kind = pa.int64()
    if pa.types.is_floating(values.type):
        kind = values.type  # bounds are rounded as scores were: 0.7 lies within `min: 0.7`, which float32(0.7) < 0.7 would deny
        bits = pc.and_(bits, pc.invert(pc.is_nan(values)))
    for bound, compare in ((low, pc.greater_equal), (high, pc.less_equal)):
        if bound is not None:
            bits = pc.and_(bits, compare(values, pa.scalar(bound, kind)))
    return _bits(bits)


def _listed(values: pa.ChunkedArray, members: list[str | None], hosts: bool) -> NDArray[np.bool_]:
    named = [m for m in members if m is None or not hosts or "://" in m]
    bits = pc.is_in(values, value_set=pa.array(named, pa.string()))  # null is found where the list has it
    out = _bits(bits)
    if len(named) < len(members):
        names = "|".join(re.escape(m) for m in members if m is not None and "://" not in m)
        pattern = rf"^[a-z][a-z0-9+.-]*://([^/?#\\]*@)?([^/?#@\\]*\.)?({names})(:[0-9]*)?([/?#]|$)"
        out |= _bits(pc.match_substring_regex(values, pattern, ignore_case=True))
    return out


def _bits(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(pc.fill_null(values, False), dtype=np.bool_)
