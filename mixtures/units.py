"""Records → units: what a plan may place in a row, still whole. All arithmetic on columns; no record is looked at one by one.

A unit is one document for the model: a text, an image with one of its captions, as many frames of a clip as fit a row, a set of questions
with its images, an action sample. Only a text may later be cut further (`packing.py`). Here it is decided, by draws on the record's hash, which
caption is used and whether the image comes first, and counted what each unit holds: payload by modality, loss-bearing payload, structure.
`layout.py` lays the same unit out position by position; `length` here and `len(layout)` there agree, which a test holds for every kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.mixture import Source
from mixtures.table import I32, I64, Bool, Segments, Table
from pipelines.format.chance import draw, uniform


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """One entry a unit. `payload` = `text` + visual; `structure` are BOS, EOS, BOI, EOI and second copies of frames."""

    record: I32  # index in the table
    first: I32  # atoms
    count: I32
    caption: I32  # segment index, or -1
    start: I32
    stop: I32
    text: I32
    loss: I32
    structure: I32
    image_first: Bool
    cut: Bool  # may be cut

    @property
    def payload(self) -> I32:
        return self.stop - self.start

    @property
    def length(self) -> I32:
        """Positions in a row."""
        return self.payload + self.structure

    def __len__(self) -> int:
        return len(self.record)

    def __getitem__(self, at: Any) -> Units:
        return Units(*(getattr(self, f.name)[at] for f in fields(self)))

    def counted(self, count: str) -> I64:
        """What the budget counts, per unit. A record counts 1, at its first unit."""
        if count == "records":
            return (self.first == 0).astype(np.int64)
        columns = {"all": self.payload, "text": self.text, "visual": self.payload - self.text, "loss": self.loss}
        return columns[count].astype(np.int64)


def join_units(parts: list[Units]) -> Units:
    """One after another."""
    return Units(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Units)))


def units(table: Table, picks: NDArray[Any], source: Source, row: int, seed: int, epoch: int) -> tuple[Units, dict[str, int]]:
    """Units of the records `picks`, in that order, for rows of `row` positions; and the records that fit nowhere, by reason."""
    kinds: dict[str, Callable[..., tuple[Units, dict[str, Bool]]]] = {"text": _texts, "image-text": _pairs, "video": _clips}
    made, unfit = kinds.get(table.data, _wholes)(table, np.asarray(picks), source, row, seed, epoch)
    return made, {reason: int(lost.sum()) for reason, lost in unfit.items() if lost.any()}


def _make(record: NDArray[Any], **given: Any) -> Units:
    n = len(record)
    columns: dict[str, Any] = {"record": record, "first": 0, "count": 1, "caption": -1, "start": 0, "image_first": False, "cut": False}
    columns |= given
    dtype: dict[str, Any] = {"image_first": np.bool_, "cut": np.bool_}
    typed: dict[str, Any] = {f.name: np.broadcast_to(columns[f.name], n).astype(dtype.get(f.name, np.int32)) for f in fields(Units)}
    return Units(**typed)


def _atoms(table: Table, picks: NDArray[Any]) -> tuple[I64, I64]:
    """(index into the flat atoms, place in `picks`) of every atom of the picked records."""
    return expand(table.atom_start[picks], table.atom_start[picks + 1])


def expand(start: I64, stop: I64) -> tuple[I64, I64]:
    """All integers of the ranges [start, stop), and which range each comes from."""
    count = stop - start
    owner = np.repeat(np.arange(len(start)), count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return within + np.repeat(start, count), owner


# ---- text ------------------------------------------------------------------------------------------------------------------------------


def _texts(table: Table, picks: NDArray[Any], source: Source, row: int, seed: int, epoch: int) -> tuple[Units, dict[str, Bool]]:
    """One unit a text, which may be cut. Texts of several segments stay whole when they fit, else each segment is a unit of its own."""
    atoms = table.atom_start[picks + 1] - table.atom_start[picks]
    empty = table.text[picks] == 0
    split = (atoms > 1) & (table.text[picks] + 2 > row)
    loss = table.text[picks] if table.segments is None or source.loss != "role" else table.loss[picks]
    if not split.any():
        keep = ~empty
        p, n = picks[keep], table.text[picks][keep]
        made = _make(p, count=atoms[keep], stop=n, text=n, loss=loss[keep], structure=2, cut=atoms[keep] == 1)
        return made, {"empty": empty}
    at, owner = _atoms(table, picks)
    apart = split[owner]
    lead = np.diff(owner, prepend=-1) != 0
    use = (apart | lead) & ~empty[owner] & (~apart | (table.atom_tokens[at] > 0))
    at, owner, apart, lead = at[use], owner[use], apart[use], lead[use]
    first = np.where(apart, at - table.atom_start[picks][owner], 0)
    count = np.where(apart, 1, atoms[owner])
    n = np.where(apart, table.atom_tokens[at], table.text[picks][owner])
    tail = ~apart | (first + 1 == atoms[owner])
    structure = (first == 0).astype(int) + tail
    share = n if table.segments is None else np.where(apart, _loss_of_atoms(table, picks[owner], first, source) * n, loss[owner])
    return _make(picks[owner], first=first, count=count, stop=n, text=n, loss=share, structure=structure, cut=count == 1), {"empty": empty}


def _loss_of_atoms(table: Table, record: NDArray[Any], atom: I64, source: Source) -> Bool:
    """Whether single-segment atoms take loss."""
    assert table.segments is not None
    return loss_bits(table.segments, table.segments.start[record] + atom, source.loss)


# ---- image-text ------------------------------------------------------------------------------------------------------------------------


def _pairs(table: Table, picks: NDArray[Any], source: Source, row: int, seed: int, epoch: int) -> tuple[Units, dict[str, Bool]]:
    """The image and exactly one caption; nothing of it is ever cut."""
    at, owner = _atoms(table, picks)
    is_image = table.atom_images[at] > 0
    image = np.bincount(owner[is_image], weights=table.atom_tokens[at[is_image]], minlength=len(picks)).astype(np.int64)
    images = np.bincount(owner[is_image], weights=table.atom_images[at[is_image]], minlength=len(picks)).astype(np.int64)
    h = table.h[picks]
    chosen = _captions(table, picks, at[~is_image], owner[~is_image], source, uniform(draw(h, seed, "caption", epoch)))
    none = (chosen < 0) | (images == 0)
    caption = np.where(chosen >= 0, table.atom_tokens[chosen], 0).astype(np.int64)
    image_first = uniform(draw(h, seed, "image_first", epoch)) < source.image_first
    if table.atom_made is not None and table.segments is not None:
        of_target = np.bincount(owner[is_image], weights=table.atom_made[at[is_image]], minlength=len(picks)).astype(np.int64)
        noised = ~none & (~image_first | source.both)
        noised[~none] &= loss_bits(table.segments, table.segments.start[picks[~none]], source.loss)
        image = np.where(noised, of_target, image)
    long = ~none & (image + caption + 2 + 2 * images > row)
    keep = ~(none | long)
    segment = _segment_of_atom(table, picks[keep], chosen[keep])
    trains_image = ~image_first[keep] | source.both
    trains_text = np.ones(len(segment), np.bool_)
    if table.segments is not None:
        s, start = table.segments, table.segments.start[picks[keep]]
        trains_text = loss_bits(s, start + segment, source.loss)
        trains_image &= loss_bits(s, start, source.loss)  # the image is the first segment of a pair
    loss = image[keep] * trains_image + caption[keep] * trains_text
    more = {"caption": segment, "stop": (image + caption)[keep], "text": caption[keep], "image_first": image_first[keep]}
    made = _make(picks[keep], count=2, structure=2 + 2 * images[keep], loss=loss, **more)
    return made, {"no_caption": none, "too_long": long}


def _captions(table: Table, picks: NDArray[Any], at: I64, owner: I64, source: Source, u: NDArray[np.float64]) -> I64:
    """The atom of the caption drawn for each record, -1 where there is none to draw: weights by name, all alike when none are given."""
    weight = np.ones(len(at))
    if source.captions is not None:
        assert table.segments is not None
        place = table.segments.start[picks[owner]] + _segment_of_atom(table, picks[owner], at)
        weight = np.array([source.captions.get(name, 0.0) for name in table.segments.member[place]])
    lists = np.bincount(owner, minlength=len(picks))
    stop = np.cumsum(lists)
    total = np.concatenate([[0.0], np.cumsum(weight)])
    low, high = total[stop - lists], total[stop]
    found = np.searchsorted(total, low + u * (high - low), side="right") - 1
    return np.where(high > low, at[np.clip(found, stop - lists, np.maximum(stop - 1, 0))] if len(at) else -1, -1)


def _segment_of_atom(table: Table, record: NDArray[Any], atom: I64) -> I64:
    """Index within the record of an atom's first segment."""
    return table.atom_segment[atom] - table.atom_segment[table.atom_start[record]]


