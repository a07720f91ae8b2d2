"""Perplexity and bits per byte of held-out text: the plan's own, and of any other encoded datasets of text.

    sets: [held_out, {name: notes, dataset: out/notes}]      splits held_out, held_out:<source>, set:notes

Every text is read from its BOS, alone. Payload ids only: neither structure tokens nor what takes no loss is counted, and each id once. Nats a token
→ perplexity = exp(mean); bits per byte = nats / (bytes of the counted ids · ln 2), which does not depend on the tokenizer. Default of the plan's
own set: the sources that are text; naming `sources` measures captions or questions in the same way (images clean).

window: positions that are read at once, BOS among them (default: the plan's sequence length, as trained). A longer text is read in windows that
begin `stride` apart (default: half a window), so that each counted id but the first window's has at least window - stride ids before it.

Items: `text_nats` (nats a counted id of each text, weight its counted ids; perplexity is exp of the weighted mean) and `bits_per_byte` (weight:
bytes)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from pipelines.format.document import Document, Part, Size
from pipelines.format.errors import InputError

if TYPE_CHECKING:
    from trainer.batch import Batch
    from trainer.evaluate._subject import Subject
    from trainer.evaluate._windows import Piece


class TextSet(Document):
    """An encoded dataset of text beside the plan's own. records: `all` of it, or `held_out`: those that the plan's rule (fraction and seed, by group)
    would hold out. A dataset that the plan reads may only be asked for the latter."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    dataset: str
    records: Literal["all", "held_out"] = "all"


class Text(NamedTuple):
    """What was measured on one text."""

    item: str
    nats: float
    tokens: int
    bytes: int


