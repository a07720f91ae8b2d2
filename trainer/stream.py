"""From plan rows to batches: the order is the plan's, the position is one integer.

    step s reads sequences [s B, (s+1) B); rank r of W takes s B + r, s B + r + W, …; the last step takes what is left, short ranks get empty rows

So a run may go on at any step and at any world size, and nothing is read twice or never. There is no shuffle buffer, no worker order and no
generator state: whoever knows the plan and the step knows the batch.

Cost: a document costs 30-60 µs (index columns stay as arrays per shard, layouts come from the planner's cache, payloads are mapped).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from mixtures.layout import LATENT, TEXT, Layout, layout
from mixtures.span import Span
from mixtures.stand_ins import StandIns, stand_ins
from pipelines.format import codec, storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.forgotten import NAMED_BY, forgotten, tombstones
from pipelines.format.record import Record, Segment
from trainer.batch import IGNORED, Batch, Document, collate
from trainer.normalise import Normaliser

if TYPE_CHECKING:
    from mixtures.plan import Plan

SHARDS_KEPT = 256


class Reader:
    """Documents of a plan's spans, and batches of documents. One per process; it holds mapped files and index columns, no state."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rules = [plan.rules(name) for name in plan.sources]
        if "target" in plan.card["encoding"]:
            raise InputError(
                "this plan has two encoders, one for context and one for target images, and the trainer projects latents of one",
                where=plan.path,
                next="name one dataset of each source",
            )
        stats = plan.latent_stats()
        self.normaliser = Normaliser(*stats[1:]) if stats is not None else None
        self.width = self.normaliser.width if self.normaliser else (plan.card["encoding"].get("image") or {}).get("width", 1)
        self.left_out = 0  # places of forgotten records that were passed over, since nothing fitted
        self._shard = lru_cache(maxsize=SHARDS_KEPT)(self._open_shard)
        self._stones = lru_cache(maxsize=None)(lambda dataset: tombstones(plan.datasets[dataset]))

    def record(self, dataset: int, shard: int, row: int) -> Record:
        """The record at a row of a shard's index, with what a layout and a read need and nothing else."""
        return self._shard(dataset, shard).record(row)

    @cached_property
    def stand_ins(self) -> StandIns:
        """What takes the places of records that were forgotten since the plan was made."""
        return stand_ins(self.plan)

    def document(self, span: Span) -> Document:
        """The span laid out, tokens and latents read (latents as stored: `batch` normalises them)."""
        record = self.record(span.dataset, span.shard, span.row)
        return self.compose(record, layout(span, record, self.rules[span.source], self.plan.specials), span)

    def compose(self, record: Record, laid: Layout, span: Span) -> Document:
        """A document from a layout of `record`; payloads come from the span's dataset and shard."""
        shard, runs = self._shard(span.dataset, span.shard), _runs(laid)
        tokens = laid.token.copy()
        latents = []
        for segment, where, offset in runs.text:
            ids = shard.array(record.segments[segment])
            tokens[where] = ids[offset : offset + where.stop - where.start]
        for segment in laid.image_segment.tolist():
            latents.append(shard.array(record.segments[segment]))
        target = np.where(runs.predicted, np.append(tokens[1:], 0), IGNORED).astype(np.int32)
        tokens[runs.latent] = self.plan.specials.pad
        return Document(
            tokens=tokens, kind=laid.kind, turn=laid.turn, position=laid.position, condition=laid.condition, text_target=target,
            image=laid.image, image_loss=laid.image_loss, image_hidden=laid.image_hidden, image_segment=laid.image_segment,
            latents=np.concatenate(latents) if latents else np.zeros((0, self.width), np.float32),
            source=span.source, h=record.h, epoch=span.epoch,
        )  # fmt: skip

    def batch(self, rows: Sequence[Sequence[Document]], seq: Sequence[int] | None = None, length: int | None = None) -> Batch:
        """Rows of documents as a Batch, latents normalised by the plan's statistics. `length` defaults to the plan's sequence length."""
        numbers = seq if seq is not None else list(range(len(rows)))
        return collate(rows, numbers, length or self.plan.sequence_length, self.plan.specials.pad, self.width, self.normaliser)

    def sequence(self, seq: int, split: str = "train") -> list[Document]:
        """The documents of one packed row of the plan, with others in the places of forgotten records where any fit."""
        spans = self.plan.row(seq, split).spans
        if split == "train":
            spans, empty = self.stand_ins.spans(seq, spans)
            self.left_out += empty
        kept = [span for span in spans if not self._shard(span.dataset, span.shard).gone[span.row]]
        self.left_out += len(spans) - len(kept)
        return [self.document(span) for span in kept]

    def _open_shard(self, dataset: int, shard: int) -> _Shard:
        return _Shard(self.plan.datasets[dataset], shard, self._stones(dataset))


