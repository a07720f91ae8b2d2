"""Documents, and how they are packed into the arrays of a batch: numpy alone, so that worker processes start without torch.

In: spans laid out and read. Out: the arrays that a `Batch` is made of, by name; trainer/batch.py says what each means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.normalise import Normaliser

TEXT, LATENT, STRUCTURE, PADDING = 0, 1, 2, 3
IGNORED = -100


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


def packed(
    rows: Sequence[Sequence[Document]],
    seq: Sequence[int],
    length: int,
    pad: int,
    width: int,
    normaliser: Normaliser | None = None,
) -> dict[str, np.ndarray]:
    """Rows of documents as the arrays of a batch [len(rows), length]; latents are normalised. A row may be empty."""
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
    return arrays


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
