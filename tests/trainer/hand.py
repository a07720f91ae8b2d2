"""Documents and batches made by hand, with random ids and latents, so that the trainer is tested without a dataset.

A document is written as a word of letters: `b` BOS, `e` EOS, `t` a text token with loss, `c` a text token without, `I` an image with loss,
`i` a clean one, `h` a hidden noised one. Digits after a letter name the turn: `bi q0`. Each image stands between BOI and EOI.
"""

from __future__ import annotations

import numpy as np

from trainer.batch import IGNORED, LATENT, STRUCTURE, TEXT, Batch, Document, collate

VOCAB, WIDTH, PATCHES = 40, 6, 4
BOS, EOS, BOI, EOI, PAD = 35, 36, 37, 38, 39


def document(words: str, rng: np.random.Generator, source: int = 0, h: int | None = None, condition: int = 0, epoch: int = 0) -> Document:
    """`condition` marks every text token without loss and every clean image before the last image."""
    rows: list[tuple[int, int, int, bool, int, int]] = []  # token, kind, turn, is_target, image, condition
    losses, hidden = [], []
    for word in words.split():
        turn = int(word[1:]) if word[1:] else -1
        match word[0]:
            case "b" | "e":
                rows.append((BOS if word[0] == "b" else EOS, STRUCTURE, turn, word[0] == "e", -1, 0))
            case "t" | "c":
                rows.append((int(rng.integers(0, BOS)), TEXT, turn, word[0] == "t", -1, condition if word[0] == "c" else 0))
            case "I" | "i" | "h":
                named = condition if word[0] == "i" else 0
                rows.append((BOI, STRUCTURE, turn, word[0] != "i", -1, named))
                rows += [(PAD, LATENT, turn, False, len(losses), named)] * PATCHES
                rows.append((EOI, STRUCTURE, turn, False, -1, named))
                losses.append(word[0] != "i")
                hidden.append(word[0] == "h")
    tokens, kind, turns, target, image, conditions = (np.array(x) for x in zip(*rows, strict=True))
    predicted = np.append(target[1:] & (turns[1:] == turns[:-1]), False)
    return Document(
        tokens=tokens.astype(np.int32), kind=kind.astype(np.uint8), turn=turns.astype(np.int16),
        position=np.arange(len(rows), dtype=np.int32), condition=conditions.astype(np.uint8),
        text_target=np.where(predicted, np.append(tokens[1:], 0), IGNORED).astype(np.int32), image=image.astype(np.int16),
        image_loss=np.array(losses, bool), image_hidden=np.array(hidden, bool), image_segment=np.arange(len(losses), dtype=np.int16),
        latents=rng.standard_normal((len(losses) * PATCHES, WIDTH)).astype(np.float32), source=source,
        h=int(rng.integers(0, 2**63)) if h is None else h, epoch=epoch,
    )  # fmt: skip


SHAPES = (
    "b t t t t t t e",
    "b t t e",
    "b i t t t e",
    "b c c c I e",
    "b I I I e",
    "b h i h i e",
    "b i i c c I e",
    "b i c0 t0 e0 c1 c1 t1 e1 c2 t2 t2 e2",
)


def pack(rng: np.random.Generator, rows: int = 2, length: int = 40, condition: int = 1) -> Batch:
    """Random documents of SHAPES packed into rows, no row quite full."""
    made: list[list[Document]] = []
    for _ in range(rows):
        row: list[Document] = []
        while True:
            new = document(SHAPES[rng.integers(len(SHAPES))], rng, source=int(rng.integers(3)), condition=condition)
            if sum(map(len, row)) + len(new) > length:
                break
            row.append(new)
        made.append(row)
    return batch(made, length)


def batch(rows: list[list[Document]], length: int = 40) -> Batch:
    """Rows as a batch of the hand-made vocabulary."""
    return collate(rows, list(range(len(rows))), length, PAD, WIDTH)