class Stream:
    """Batches of a plan for one rank, from any step on. Iterating yields (Batch, position); position = the next step."""

    def __init__(
        self, plan: Plan, batch: int, rank: int = 0, world: int = 1, start_step: int = 0, split: str = "train", steps: int | None = None
    ) -> None:
        self.reader, self.size, self.rank, self.world = Reader(plan), batch, rank, world
        self.start, self.split, self.total = start_step, split, plan.sequences(split)
        whole = -(-self.total // batch)
        self.steps = whole if steps is None else min(steps, whole)

    def numbers(self, step: int) -> list[int]:
        """The sequence numbers that this rank reads at a step."""
        first = step * self.size
        return list(range(first + self.rank, min(first + self.size, self.total), self.world))

    def at(self, step: int) -> Batch:
        """This rank's batch of a step; ceil(B / W) rows, empty ones at the end where the plan has run out."""
        numbers = self.numbers(step)
        rows: list[list[Document]] = [self.reader.sequence(n, self.split) for n in numbers]
        short = -(-self.size // self.world) - len(rows)
        # -1 in `seq` is a row without a sequence.
        return self.reader.batch([*rows, *([[]] * short)], [*numbers, *([-1] * short)])

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        for step in range(self.start, self.steps):
            yield self.at(step), step + 1


class _Runs(NamedTuple):
    """What composing needs of a layout, found once per shape: (segment, positions, payload offset) of text runs, latent slots, target mask."""

    text: list[tuple[int, slice, int]]
    latent: np.ndarray
    predicted: np.ndarray


@lru_cache(maxsize=1024)
def _runs(laid: Layout) -> _Runs:
    at = np.flatnonzero(laid.kind == TEXT)
    breaks = np.flatnonzero((np.diff(laid.segment[at]) != 0) | (np.diff(at) != 1)) + 1
    text = []
    for run in np.split(at, breaks) if len(at) else []:
        first = int(run[0])
        text.append((int(laid.segment[first]), slice(first, first + len(run)), int(laid.offset[first])))
    predicted = np.zeros(len(laid), np.bool_)
    predicted[:-1] = laid.is_target[1:] & (laid.turn[1:] == laid.turn[:-1])
    return _Runs(text, np.flatnonzero(laid.kind == LATENT), predicted)


class _Shard:
    """One shard, opened: the index columns that a batch needs as flat arrays (a nested row by pyarrow costs 20 times as much as a slice of
    these), and its data files mapped whole."""

    def __init__(self, dataset: Dataset, shard: int, stones: pa.Table | None) -> None:
        named = [name for name in NAMED_BY if stones is not None and name != "id"]
        table = dataset.index(shard, ["id", "data", "segments", *named]).combine_chunks()
        self.gone = forgotten(table, stones) if stones is not None else np.zeros(table.num_rows, np.bool_)
        self.dataset, self.shard = dataset, shard
        self.files: dict[str, memoryview] = {}
        self.ids, self.data = table["id"].to_pylist(), table["data"].to_pylist()
        lists = table["segments"].combine_chunks()
        lists = lists.chunk(0) if hasattr(lists, "num_chunks") else lists
        self.offsets = lists.offsets.to_numpy()
        flat = lists.values
        plain = lambda name: flat.field(name).to_numpy(zero_copy_only=False)
        self.kind, self.role, self.dtype = plain("kind").tolist(), plain("role").tolist(), plain("dtype").tolist()
        self.atom, self.turn, self.tokens = plain("atom"), plain("turn"), plain("tokens")
        self.offset, self.nbytes = (flat.field(n).fill_null(0).to_numpy(zero_copy_only=False) for n in ("offset", "nbytes"))
        self.shape = flat.field("shape").to_pylist()

    def array(self, segment: Segment) -> np.ndarray:
        """Token ids [n], or latents f32 [n, width] as stored."""
        if not storage.is_local(self.dataset.path):
            return self.dataset.array(self.shard, segment)  # a ranged read
        if segment.kind not in self.files:
            entry = self.dataset.shards[self.shard]
            size = entry.tokens_bytes if segment.kind == "tokens" else entry.data_bytes
            self.files[segment.kind] = self.dataset.slice(self.shard, segment.kind, 0, size or 0)
        assert segment.offset is not None and segment.nbytes is not None
        view = self.files[segment.kind][segment.offset : segment.offset + segment.nbytes]
        if segment.kind == "tokens":
            return np.frombuffer(view, segment.dtype)
        return codec.decode_latents(view, str(segment.dtype), *segment.shape)

    def record(self, row: int) -> Record:
        """The record at a row of the index: what a layout and a read need, and nothing else."""
        segments = []
        for i in range(self.offsets[row], self.offsets[row + 1]):
            segments.append(
                Segment(
                    kind=self.kind[i], role=self.role[i], atom=int(self.atom[i]), turn=int(self.turn[i]), dtype=self.dtype[i],
                    shape=tuple(self.shape[i] or ()), tokens=int(self.tokens[i]), offset=int(self.offset[i]), nbytes=int(self.nbytes[i]),
                )
            )  # fmt: skip
        return Record(self.ids[row], "", "", self.data[row], tuple(segments), "")


def ahead(items: Iterator[Any], depth: int) -> Iterator[Any]:
    """The same items, made up to `depth` early in a thread (0: in this one, which a single core prefers)."""
    if depth == 0:
        yield from items
        return
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=depth)
    left = threading.Event()

    def work() -> None:
        try:
            for item in items:
                while not left.is_set():
                    with suppress(queue.Full):
                        ready.put((True, item), timeout=0.2)
                        break
                if left.is_set():
                    return
            ready.put((False, None))
        except BaseException as error:  # handed to the reader, which raises it
            ready.put((False, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item
            elif item is not None:
                raise item
            else:
                return
    finally:
        left.set()
