"""What a run has consumed by a step: which sequences, which records and how often, how many tokens of which source.

In: a plan, a step and the batch size; nothing of the run. Since the order is the plan's, and `step` steps read [0, step x batch) of it, the ledger
is derived, never kept, and no log of it can be lost. `Seen` notes what streams really yielded, and `check` says where that differs: the proof that
the one integer in a checkpoint is enough. `pipelines verify RUN` compares a run's account by source with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mixtures.layout import LATENT, TEXT
from mixtures.plan import Plan
from mixtures.plan_file import ROWS_PER_FILE, row_path
from trainer.document import copies

if TYPE_CHECKING:
    from trainer.batch import Batch


@dataclass(frozen=True)
class Consumed:
    """Sequences [0, `sequences`); payload tokens by source; and a table of records, in the order of (dataset, shard, row): `record` [n, 3] is that,
    `spans` and `payload` [n] how many documents, and how many tokens, came from each."""

    sequences: int
    tokens: dict[str, int]
    record: np.ndarray
    spans: np.ndarray
    payload: np.ndarray

    def ids(self, plan: Plan) -> Iterator[tuple[str, int]]:
        """(record id, documents) of all records; an id column is read per shard."""
        places = self.record[:, 0] << 32 | self.record[:, 1]
        for place in np.unique(places).tolist():
            at = np.flatnonzero(places == place)
            column = plan.datasets[place >> 32].index(place & 0xFFFFFFFF, ["id"])["id"]
            ids = column.take(self.record[at, 2]).to_pylist()
            yield from zip(ids, self.spans[at].tolist(), strict=True)


def consumed(plan: Plan, step: int, batch: int, split: str = "train") -> Consumed:
    """The ledger of the first `step` steps of `batch` sequences each (fewer where the plan ends)."""
    stop = min(step * batch, plan.sequences(split))
    parts = [columns for _, columns in _spans(plan, split, 0, stop)]
    dataset, shard, row, source, payload = np.concatenate(parts, axis=1) if parts else np.zeros((5, 0), np.int64)
    tokens = np.bincount(source, payload, minlength=len(plan.sources)).astype(np.int64)
    record, of = np.unique(np.stack([dataset, shard, row], axis=1), axis=0, return_inverse=True)
    of = of.reshape(-1)
    return Consumed(
        stop, dict(zip(plan.sources, tokens.tolist(), strict=True)), record, np.bincount(of, minlength=len(record)),
        np.bincount(of, payload, minlength=len(record)).astype(np.int64),
    )  # fmt: skip


def tokens(plan: Plan, step: int, batch: int) -> dict[str, int]:
    """Payload tokens by source of the first `step` steps, without a table of records."""
    found = np.zeros(len(plan.sources), np.int64)
    for _, (_, _, _, source, payload) in _spans(plan, "train", 0, min(step * batch, plan.sequences())):
        found += np.bincount(source, payload, minlength=len(found)).astype(np.int64)
    return dict(zip(plan.sources, found.tolist(), strict=True))


def _spans(plan: Plan, split: str, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first sequence, [5, spans]) of runs of sequences: dataset, shard, row, source, payload."""
    while start < stop:
        end = min(stop, (start // ROWS_PER_FILE + 1) * ROWS_PER_FILE)
        file = plan.file(row_path(plan.path, split, start))
        some = slice(int(file.start[start % ROWS_PER_FILE]), int(file.start[(end - 1) % ROWS_PER_FILE + 1]))
        spans = {name: np.asarray(column[some], np.int64) for name, column in file.spans.items()}
        yield start, np.stack([spans["dataset"], spans["shard"], spans["row"], spans["source"], spans["stop"] - spans["start"]])
        start = end


@dataclass
class Seen:
    """What streams yielded, of any ranks, in any order: by sequence the step that held it, its documents' sources and its tokens by source."""

    sources: int
    steps: dict[int, list[int]] = field(default_factory=dict)
    documents: dict[int, list[int]] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=dict)

    def add(self, batch: Batch, position: int) -> None:
        """One item of a stream."""
        kind, source, doc = (np.asarray(x) for x in (batch.kind, batch.source, batch.doc))
        payload = (kind == TEXT) | (kind == LATENT)
        payload.reshape(-1)[np.asarray(batch.latent_slot)[copies(np.asarray(batch.image_hidden))[np.asarray(batch.latent_image)]]] = False
        for row, seq in enumerate(batch.seq.tolist()):
            if seq < 0:
                continue
            self.steps.setdefault(seq, []).append(position - 1)
            _, first = np.unique(doc[row][doc[row] >= 0], return_index=True)
            self.documents[seq] = source[row][first].tolist()
            self.tokens[seq] = np.bincount(source[row][payload[row]], minlength=self.sources).tolist()


def check(plan: Plan, seen: Seen, batch: int, first: int, last: int) -> list[str]:
    """How what streams yielded in steps [first, last) differs from the plan; [] is what is hoped for."""
    wrong = []
    start, stop = first * batch, min(last * batch, plan.sequences())
    wrong += [f"sequence {seq} is not of these steps" for seq in seen.steps if not start <= seq < stop]
    for seq in range(start, stop):
        steps = seen.steps.get(seq, [])
        if steps != [seq // batch]:
            wrong.append(f"sequence {seq} was read in steps {steps}, not once in step {seq // batch}")
            continue
        spans: Iterable[Any] = plan.row(seq).spans
        if (documents := [span.source for span in spans]) != seen.documents[seq]:
            wrong.append(f"sequence {seq} held documents of sources {seen.documents[seq]}, not {documents}")
        planned = np.bincount(documents, [span.payload for span in spans], minlength=seen.sources).astype(int).tolist()
        if planned != seen.tokens[seq]:
            wrong.append(f"sequence {seq} held {seen.tokens[seq]} tokens by source, not {planned}")
    return wrong
