"""Rows as mixtures pack them, of random ids and latents: what benchmarks of attention and of steps feed a model, without a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trainer.batch import Batch, Document

# Images and words of a document, drawn evenly: a captioned picture, a text, a clip of frames, a picture with a longer caption.
KINDS = ((1, 30), (0, 700), (4, 0), (1, 60))


def document(rng: np.random.Generator, images: int, words: int, patches: int, channels: int, vocab: int) -> Document:
    """BOS, the images between their marks, the words, EOS. All images and words take loss; the last 8 ids are not words."""
    from trainer.batch import IGNORED, LATENT, STRUCTURE, TEXT, Document

    kinds = [STRUCTURE] + [k for _ in range(images) for k in (STRUCTURE, *[LATENT] * patches, STRUCTURE)] + [TEXT] * words + [STRUCTURE]
    kind = np.array(kinds, np.uint8)
    n = len(kind)
    image = np.full(n, -1, np.int32)
    image[kind == LATENT] = np.repeat(np.arange(images), patches)
    tokens = rng.integers(0, vocab - 8, n).astype(np.int32)
    target = np.where(kind == TEXT, tokens, IGNORED).astype(np.int32)
    zero = np.zeros(n, np.int16)
    return Document(
        tokens=tokens, kind=kind, turn=zero - 1, position=np.arange(n, dtype=np.int32), condition=np.zeros(n, np.uint8), text_target=target,
        image=image, image_loss=np.ones(images, bool), image_hidden=np.zeros(images, bool), image_segment=np.arange(images, dtype=np.int16),
        latents=rng.standard_normal((images * patches, channels)).astype(np.float32), h=int(rng.integers(1 << 60)),
    )  # fmt: skip


def rows(
    length: int, n: int, patches: int, channels: int, vocab: int, seed: int = 0, kinds: tuple[tuple[int, int], ...] = KINDS
) -> list[list[Document]]:
    """`n` rows of documents of `kinds` (images, words) end to end, each row nearly full."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        members: list[Document] = []
        free = length
        while free > patches + 40:
            images, words = kinds[int(rng.integers(len(kinds)))]
            words = min(words, free - 2)
            if 2 + images * (patches + 2) + words > free:
                images, words = 0, max(1, free - 2)
            members.append(document(rng, images, words, patches, channels, vocab))
            free -= len(members[-1])
        out.append(members)
    return out


def batch(made: list[list[Document]], length: int, vocab: int, channels: int) -> Batch:
    """Those rows as a Batch."""
    from trainer.batch import collate

    return collate(made, list(range(len(made))), length, vocab - 1, channels)


def packed(s: Any, length: int, n: int = 1, seed: int = 0) -> Batch:
    """A batch of the sizes `s` (gpu_rows.Sizes): captions and pictures, clips and documents, end to end in rows of `length`."""
    return batch(rows(length, n, s.patches, s.channels, s.vocab, seed), length, s.vocab, s.channels)
