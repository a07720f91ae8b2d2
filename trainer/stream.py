"""From plan rows to batches: the order is the plan's, the position is one integer.

    step s reads sequences [s B, (s+1) B); rank r of W takes s B + r, s B + r + W, …; the last step takes what is left, short ranks get empty rows

So a run may go on at any step, at any world size and with any number of workers, and nothing is read twice or never. There is no shuffle buffer,
no worker order and no generator state: whoever knows the plan and the step knows the batch. Local shards are mapped; those in object stores come
through a cache, upcoming ones early (horizon, remote). docs/stream.md says what is promised.

No torch here but in what returns a `Batch`: worker processes make arrays only, and start in half a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mixtures.layout import Layout, layout
from mixtures.span import Span
from mixtures.stand_ins import StandIns, stand_ins
from pipelines.format import storage
from pipelines.format.cache import Cache
from pipelines.format.errors import InputError
from pipelines.format.forgotten import tombstones
from pipelines.format.record import Record
from trainer.ahead import ahead
from trainer.compose import Shape, Shapes, shape_of
from trainer.document import IGNORED, Document, packed
from trainer.horizon import Horizon
from trainer.normalise import Normaliser
from trainer.pictures import Encoding, Pictures
from trainer.remote import Remote
from trainer.shard import Shard
from trainer.two_encoders import other, shown, sides_of

if TYPE_CHECKING:
    from mixtures.plan import Plan
    from trainer.batch import Batch

__all__ = ["Reader", "Reading", "Stream", "ahead"]
SHARDS_KEPT = 256
NEAR_STEPS = 4  # steps whose records are fetched early; more workers look further


class Reading(NamedTuple):
    """How a stream reads; nothing here changes a batch. workers: processes that make batches (0: none). depth: batches made early, by all
    workers together. cache_dir, cache_bytes: where and how much of remote shards is kept (None: the defaults). verify: check local files
    too, once at first open. node: ranks that share this machine, and its cache. encode: latents are made of pictures (None: read)."""

    workers: int = 0
    depth: int = 4
    cache_dir: str | None = None
    cache_bytes: int | None = None
    verify: bool = False
    node: tuple[int, ...] | None = None
    encode: Encoding | None = None


class Reader:
    """Documents of a plan's spans, and batches of documents. One per process; it holds mapped files and index columns, no state."""

    def __init__(self, plan: Plan, reading: Reading | None = None) -> None:
        self.plan, self.reading = plan, reading or Reading()
        self.rules = [plan.rules(name) for name in plan.sources]
        self.sides = sides_of(plan)
        if self.sides is None:
            stats = plan.latent_stats()
            self.normaliser = Normaliser(*stats[1:]) if stats is not None else None
            self.width = self.normaliser.width if self.normaliser else (plan.card["encoding"].get("image") or {}).get("width", 1)
        else:
            self.normaliser, self.width = self.sides.made.normaliser, self.sides.width  # of images that are made, so that who makes them can undo it
        self._others = [None] * len(plan.sources) if self.sides is None else [other(plan, i) for i in range(len(plan.sources))]
        # Two halves of one thing: here pictures are decoded, and, where `batch` and `made` are called, encoded.
        self.pictures = Pictures(plan, self.reading.encode, serial=self.reading.workers > 0) if self.reading.encode else None
        if self.pictures is None and (plan.card["encoding"].get("image") or {}).get("codec") == "none":
            raise InputError("the latents of this plan are not stored, and whoever reads it encodes no pictures", where=plan.path,
                             next="train with `latents: encode`, or encode the datasets with another `storage`")  # fmt: skip
        self._shapes = Shapes()
        self.left_out = 0  # places of forgotten records that were passed over, since nothing fitted
        self.shard = lru_cache(maxsize=SHARDS_KEPT)(self._open_shard)
        self._stones = lru_cache(maxsize=None)(lambda dataset: tombstones(plan.datasets[dataset]))

    def record(self, dataset: int, shard: int, row: int) -> Record:
        """The record at a row of a shard's index, with what a layout and a read need and nothing else."""
        return self.shard(dataset, shard).record(row)

    @cached_property
    def stand_ins(self) -> StandIns:
        """What takes the places of records that were forgotten since the plan was made."""
        return stand_ins(self.plan)

    def document(self, span: Span) -> Document:
        """The span laid out, tokens and latents read (latents as stored: `batch` normalises them)."""
        shard = self.shard(span.dataset, span.shard)
        made = self._other(span)
        key = (
            shard.signature(span.row), None if made is None else made.signature(span.row), shard.data[span.row], span.first, span.count, span.caption,
            span.start, span.stop, span.image_first, span.loss, span.source,
        )  # fmt: skip
        record = lambda: shard.record(span.row) if made is None else shown(shard.record(span.row), made.record(span.row), span)
        shape = self._shapes.get(key, lambda: self._shape(layout(span, record(), self.rules[span.source], self.plan.specials)))
        return self._filled(shard, shape, span)

    def _other(self, span: Span) -> Shard | None:
        """Where images with loss of a span lie, if elsewhere."""
        number = self._others[span.source]
        return None if number is None else self.shard(number, span.shard)

    def compose(self, record: Record, laid: Layout, span: Span) -> Document:
        """A document from a layout of `record`, which stands at the span's dataset, shard and row."""
        shard = self.shard(span.dataset, span.shard)
        assert record.id == shard.ids[span.row], f"record {record.id} does not stand at row {span.row}"
        return self._filled(shard, self._shape(laid), span)

    def _shape(self, laid: Layout) -> Shape:
        return shape_of(laid, self.plan.specials.pad, IGNORED)

    def _filled(self, shard: Shard, shape: Shape, span: Span) -> Document:
        """The bytes of the record at the span's row, in a shape."""
        laid, first = shape.laid, int(shard.offsets[span.row])
        tokens, target = shape.tokens.copy(), shape.target.copy()
        for segment, start, stop, offset in shape.text:
            tokens[start:stop] = shard.ids_at(first + segment)[offset : offset + stop - start]
        target[shape.predictor] = tokens[shape.predicted]
        pictures: tuple[tuple[int, int, int], ...] = ()
        if self.pictures is None:
            stored = self._latents(shard, shape, span)
        else:
            stored = np.zeros((int((laid.image >= 0).sum()), 0), np.float32)
            pictures = tuple((span.dataset, span.shard, first + segment) for segment in shape.images)
        return Document(
            tokens, laid.kind, laid.turn, laid.position, laid.condition, target, laid.image, laid.image_loss, laid.image_hidden, laid.image_segment,
            stored, span.source, int(shard.h[span.row]), span.epoch, pictures,
        )  # fmt: skip

    def _latents(self, shard: Shard, shape: Shape, span: Span) -> np.ndarray:
        """Latents of a span's images as stored, each of the encoder that its loss bit selects."""
        first, made = int(shard.offsets[span.row]), self._other(span)
        if self.sides is not None:
            both = (shard, shard if made is None else made)
            images = zip(shape.images, shape.laid.image_loss.tolist(), strict=True)
            return self.sides.joined([both[loss].latents_at(int(both[loss].offsets[span.row]) + segment) for segment, loss in images])
        latents = [shard.latents_at(first + segment) for segment in shape.images]
        return latents[0] if len(latents) == 1 else np.concatenate(latents) if latents else np.zeros((0, self.width), np.float32)

    def batch(self, rows: Sequence[Sequence[Document]], seq: Sequence[int] | None = None, length: int | None = None) -> Batch:
        """Rows of documents as a Batch, latents normalised by the plan's statistics. `length` defaults to the plan's sequence length."""
        from trainer.batch import of_arrays

        return of_arrays(self.made(self.arrays(rows, seq if seq is not None else range(len(rows)), length)))

    def arrays(self, rows: Sequence[Sequence[Document]], seq: Sequence[int], length: int | None = None) -> dict[str, np.ndarray]:
        """What `batch` returns, as numpy arrays by name; with `encode` pictures instead of latents, of which `made` makes them."""
        length = length or self.plan.sequence_length
        # An evaluation's own documents bring latents along, also where others name pictures.
        if self.pictures is None or any(len(d.image_loss) and not d.pictures for row in rows for d in row):
            return packed(rows, seq, length, self.plan.specials.pad, self.width, self.normaliser, self.sides)
        arrays = packed(rows, seq, length, self.plan.specials.pad, 0)
        return arrays | self.pictures.arrays([d for row in rows for d in row], self.shard)

    def made(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays with latents where there were pictures."""
        return self.pictures.latents(arrays, self.normaliser) if self.pictures is not None and "pictures" in arrays else arrays

    def sequence(self, seq: int, split: str = "train") -> list[Document]:
        """The documents of one packed row of the plan, with others in the places of forgotten records where any fit."""
        spans = self.plan.row(seq, split).spans
        if split == "train":
            spans, empty = self.stand_ins.spans(seq, spans)
            self.left_out += empty
        gone = lambda span: any(s is not None and s.gone[span.row] for s in (self.shard(span.dataset, span.shard), self._other(span)))
        kept = [span for span in spans if not gone(span)]
        self.left_out += len(spans) - len(kept)
        return [self.document(span) for span in kept]

    @cached_property
    def remote(self) -> Remote:
        """What fetches shards that do not lie on this machine; made when the first of them is opened."""
        return Remote(Cache(self.reading.cache_dir, self.reading.cache_bytes))

    def elsewhere(self) -> bool:
        """Whether the plan has datasets that are not local."""
        return not all(storage.is_local(d.path) for d in self.plan.datasets)

    def _open_shard(self, dataset: int, shard: int) -> Shard:
        found = self.plan.datasets[dataset]
        names = [n for n in (found.shards[shard].tokens_file, found.shards[shard].data) if n is not None]
        here = storage.is_local(found.path) and all(storage.is_local(storage.resolve(n, storage.absolute(found.path))) for n in names)
        return Shard(found, shard, self._stones(dataset), None if here else self.remote, self.reading.verify)


class Stream:
    """Batches of a plan for one rank, from any step on. Iterating yields (Batch, position); position = the next step."""

    def __init__(
        self, plan: Plan, batch: int, rank: int = 0, world: int = 1, start_step: int = 0, split: str = "train", steps: int | None = None,
        reading: Reading | None = None,
    ) -> None:  # fmt: skip
        self.reading = reading or Reading()
        self.reader, self.size, self.rank, self.world = Reader(plan, self.reading), batch, rank, world
        self.start, self.split, self.total = start_step, split, plan.sequences(split)
        whole = -(-self.total // batch)
        self.steps = whole if steps is None else min(steps, whole)

    def numbers(self, step: int, rank: int | None = None) -> list[int]:
        """The sequence numbers that a rank (default: this one) reads at a step."""
        first = step * self.size
        return list(range(first + (self.rank if rank is None else rank), min(first + self.size, self.total), self.world))

    def at(self, step: int) -> Batch:
        """This rank's batch of a step; ceil(B / W) rows, empty ones at the end where the plan has run out."""
        from trainer.batch import of_arrays

        return of_arrays(self.reader.made(self.arrays(step)))

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """What `at` is made of, as numpy arrays by name."""
        numbers = self.numbers(step)
        if self._horizon is not None:
            self._horizon.reach(step, numbers)
        rows: list[list[Document]] = [self.reader.sequence(n, self.split) for n in numbers]
        short = -(-self.size // self.world) - len(rows)
        # -1 in `seq` is a row without a sequence.
        return self.reader.arrays([*rows, *([[]] * short)], [*numbers, *([-1] * short)])

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        try:
            yield from self._made_here() if not self.reading.workers else self._made_by_workers()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the threads that fetch; what waits is not fetched. A stream may be used again afterwards."""
        if self.__dict__.get("_horizon") is not None:
            self.__dict__["_horizon"].close()
        if "remote" in self.reader.__dict__:
            self.reader.remote.close()
        if self.reader.pictures is not None:
            self.reader.pictures.close()

    def _made_here(self) -> Iterator[tuple[Batch, int]]:
        for step in range(self.start, self.steps):
            yield self.at(step), step + 1

    def _made_by_workers(self) -> Iterator[tuple[Batch, int]]:
        from trainer.batch import of_arrays
        from trainer.workers import Workers

        with Workers(self) as workers:
            for step in range(self.start, self.steps):
                arrays, left_out = workers.take(step)
                self.reader.left_out += left_out
                yield of_arrays(self.reader.made(arrays)), step + 1

    @cached_property
    def _horizon(self) -> Horizon | None:
        if not self.reader.elsewhere():
            return None
        ranks = self.reading.node or (self.rank,)
        numbers = lambda step: [n for rank in ranks for n in self.numbers(step, rank)]
        near = max(NEAR_STEPS, 2 * self.reading.workers, self.reading.depth)
        return Horizon(self.reader.plan, self.split, self.reader.shard, self.reader.remote, numbers, self.steps, near)
