"""Documents, and how they are packed into the arrays of a batch: numpy alone, so that worker processes start without torch.

In: spans laid out and read. Out: the arrays that a `Batch` is made of, by name; trainer/batch.py says what each means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from trainer.normalise import Normaliser

if TYPE_CHECKING:
    from trainer.two_encoders import Sides

TEXT, LATENT, STRUCTURE, PADDING = 0, 1, 2, 3
IGNORED = -100
PLAIN = ("tokens", "kind", "turn", "position", "condition", "text_target")  # what a row holds is what its documents hold, end to end


@dataclass(slots=True)
class Document:
    """One span of a packed row, laid out: per position arrays of length L, per image arrays of length I, latents [n, C] as stored ([n, 0] where
    they are yet to be made of `pictures`; of two encoders as trainer/two_encoders.py lays them out)."""

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
    pictures: tuple[tuple[int, int, int], ...] = ()  # of each image, where latents are made and not read: dataset, shard, segment of its index

    def __len__(self) -> int:
        return len(self.tokens)


def copies(hidden: np.ndarray) -> np.ndarray:
    """Which images [I] are clean copies of a frame: what follows a hidden twin (mixtures/layout.py). They are structure, not payload."""
    return np.r_[False, hidden[:-1]] & ~hidden if len(hidden) else np.zeros(0, bool)


def owners(image: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """The image [B,S] that a position belongs to, its BOI and EOI with it; -1 none. Every image stands between the two (mixtures/layout.py)."""
    none = np.full_like(image[:, :1], -1)
    after, before = np.concatenate([image[:, 1:], none], axis=1), np.concatenate([none, image[:, :-1]], axis=1)
    return np.where((kind == STRUCTURE) & (image < 0), np.where(after >= 0, after, before), image)


def packed(
    rows: Sequence[Sequence[Document]],
    seq: Sequence[int],
    length: int,
    pad: int,
    width: int,
    normaliser: Normaliser | None = None,
    sides: Sides | None = None,
) -> dict[str, np.ndarray]:
    """Rows of documents as the arrays of a batch [len(rows), length]; latents are normalised, of two encoders by `sides`. A row may be empty."""
    shape = (len(rows), length)
    flat: dict[str, np.ndarray] = {
        "tokens": np.full(shape, pad, np.int32), "kind": np.full(shape, PADDING, np.uint8), "doc": np.full(shape, -1, np.int32),
        "turn": np.full(shape, -1, np.int16), "image": np.full(shape, -1, np.int32), "position": np.zeros(shape, np.int32),
        "source": np.full(shape, -1, np.int16), "condition": np.zeros(shape, np.uint8),
        "text_target": np.full(shape, IGNORED, np.int32),
    }  # fmt: skip
    members = [d for row in rows for d in row]
    lengths = np.array([len(d) for d in members], np.int64)
    joined = {name: np.concatenate([getattr(d, name) for d in members]) for name in PLAIN} if members else {}
    if members:
        images = np.array([len(d.image_loss) for d in members], np.int32)
        image = np.concatenate([d.image for d in members], dtype=np.int32)
        image[image >= 0] += np.repeat(np.cumsum(images, dtype=np.int32) - images, lengths)[image >= 0]
        joined["image"] = image
        joined["doc"] = np.repeat(np.concatenate([np.arange(len(row), dtype=np.int32) for row in rows]), lengths)
        joined["source"] = np.repeat(np.array([d.source for d in members], np.int16), lengths)
    first = np.cumsum([0, *(sum(len(d) for d in row) for row in rows)]).tolist()
    for i, (start, stop) in enumerate(pairwise(first)):
        assert stop - start <= length, f"row {i} of the plan holds more than {length} positions"
        for name, values in joined.items():
            flat[name][i, : stop - start] = values[start:stop]
    documents = [d for d in members if len(d.image_loss)]
    slot = np.flatnonzero(flat["kind"] == LATENT)
    counts = [len(d.image_loss) for d in documents]
    latents = np.empty((sum(len(d.latents) for d in documents), width), np.float32)
    assert len(latents) == len(slot), "a layout and its latents disagree"
    at = 0
    for d in documents:  # one by one: what was just read is still in the processor's cache
        here = latents[at : at + len(d.latents)]
        if sides is not None:
            sides.fill(d, here)
        elif normaliser is None:
            here[...] = d.latents
        else:
            normaliser.apply(d.latents, here)
        at += len(here)
    per_image = {
        "image_loss": _joined([d.image_loss for d in documents], bool), "image_hidden": _joined([d.image_hidden for d in documents], bool),
        "image_segment": _joined([d.image_segment for d in documents], np.int16),
        "image_h": np.repeat(np.array([d.h for d in documents], np.uint64), counts),
        "image_epoch": np.repeat(np.array([d.epoch for d in documents], np.int16), counts),
    }  # fmt: skip
    arrays = flat | per_image | {
        "latents": latents, "latent_slot": slot.astype(np.int64),
        "latent_image": flat["image"].reshape(-1)[slot], "seq": np.asarray(seq, np.int64),
    }  # fmt: skip
    return arrays if sides is None else arrays | {"image_width": sides.widths(arrays["image_loss"])}


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
