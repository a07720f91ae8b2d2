"""One stored image against what the encoder says of the same picture now, and how far apart the two may be.

In: float32 latents of the encoder and a stored payload. Out: a `Verdict`. With the same arithmetic the stored bytes are the encoder's, put
through the codec. With another (a GPU then and a CPU now) cosines are compared: 0.9999 over the image (CONTRACTS C6), 0.999 for its worst token,
and norms within 2 %, since a cosine is blind to length; a codec that is not exact may add twice its own error on these very latents, once
for each side of a rounding. Measured between bf16 on a GPU and f32 on a CPU: worst token 0.99992 (benchmarks/gpu.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.format.codec import decode_latents, encode_latents

IMAGE, TOKEN, NORM = 0.9999, 0.999, 0.02


@dataclass(frozen=True, slots=True)
class Verdict:
    """`equal` to the byte; `cosine` of the whole image; the `row` that is furthest away and its cosine; whether all bars are met."""

    equal: bool
    cosine: float
    row: int
    row_cosine: float
    within: bool

    def __str__(self) -> str:
        return f"cosine {self.cosine:.6f}, worst in row {self.row}: {self.row_cosine:.6f}"


def compare(ours: np.ndarray, stored: bytes, codec: str) -> Verdict:
    """float32 [tokens, channels] against a payload of that codec."""
    coded = encode_latents(ours, codec)
    if coded == stored:
        return Verdict(True, 1.0, 0, 1.0, True)
    theirs = decode_latents(stored, codec, *ours.shape)
    again = decode_latents(coded, codec, *ours.shape)
    whole, own = cosines(ours.reshape(1, -1), theirs.reshape(1, -1))[0], cosines(ours.reshape(1, -1), again.reshape(1, -1))[0]
    rows, own_rows = cosines(ours, theirs), cosines(ours, again)
    worst = int(np.argmin(rows))
    near = bool(whole >= IMAGE - 2 * (1 - own)) and bool((rows >= TOKEN - 2 * (1 - own_rows)).all())
    return Verdict(False, float(whole), worst, float(rows[worst]), near and _as_long(ours, theirs, again))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of rows, in float64; two rows of zeros are alike, a row that is not finite is like none."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    xx, yy, xy = (np.einsum("nc,nc->n", p, q) for p, q in ((x, x), (y, y), (x, y)))
    with np.errstate(invalid="ignore", over="ignore"):
        out = np.where((xx == 0) & (yy == 0), 1.0, xy / np.sqrt(np.where(xx * yy > 0, xx * yy, 1.0)))
    return np.where(np.isfinite(out), out, -1.0)


def _as_long(ours: np.ndarray, theirs: np.ndarray, again: np.ndarray) -> bool:
    """Norms of rows within the bar, to which the codec's own change of them is added twice."""
    a, b, c = (np.linalg.norm(x.astype(np.float64), axis=1) for x in (ours, theirs, again))
    return bool((np.abs(b - a) <= NORM * a + 2 * np.abs(c - a)).all())
