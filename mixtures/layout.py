"""How a span becomes positions: the only place that inserts structure tokens, used by the planner (lengths) and the trainer (batches).

    text          BOS · text · EOS                       a continued span has no BOS, an unfinished one no EOS
    image → text  BOS · BOI latents EOI · caption · EOS
    text → image  BOS · caption · BOI latents EOI · EOS
    video         BOS · (BOI frame EOI)* · EOS           clean_copy: (BOI noised EOI · BOI clean EOI)*, both at the same positions
    action-video  BOS · (BOI frame EOI)⁴ · action · BOI target EOI · EOS
    vqa chained   BOS · BOI image EOI · question answer · question answer · EOS
    vqa isolated  BOS · BOI image EOI · (question answer EOS)*      each turn starts again at the position after the image

A span is one document. Cross-entropy is taken on payload ids with loss, on BOI where its image has loss, on EOS where the last segment (of
the turn, when turns are isolated) has loss; never on BOS, EOI and PAD, nor on the first token of an isolated turn, since nothing of that
turn stands before it. Under `clean_copy` the noised frame (`image_hidden`, with its BOI and EOI) is for itself alone: everything later sees
the clean copy that follows it, so the two copies share positions, as they will at sampling time when the one becomes the other.

Cost: a shape met before comes from a cache in 13 µs (its arrays are shared and read-only); a new one takes 60 µs and 25 bytes a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixtures.span import SourceRules, Span, Specials
from pipelines.format.record import Record, Segment

TEXT, LATENT, STRUCTURE, PAD = 0, 1, 2, 3  # kinds of positions
NONE, CAPTION, ACTION, CONTEXT = 0, 1, 2, 3  # what a position is a condition for images as


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Arrays over the L positions of a span, and over its images in order of appearance. Read-only."""

    kind: NDArray[np.uint8]  # 0 text, 1 latent, 2 structure
    token: NDArray[np.int32]  # ids of structure tokens; 0 where the payload says
    segment: NDArray[np.int16]  # index in the record, also for BOI and EOI; -1 for BOS and EOS
    offset: NDArray[np.int32]  # place in that segment's payload; -1 for structure
    turn: NDArray[np.int16]  # -1 = seen by all turns
    position: NDArray[np.int32]
    is_target: NDArray[np.bool_]  # may be predicted by cross-entropy, from the position before it of the same turn
    image: NDArray[np.int16]  # ordinal of the image at latent slots; -1 elsewhere
    condition: NDArray[np.uint8]  # 0 none, 1 caption, 2 action, 3 context image (its BOI and EOI included)
    image_segment: NDArray[np.int16]
    image_loss: NDArray[np.bool_]  # noised, with its own t, and trained
    image_hidden: NDArray[np.bool_]  # seen by nothing after it
    payload: int  # ids and latent rows; the second copy of a frame is structure

    def __len__(self) -> int:
        return len(self.kind)


class _Piece(NamedTuple):
    """A run of one segment's payload: `length` positions from `offset` on."""

    segment: int
    image: bool
    length: int
    offset: int
    turn: int
    loss: bool
    condition: int
    hidden: bool = False
    copy: bool = False


def layout(span: Span, record: Record, rules: SourceRules, specials: Specials) -> Layout:
    """Positions of `span`, a piece of `record` (an index row without payloads is enough: kinds, roles, atoms, turns and token counts)."""
    segments = record.segments
    atoms = atom_ranges(segments)
    chosen = span_segments(span, segments, atoms)
    assert len(chosen) == len(span.loss), f"record {record.id}: {len(chosen)} segments in the span, {len(span.loss)} loss bits"
    isolated = rules.turns == "isolated" and any(segments[i].turn >= 0 for i in chosen)
    cut = span.count == 1 and len(chosen) == 1 and segments[chosen[0]].atom < 0
    pieces = []
    for i, loss in zip(chosen, span.loss, strict=True):
        s = segments[i]
        turn = s.turn if isolated else -1
        length, offset = (span.payload, span.start) if cut else (s.tokens, 0)
        pieces.append(_Piece(i, s.kind in ("latents", "image"), length, offset, turn, loss, NONE))
    if record.data == "image-text" and not span.image_first:
        pieces.sort(key=lambda p: p.image)  # stable: captions, then images
    if isolated:
        pieces.sort(key=lambda p: p.turn)
    pieces = _conditions(pieces, record.data)
    if record.data == "video" and rules.history == "clean_copy":
        pieces = _with_copies(pieces)
    begins = span.caption >= 0 or (span.first == 0 and span.start == 0)
    ends = span.caption >= 0 or (span.first + span.count == len(atoms) and (not cut or span.stop == segments[chosen[0]].tokens))
    return _build(tuple(pieces), begins, ends, isolated, specials)


