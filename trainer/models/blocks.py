"""A block, and how time enters one. In: hidden states x [T,E], text first and latents last (see layers.py). Out: their successors.

Time belongs to an image, so what follows from it is computed once an image and looked up by its latents; text has no time, and its rows pass
as if there were none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.attention import Attend
from trainer.models.layers import Norm, NormPerModality, norm


class TimeEmbedding(nn.Module):
    """t in [0,1] → [I,E]: sines of 1000 t at geometric frequencies, then an MLP of two layers (as in DiT, arXiv 2212.09748)."""

    def __init__(self, width: int, waves: int = 64) -> None:
        super().__init__()
        self.waves = waves
        self.up = nn.Linear(waves, width)
        self.down = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """t [I] → [I,E]."""
        half = self.waves // 2
        frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
        angle = 1000 * t.float()[:, None] * frequency
        waves = torch.cat([angle.cos(), angle.sin()], dim=1)
        return self.down(F.silu(self.up(waves.to(self.up.weight.dtype))))


class When(NamedTuple):
    """Time as blocks see it: an embedding of each image [I,E], through SiLU, and the image of each latent [N]."""

    embedding: Tensor
    image: Tensor


class Modulation(nn.Module):
    """adaLN-zero (DiT, arXiv 2212.09748) on latents alone: time shifts and scales what each half of a block reads, and gates what it writes. All
    start at zero, so a latent passes the block unchanged at first; text rows pass as in any block.

    6 E^2 parameters a block, used once an image and not once a latent: a quarter of the model's weights at almost no cost.
    """

    def __init__(self, width: int, parts: int = 6) -> None:
        super().__init__()
        self.parts = parts
        self.by_time = nn.Linear(width, parts * width)

    def forward(self, when: When) -> tuple[Tensor, ...]:
        """→ six [N,E]: shift, scale and gate of attention's latents, then of the feed-forward's. Two parts, shift and scale, before the flow head."""
        table = self.by_time(when.embedding)
        return tuple(F.embedding(when.image, part) for part in table.chunk(self.parts, dim=1))


def shifted(x: Tensor, text: int, shift: Tensor, scale: Tensor) -> Tensor:
    """x [T,E], its latents [N,E] scaled by 1 + scale and moved by shift."""
    words, latents = x.tensor_split([text])
    return torch.cat([words, torch.addcmul(latents + shift, latents, scale)])


def gated(x: Tensor, text: int, gate: Tensor) -> Tensor:
    """x [T,E], its latents [N,E] times gate."""
    words, latents = x.tensor_split([text])
    return torch.cat([words, latents * gate])


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the stream. The feed-forward tells what its router did, if it has one."""

    def __init__(self, attention: nn.Module, ffn: nn.Module, width: int, kind: Norm, split: bool = False, adaptive: bool = False) -> None:
        super().__init__()
        make: Callable[[Norm, int], nn.Module] = NormPerModality if split else norm
        self.split = split
        self.attention_norm, self.attention = make(kind, width), attention
        self.ffn_norm, self.ffn = make(kind, width), ffn
        self.modulation = Modulation(width) if adaptive else None

    def forward(self, x: Tensor, text: int, cos: Tensor, sin: Tensor, attend: Attend, when: When | None = None) -> tuple[Tensor, Any]:
        """x [T,E], the first `text` rows text → [T,E], and (counts, share) of a routed feed-forward."""
        normed = (lambda of, x: of(x, text)) if self.split else (lambda of, x: of(x))
        if self.modulation is None or when is None:
            x = x + self.attention(normed(self.attention_norm, x), text, cos, sin, attend)
            y, told = self.ffn(normed(self.ffn_norm, x), text)
            return x + y, told
        m = self.modulation(when)
        y = self.attention(shifted(normed(self.attention_norm, x), text, m[0], m[1]), text, cos, sin, attend)
        x = x + gated(y, text, m[2])
        y, told = self.ffn(shifted(normed(self.ffn_norm, x), text, m[3], m[4]), text)
        return x + gated(y, text, m[5]), told
