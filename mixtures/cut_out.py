"""A span of a plan becomes a record of its own, which holds what the span uses and nothing else.

In: a span and the record it points into. Out: the same record (id, group, licence, fields …) whose segments are the span's, and a span that
points at it and is laid out to the same positions, bit for bit. Two things must survive the cut:

    where it stood   a text's piece has no BOS when text stood before it and no EOS when text follows: an empty segment says so on each side
    which image      noise is drawn by (record, segment, pass), so images keep their place: what stood before them and is not used is emptied

Empty segments have no tokens and no bytes. A piece far into a video of thousands of frames carries as many of them as frames before it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from mixtures.layout import atom_ranges, span_segments
from mixtures.span import Span
from pipelines.format.record import Record, Segment

EMPTY = Segment("tokens", "context", dtype="uint16", shape=(0,))
IMAGES = ("latents", "image")


def cut_out(span: Span, record: Record) -> tuple[Record, Span]:
    """(the record that holds only what `span` uses, the span of it). Payloads stay where they are: offsets point into the same files.

    Of the new span dataset, shard and row are still the old ones."""
    atoms = atom_ranges(record.segments)
    chosen = span_segments(span, record.segments, atoms)
    used = [record.segments[i] for i in chosen]
    images = [i for i in chosen if record.segments[i].kind in IMAGES]
    if span.caption >= 0:
        kept = [s if i in chosen else EMPTY for i, s in enumerate(record.segments[: images[-1] + 1])]
        behind = [record.segments[i] for i in chosen if i > images[-1]]
        caption = len(kept) if behind else span.caption
        return replace(record, segments=(*kept, *behind)), replace(span, caption=caption)
    whole = used[0].tokens
    cut = is_cut(span, record, chosen)
    if cut:
        used = [_piece(used[0], span)]
    before = chosen[0] if images else int(span.first > 0 or span.start > 0)
    after = span.first + span.count < len(atoms) or (cut and span.stop < whole)
    segments = (*[EMPTY] * before, *used, *[EMPTY] * after)
    return replace(record, segments=segments), replace(span, first=before, start=0, stop=span.payload)


def is_cut(span: Span, record: Record, chosen: list[int]) -> bool:
    """Whether start:stop is a piece of the one segment of the span."""
    return span.caption < 0 and span.count == 1 and len(chosen) == 1 and record.segments[chosen[0]].atom < 0


def _piece(s: Segment, span: Span) -> Segment:
    size = np.dtype(s.dtype).itemsize
    assert s.offset is not None
    return replace(s, offset=s.offset + span.start * size, nbytes=span.payload * size, shape=(span.payload,), tokens=span.payload)


def held(span: Span, record: Record) -> Counter[str]:
    """Payload tokens of a span: text, visual, loss, all."""
    chosen = span_segments(span, record.segments, atom_ranges(record.segments))
    out: Counter[str] = Counter(text=0, visual=0, loss=0)
    cut = is_cut(span, record, chosen)
    for i, loss in zip(chosen, span.loss, strict=True):
        s = record.segments[i]
        tokens = span.payload if cut else s.tokens
        out["visual" if s.kind in IMAGES else "text"] += tokens
        out["loss"] += tokens if loss else 0
    out["all"] = out["text"] + out["visual"]
    return out