def atom_ranges(segments: Sequence[Segment]) -> list[range]:
    """Segment indexes of each atom, by the rule of C2: neighbours with one atom number ≥ 0 belong together."""
    starts = [i for i, s in enumerate(segments) if i == 0 or s.atom < 0 or s.atom != segments[i - 1].atom]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(segments)], strict=True)]


def span_segments(span: Span, segments: Sequence[Segment], atoms: list[range]) -> list[int]:
    """Indexes of the span's segments in the record's order: images and the one caption of a pair, or all of its atoms."""
    if span.caption >= 0:
        return [i for i, s in enumerate(segments) if s.kind in ("latents", "image") or i == span.caption]
    return [i for atom in atoms[span.first : span.first + span.count] for i in atom]


def _conditions(pieces: list[_Piece], data: str) -> list[_Piece]:
    """Whatever stands before an image with loss and is not itself trained as an image conditions it."""
    text = {"action-video": ACTION}.get(data, CAPTION)
    last = max((i for i, p in enumerate(pieces) if p.image and p.loss), default=-1)
    named = [CONTEXT if p.image and not p.loss else NONE if p.image else text for p in pieces]
    return [p._replace(condition=named[i]) if i < last else p for i, p in enumerate(pieces)]


def _with_copies(pieces: list[_Piece]) -> list[_Piece]:
    """Each trained frame twice: noised and hidden, then clean. A clean copy conditions the frames after it."""
    last = max((i for i, p in enumerate(pieces) if p.image and p.loss), default=-1)
    out = []
    for i, p in enumerate(pieces):
        if p.image and p.loss:
            out.append(p._replace(hidden=True))
            out.append(p._replace(loss=False, copy=True, condition=CONTEXT if i < last else NONE))
        else:
            out.append(p)
    return out


@lru_cache(maxsize=512)
def _build(pieces: tuple[_Piece, ...], begins: bool, ends: bool, isolated: bool, specials: Specials) -> Layout:
    turns = {p.turn for p in pieces if p.turn >= 0}
    n = begins + sum(p.length + 2 * p.image for p in pieces) + (len(turns) if isolated else ends)
    kind, token = np.full(n, STRUCTURE, np.uint8), np.zeros(n, np.int32)
    segment, turn = np.full(n, -1, np.int16), np.full(n, -1, np.int16)
    offset, position = np.full(n, -1, np.int32), np.empty(n, np.int32)
    is_target, image, condition = np.zeros(n, np.bool_), np.full(n, -1, np.int16), np.zeros(n, np.uint8)
    at = place = images = 0  # array index; next position number; images so far
    if begins:
        token[0], position[0], at, place = specials.bos, 0, 1, 1
    prefix = place  # where isolated turns start again
    for k, p in enumerate(pieces):
        if isolated and p.turn >= 0 and (k == 0 or pieces[k - 1].turn != p.turn):
            place = prefix
        total = p.length + 2 * p.image
        run = slice(at, at + total)
        segment[run], turn[run], condition[run] = p.segment, p.turn, p.condition
        position[run] = np.arange(place, place + total)
        body = slice(at + p.image, at + p.image + p.length)
        kind[body] = LATENT if p.image else TEXT
        offset[body] = np.arange(p.offset, p.offset + p.length)
        if p.image:
            token[at], token[at + total - 1], image[body] = specials.boi, specials.eoi, images
            is_target[at] = p.loss
            images += 1
        else:
            is_target[body] = p.loss
        if isolated and p.turn >= 0 and (k == 0 or pieces[k - 1].turn != p.turn):
            is_target[at] = False
        at += total
        place += 0 if p.hidden else total
        if p.turn < 0:
            prefix = place
        elif k + 1 == len(pieces) or pieces[k + 1].turn != p.turn:
            token[at], turn[at], position[at], is_target[at] = specials.eos, p.turn, place, p.loss
            at += 1
    if ends and not isolated:
        token[at], position[at], is_target[at] = specials.eos, place, bool(pieces) and _trained(pieces)
    shown = [p for p in pieces if p.image]
    image_segment = np.array([p.segment for p in shown], np.int16)
    image_loss, hidden = np.array([p.loss for p in shown], np.bool_), np.array([p.hidden for p in shown], np.bool_)
    payload = sum(p.length for p in pieces if not p.copy)
    out = Layout(kind, token, segment, offset, turn, position, is_target, image, condition, image_segment, image_loss, hidden, payload)
    for name in Layout.__slots__[:-1]:
        getattr(out, name).setflags(write=False)
    return out


def _trained(pieces: tuple[_Piece, ...]) -> bool:
    """Whether the last segment has loss; a clean copy stands for the frame before it."""
    return pieces[-1].loss or (pieces[-1].copy and pieces[-2].loss)
