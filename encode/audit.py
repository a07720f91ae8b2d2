"""`pipelines verify PATH --audit 0.1%`: do the stored latents and ids say what the pictures and texts behind them say?

    draw places ──▶ find the same record in the curated parent ──▶ decode, prepare, encode again ──▶ compare with what is stored

A hash tells that bytes are those that were written; only this tells that the right ones were. In: an encoded dataset and an amount. Out: the
problems, each with its shard, record, segment and figure, and what was looked at. Every distinct payload counts once in the draw, and is
compared with every picture that its records show. Where the arithmetic is the recorded one (same encoder fingerprint: kind of device, dtype,
batch) bytes must be equal; elsewhere cosines must meet the bars of `encode/auditing/compare.py`.

One batch of pictures is in memory at a time, beside 1,024 records. A GPU is used where there is one, and none is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from encode.auditing.draw import Amount, Drawn, drawn, segments
from encode.auditing.images import ImageAudit
from encode.auditing.origin import Origin, curated_parent
from encode.auditing.texts import Asked, TextAudit
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.forgotten import forgotten_rows
from pipelines.format.index import record_of
from pipelines.format.record import Record

RECORDS = 1024  # looked up in the parent together
NAMED = 1000  # problems that are told one by one
BECAME = {"image": "latents", "text": "tokens"}
Problem = dict[str, Any]


def audit(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """`options`: amount (text), seed, parent (where the curated dataset lies now, or None). Returns {"problems", "images", "texts", …}.

    InputError where nothing can be compared: the parent or the weights are missing or are not those that were used.
    """
    amount, seed = Amount.read(str(options["amount"])), int(options.get("seed", 0))
    dataset = Dataset.open(path)
    if dataset.encoding is None:
        raise InputError("only an encoded dataset can be audited", where=path, found="a curated one", next="verify --deep checks every byte of it")
    gone = forgotten_rows(dataset)
    image = dataset.encoding.get("image")
    stored = image is not None and image["codec"] != "none"
    latents = drawn(dataset, "latents", amount, seed, gone) if stored else Drawn({}, 0)
    tokens = drawn(dataset, "tokens", amount, seed, gone)
    parent = curated_parent(dataset, options.get("parent"))
    walk = Walk(dataset, Origin(parent), ImageAudit(dataset, parent) if len(latents) else None, TextAudit(dataset))
    problems: list[Problem] = []
    for i in sorted({*latents.places, *tokens.places}):
        problems += walk.shard(i, latents.places.get(i), tokens.places.get(i), gone.get(i, []))
        dataset.release(i)
    found: dict[str, Any] = {"amount": options["amount"], "seed": seed, "parent": parent.path}
    if walk.images is not None:
        problems += walk.images.finish()
        found["images"] = {"checked": len(latents), "of": latents.of, **walk.images.facts()}
    elif image is not None:
        found["images"] = {"checked": 0, "of": 0} | ({} if stored else {"note": "`storage: none` keeps no latents: there is nothing to compare"})
    found["texts"] = {"checked": len(tokens), "of": tokens.of, "equal": walk.texts.equal}
    return {**found, "problems": shortened(problems)}


@dataclass(frozen=True, slots=True)
class Walk:
    """Goes through drawn places, record by record."""

    dataset: Dataset
    origin: Origin
    images: ImageAudit | None
    texts: TextAudit

    def shard(self, i: int, latents: np.ndarray | None, tokens: np.ndarray | None, gone: list[int]) -> Iterator[Problem]:
        """The drawn places of one shard."""
        wanted: dict[int, list[int]] = {}
        for kind, places in (("latents", latents), ("tokens", tokens)):
            if places is not None:
                for row, chosen in segments(self.dataset, i, kind, gone).at(places).items():
                    wanted.setdefault(row, []).extend(chosen)
        for some in batched(self.dataset.take(i, wanted), RECORDS):
            records = [(record_of(values), wanted[row]) for row, values in some]
            yield from self.records(i, records)

    def records(self, i: int, records: list[tuple[Record, list[int]]]) -> Iterator[Problem]:
        """Some records of shard i, each with its drawn segments."""
        there = self.origin.find(r.id for r, _ in records)
        texts: list[Asked] = []
        for record, chosen in records:
            found = there.get(record.id)
            wrong = "is not in the parent" if found is None else unlike(record, found.record)
            if found is None or wrong:
                yield {"file": self.dataset.shards[i].index, "what": f"shard {i}, record {record.id}: {wrong}", "shard": i, "record": record.id}
                continue
            for k in chosen:
                if record.segments[k].kind == "tokens":
                    texts.append((record, k, found.record.segments[k].text or ""))
                elif self.images is not None:
                    yield from self.images.add(i, record, k, found)
        yield from self.texts.check(i, texts)


def unlike(record: Record, theirs: Record) -> str | None:
    """How an encoded record is built otherwise than the one it was made from; None when it is not."""
    if len(record.segments) != len(theirs.segments):
        return f"has {len(record.segments)} segments, its parent's record {len(theirs.segments)}"
    for k, (a, b) in enumerate(zip(record.segments, theirs.segments, strict=True)):
        ours, was = (a.kind, a.role, a.atom, a.turn), (BECAME.get(b.kind, b.kind), b.role, b.atom, b.turn)
        if ours != was:
            return f"segment {k} is {ours} (kind, role, atom, turn), of its parent's record {was}"
    return None


def batched(items: Iterator[Any], n: int) -> Iterator[list[Any]]:
    """The items in order, n at a time."""
    while some := list(islice(items, n)):
        yield some


def shortened(problems: list[Problem]) -> list[Problem]:
    """The first of them; how many more there are is said too."""
    rest = len(problems) - NAMED
    return problems if rest <= 0 else [*problems[:NAMED], {"file": "…", "what": f"{rest:,} more"}]