class TextPerplexity(Part):
    """Perplexity on `sets`, each source and each set up to `max_tokens` payload tokens. weights: the last, or their moving average."""

    sets: list[Literal["held_out"] | TextSet] = ["held_out"]
    sources: list[str] | None = None
    max_tokens: Size | None = None
    window: Size | None = Field(None, ge=2)
    stride: Size | None = Field(None, ge=1)
    weights: Literal["last", "ema"] = "last"

    @model_validator(mode="after")
    def _fits(self) -> TextPerplexity:
        if self.stride is not None and self.window is not None and self.stride >= self.window:
            raise ValueError(f"stride: {self.stride} must be less than window, {self.window}: else ids would have nothing before them")
        names = [s if isinstance(s, str) else s.name for s in self.sets]
        if len(set(names)) < len(names):
            raise ValueError("sets: a name stands twice")
        return self

    def reads(self) -> list[str]:
        """Datasets beside the plan's that decide the result."""
        return [s.dataset for s in self.sets if not isinstance(s, str)]

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Rows text_perplexity and bits_per_byte, splits held_out (all sources together), held_out:<source> and set:<name>."""
        from trainer.evaluate._items import write_items

        window, stride = self._reading(subject)
        found: dict[str, list[Text]] = {}
        groups: list[tuple[str, list[str]]] = []
        for one in self.sets:
            if isinstance(one, str):
                mine = self._held_out(subject, window, stride)
                groups += [("held_out", list(mine)), *((split, [split]) for split in mine)]
            else:
                mine = {f"set:{one.name}": self._outside(subject, one, window, stride)}
                groups += [(split, [split]) for split in mine]
            found |= mine
        flat = [(split, t) for split, texts in found.items() for t in texts if t.tokens]
        splits, names = [s for s, _ in flat], [t.item for _, t in flat]
        write_items(out, "text_nats", names, [t.nats / t.tokens for _, t in flat], [t.tokens for _, t in flat], splits)
        sized = [(s, t) for s, t in flat if t.bytes]
        bits = [t.nats / t.bytes / float(np.log(2)) for _, t in sized]
        write_items(out, "bits_per_byte", [t.item for _, t in sized], bits, [t.bytes for _, t in sized], [s for s, _ in sized])
        return [row for split, members in groups for row in _rows(split, [t for m in members for t in found[m]])]

    def _reading(self, subject: Subject) -> tuple[int, int]:
        """(window, stride) in positions."""
        window = int(self.window or subject.plan.sequence_length)
        stride = int(self.stride or max(window // 2, 1))
        if stride >= window:
            found = f"stride {stride}, window {window}"
            raise InputError("windows must overlap", where="text_perplexity", found=found, allowed="a stride below the window")
        return window, stride

    def _held_out(self, subject: Subject, window: int, stride: int) -> dict[str, list[Text]]:
        from trainer.evaluate._tokenizers import source_dataset, tokenizer_of
        from trainer.evaluate._windows import held_out_pieces

        plan = subject.plan
        held = {s: source_dataset(plan, s) for s in (self.sources if self.sources is not None else plan.sources)}
        chosen = [s for s, dataset in held.items() if dataset is not None and (self.sources is not None or dataset.data == "text")]
        pieces = {s: held_out_pieces(subject, s, self.max_tokens, window, stride) for s in chosen}
        return {f"held_out:{s}": measured(subject, pieces[s], tokenizer_of(plan, s)) for s in chosen}

    def _outside(self, subject: Subject, one: TextSet, window: int, stride: int) -> list[Text]:
        from pipelines.format.dataset import Dataset
        from trainer.evaluate._tokenizers import dataset_tokenizer
        from trainer.evaluate._windows import set_pieces

        dataset = Dataset.open(one.dataset)
        return measured(subject, set_pieces(subject, dataset, one.records, self.max_tokens, window, stride), dataset_tokenizer(dataset))


def measured(subject: Subject, pieces: list[Piece], tokenizer: Any) -> list[Text]:
    """Nats, counted ids and their bytes of each text, in the order in which they first appear."""
    from trainer.evaluate._tokenizers import ByteCounter

    counter, documents = ByteCounter(tokenizer), [p.document for p in pieces]
    nats, ids = np.zeros(len(pieces)), [np.zeros(0, np.int64)] * len(pieces)
    for places, batch in subject.batches(documents):
        rows, at = payload_targets(batch, subject.specials)
        lost, target = nats_of(subject, batch, at)
        for row, p in enumerate(places):
            nats[p], ids[p] = lost[rows == row].sum(), target[rows == row]
    by_item: dict[str, list[int]] = {}
    for p, piece in enumerate(pieces):
        by_item.setdefault(piece.item, []).append(p)
    out = []
    for item, mine in by_item.items():
        size = counter.count(np.concatenate([ids[p] for p in mine]))
        out.append(Text(item, float(nats[mine].sum()), sum(len(ids[p]) for p in mine), size))
    return out


def nats_of(subject: Subject, batch: Batch, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(nats, float64 [A], of the ids to be predicted at flat positions `at`; those ids)."""
    import torch.nn.functional as F

    target = batch.text_target.reshape(-1)[at].long()
    lost = F.cross_entropy(subject.logits(batch, at), target.to(subject.device), reduction="none")
    return lost.double().cpu().numpy(), target.numpy()


def payload_targets(batch: Batch, specials: Any) -> tuple[np.ndarray, np.ndarray]:
    """(row of each, flat position of each) where a payload id is to be predicted: targets that are no structure token."""
    target = batch.text_target.numpy()
    counted = (target >= 0) & ~np.isin(target, list(specials))
    return np.nonzero(counted)[0], np.flatnonzero(counted)


def _rows(split: str, texts: list[Text]) -> list[dict[str, Any]]:
    nats, tokens, size = sum(t.nats for t in texts), sum(t.tokens for t in texts), sum(t.bytes for t in texts)
    if not tokens:
        return []
    rows = [{"metric": "text_perplexity", "split": split, "value": float(np.exp(nats / tokens)), "n": int(tokens), "chance": None}]
    if size:
        rows.append({"metric": "bits_per_byte", "split": split, "value": nats / size / float(np.log(2)), "n": int(size), "chance": None})
    return rows
