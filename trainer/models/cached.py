"""Keys and values of what a model has read, so that it reads on without reading again.

In: pieces of documents, each row's next positions. Out: an `Attend` for that piece, which every block calls once, in order: it puts the piece's keys
and values behind those that are there and lets the piece see all that `visible` allows. A cached pass therefore gives what one pass over the whole
document gives, to rounding, for whatever the mask knows: images that see themselves both ways, isolated turns, hidden frames, fallen conditions.

    cache = Cache(model, rows=8, capacity=600)
    model(piece, z, t, at=last, attend=cache.attend(piece))                    its positions stay
    model(block, z, t, attend=cache.attend(block, rows=[3, 5], keep=False))    seen, not kept: the next piece takes their places (denoising)

A row is one document. Memory: 2 x layers x rows x capacity x key-value heads x head width values, taken once. Keys are shared by groups of query
heads as they lie: queries of a group stand one after the other, so nothing is repeated. An image must be whole within a piece, and a hidden one
with its BOI and EOI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.batch import LATENT, PADDING, Batch
from trainer.models.attention import Marks, marks, order, visible

# Rows of different lengths go through attention together while that costs fewer query-key pairs than a call of its own: 4 heads of 24, one thread.
GROUP_COST = 8_000


class _Group(NamedTuple):
    """Rows of alike length: their hidden states [g, queries] (padded by repeating the first), how many keys they see, and the mask of those."""

    rows: slice | Tensor
    states: Tensor
    keys: int
    mask: Tensor | None  # [g, 1, queries or 1, keys]; None: every key
    cells: Tensor  # of [g, queries], flattened: where real queries stand
    whose: Tensor  # and which hidden states they are


class Cache:
    """See above. `length` [rows] is how many positions each row holds."""

    def __init__(self, model: Any, rows: int, capacity: int) -> None:
        self.layers, self.device = model.shape.layers, model.embed.device
        self.rows, self.capacity = rows, capacity
        self.length = np.zeros(rows, np.int64)
        self._images = np.zeros(rows, np.int64)  # images that were kept: an image's number in its row
        self._plain = np.ones(rows, bool)  # neither turns nor hidden images nor fallen conditions: the order is the mask
        self._stored: list[tuple[Tensor, Tensor] | None] = [None] * self.layers
        small = lambda dtype, fill: torch.full((rows, capacity), fill, dtype=dtype, device=self.device)
        place = torch.arange(capacity, dtype=torch.int32, device=self.device).expand(rows, capacity)
        self._marks = Marks(place, small(torch.int32, 0), small(torch.int16, -1), small(torch.int32, -1),
                            small(torch.int32, 0), small(torch.uint8, 0), small(torch.bool, False))  # fmt: skip

    def clear(self, rows: Sequence[int]) -> None:
        """Begin these rows anew."""
        chosen = list(rows)
        self.length[chosen], self._images[chosen], self._plain[chosen] = 0, 0, True

    def forget(self, row: int, positions: int) -> None:
        """Let go of the last positions that a row holds; none of them may be an image's latents."""
        self.length[row] -= positions

    def move(self, source: int, target: int) -> None:
        """What a row holds goes to another, so that rows in use stand together: side by side they are read where they lie, else copied a pass."""
        self.length[target], self._images[target], self._plain[target] = self.length[source], self._images[source], self._plain[source]
        n = int(self.length[source])
        for mark in self._marks[1:]:
            mark[target, :n] = mark[source, :n]
        for stored in self._stored:
            for x in stored or ():
                rows = x.view(self.rows, self.capacity, *x.shape[1:])
                rows[target, :n] = rows[source, :n]

    def attend(self, batch: Batch, rows: Sequence[int] | None = None, dropped: Tensor | None = None, keep: bool | Sequence[bool] = True) -> Reading:
        """The `Attend` of one pass over `batch`, whose row i goes on where row `rows[i]` (default: i) of the cache ends.

        keep: whether the row holds the piece afterwards. dropped bool[B,S]: conditions that fell, as for the model. Raises ValueError when a row
        would hold more than `capacity`, or when a row of the batch has more than one document.
        """
        whose = np.arange(batch.shape[0]) if rows is None else np.asarray(rows, np.int64)
        kept = np.broadcast_to(np.asarray(keep, bool), len(whose))
        piece = _Piece.of(batch, dropped)
        ends = self.length[whose] + piece.counts
        if len(ends) and ends.max() > self.capacity:
            raise ValueError(f"a row of {int(ends.max())} positions does not fit a cache of {self.capacity}")
        slots = order(batch).slots.cpu().numpy()
        row, column = np.divmod(slots, batch.shape[1])
        flat = whose[row] * self.capacity + self.length[whose][row] + column
        self._write_marks(piece, whose, row, column, flat)
        groups = self._groups(piece, whose, row, column, ends)
        self.length[whose] += np.where(kept, piece.counts, 0)
        self._images[whose] += np.where(kept, piece.images, 0)
        return Reading(self, torch.from_numpy(flat).to(self.device), groups)

    def _write_marks(self, piece: _Piece, whose: np.ndarray, row: np.ndarray, column: np.ndarray, flat: np.ndarray) -> None:
        # A piece that was seen and not kept is written over, so a row stays plain only where nothing else was ever shown to it.
        self._plain[whose] &= piece.plain
        index = torch.from_numpy(flat).to(self.device)
        at = (row, column)
        before = self._images[whose][row]
        image, hidden = (np.where(x > none, x + before, none) for x, none in ((piece.image[at], -1), (piece.hidden[at], 0)))
        new = {"turn": piece.turn[at], "image": image, "hidden": hidden, "condition": piece.condition[at], "dropped": piece.dropped[at]}
        for name, values in new.items():
            mark = getattr(self._marks, name)
            mark.view(-1).index_copy_(0, index, torch.from_numpy(values).to(self.device, mark.dtype))

    def _groups(self, piece: _Piece, whose: np.ndarray, row: np.ndarray, column: np.ndarray, ends: np.ndarray) -> list[_Group]:
        state = np.zeros((len(whose), int(piece.counts.max(initial=0))), np.int64)
        state[row, column] = np.arange(len(row))
        out = []
        for members in _alike(piece.counts, ends):
            queries, keys = int(piece.counts[members].max()), int(ends[members].max())
            inside = np.arange(queries)[None] < piece.counts[members, None]
            states = np.where(inside, state[members, :queries], state[members, :1])
            rows, cells = whose[members], np.flatnonzero(inside.reshape(-1))
            run = bool((np.diff(rows) == 1).all())
            chosen = slice(int(rows[0]), int(rows[0]) + len(rows)) if run else torch.from_numpy(rows).to(self.device)
            mask = self._mask(chosen, inside, piece.one_block[members].all() and self._plain[rows].all(), ends[members], queries, keys)
            move = lambda x: torch.from_numpy(np.ascontiguousarray(x)).to(self.device)
            out.append(_Group(chosen, move(states), keys, mask, move(cells), move(states.reshape(-1)[cells])))
        return out

    def _mask(self, rows: slice | Tensor, inside: np.ndarray, whole: bool, ends: np.ndarray, queries: int, keys: int) -> Tensor | None:
        """Which of the first `keys` each query sees. `whole`: every query of a piece sees all of its row, the piece included."""
        if whole and bool((ends == keys).all()):
            return None
        last = torch.from_numpy(ends).to(self.device)[:, None, None]
        if whole:
            return (torch.arange(keys, device=self.device) < last).unsqueeze(1)
        real = torch.from_numpy(inside).to(self.device)
        k = Marks(*(m[rows, :keys].unsqueeze(1) for m in self._marks))
        first = torch.from_numpy(ends - inside.sum(axis=1)).to(self.device)
        place = (first[:, None] + torch.arange(queries, device=self.device)).clamp(max=self.capacity - 1)
        q = Marks(*(m[rows].gather(1, place).unsqueeze(2) for m in self._marks))
        seen = visible(q, k) & (k.place < last) & real[:, :, None]
        seen[:, :, 0] |= ~real  # a padding query sees something, or its softmax is NaN
        return seen.unsqueeze(1)

    def store(self, layer: int, flat: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [T, K, d] of a layer at flat places [T] of [rows, capacity]; all of that layer's, [rows, capacity, K, d]."""
        found = self._stored[layer]
        if found is None:
            found = tuple(x.new_zeros(self.rows * self.capacity, *x.shape[1:]) for x in (k, v))  # type: ignore[assignment]
            self._stored[layer] = found
        assert found is not None
        for kept, new in zip(found, (k, v), strict=True):
            kept.index_copy_(0, flat, new)
        return found[0].view(self.rows, self.capacity, *k.shape[1:]), found[1].view(self.rows, self.capacity, *v.shape[1:])


class Reading:
    """The `Attend` of one pass: call it once a layer, first to last."""

    def __init__(self, cache: Cache, flat: Tensor, groups: list[_Group]) -> None:
        self.cache, self.flat, self.groups, self.layer = cache, flat, groups, 0

    def __call__(self, qkv: Tensor, heads: int) -> Tensor:
        """[T, H + 2 K, d] → [T, H, d]."""
        assert self.layer < self.cache.layers, "an Attend with a cache serves one pass, one call a layer"
        shared = (qkv.shape[1] - heads) // 2
        q, k, v = qkv.split([heads, shared, shared], dim=1)
        keys, values = self.cache.store(self.layer, self.flat, k, v)
        self.layer += 1
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for group in self.groups:
            rows, queries = group.states.shape
            # [g, K, H / K * queries, d]: the queries that share a key-value head stand one after the other.
            asked = q[group.states].view(rows, queries, shared, heads // shared, -1).permute(0, 2, 3, 1, 4).reshape(rows, shared, -1, q.shape[-1])
            mask = group.mask
            if mask is not None and mask.shape[2] > 1:
                mask = mask.repeat(1, 1, heads // shared, 1)
            seen, held = (x[group.rows, : group.keys].transpose(1, 2) for x in (keys, values))
            mixed = F.scaled_dot_product_attention(asked, seen, held, attn_mask=mask)
            mixed = mixed.view(rows, shared, heads // shared, queries, -1).permute(0, 3, 1, 2, 4).reshape(rows * queries, heads, -1)
            out.index_copy_(0, group.whose, mixed.index_select(0, group.cells))
        return out


class _Piece(NamedTuple):
    """What a cache reads of a batch, on the host: arrays [B,S], and by row how many positions and images there are, and how simple its mask is."""

    counts: np.ndarray
    images: np.ndarray
    image: np.ndarray  # numbered from 0 in each row; -1 none
    hidden: np.ndarray  # 1 + that number; 0 none
    turn: np.ndarray
    condition: np.ndarray
    dropped: np.ndarray
    plain: np.ndarray  # bool[B]: no turn, nothing hidden or fallen
    one_block: np.ndarray  # bool[B]: one position, or one image alone

    @classmethod
    def of(cls, batch: Batch, dropped: Tensor | None) -> _Piece:
        kind, said = batch.kind.cpu().numpy(), marks(batch, dropped)
        doc, turn, image, hidden, condition, fallen = (x.cpu().numpy() for x in said[1:])
        real = kind != PADDING
        counts = real.sum(axis=1)
        if not (real == (np.arange(kind.shape[1]) < counts[:, None])).all() or (real & (doc > 0)).any():
            raise ValueError("a row of a cached pass holds one document, from its first place on")
        none = np.iinfo(image.dtype).max
        first = np.where(image >= 0, image, none).min(axis=1, initial=none)
        images = np.maximum(image.max(axis=1, initial=-1) - first + 1, 0)
        plain = ~((real & (turn >= 0)) | (hidden > 0) | fallen).any(axis=1)
        whole = (counts <= 1) | (((kind == LATENT).sum(axis=1) == counts) & (images == 1))
        local, alone = np.where(image >= 0, image - first[:, None], -1), np.where(hidden > 0, hidden - first[:, None], 0)
        return cls(counts, images, local, alone, turn, condition, fallen, plain, whole)


def _alike(counts: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """Rows in groups of alike length, longest first; rows that read nothing in none."""
    longest = [i for i in np.lexsort((-ends, -counts)) if counts[i]]
    out: list[list[int]] = []
    for i in longest:
        together = [*out[-1], i] if out else []
        if together:
            pairs = len(together) * int(counts[together[0]]) * int(ends[together].max())
            wasted = pairs - int((counts[together] * ends[together]).sum())
        if together and wasted <= GROUP_COST:
            out[-1] = together
        else:
            out.append([i])
    return [np.array(sorted(g)) for g in out]
