"""What one record of a dataset is expected to come to in a plan, known from its card alone, or from the indexes of some of its shards.

    card ──of_card──▶ Expected ◀──of_sample── a few shards' indexes        tokens, loss, structure a record; lengths of its documents

A card has records, tokens and the tokens of an image, so means are exact and spreads are not known: `of_card` takes captions, questions and clips
to be spread as lengths usually are (exponentially about their mean), and says what a card does not tell. `of_sample` makes the units of whole
shards as planning would, so that filters, captions and turns are counted; it is as good as those shards are like the others.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.dual import read_both
from mixtures.mixture import Mixture, Source
from mixtures.packing import pack
from mixtures.table import I64, Bool, read_table
from mixtures.units import units
from pipelines.format.chance import draw
from pipelines.format.dataset import Dataset
from pipelines.format.errors import HeadwaterError, RecipeError

SAMPLE = 16_384  # documents a spread is made of
SAMPLED_RECORDS, SAMPLED_SHARDS = 200_000, 32
SHARDS_READ = 20_000  # a shard table of more is not read for an estimate


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """A record that is trained on, on the mean. `usable` is the share of the training split that filters and the row length leave, 1 where nobody
    knows; `text_most` the most text that a record may hold, where that is not known; `slack` how far off what is available may be."""

    text: float
    visual: float
    loss: float
    structure: float
    length: NDArray[np.int64]  # positions of documents, in no order
    cut: bool  # documents may be cut
    units: float  # documents a record
    usable: float = 1.0
    text_most: float | None = None
    slack: float = 1.0
    said: tuple[str, ...] = ()

    @property
    def payload(self) -> float:
        return self.text + self.visual

    def counted(self, count: str) -> float:
        """What a budget counts of it."""
        return 1.0 if count == "records" else {"all": self.payload, "text": self.text, "visual": self.visual, "loss": self.loss}[count]

    def most(self, count: str) -> float:
        """What a budget may count of it at most, so that only what cannot be is refused."""
        more = 0.0 if self.text_most is None or count in ("visual", "records") else self.text_most - self.text
        return (self.counted(count) + more) * self.slack


# ---- from a card -------------------------------------------------------------------------------------------------------------------------


def of_card(card: dict[str, Any], source: Source, row: int) -> Expected:
    """The expectation that a card allows."""
    records = max(int(card["records"]), 1)
    text, visual, loss = (card["tokens"][k] / records for k in ("text", "visual", "loss"))
    image = int((card["encoding"].get("image") or {}).get("tokens") or 0)
    images = visual / image if image else 0.0
    said: list[str] = []
    if source.where.model_dump(exclude_defaults=True):
        said.append("what `where` leaves out is not on a card: available is at most this")
    if card.get("tombstones"):
        said.append(f"{card['tombstones']['n']:,} tombstones are not subtracted")
    make = {"text": _text, "image-text": _pair, "video": _clip, "vqa": _asked, "action-video": _action}
    return make[card["data"]](source, row, (text, visual, loss), (image, images), said)


_Tokens = tuple[float, float, float]  # text, visual, loss a record
_Images = tuple[int, float]  # tokens of an image, images a record


def _text(source: Source, row: int, tokens: _Tokens, images: _Images, said: list[str]) -> Expected:
    text, _, loss = tokens
    return Expected(text, 0, loss if source.loss == "role" else text, 2, np.maximum(_spread(text), 1) + 2, True, 1, said=tuple(said))


def _pair(source: Source, row: int, tokens: _Tokens, images: _Images, said: list[str]) -> Expected:
    text, visual, _ = tokens
    captions = len(source.captions or {}) or 1
    said.append(f"how many captions a picture has is not on a card: {captions} assumed" + (", of one length" if captions > 1 else ""))
    caption = text / captions
    loss = caption + visual * (1 if source.both else 1 - source.image_first)
    structure = 2 + 2 * images[1]
    length = _spread(caption) + round(visual + structure)
    # A card counts all captions, of which one is shown: what it promises is the most there can be.
    return _fitting(Expected(caption, visual, loss, structure, length, False, 1, text_most=text), row, said)


def _clip(source: Source, row: int, tokens: _Tokens, images: _Images, said: list[str]) -> Expected:
    text, visual, loss = tokens
    copies = 2 if source.history == "clean_copy" else 1
    place = copies * (images[0] + 2)
    frames = max((row - 2) // max(place, 1), 0)
    if not frames:
        said.append(f"a frame of {images[0]} tokens does not fit a row")
        return Expected(text, visual, loss, 2, np.zeros(0, np.int64), False, 1, 0.0, said=tuple(said))
    clips = np.maximum(_spread(images[1]), 1)
    full, rest = clips // frames, clips % frames
    length = np.concatenate([np.full(int(full.sum()), frames), rest[rest > 0]]) * place + 1
    structure = 2 + 2 * images[1] + (copies - 1) * (visual + 2 * images[1])
    said.append("how clips differ in length is not on a card: spread about their mean")
    taught = loss if source.loss == "role" else visual if source.loss == "text" else text + visual
    return Expected(text, visual, taught, structure, length, False, len(length) / len(clips), said=tuple(said))


def _asked(source: Source, row: int, tokens: _Tokens, images: _Images, said: list[str]) -> Expected:
    text, visual, loss = tokens
    if source.turns == "isolated":
        said.append("how many questions a record has is not on a card: one assumed, each more is a token of structure")
    taught = {"role": loss, "text": text, "all": text + visual}[source.loss]  # a question's picture is context
    structure = 2 + 2 * images[1]
    return _fitting(Expected(text, visual, taught, structure, _spread(text) + round(visual + structure), False, 1), row, said)


def _action(source: Source, row: int, tokens: _Tokens, images: _Images, said: list[str]) -> Expected:
    text, visual, loss = tokens
    taught = {"role": loss, "text": loss + text, "all": text + visual}[source.loss]  # the outcome's picture is the only target
    structure = 2 + 2 * images[1]
    length = np.full(1, round(text + visual + structure))  # samples of one dataset are alike: as many pictures, numbers in one form
    return _fitting(Expected(text, visual, taught, structure, length, False, 1), row, said)


def _fitting(e: Expected, row: int, said: list[str]) -> Expected:
    """Without the documents that are longer than a row: they are never cut, and left out."""
    fits = e.length <= row
    if (share := float(fits.mean())) < 1:
        said.append(f"records longer than a row are left out: about {1 - share:.1%} if lengths are spread as usual, which a card does not say")
    return replace(e, length=e.length[fits], usable=float(fits.any()), said=tuple(said))


def _spread(mean: float, n: int = 4096) -> I64:
    """Whole numbers spread exponentially about a mean, its quantiles, in a fixed shuffled order."""
    u = (np.argsort(draw(np.arange(n, dtype=np.uint64), 0, "spread"), kind="stable") + 0.5) / n
    return np.rint(-mean * np.log1p(-u)).astype(np.int64)


# ---- from some shards --------------------------------------------------------------------------------------------------------------------


def of_sample(datasets: list[Dataset], source: Source, mixture: Mixture) -> Expected | None:
    """From the units of some whole shards, spread over the dataset (or the two of a source), as planning would make them; None where there is
    no index to be read, or a shard table too long to be read for this."""
    main = datasets[0]
    if any(d.card["shards"]["n"] > SHARDS_READ for d in datasets):
        return None
    try:
        chosen = _some_shards(main)
        parts = [_only(d, chosen) for d in datasets]
        asked = [(part, mixture.held_out, source.where, source.captions is not None) for part in parts]
        table = read_both(*asked) if source.dual else read_table(*asked[0])
    except RecipeError:
        raise
    except HeadwaterError:  # planning will say what is wrong; an estimate goes by the card
        return None
    training = int((~table.held).sum())
    made, _ = units(table, np.flatnonzero(table.usable), source, mixture.sequence_length, mixture.seed, 0)
    if not training or not len(made):
        return None
    records = len(np.unique(made.record))
    text, payload, loss, structure = (float(x.sum()) / records for x in (made.text, made.payload, made.loss, made.structure))
    length, cut = made.length.astype(np.int64), bool(made.cut.all())
    said = f"by {len(table):,} of {main.card['records']:,} records, in {len(chosen)} of {len(main.shards):,} shards"
    return Expected(text, payload - text, loss, structure, length, cut, len(made) / records, records / training, slack=1.05, said=(said,))


def _some_shards(dataset: Dataset) -> list[int]:
    """At most 32 shards, about 200,000 records, spread evenly over the dataset."""
    n, chosen, records = len(dataset.shards), list[int](), 0
    for i in _spread_out(sorted({i * n // SAMPLED_SHARDS for i in range(SAMPLED_SHARDS)} if n else set())):
        if chosen and records + dataset.shards[i].records > SAMPLED_RECORDS:
            break
        chosen.append(i)
        records += dataset.shards[i].records
    return sorted(chosen)


def _spread_out(items: list[int]) -> list[int]:
    """In an order of which every beginning is spread over the whole (bits reversed)."""
    return [items[i] for i in sorted(range(len(items)), key=lambda i: f"{i:032b}"[::-1])]


def _only(dataset: Dataset, shards: list[int]) -> Dataset:
    """The dataset as if it had only these shards."""
    part = copy.copy(dataset)
    part.shards = [dataset.shards[i] for i in shards]
    return part


# ---- fill --------------------------------------------------------------------------------------------------------------------------------


def filled(parts: list[tuple[Expected, float]], row: int) -> float:
    """Positions used of all positions in rows of `row`, when so many documents of each are mixed evenly: found by packing a sample of them."""
    documents = sum(n for _, n in parts)
    if documents <= 0:
        return 1.0
    scale = min(1.0, 2 * SAMPLE / documents)
    lengths, cuts, times = [], [], []
    for e, n in parts:
        k = round(n * scale)
        if k and len(e.length):
            lengths.append(_resampled(e.length, k))
            cuts.append(np.full(k, e.cut))
            times.append((np.arange(k) + 0.5) / k)
    if not lengths:
        return 1.0
    order = np.argsort(np.concatenate(times), kind="stable")
    length: I64 = np.concatenate(lengths)[order]
    cut: Bool = np.concatenate(cuts)[order]
    rows = sum(pieces.rows for pieces in pack(length, cut, row))
    return float(length.sum() / (rows * row))


def _resampled(length: I64, k: int) -> I64:
    """k lengths of the same spread, in a shuffled order."""
    order = np.argsort(draw(np.arange(k, dtype=np.uint64), 0, "spread"), kind="stable")
    return np.sort(length)[((order + 0.5) * len(length) / k).astype(np.int64)]
