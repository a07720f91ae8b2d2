"""Texts as the rows that a model reads to be asked for each of their ids once.

In: held-out spans of a plan, or records of another encoded dataset. Out: documents, each with the name of the text that it is part of. A text that
fits the window is one document from its BOS, as in training. A longer one is read in windows of W positions that begin `stride` apart: the first W
- 1 ids from BOS, then in each window the `stride` ids that no earlier one was asked for, with at least W - stride ids before them. Later windows
begin without BOS and count positions from 0, as the pieces of a cut text do in training.

A plan cuts texts longer than its rows. Their pieces are put together again before they are read: else a piece would be read without what stands
before it, its first id would count for nothing, and perplexity would depend on where rows happened to end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipelines.format.chance import draw, held_out
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.forgotten import NAMED_BY, forgotten, tombstones
from pipelines.format.index import record_of
from trainer.document import IGNORED, STRUCTURE, TEXT, Document

if TYPE_CHECKING:
    from mixtures.span import Span
    from trainer.evaluate._subject import Subject


class Piece(NamedTuple):
    """A document to read, and the id of the record that its counted ids belong to."""

    item: str
    document: Document


def windows(tokens: np.ndarray, counted: np.ndarray, window: int, stride: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(tokens, targets) of each window over `tokens`; a target is the next id where it is counted and no earlier window had it, else IGNORED."""
    assert 0 < stride < window, "a window must begin inside the one before it"
    start, done = 0, 0  # `done`: the last place that was asked for
    while True:
        stop = min(start + window, len(tokens))
        target = np.full(stop - start, IGNORED, np.int32)
        fresh = np.arange(max(done, start) + 1, stop)
        fresh = fresh[counted[fresh]]
        target[fresh - 1 - start] = tokens[fresh]
        yield tokens[start:stop], target
        done = stop - 1
        if stop == len(tokens):
            return
        start += stride


def text_pieces(item: str, tokens: np.ndarray, counted: np.ndarray, begins: bool, window: int, stride: int) -> list[Piece]:
    """A text's documents. `begins`: its first token is BOS."""
    out = []
    for k, (here, target) in enumerate(windows(tokens, counted, window, stride)):
        kind = np.full(len(here), TEXT, np.uint8)
        if k == 0 and begins:
            kind[0] = STRUCTURE
        out.append(Piece(item, _document(here, kind, target)))
    return out


def _document(tokens: np.ndarray, kind: np.ndarray, target: np.ndarray) -> Document:
    n, none = len(tokens), np.zeros(0, np.bool_)
    return Document(
        tokens=tokens.astype(np.int32), kind=kind, turn=np.full(n, -1, np.int16), position=np.arange(n, dtype=np.int32),
        condition=np.zeros(n, np.uint8), text_target=target, image=np.full(n, -1, np.int16), image_loss=none, image_hidden=none,
        image_segment=np.zeros(0, np.int16), latents=np.zeros((0, 0), np.float32),
    )  # fmt: skip


def held_out_pieces(subject: Subject, source: str, max_tokens: int | None, window: int, stride: int) -> list[Piece]:
    """The held-out spans of a source in the plan's order, up to `max_tokens` payload tokens. What is no text stays one document a span, whatever its
    length: pictures and turns are not cut."""
    spans = list(subject.spans([source], max_tokens))
    if not spans or subject.plan.datasets[spans[0].dataset].data != "text":
        return [Piece(subject.plan.record(s).id, subject.reader.document(s)) for s in spans]
    texts: dict[tuple[int, int, int], list[Span]] = defaultdict(list)
    for span in spans:
        texts[span.dataset, span.shard, span.row].append(span)
    return [piece for same in texts.values() for piece in _text(subject, same, window, stride)]


def _text(subject: Subject, spans: list[Span], window: int, stride: int) -> Iterator[Piece]:
    item = subject.plan.record(spans[0]).id
    for run in _runs(sorted(spans, key=lambda s: (s.first, s.start))):
        documents = [subject.reader.document(s) for s in run]
        if (len(run) == 1 and len(documents[0]) <= window) or not all(all(s.loss) for s in run):
            yield from (Piece(item, d) for d in documents)  # as it is trained; texts of which only parts take loss stay so
            continue
        begins = run[0].first == 0 and run[0].start == 0
        ids = np.concatenate([*([[subject.specials.bos]] if begins else []), *(d.tokens[d.kind == TEXT] for d in documents)]).astype(np.int32)
        counted = np.ones(len(ids), np.bool_)
        counted[0] = not begins
        yield from text_pieces(item, ids, counted, begins, window, stride)


