"""Plans of two encoders: an image without loss has the latents of one, to be looked at, an image with loss those of the other, to be made.

In: a plan whose card names a `target` beside its `image` (mixtures/dual.py). Out: `Sides`, which says how wide, how many and how normalised the
latents of either are. In documents and batches both lie in one array as wide as the wider of the two, and the loss bit of an image says which it is:
of a row that is narrower the rest is zero, and nobody reads it. So all that packs, cuts and moves latents is as it is for one encoder; the price is
memory, never more than a plan of the wider encoder alone takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mixtures import dual
from trainer.normalise import Normaliser

if TYPE_CHECKING:
    from mixtures.plan import Plan
    from mixtures.span import Span
    from pipelines.format.dataset import Dataset
    from pipelines.format.record import Record
    from trainer.document import Document


class Side(NamedTuple):
    """The latents of one encoder: values of each, number of an image's, and how they are normalised (None: not)."""

    width: int
    tokens: int
    normaliser: Normaliser | None


@dataclass(frozen=True, slots=True)
class Sides:
    """Latents of images that are looked at, and of images that are made."""

    looked: Side
    made: Side

    @property
    def width(self) -> int:
        """Of the array that holds both."""
        return max(self.looked.width, self.made.width)

    def widths(self, loss: np.ndarray) -> np.ndarray:
        """i32[I]: how much of its rows each image fills, by its loss bit."""
        return np.where(loss, self.made.width, self.looked.width).astype(np.int32)

    def joined(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Latents of either width, one below another."""
        out = np.zeros((sum(map(len, images)), self.width), np.float32)
        at = 0
        for x in images:
            out[at : at + len(x), : x.shape[1]] = x
            at += len(x)
        return out

    def fill(self, document: Document, out: np.ndarray) -> None:
        """A document's latents, normalised, into rows of the array that holds both."""
        made = document.image_loss[document.image[document.image >= 0]]
        out[...] = 0
        for side, rows in ((self.looked, ~made), (self.made, made)):
            if rows.any():
                stored = np.ascontiguousarray(document.latents[rows, : side.width])
                out[rows, : side.width] = stored if side.normaliser is None else side.normaliser.apply(stored)


def sides_of(plan: Plan) -> Sides | None:
    """Both encoders of a plan; None where it has one, or no images."""
    encoding = plan.card["encoding"]
    if "target" not in encoding:
        return None

    def side(name: str, stats: tuple[int, Any, Any] | None) -> Side:
        return Side(int(encoding[name]["width"]), int(encoding[name]["tokens"]), None if stats is None else Normaliser(*stats[1:]))

    return Sides(side("image", plan.latent_stats()), side("target", plan.latent_stats("target_stats")))


def other(plan: Plan, source: int) -> int | None:
    """The dataset in which images with loss of a source lie, where it is another than that of its spans."""
    found: int | None = plan.card.get("sources", {}).get(plan.sources[source], {}).get("target")
    return found


def made_in(plan: Plan, span: Span) -> Dataset:
    """The dataset in which images with loss of a span lie: its own, or that of the target encoder."""
    number = other(plan, span.source)
    return plan.datasets[span.dataset if number is None else number]


def shown_by(plan: Plan) -> Dataset | None:
    """The dataset whose card says which encoder made what this plan's models make; None where a plan has no images."""
    pictured = [d for d in plan.datasets if (d.encoding or {}).get("image")]
    target = plan.card["encoding"].get("target")
    name = lambda image: (image["encoder"], image["fingerprint"])
    return next((d for d in pictured if target is None or name((d.encoding or {})["image"]) == name(target)), None)


def shown(record: Record, made: Record, span: Span) -> Record:
    """The record as the span lays it out: images with loss as the target encoder makes them."""
    return dual.shown(record, made, span)
