"""Who sees whom, said once, and three ways to compute it.

In: a Batch (and which conditions fell). Out: `attend(q, k, v)` over hidden states. `visible` is the only definition of the mask; the back ends
differ in where they evaluate it, and tests prove them equal:

    dense      one [B,S,S] mask: the reference
    documents  rows cut into their documents, documents of like length padded together: a CPU then computes only the blocks on the diagonal
               (4 documents in a row of 1,024: 2-3 times faster than dense, forward and backward); on CUDA too where no gradient is wanted
    flex       FlexAttention with a block mask, for training on CUDA in rows that are not short, compiled for rows of one shape; no backward on CPU

Hidden states are flat and sorted by modality, [text and structure tokens ; latents], padding left out: each modality is a slice, so its own
FFN costs no gather. Attention is where order matters, and it gathers anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.batch import LATENT, PADDING, STRUCTURE, Batch

Backend = Literal["auto", "dense", "documents", "flex"]


class Marks(NamedTuple):
    """What the mask reads of a position; all of one shape."""

    place: Tensor  # in the row
    doc: Tensor
    turn: Tensor
    image: Tensor
    hidden: Tensor  # 0, or 1 + the number of the hidden image that this position belongs to, its BOI and EOI included
    condition: Tensor
    dropped: Tensor  # bool: the condition fell


def visible(q: Marks, k: Marks) -> Tensor:
    """Whether query position q sees key position k (bool, broadcast).

    Same document; earlier, or of the same image; the key belongs to all turns or to the query's; a hidden image, BOI to EOI, is seen by itself
    alone (whoever comes later finds one frame there, its clean copy, as when sampling); a condition that fell is seen by its own kind alone (so
    that a caption, which takes loss itself, can still be read by the caption).
    """
    same_image = (q.image == k.image) & (q.image >= 0)
    ordered = (k.place <= q.place) | same_image
    turn = (k.turn < 0) | (k.turn == q.turn)
    alone = (k.hidden == 0) | (k.hidden == q.hidden)
    return (q.doc == k.doc) & ordered & turn & alone & (~k.dropped | (k.condition == q.condition))


def marks(batch: Batch, dropped: Tensor | None) -> Marks:
    """The marks of every position, [B,S]."""
    rows, length = batch.shape
    place = torch.arange(length, device=batch.doc.device, dtype=torch.int32).expand(rows, length)
    hidden = torch.zeros_like(batch.image)
    if len(batch.image_hidden):
        owner = _owner(batch)
        hidden = torch.where((owner >= 0) & batch.image_hidden[owner.clamp(min=0).long()], owner + 1, 0)
    fallen = torch.zeros_like(batch.kind, dtype=torch.bool) if dropped is None else dropped
    return Marks(place, batch.doc, batch.turn, batch.image, hidden, batch.condition, fallen)


def _owner(batch: Batch) -> Tensor:
    """i32[B,S]: the image that a position belongs to, BOI and EOI with it; -1 none. Every image stands between the two (mixtures/layout.py)."""
    image, none = batch.image, torch.full_like(batch.image[:, :1], -1)
    after, before = torch.cat([image[:, 1:], none], dim=1), torch.cat([none, image[:, :-1]], dim=1)
    beside = torch.where(after >= 0, after, before)
    return torch.where((batch.kind == STRUCTURE) & (image < 0), beside, image)


class Order(NamedTuple):
    """The order of hidden states: flat positions [T] in [B,S], text and structure first (`text` of them), then latents. Padding is absent."""

    slots: Tensor
    text: int


def order(batch: Batch) -> Order:
    """Where each hidden state stands in the batch."""
    kind = batch.kind.reshape(-1)
    text = torch.nonzero((kind != LATENT) & (kind != PADDING)).squeeze(1)
    return Order(torch.cat([text, batch.latent_slot]), len(text))


class Attend(Protocol):
    """Queries, keys and values [T, H + 2 K, d] in the order of hidden states → [T, H, d]; queries share keys in groups of H / K."""

    def __call__(self, qkv: Tensor, heads: int) -> Tensor: ...


def prepare(batch: Batch, where: Order, dropped: Tensor | None = None, backend: Backend = "auto") -> Attend:
    """The mask of this batch, made once and used by every layer."""
    if backend == "auto":
        backend = automatic(batch.tokens.is_cuda, batch.shape[1], torch.is_grad_enabled())
    if not len(where.slots):
        return _nothing
    return {"dense": _dense, "documents": _documents, "flex": _flex}[backend](batch, where, dropped)


def automatic(cuda: bool, length: int, trains: bool) -> Backend:
    """The back end for rows of `length` places. What is only read comes in rows of every shape, and each would be compiled anew."""
    return "flex" if cuda and trains and length >= _SHORT else "documents"


def _nothing(qkv: Tensor, heads: int) -> Tensor:
    # A rank without rows still owes the collective a gradient, of zeros, for every parameter.
    return qkv[:, :heads]


def _split(qkv: Tensor, heads: int, repeat: bool = True) -> list[Tensor]:
    """[.., H + 2 K, L, d] → q, k, v, the last two repeated to H heads unless the kernel shares them itself."""
    kv = (qkv.shape[-3] - heads) // 2
    q, k, v = qkv.split([heads, kv, kv], dim=-3)
    if repeat and kv != heads:
        k, v = (x.repeat_interleave(heads // kv, dim=-3) for x in (k, v))
    return [q, k, v]


# ---- dense: the reference --------------------------------------------------------------------------------------------------------------


def _dense(batch: Batch, where: Order, dropped: Tensor | None) -> Attend:
    rows, length = batch.shape
    m = marks(batch, dropped)
    mask = visible(Marks(*(x[:, :, None] for x in m)), Marks(*(x[:, None, :] for x in m)))[:, None]

    def attend(qkv: Tensor, heads: int) -> Tensor:
        q, k, v = _split(_spread(qkv, where.slots, rows, length), heads)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).reshape(rows * length, heads, -1).index_select(0, where.slots)

    return attend


def _spread(x: Tensor, slots: Tensor, rows: int, length: int) -> Tensor:
    flat = x.new_zeros(rows * length, *x.shape[1:]).index_copy(0, slots, x)
    return flat.view(rows, length, *x.shape[1:]).transpose(1, 2)


# ---- documents: the CPU ----------------------------------------------------------------------------------------------------------------


class _Group(NamedTuple):
    documents: int
    longest: int
    mask: Tensor | None  # [documents, 1, longest, longest], additive; None = causal, and padding comes last


def _documents(batch: Batch, where: Order, dropped: Tensor | None) -> Attend:
    slots = where.slots.cpu().numpy()
    rows, length = batch.shape
    device = batch.tokens.device
    doc = batch.doc.cpu().numpy()
    key = (np.arange(rows, dtype=np.int64)[:, None] * (length + 1) + doc).reshape(-1)
    place = np.sort(slots)  # row order; a span is one run of positions
    key = key[place]
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    lengths = np.diff(np.r_[starts, len(key)])
    token = np.empty(rows * length, np.int64)
    token[slots] = np.arange(len(slots))
    m = marks(batch, dropped)
    flat = Marks(*(x.reshape(-1) for x in m))
    groups, there, back, offset = [], [], np.empty(len(slots), np.int64), 0
    for members in _buckets(lengths):
        longest = int(lengths[members[0]])
        inside = np.arange(longest)[None] < lengths[members, None]
        positions = place[np.where(inside, starts[members, None] + np.arange(longest)[None], starts[members, None])]
        index = token[positions]
        there.append(index.reshape(-1))
        cells = np.flatnonzero(inside.reshape(-1))
        back[index.reshape(-1)[cells]] = cells + offset
        offset += index.size
        groups.append(_Group(len(members), longest, _group_mask(flat, torch.from_numpy(positions).to(device), inside)))
    index = np.concatenate(there)
    moved = not np.array_equal(index, np.arange(len(slots)))  # texts of one length lie as they should
    into, out_of = torch.from_numpy(index).to(device), torch.from_numpy(back).to(device)

    def attend(qkv: Tensor, heads: int) -> Tensor:
        cells = qkv.flatten(1).index_select(0, into) if moved else qkv.flatten(1)
        out = []
        for group, part in zip(groups, cells.split([g.documents * g.longest for g in groups]), strict=True):
            q, k, v = _split(part.view(group.documents, group.longest, *qkv.shape[1:]).transpose(1, 2), heads)
            mask = None if group.mask is None else group.mask.to(q.dtype)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
            out.append(mixed.transpose(1, 2).reshape(group.documents * group.longest, -1))
        joined = torch.cat(out) if len(out) > 1 else out[0]
        return (joined.index_select(0, out_of) if moved else joined).view(len(qkv), heads, -1)

    return attend


def _group_mask(flat: Marks, positions: Tensor, inside: np.ndarray) -> Tensor | None:
    m = Marks(*(x[positions] for x in flat))
    if not ((m.image >= 0) | (m.turn >= 0) | m.hidden | m.dropped).any():
        return None  # nothing but text: the kernel that knows what causal means skips half
    real = torch.from_numpy(inside).to(positions.device)
    mask = visible(Marks(*(x[:, :, None] for x in m)), Marks(*(x[:, None, :] for x in m))) & real[:, None, :]
    mask[:, :, 0] |= ~real  # a padding query sees something, or its softmax is NaN
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf")).unsqueeze(1)


# A group costs about as much as this many query-key pairs in overhead of its own (measured on one thread, 4 heads of 24).
_GROUP_COST = 8_000


def _buckets(lengths: np.ndarray) -> list[np.ndarray]:
    """Documents by descending length, cut where padding would cost more than one more group."""
    descending = np.argsort(-lengths, kind="stable")
    out, start = [], 0
    for i in range(1, len(descending)):
        longest, here = int(lengths[descending[start]]), int(lengths[descending[i]])
        if (longest**2 - here**2) * (len(descending) - i) > _GROUP_COST:
            out.append(descending[start:i])
            start = i
    return [*out, descending[start:]]


# ---- flex: CUDA ------------------------------------------------------------------------------------------------------------------------


# Packed rows have few whole blocks, and small ones waste less: forward 0.10 ms against 0.34 at 4,096 places, 32 heads of 64 (H200, torch 2.11);
# backward is best as it is. Rows below _SHORT would go to a kernel for decoding: with these blocks it reads past the end of a row of 32, without them
# it cannot be compiled for a row of 96 (torch 2.11), and such rows need no kernel.
_BLOCKS = {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64}
_SHORT = 128


@lru_cache(maxsize=1)
def _compiled():
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # Eight kinds of batch (with turns, hidden images, fallen conditions, or not) in rows of a few shapes: past the limit of recompilations, 8, a step
    # is computed without a kernel, all scores in memory, and only a warning says so.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)  # type: ignore[attr-defined]
    return torch.compile(create_block_mask, dynamic=False), torch.compile(flex_attention, dynamic=False)


def _flex(batch: Batch, where: Order, dropped: Tensor | None) -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    rows, length = batch.shape
    device = batch.tokens.device
    make, kernel = _compiled() if device.type == "cuda" else (create_block_mask, flex_attention)
    options = _BLOCKS if device.type == "cuda" else None
    block_mask = make(_mask_mod(marks(batch, dropped)), B=rows, H=None, Q_LEN=length, KV_LEN=length, device=str(device))

    def attend(qkv: Tensor, heads: int) -> Tensor:
        q, k, v = _split(_spread(qkv, where.slots, rows, length), heads, repeat=False)
        out = kernel(q, k, v, block_mask=block_mask, enable_gqa=q.shape[1] != k.shape[1], kernel_options=options)
        return out.transpose(1, 2).reshape(rows * length, heads, -1).index_select(0, where.slots)

    return attend


def _mask_mod(m: Marks) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """`visible` for a kernel that asks it for every pair on the edge of something: documents and images are runs of places, so what a query sees
    is a range of places [low, high], two numbers instead of five marks; what a batch does not have (turns, hidden images, fallen conditions)
    is not asked for."""
    low, high = _seen(m)
    turns, hidden, fallen = (bool(x) for x in torch.stack([(m.turn >= 0).any(), m.hidden.any(), m.dropped.any()]).tolist())
    turn, hides, drops, condition = m.turn, m.hidden, m.dropped, m.condition

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        out = (k >= low[b, q]) & (k <= high[b, q])
        if turns:
            out = out & ((turn[b, k] < 0) | (turn[b, k] == turn[b, q]))
        if hidden:
            out = out & ((hides[b, k] == 0) | (hides[b, k] == hides[b, q]))
        if fallen:
            out = out & (~drops[b, k] | (condition[b, k] == condition[b, q]))
        return out

    return mask_mod


def _seen(m: Marks) -> tuple[Tensor, Tensor]:
    """First and last place [B,S] that a query could see: from the start of its document to itself, or to the end of its image."""
    place, length = m.place, m.place.shape[1]
    edge = torch.ones_like(m.doc[:, :1], dtype=torch.bool)
    starts = torch.cat([edge, m.doc[:, 1:] != m.doc[:, :-1]], dim=1)
    ends = torch.cat([m.image[:, 1:] != m.image[:, :-1], edge], dim=1)
    low = torch.where(starts, place, 0).cummax(dim=1).values
    last = torch.where(ends, place, length).flip(1).cummin(dim=1).values.flip(1)
    return low, torch.where(m.image >= 0, last, place)
