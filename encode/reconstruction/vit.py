"""The decoder of representation autoencoders (RAE, Zheng et al. 2025): the decoder half of a ViT-MAE (He et al., arXiv 2111.06377).

    latents [B, N, C] ─linear─▶ [B, N, D] + a trainable CLS slot + fixed 2-D sin-cos positions ─blocks─▶ LayerNorm ─linear─▶ N patches ─▶ [B, 3, H, W]

In: latents exactly as the encoder gives them: no statistics applied, no CLS token. Out: pixels as the encoder's image processor would have
normalised them; `times std, plus mean` is the caller's. The CLS slot carries nothing in and nothing out: it is a place where blocks can keep what
concerns the whole picture. Statistics that a generator normalises latents by are undone before they come here, so they play no part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """`channels` of a latent vector in, `patch` pixels a side out for each; `rows` x `columns` is the grid that positions were made for."""

    channels: int
    patch: int
    rows: int
    columns: int
    depth: int
    width: int
    heads: int
    mlp: int
    eps: float = 1e-12  # of the LayerNorms, as published


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to what came in."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.heads = s.heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(s.width, s.eps), nn.LayerNorm(s.width, s.eps)
        self.query, self.key, self.value, self.out = (nn.Linear(s.width, s.width) for _ in range(4))
        self.up, self.down = nn.Linear(s.width, s.mlp), nn.Linear(s.mlp, s.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        h = self.norm_attention(x)
        q, k, v = (layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class VitDecoder(nn.Module):
    """Latents [B, N, channels] -> [B, 3, rows * patch, columns * patch]. Another grid than the shape's gets positions interpolated, and a
    picture of its own size."""

    positions: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Linear(shape.channels, shape.width)
        self.cls = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, shape.eps)
        self.pixels = nn.Linear(shape.width, shape.patch**2 * 3)
        self.register_buffer("positions", torch.from_numpy(sincos(shape.rows, shape.columns, shape.width)))

    def forward(self, latents: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """`grid` is (rows, columns) of the latents; left out, the shape's own."""
        rows, columns = grid or (self.shape.rows, self.shape.columns)
        x = torch.cat([self.cls.expand(len(latents), -1, -1), self.embed(latents)], dim=1)
        x = x + self._positions(rows, columns).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        patches = self.pixels(self.norm(x))[:, 1:]
        return unpatchify(patches, rows, columns, self.shape.patch)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """[1, 1 + rows * columns, D]: the CLS slot's first."""
        s = self.shape
        if (rows, columns) == (s.rows, s.columns):
            return self.positions
        grid = self.positions[:, 1:].unflatten(1, (s.rows, s.columns)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid.float(), size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([self.positions[:, :1], grid.flatten(2).transpose(1, 2).to(self.positions.dtype)], dim=1)

    def start(self, seed: int) -> None:
        """Random weights that follow from the seed alone: Xavier for matrices as in ViT-MAE, zeros for biases and the CLS slot."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.ndim == 2:
                    bound = math.sqrt(6 / (p.shape[0] + p.shape[1]))
                    p.copy_((torch.rand(p.shape, generator=generator) * 2 - 1) * bound)
                else:
                    p.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)


def unpatchify(patches: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """[B, rows * columns, patch * patch * 3] -> [B, 3, H, W]; within a patch: rows, columns, channels."""
    x = patches.unflatten(1, (rows, columns)).unflatten(-1, (patch, patch, 3))  # B, rows, columns, y, x, 3
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, rows * patch, columns * patch)


def sincos(rows: int, columns: int, width: int) -> np.ndarray:
    """float32 [1, 1 + rows * columns, width]: zeros for the CLS slot; for a patch, sine and cosine of its column (first half of the width) and
    of its row (second half) at width / 4 wavelengths from 2 pi to 20,000 pi, as in MAE."""
    assert width % 4 == 0, "sine and cosine of two coordinates take a width that is a multiple of 4"
    omega = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    y, x = (a.reshape(-1, 1) * omega for a in np.mgrid[:rows, :columns])
    patches = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    return np.concatenate([np.zeros((1, width)), patches])[None].astype(np.float32)