def _runs(spans: list[Span]) -> Iterator[list[Span]]:
    """Spans of one record, those that follow one another without a gap together."""
    run: list[Span] = []
    for span in spans:
        if run:
            last = run[-1]
            same = (span.first, span.count) == (last.first, last.count) and span.start == last.stop
            if not same and not (span.first == last.first + last.count and span.start == 0):
                yield run
                run = []
        run.append(span)
    if run:
        yield run


def set_pieces(subject: Subject, dataset: Dataset, records: str, max_tokens: int | None, window: int, stride: int) -> list[Piece]:
    """Texts of another encoded dataset, in the order of a draw on their records, up to `max_tokens` ids. `records: held_out` takes only those whose
    group the plan's rule holds out. Forgotten ones are passed over."""
    _refuse_other_ids(subject, dataset, records)
    rule: dict[str, Any] = (subject.plan.card.get("mixture") or {}).get("held_out") or {}
    stones = tombstones(dataset)
    found: list[tuple[int, str, int, int, int]] = []
    for i in range(len(dataset.shards)):
        index = dataset.index(i, list(dict.fromkeys(["h", "group", "text_tokens", *NAMED_BY])))
        keep = np.ones(index.num_rows, np.bool_) if stones is None else ~forgotten(index, stones)
        if records == "held_out":
            keep &= held_out(index["group"].to_pylist(), float(rule["fraction"]), int(rule["seed"]))
        keys, ids, sizes = draw(index["h"].to_numpy().astype(np.uint64), 0, "text_set"), index["id"].to_pylist(), index["text_tokens"].to_pylist()
        found += [(int(keys[row]), ids[row], int(sizes[row]), i, int(row)) for row in np.flatnonzero(keep) if sizes[row]]
    found.sort()
    if max_tokens is not None:
        before = np.cumsum([0, *(size for _, _, size, _, _ in found)])[:-1]
        found = [f for f, taken in zip(found, before.tolist(), strict=True) if taken < max_tokens]
    texts = _read(dataset, [(i, row) for *_, i, row in found])
    out: list[Piece] = []
    for _, item, _, i, row in found:
        words = texts[i, row]
        tokens = np.concatenate([[subject.specials.bos], *(w for w, _ in words)]).astype(np.int32)
        counted = np.concatenate([[False], *(np.full(len(w), target) for w, target in words)]).astype(np.bool_)
        out += text_pieces(item, tokens, counted, True, window, stride)
    return out


def _read(dataset: Dataset, places: list[tuple[int, int]]) -> dict[tuple[int, int], list[tuple[np.ndarray, bool]]]:
    """By shard and row: the ids of each piece of text, and whether they take loss. A row group of an index is read once."""
    out = {}
    for i in sorted({shard for shard, _ in places}):
        for row, values in dataset.take(i, [row for shard, row in places if shard == i]):
            segments = [s for s in record_of(values).segments if s.kind == "tokens"]
            out[i, row] = [(np.asarray(dataset.array(i, s)), s.role == "target") for s in segments]
    return out


def _refuse_other_ids(subject: Subject, dataset: Dataset, records: str) -> None:
    """InputError for a set whose ids mean other words, that holds no text, or that the run was trained on."""
    card = subject.plan.card
    said = (dataset.encoding or {}).get("text")
    if said is None or dataset.data != "text":
        raise InputError("a set for perplexity is an encoded dataset of text", where=dataset.path, found=dataset.data, next="pipelines run encode")
    ours = card["encoding"].get("text") or {}
    if said["tokenizer_sha256"] != ours.get("tokenizer_sha256"):
        raise InputError("this set is encoded with another tokenizer than the run's", where=dataset.path, found=said["tokenizer_sha256"][:16],
                         allowed=str(ours.get("tokenizer_sha256"))[:16], next="encode it with the tokenizer of the plan's datasets")  # fmt: skip
    trained = {d["fingerprint"] for d in card.get("datasets") or []}
    if records == "all" and dataset.fingerprint in trained:
        raise InputError("the run's plan reads this dataset, so most of it was trained on", where=dataset.path, allowed="records: held_out")
    if records == "held_out" and not (card.get("mixture") or {}).get("held_out"):
        raise InputError("the plan holds nothing out, so it has no rule for other sets", where=dataset.path, allowed="records: all")
