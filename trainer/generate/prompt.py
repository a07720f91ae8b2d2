"""What a generator is asked and what it answers, and how both become positions: the layout of training, made as it goes.

A prompt is a list of pieces: text (ids, or a string where there is a tokenizer), images (latents as they are stored), and PAINT, an image to be made
here. When the pieces are read, the model may go on by itself, text until <BOI>, an image, text again, until EOS or a budget. So one form asks for

    a continuation     ids                                tokens=100
    a caption          latents                            tokens=40
    a picture          caption, PAINT
    an answer          latents, question                  tokens=16
    the next frames    latents, latents, PAINT, PAINT     images_as="frame"
    what an action does   latents x 4, action, PAINT      text_as="action"
    what many do          latents x 4, (action, PAINT)*   text_as="action", window=4
    anything           ids                                tokens=2000, images=3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixtures.layout import ACTION, CAPTION, NONE
from trainer.document import IGNORED, LATENT, PLAIN, TEXT, Document

TEXT_AS = {"caption": CAPTION, "action": ACTION}


class _Paint(Enum):
    PAINT = "paint"


PAINT = _Paint.PAINT
Piece = str | np.ndarray | Literal[_Paint.PAINT]


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """id: with the seed and `sample` the key of every draw. pieces: strings or ids [n] (text), latents [n, C] as stored (images), PAINT.

    tokens: ids that may be drawn after the pieces, a BOI among them; images: how many of those may be BOI. text_as, images_as: what text and
    images of the prompt are to images made later (which is what guidance leaves out): `frame` is a video's own past, trained as an image is.
    history: as the plan says of a video source. Under clean_copy later frames see clean copies, which condition them; where a copy stands is where
    the frame itself stood, so only what guidance leaves out differs. window: each image in a document of its own after the last `window` images and
    the text since: rollouts longer than what was trained (rollout.py).
    """

    id: str
    pieces: tuple[Piece, ...]
    tokens: int = 0
    images: int = 0
    sample: int = 0
    text_as: Literal["caption", "action"] = "caption"
    images_as: Literal["context", "frame"] = "context"
    history: Literal["noised", "clean_copy"] = "noised"
    window: int | None = None


@dataclass(slots=True, eq=False)
class Generated:
    """pieces: what was made, in order: ids int32 [n], and latents float32 [n, C] in the units of stored ones.

    stop: eos (the model ended), tokens (the budget did) or pieces (nothing was asked after them).
    """

    prompt: Prompt
    pieces: list[np.ndarray] = field(default_factory=list)
    stop: Literal["eos", "tokens", "pieces"] = "pieces"

    @property
    def ids(self) -> list[np.ndarray]:
        """The runs of text, in order."""
        return [p for p in self.pieces if p.ndim == 1]

    @property
    def images(self) -> list[np.ndarray]:
        """The images, in order."""
        return [p for p in self.pieces if p.ndim == 2]


class Fed(NamedTuple):
    """Positions to be read next: `document` says what stands there, `latents` [n, C] (normalised, on the model's device) and `t` what images are."""

    document: Document
    latents: list[Tensor]
    t: list[float]


def words(ids: Sequence[int] | np.ndarray, place: int, condition: int = NONE, kind: int = TEXT) -> Fed:
    """Text, or structure, at the positions from `place` on."""
    n = len(ids)
    none = np.zeros(0, bool)
    return Fed(
        Document(
            tokens=np.asarray(ids, np.int32), kind=np.full(n, kind, np.uint8), turn=np.full(n, -1, np.int16),
            position=np.arange(place, place + n, dtype=np.int32), condition=np.full(n, condition, np.uint8),
            text_target=np.full(n, IGNORED, np.int32), image=np.full(n, -1, np.int16), image_loss=none, image_hidden=none,
            image_segment=np.zeros(0, np.int16), latents=np.zeros((0, 0), np.float32),
        ), [], [],
    )  # fmt: skip


def block(latents: Tensor, t: float, place: int, pad: int, condition: int = NONE) -> Fed:
    """The latents of one image at time t, without BOI and EOI."""
    made = words([pad] * len(latents), place, condition, LATENT)
    flag = np.zeros(1, bool)
    made.document.image, made.document.image_loss, made.document.image_hidden = np.zeros(len(latents), np.int16), flag, flag
    made.document.image_segment = np.zeros(1, np.int16)
    # The model is given its latents apart: they are on its device already.
    made.document.latents = np.broadcast_to(np.float32(0), tuple(latents.shape))
    return Fed(made.document, [latents], [t])


def together(parts: Sequence[Fed]) -> Fed:
    """Pieces that follow one another, as one."""
    if len(parts) == 1:
        return parts[0]
    of = [p.document for p in parts]
    plain: dict[str, Any] = {n: np.concatenate([getattr(d, n) for d in of]) for n in PLAIN}
    flags: dict[str, Any] = {n: np.concatenate([getattr(d, n) for d in of]) for n in ("image_loss", "image_hidden", "image_segment")}
    before = np.cumsum([0, *(len(d.image_loss) for d in of)])
    image = np.concatenate([np.where(d.image >= 0, d.image + b, -1) for d, b in zip(of, before, strict=False)]).astype(np.int16)
    shown = [d.latents for d in of if len(d.image_loss)]
    latents = np.broadcast_to(np.float32(0), (sum(map(len, shown)), shown[0].shape[1])) if shown else of[0].latents
    document = Document(**plain, **flags, image=image, latents=latents)
    return Fed(document, [x for p in parts for x in p.latents], [x for p in parts for x in p.t])


def kinds(prompt: Prompt) -> list[Literal["text", "image", "paint"]]:
    """What each piece is. ValueError for one that is nothing."""
    out: list[Literal["text", "image", "paint"]] = []
    for piece in prompt.pieces:
        if piece is PAINT:
            out.append("paint")
        elif isinstance(piece, str) or (isinstance(piece, np.ndarray) and piece.ndim == 1 and np.issubdtype(piece.dtype, np.integer)):
            out.append("text")
        elif isinstance(piece, np.ndarray) and piece.ndim == 2:
            out.append("image")
        else:
            found = f"{piece.dtype} {list(piece.shape)}" if isinstance(piece, np.ndarray) else type(piece).__name__
            raise ValueError(f"prompt {prompt.id}: {found} is neither a string, ids [n], latents [n, C] nor PAINT")
    return out


def needed(prompt: Prompt, text: Sequence[int], patches: int) -> int:
    """Positions that this prompt may come to hold: BOS, its pieces (`text`: the lengths of its texts, in order), and what may follow."""
    given = sum(len(p) + 2 for p in prompt.pieces if isinstance(p, np.ndarray) and p.ndim == 2)
    return 1 + sum(text) + given + (patches + 2) * (sum(p is PAINT for p in prompt.pieces) + prompt.images) + prompt.tokens


def tensor(latents: np.ndarray, device: torch.device) -> Tensor:
    """float32 [n, C] on the model's device."""
    return torch.from_numpy(np.ascontiguousarray(latents, np.float32)).to(device)
