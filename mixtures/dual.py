"""Two datasets for one source: images that are looked at come from the one, images that are made from the other (a dual encoder's output).

In: `dataset: {context: PATH, target: PATH}`, two encoded datasets of the same records at the same places. Out: one `Table` in which every image
has two counts of tokens, and records in which each image of a span is the one that its loss bit selects. Spans point into the context dataset;
plan.json says for each such source which dataset its `target` is, and shard, row and segment are the same there. Widths and tokens an image may
differ (256 x 1152 and 196 x 16), so the same record may take more or fewer positions when its image is made.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mixtures import latent_stats
from mixtures.layout import atom_ranges, span_segments
from mixtures.span import Span
from mixtures.table import Table, read_segments, read_table
from pipelines.format.dataset import Dataset
from pipelines.format.errors import RecipeError
from pipelines.format.record import Record

if TYPE_CHECKING:
    from mixtures.mixture import Mixture

SAME = ("shard", "row", "h", "text", "atom_start", "atom_segment", "atom_images")
SAME_SEGMENTS = ("start", "image", "target", "turn")


def read_both(context: tuple[Any, ...], target: tuple[Any, ...]) -> Table:
    """The planner's view of both datasets, from the arguments that `read_table` takes for each. RecipeError unless they hold the same rows.

    A record is left out where either would leave it out."""
    (one, *_), (two, *_) = context, target
    ours, theirs = read_table(*context), read_table(*target)
    _same(one, two, "records", all(np.array_equal(getattr(ours, k), getattr(theirs, k)) for k in SAME) and ours.data == theirs.data)
    shards = context[4] if len(context) > 4 else None
    segments = ours.segments or read_segments(one, shards)
    made = theirs.segments or read_segments(two, shards)
    _same(one, two, "segments", all(np.array_equal(getattr(segments, k), getattr(made, k)) for k in SAME_SEGMENTS))
    dropped = {k: max(n, theirs.dropped.get(k, 0)) for k, n in {**theirs.dropped, **ours.dropped}.items()}
    sides = {"held": ours.held & theirs.held, "usable": ours.usable & theirs.usable, "dropped": dropped}
    return replace(ours, atom_made=theirs.atom_tokens, segments=replace(segments, made=made.tokens), **sides)  # type: ignore[arg-type]


def _same(one: Dataset, two: Dataset, what: str, same: bool) -> None:
    if not same:
        raise RecipeError(
            f"the two datasets of a source do not hold the same {what} at the same places",
            where=f"{one.path} and {two.path}",
            found=f"{one.card['records']:,} records in {len(one.shards)} shards, {two.card['records']:,} in {len(two.shards)}",
            allowed="the two outputs of one encode with `images: {dual: …}`",
            next="encode them together; a compacted one no longer stands beside the other",
        )


def two_for_all(mixture: Mixture, datasets: dict[str, Dataset]) -> None:
    """RecipeError when a source with images names one dataset while another names two: its images would be of one encoder wherever they stand."""
    for name, source in sorted(mixture.sources.items()):
        if not source.dual and (datasets[source.main].encoding or {}).get("image"):
            raise RecipeError(
                "a mixture with two encoders takes two datasets of every source with images",
                where=f"sources.{name} ({source.main})",
                found="one dataset",
                allowed="dataset: {context: PATH, target: PATH}",
                next="encode this source with the same `images: {dual: …}`",
            )


def one_or_two(fingerprints: list[str]) -> Any:
    """What a plan's fingerprint says of a source's data."""
    return fingerprints[0] if len(fingerprints) == 1 else fingerprints


def settled(
    normalise: Any, fixed: latent_stats.Fixed | None, datasets: list[Dataset], encoding: dict[str, Any]
) -> tuple[latent_stats.Moments | None, latent_stats.Moments | None]:
    """What images are normalised by, and those of a target encoder where there is one: each by the statistics of its own datasets. RecipeError
    where a mixture of two encoders names statistics, which would be those of one."""
    if "target" not in encoding:
        return latent_stats.settled(normalise, fixed, datasets, encoding), None
    if fixed is not None:
        raise RecipeError(
            "named statistics are those of one encoder, and this mixture has two",
            where="normalise",
            found=fixed.path,
            allowed="channel | position | none",
        )
    images = [(d, (d.encoding or {}).get("image")) for d in datasets]
    by_side = [[d for d, image in images if image and _name(image) == _name(encoding[side])] for side in ("image", "target")]
    looked_at, made = (
        latent_stats.settled(normalise, None, mine, {"image": encoding[side]}) for mine, side in zip(by_side, ("image", "target"), strict=True)
    )
    return looked_at, made


def _name(image: dict[str, Any]) -> tuple[Any, Any]:
    return image["encoder"], image["fingerprint"]


def shown(record: Record, made: Record, span: Span) -> Record:
    """The record of the context dataset, with the other's images where the span's loss bits say so."""
    chosen = span_segments(span, record.segments, atom_ranges(record.segments))
    noised = {k for k, loss in zip(chosen, span.loss, strict=True) if loss and record.segments[k].kind in ("latents", "image")}
    return replace(record, segments=tuple(made.segments[k] if k in noised else s for k, s in enumerate(record.segments)))
