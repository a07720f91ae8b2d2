"""Fréchet distance between the pictures that a run paints of held-out captions and the held-out pictures themselves, in a named feature space.

    latents     the run's own latents, mean over the patches: no weights, no decoder; arms of one encoder only
    pixels      pictures averaged down to 4 × 4: needs latents that can be turned into pictures; says whether colours and places are right, no more
    {NAME: …}   any image encoder as an encode recipe names it ({dinov2: {weights: DIR}}), mean over its patches; {inception: {weights:
                FILE}} is the network of the usual FID. The service `features` runs them.

    d² = |μ - μ'|² + tr(C + C' - 2 (C^½ C' C^½)^½)                      Fréchet 1957; Heusel et al., arXiv 1706.08500

Everything after the features is float64. The last trace is the sum of the singular values of C^½ C'^½, both roots by eigenvalues: nothing is
added to a diagonal, and eigenvalues below 0, which are rounding, count as 0. The distance of finite sets is too large by about a constant / n, so
numbers are compared at equal n and dimension only; `.extrapolated` is the value at 1/n → 0 of a line through smaller sets (Chong and Forsyth, arXiv
1911.07023), where there are 4 pictures a dimension or more. Control: `.held_out`, the distance between two halves of the held-out pictures, which no
painter can be expected to beat at their size.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from pipelines.format import chance
from pipelines.format.errors import InputError
from trainer.evaluate._painting import CHUNK, OfCaptions, captions, of_captions, painted, pixels, service

if TYPE_CHECKING:
    from trainer.evaluate._subject import Subject

Floats = NDArray[np.float64]
SPACES = ("latents", "pixels")
SIDE = 4  # of a picture in the space `pixels`: 48 dimensions, so that a hundred pictures say something
SIZES = 15  # of smaller sets that the extrapolation looks at
FEWEST = 4  # pictures: the control takes half of them, and a covariance needs two
LEAST = 2  # pictures a dimension below which a covariance is mostly chance


class Frechet(OfCaptions):
    """In one `space`; say the part again for another."""

    images: int = Field(1000, ge=FEWEST)
    space: str | dict[str, Any] = "latents"

    @field_validator("space")
    @classmethod
    def _known(cls, space: str | dict[str, Any]) -> str | dict[str, Any]:
        if (isinstance(space, str) and space not in SPACES) or (isinstance(space, dict) and len(space) != 1):
            raise ValueError("latents, pixels, or one encoder with its fields")
        return space

    @property
    def split(self) -> str:
        """The space's name in rows."""
        if isinstance(self.space, str):
            return self.space
        (name,) = self.space
        return f"encoder:{name}" if name in SPACES else name

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Rows frechet, frechet.held_out and, where there are enough pictures, frechet.extrapolated; the split is the space."""
        if self.passes(subject):
            return []
        pairs = captions(subject, self)
        if len(pairs) < FEWEST:
            raise InputError("too few held-out pictures for a distance and for its half sets", where=self.source, found=len(pairs),
                             allowed=f"{FEWEST} or more", next="raise held_out.fraction")  # fmt: skip
        made, true = [], []
        for first, latents in painted(subject, out, self, of_captions(pairs)):
            some = pairs[first : first + CHUNK]
            made.append(self.features(some[0].data, latents))
            true.append(self.features(some[0].data, np.stack([p.truth() for p in some])))
        x, y = np.concatenate(made), np.concatenate(true)
        n, dimensions = x.shape
        if n < LEAST * dimensions:
            few = f"frechet: {n} pictures in {dimensions} dimensions of {self.split}; below {LEAST * dimensions} the distance is mostly chance"
            warnings.warn(few, stacklevel=2)
        order = np.argsort([int(chance.draw(chance.group_hash(p.id), 0, "frechet")) for p in pairs])
        values = {"frechet": distance(x, y), "frechet.held_out": distance(y[order[: n // 2]], y[order[n // 2 :]])}
        if n >= 2 * LEAST * dimensions:
            values["frechet.extrapolated"] = extrapolated(x[order], y[order])
        count = lambda metric: n // 2 if metric == "frechet.held_out" else n
        return [{"metric": m, "split": self.split, "value": v, "n": count(m), "chance": None} for m, v in values.items()]

    def features(self, data: Any, latents: NDArray[np.float32]) -> Floats:
        """float32 [n, tokens, C] → float64 [n, D]."""
        if self.space == "latents":
            return latents.astype(np.float64).mean(axis=1)
        pictures = pixels(data, latents, self.decoder)
        if self.space == "pixels":
            return np.stack([small(p) for p in pictures])
        return np.asarray(service("features", "space: latents, or pixels")(pictures, self.space), np.float64)


def distance(x: Floats, y: Floats) -> float:
    """Fréchet distance (squared, as FID is given) between Gaussians fitted to x [n, D] and y [m, D], n and m at least 2."""
    (a, roots_a), (b, roots_b) = _fitted(x), _fitted(y)
    cross = np.linalg.svd(roots_a @ roots_b, compute_uv=False).sum()
    return float(max(0.0, ((a - b) ** 2).sum() + (roots_a**2).sum() + (roots_b**2).sum() - 2 * cross))


def extrapolated(x: Floats, y: Floats) -> float:
    """The distance of infinitely many: SIZES sets of equal sizes, from the first LEAST · D to all, and a straight line in 1 / n through them."""
    n, dimensions = x.shape
    sizes = np.unique(np.linspace(LEAST * dimensions, n, SIZES).astype(int))
    slope_and_end = np.polyfit(1 / sizes, [distance(x[:k], y[:k]) for k in sizes], 1)
    return float(slope_and_end[1])


def small(picture: NDArray[np.uint8]) -> Floats:
    """uint8 [H, W, 3] → float64 [SIDE · SIDE · 3] in [0, 1]: means of blocks, whose edges are whole pixels."""
    h, w = picture.shape[:2]
    rows, columns = ([round(k * side / SIDE) for k in range(SIDE)] for side in (h, w))
    sums = np.add.reduceat(np.add.reduceat(picture.astype(np.float64), rows, axis=0), columns, axis=1)
    areas = np.outer(np.diff([*rows, h]), np.diff([*columns, w]))
    return (sums / areas[..., None] / 255).reshape(-1)


def _fitted(x: Floats) -> tuple[Floats, Floats]:
    """Mean [D] and the symmetric root [D, D] of the covariance."""
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(x, rowvar=False)))
    return x.mean(axis=0), (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
