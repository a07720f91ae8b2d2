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

from trainer.document import IGNORED, LATENT, PADDING, STRUCTURE, TEXT, Document, packed
from trainer.normalise import Normaliser

__all__ = ["HOST", "IGNORED", "LATENT", "PADDING", "STRUCTURE", "TEXT", "Batch", "Document", "TwoSided", "collate"]

# What only the host reads (draws, error messages); moving it to an accelerator would cost a copy and a sync a step.
HOST = frozenset({"image_h", "image_segment", "image_epoch", "image_width", "seq"})


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

    @property
    def widths(self) -> np.ndarray:
        """[I], on the host: channels of each image's latents."""
        return np.full(len(self.image_loss), self.latents.shape[1])

    @property
    def made_width(self) -> int:
        """Channels of images with loss."""
        return self.latents.shape[1]

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


@dataclass(slots=True)
class TwoSided(Batch):
    """A batch of a plan of two encoders (trainer/two_encoders.py): an image fills so many columns of its rows, the rest is 0."""

    image_width: Tensor  # i32[I]

    @property
    def widths(self) -> np.ndarray:
        """See Batch."""
        return self.image_width.numpy()

    @property
    def made_width(self) -> int:
        """See Batch; 0 where nothing is made."""
        return int(self.widths.max(where=self.image_loss.cpu().numpy(), initial=0))


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
    return of_arrays(packed(rows, seq, length, pad, width, normaliser))


def of_arrays(arrays: dict[str, np.ndarray]) -> Batch:
    """The batch that lies in numpy arrays of these names; no byte is copied."""
    kind = TwoSided if "image_width" in arrays else Batch
    return kind(**{name: torch.from_numpy(array) for name, array in arrays.items()})
