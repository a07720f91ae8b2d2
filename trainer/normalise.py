"""Latents as a model sees them: (z - mean) / sqrt(variance + 1e-5), by channel or by channel and position, and back.

In: the statistics of a plan and latents as stored. Out: latents of mean 0 and variance 1 over the data that the statistics are of. Statistics by
position are those of whole images [tokens, C], and images are never cut, so the rows of any number of images repeat them.
"""

from __future__ import annotations

import numpy as np

# Added to the variance, as RAE does: without it a channel that never changes would be divided by 0. Latents of a unit variance are shrunk by 5e-6.
VARIANCE_FLOOR = 1e-5


class Normaliser:
    """`mean` and `deviation`, float32: [C], or [tokens, C]."""

    def __init__(self, mean: np.ndarray, variance: np.ndarray) -> None:
        self.mean = mean.astype(np.float32)
        self.deviation = np.sqrt(variance + VARIANCE_FLOOR).astype(np.float32)

    @property
    def width(self) -> int:
        """Values of a latent vector."""
        return int(self.mean.shape[-1])

    def apply(self, latents: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """float32 [n, C] as stored -> normalised, in `out` if that is given."""
        z, made = self._images(latents), np.empty_like(latents) if out is None else out
        there = self._images(made)
        np.subtract(z, self.mean, out=there)
        np.divide(there, self.deviation, out=there)
        return made

    def undo(self, latents: np.ndarray) -> np.ndarray:
        """float32 [n, C] of a model -> as they would be stored."""
        z = self._images(latents)
        return (z * self.deviation + self.mean).reshape(latents.shape)

    def _images(self, latents: np.ndarray) -> np.ndarray:
        """[n, C], or by position [images, tokens, C]."""
        if self.mean.ndim == 1:
            return latents
        assert len(latents) % len(self.mean) == 0, f"{len(latents)} latents are not whole images of {len(self.mean)}"
        return latents.reshape(-1, *self.mean.shape)
