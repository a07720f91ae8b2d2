"""Latent statistics of a plan: mean and variance over every image of the datasets it is normalised by, exact in float64.

Each encoded dataset brings (n, mean, M2), by channel and by position. They are merged by the pairwise formula of Chan, Golub and LeVeque (1983) in
the order of the datasets' fingerprints, so that all arms of an ablation, whatever their sources, normalise by the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.format import moments
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError, RecipeError
from pipelines.format.manifest import read_card
from pipelines.format.moments import KIND, By

if TYPE_CHECKING:
    from mixtures.mixture import FixedStats, Mixture

Moments = tuple[int, NDArray[np.float64], NDArray[np.float64]]  # n, mean, sum of squared deviations; [C] each, or [tokens, C] by position


def has_latents(dataset: Dataset) -> bool:
    """Whether the dataset brings statistics."""
    return bool((dataset.encoding or {}).get("stats"))


def merged(datasets: list[Dataset], by: By = "channel") -> Moments | None:
    """The moments of all distinct datasets together; None when none has images."""
    distinct = {d.fingerprint: d for d in datasets if has_latents(d)}
    total: Moments | None = None
    for fingerprint in sorted(distinct):
        part = distinct[fingerprint].latent_moments(by)
        if total is not None and total[1].shape != part[1].shape:
            what = "latents of two widths" if by == "channel" else "images of two shapes (tokens, width)"
            where, found = distinct[fingerprint].path, part[1].shape
            raise RecipeError(f"{what} cannot be normalised together", where=where, found=found, allowed=total[1].shape)
        total = part if total is None else merge(total, part)
    return total


def settled(normalise: Any, fixed: Fixed | None, datasets: list[Dataset], encoding: dict[str, Any]) -> Moments | None:
    """What latents are normalised by: the statistics that the mixture names (`fixed`), else those of the datasets by channel or by position, or
    none. RecipeError where they are of other images than those of `encoding`."""
    found = fixed.moments if fixed else None if normalise == "none" else merged(datasets, normalise)
    if found is not None:
        refuse_other_shape(found, encoding.get("image"), normalise)
    return found


def refuse_other_shape(found: Moments, image: dict[str, Any] | None, normalise: Any) -> None:
    """RecipeError unless these are statistics of the images that the encoding makes. A mixture of text may carry those of its fellow arms."""
    if not image:
        return
    shape, wanted = found[1].shape, (image.get("tokens"), image["width"])
    if shape != wanted[-len(shape) :]:
        raise RecipeError(
            "the latent statistics are not those of the images of this mixture",
            where="normalise",
            found=f"{normalise if isinstance(normalise, str) else normalise.stats}: {_said(shape)}",
            allowed=f"{_said(wanted)} (encoder {image['encoder']})",
        )


def _said(shape: tuple[Any, ...]) -> str:
    return f"{shape[0]} tokens of width {shape[1]}" if len(shape) == 2 else f"width {shape[0]}"


@dataclass(frozen=True)
class Fixed:
    """Statistics that a mixture names instead of its own: where they lie, what they are made of, and the hash of the file."""

    path: str
    fingerprint: str
    sha256: str
    moments: Moments

    @classmethod
    def open(cls, named: FixedStats) -> Fixed:
        """From an artifact of `latent-stats`, an encoded dataset, or another plan, whose own they become. InputError for anything else."""
        card = read_card(named.stats)
        if card["kind"] == "plan" and (entry := (card.get("encoding") or {}).get("stats")):
            found = moments.read(card["path"], entry)
            if named.by is None or named.by == ("position" if found.mean.ndim == 2 else "channel"):
                return cls(card["path"], str(card["fingerprint"]), str(entry["sha256"]), (found.n, found.mean, found.m2))
        said = card.get("stats") if card["kind"] == KIND else (card.get("encoding") or {}).get("stats") if card["kind"] == "dataset" else None
        if not said:
            allowed = "an artifact of `pipelines run latent-stats`, an encoded dataset with images, or a plan over such"
            raise InputError("no latent statistics are here", where=named.stats, found=card["kind"], allowed=allowed)
        by = named.by or ("position" if "position" in said else "channel")
        found = moments.read(card["path"], said, by)
        digest = said["sha256"] if by == "channel" else said["position"]["sha256"]
        return cls(card["path"], str(card["fingerprint"]), str(digest), (found.n, found.mean, found.m2))


def named_by(mixture: Mixture) -> Fixed | None:
    """The statistics that the mixture names, if it does."""
    return None if isinstance(mixture.normalise, str) else Fixed.open(mixture.normalise)


def merge(a: Moments, b: Moments) -> Moments:
    """Two disjoint sets as one."""
    if a[0] == 0 or b[0] == 0:
        return a if b[0] == 0 else b
    n = a[0] + b[0]
    shift = b[1] - a[1]
    return n, a[1] + shift * (b[0] / n), a[2] + b[2] + shift**2 * (a[0] * (b[0] / n))


def publish(root: str, found: Moments) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the statistics file; returns the card's `encoding.stats` and the file's entry."""
    return moments.publish(root, moments.Moments(*found))


def read(root: str, entry: dict[str, Any]) -> Moments:
    """What `publish` wrote."""
    found = moments.read(root, entry)
    return found.n, found.mean, found.m2
