"""The only thing a model sees.

In: documents (one plan span each, already laid out and tokenised) grouped into packed rows. Out: one `Batch` of flat arrays, as the
formats fix it. A typed record with one `to(device)` instead of parallel lists: every field is named once, here.

Worked example, B = 1, S = 8, a document of BOS, two text ids, BOI, one latent, EOI, EOS and one position of padding:

    tokens       BOS  11  12  BOI  PAD  EOI  EOS  PAD
    kind           2   0   0    2    1    2    2    3      0 text, 1 latent, 2 structure, 3 pad
    doc            0   0   0    0    0    0    0   -1
    image         -1  -1  -1   -1    0   -1   -1   -1      index into the image_* arrays, unique in the batch
    text_target   11  12  BOI  -100 -100 -100 -100 -100    what this position predicts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from trainer.normalise import Normaliser

TEXT, LATENT, STRUCTURE, PADDING = 0, 1, 2, 3
IGNORED = -100
# What only the host reads (draws, error messages); moving it to an accelerator would cost a copy and a sync a step.
HOST = frozenset({"image_h", "image_segment", "image_epoch", "seq"})


@dataclass(slots=True)
class Document:
    """One span of a packed row, laid out: per position arrays of length L, per image arrays of length I, latents [n, C] as stored."""

    tokens: np.ndarray
    kind: np.ndarray
    turn: np.ndarray
    position: np.ndarray
    condition: np.ndarray
    text_target: np.ndarray
    image: np.ndarray
    image_loss: np.ndarray
    image_hidden: np.ndarray
    image_segment: np.ndarray
    latents: np.ndarray
    source: int = 0
    h: int = 0
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(slots=True)
class Batch:
    """B packed rows of S positions, I images, N latents of width C (normalised). Types and shapes are those of the formats."""

    tokens: Tensor  # i32[B,S], PAD at latent slots
    kind: Tensor  # u8[B,S]
    doc: Tensor  # i32[B,S], counted within the row; -1 at padding
    turn: Tensor  # i16[B,S], -1 = seen by all turns
    image: Tensor  # i32[B,S], -1 none
    position: Tensor  # i32[B,S]
    source: Tensor  # i16[B,S], the mixture's source; -1 at padding
    condition: Tensor  # u8[B,S]: 0 none, 1 caption, 2 action, 3 context
    text_target: Tensor  # i32[B,S], -100 = nothing to predict
    latents: Tensor  # f32[N,C]
    latent_slot: Tensor  # i64[N], flat position in [B,S], ascending within an image
    latent_image: Tensor  # i32[N], ascending
    image_loss: Tensor  # bool[I]: noised and trained, else clean
    image_hidden: Tensor  # bool[I]: seen by itself alone
    image_h: Tensor  # u64[I], the record's 64-bit hash: with segment and epoch the key of every draw
    image_segment: Tensor  # i16[I]
    image_epoch: Tensor  # i16[I]
    seq: Tensor  # i64[B], the plan's sequence numbers

    @property
    def shape(self) -> tuple[int, int]:
        """(B, S)."""
        return self.tokens.shape[0], self.tokens.shape[1]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with everything a model reads on `device`; host-only fields stay."""
        if torch.device(device) == self.tokens.device:
            return self
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self) if f.name not in HOST}
        return replace(self, **moved)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows start:stop as a batch of their own (gradient accumulation): images and latents renumbered."""
        length = self.shape[1]
        slots = (self.latent_slot >= start * length) & (self.latent_slot < stop * length)
        image = self.image[start:stop]
        images = torch.unique(image[image >= 0].long())
        first = int(images[0]) if len(images) else 0
        last = first + len(images)  # images are numbered in row order, so a run of rows holds a run of images
        cut = {f.name: getattr(self, f.name)[start:stop] for f in fields(self) if f.name in ROW_FIELDS}
        cut |= {f.name: getattr(self, f.name)[first:last] for f in fields(self) if f.name.startswith("image_")}
        cut["image"] = torch.where(image >= 0, image - first, image)
        return replace(self, **cut, latents=self.latents[slots], latent_slot=self.latent_slot[slots] - start * length,
                       latent_image=self.latent_image[slots] - first)  # fmt: skip


ROW_FIELDS = frozenset({"tokens", "kind", "doc", "turn", "position", "source", "condition", "text_target", "seq"})


def collate(
    rows: Sequence[Sequence[Document]],
    seq: Sequence[int],
    length: int,
    pad: int,
    width: int,
    normaliser: Normaliser | None = None,
) -> Batch:
    """Pack rows of documents into a Batch [len(rows), length]; latents are normalised.

    A row may be empty (a short last step): it is all padding and costs a model nothing.
    """
    shape = (len(rows), length)
    flat: dict[str, np.ndarray] = {
        "tokens": np.full(shape, pad, np.int32), "kind": np.full(shape, PADDING, np.uint8), "doc": np.full(shape, -1, np.int32),
        "turn": np.full(shape, -1, np.int16), "image": np.full(shape, -1, np.int32), "position": np.zeros(shape, np.int32),
        "source": np.full(shape, -1, np.int16), "condition": np.zeros(shape, np.uint8),
        "text_target": np.full(shape, IGNORED, np.int32),
    }  # fmt: skip
    images = 0
    documents: list[Document] = []
    for row, members in enumerate(rows):
        start = 0
        for ordinal, document in enumerate(members):
            stop = start + len(document)
            assert stop <= length, f"row {row} of the plan holds more than {length} positions"
            here = np.s_[row, start:stop]
            for name in ("tokens", "kind", "turn", "position", "condition", "text_target"):
                flat[name][here] = getattr(document, name)
            flat["doc"][here] = ordinal
            flat["source"][here] = document.source
            n = len(document.image_loss)
            if n:
                flat["image"][here] = np.where(document.image >= 0, document.image.astype(np.int32) + images, -1)
                images += n
                documents.append(document)
            start = stop
    slot = np.flatnonzero(flat["kind"] == LATENT)
    counts = [len(d.image_loss) for d in documents]
    latents = np.concatenate([d.latents for d in documents]) if documents else np.zeros((0, width), np.float32)
    assert len(latents) == len(slot), "a layout and its latents disagree"
    if normaliser is not None and len(latents):
        latents = normaliser.apply(latents)
    per_image = {
        "image_loss": _joined([d.image_loss for d in documents], bool), "image_hidden": _joined([d.image_hidden for d in documents], bool),
        "image_segment": _joined([d.image_segment for d in documents], np.int16),
        "image_h": np.repeat(np.array([d.h for d in documents], np.uint64), counts),
        "image_epoch": np.repeat(np.array([d.epoch for d in documents], np.int16), counts),
    }  # fmt: skip
    arrays = flat | per_image | {
        "latents": np.ascontiguousarray(latents, np.float32), "latent_slot": slot.astype(np.int64),
        "latent_image": flat["image"].reshape(-1)[slot], "seq": np.asarray(seq, np.int64),
    }  # fmt: skip
    return Batch(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