# ---- video -----------------------------------------------------------------------------------------------------------------------------


def _clips(table: Table, picks: NDArray[Any], source: Source, row: int, seed: int, epoch: int) -> tuple[Units, dict[str, Bool]]:
    """As many frames as fit a row, greedily from the first: a frame then has as much history as it can. Frames are never cut."""
    if (made := _short_clips(table, picks, source, row)) is not None:
        return made, {}
    at, owner = _atoms(table, picks)
    tokens, images = table.atom_tokens[at].astype(np.int64), table.atom_images[at].astype(np.int64)
    if table.atom_made is not None and table.segments is not None:
        frame = table.segments.start[picks[owner]] + _segment_of_atom(table, picks[owner], at)
        tokens = np.where((images > 0) & loss_bits(table.segments, frame, source.loss), table.atom_made[at], tokens)
    copies = 2 if source.history == "clean_copy" else 1
    place = copies * (tokens + 2 * images)
    total = np.bincount(owner, weights=place, minlength=len(picks))
    large = np.bincount(owner, weights=place + 2 > row, minlength=len(picks)) > 0
    empty = table.atom_start[picks + 1] == table.atom_start[picks]
    keep = ~(large | empty)[owner]
    at, owner, tokens, images, place = at[keep], owner[keep], tokens[keep], images[keep], place[keep]
    begin = np.diff(owner, prepend=-1) != 0
    opens = begin | _breaks(owner, place, begin, total, row - 2)
    lead = np.flatnonzero(opens)
    head, tail = begin[lead], np.append(begin[lead][1:], True)  # the first and the last unit of a record
    payload, space = np.add.reduceat(tokens, lead), np.add.reduceat(place, lead)
    frames = np.diff(np.append(lead, len(at)))
    record = picks[owner[lead]]
    loss, text = payload, payload - np.add.reduceat(np.where(images > 0, tokens, 0), lead)
    if table.segments is not None:
        s = table.segments
        segment = s.start[picks[owner]] + _segment_of_atom(table, picks[owner], at)
        loss = np.add.reduceat(np.where(loss_bits(s, segment, source.loss), tokens, 0), lead)
        if copies == 2:  # frames that only stand as context are shown once
            twice = loss_bits(s, segment, source.loss) & (images > 0)
            space = space - np.add.reduceat(np.where(twice, 0, place // 2), lead)
    structure = space - payload + head + tail
    first = at[lead] - table.atom_start[record]
    made = _make(record, first=first, count=frames, stop=payload, text=text, loss=loss, structure=structure)
    return made, {"frame_too_large": large & ~empty, "empty": empty}


def _short_clips(table: Table, picks: NDArray[Any], source: Source, row: int) -> Units | None:
    """Clips that all fit a row and take loss as a whole: what `_clips` makes of them, without a look at single frames."""
    if table.segments is not None or table.atom_made is not None or source.history == "clean_copy":
        return None
    start, stop = table.atom_start[picks], table.atom_start[picks + 1]
    images = np.concatenate([[0], np.cumsum(table.atom_images)])
    structure = 2 + 2 * (images[stop] - images[start])
    text = table.text[picks]
    payload = text + table.visual[picks]
    if (payload + structure > row).any() or (start == stop).any():
        return None
    return _make(picks, count=stop - start, stop=payload, text=text, loss=payload, structure=structure)


def _breaks(owner: I64, place: I64, begin: Bool, total: NDArray[Any], room: int) -> Bool:
    """Where a new unit begins inside a record that is too long for one row."""
    out = np.zeros(len(owner), np.bool_)
    long = total[owner] > room
    if not long.any():
        return out
    starts = np.flatnonzero(begin)
    stops = np.append(starts[1:], len(owner))
    within = np.arange(len(owner)) - np.repeat(starts, stops - starts)
    alike = np.repeat(np.minimum.reduceat(place, starts) == np.maximum.reduceat(place, starts), stops - starts)
    out[long & alike] = (within % np.maximum(room // np.maximum(place, 1), 1) == 0)[long & alike]
    for a, b in zip(starts, stops, strict=True):  # frames of several sizes in one clip: rare, so one by one
        if long[a] and not alike[a]:
            used = 0
            for i in range(a, b):
                out[i] = used + place[i] > room
                used = place[i] if out[i] else used + place[i]
    return out


# ---- conversations and action samples --------------------------------------------------------------------------------------------------


def _wholes(table: Table, picks: NDArray[Any], source: Source, row: int, seed: int, epoch: int) -> tuple[Units, dict[str, Bool]]:
    """The whole record or nothing: questions and answers with their images; context frames, an action and its outcome."""
    s = table.segments
    assert s is not None
    at, owner = expand(s.start[picks], s.start[picks + 1])
    n = len(picks)
    images = np.bincount(owner, weights=s.image[at], minlength=n).astype(np.int64)
    bits = loss_bits(s, at, source.loss)
    tokens = s.shown(at, bits)
    loss = np.bincount(owner, weights=np.where(bits, tokens, 0), minlength=n).astype(np.int64)
    ends = np.ones(n, np.int64)
    if source.turns == "isolated":
        ends = np.maximum(_turns(owner, s.turn[at], n), 1)
    payload = np.bincount(owner, weights=tokens, minlength=n).astype(np.int64)
    structure = 1 + ends + 2 * images
    long, empty = payload + structure > row, payload == 0
    keep = ~(long | empty)
    count = (table.atom_start[picks + 1] - table.atom_start[picks])[keep]
    text = table.text[picks][keep]
    made = _make(picks[keep], count=count, stop=payload[keep], text=text, loss=loss[keep], structure=structure[keep])
    return made, {"too_long": long & ~empty, "empty": empty}


def _turns(owner: I64, turn: NDArray[np.int16], n: int) -> I64:
    """Distinct turns (≥ 0) of each record."""
    key = (owner[turn >= 0] << 16) + turn[turn >= 0]
    if not (np.diff(key) >= 0).all():  # turns of a record that come back to one another
        key = np.sort(key)
    return np.bincount(key[np.diff(key, prepend=-1) != 0] >> 16, minlength=n)


def loss_bits(s: Segments, at: NDArray[Any], loss: str) -> Bool:
    """Which segments take loss under `loss: role | text | all`, before image → text clears the image's bit."""
    if loss == "all":
        return np.ones(len(at), np.bool_)
    return s.target[at] | ~s.image[at] if loss == "text" else s.target[at]
