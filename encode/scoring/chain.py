"""The work on one part, as three steps that the engine places: load (CPU) -> score (device) -> write (CPU).

    load     rows of the parent shard -> each distinct image decoded once and prepared for each kind of network, each distinct caption as ids
    Score    those arrays -> vectors, and from them one value per image, or per pair of image and caption; the only step that holds networks
    write    the parent's index rows, with the scores -> index, rejects, figures, commit record; the pictures stay where they lie

Values travel in the order in which the records first ask for them, so nothing depends on anything else. A record with an image that cannot be
read, or with a value that is no number, is rejected with the reason.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from encode.chain import data_file, place, rows, threads
from encode.encoder import in_batches, machine_for
from encode.encoder import values as as_float
from encode.scorer import Scorer, Sight, Values, folded
from encode.scoring.figures import tally
from pipelines.captions import column, named
from pipelines.format import storage
from pipelines.format.dataset import open_cached
from pipelines.format.document import part_name
from pipelines.format.errors import InputError, Reject
from pipelines.format.forgotten import REASON
from pipelines.format.index import record_of
from pipelines.format.part import PartWriter
from pipelines.format.record import Record
from pipelines.format.shard import Foreign
from pipelines.media import images

Scorers = dict[str, Scorer]
CHUNK = 4096  # vectors turned into values at a time, in float64


class Asked(NamedTuple):
    """What one record asks for: numbers of its images, and name and number of each caption. `lost` is (reason, detail)."""

    images: tuple[int, ...]
    captions: tuple[tuple[str, int], ...]
    lost: tuple[str, str] | None = None


def load(item: dict[str, Any], dataset: tuple[str, str], scorers: Scorers) -> dict[str, Any]:
    """A part -> `pictures` {processor: uint8 [images, height, width, 3]}, `written` {weights: int64 [captions, 1 or 2, length]}, `pairs` int32
    [n, 2] of image and caption numbers, and `asked`, one for each row."""
    parent = open_cached(*dataset)
    reading = any(s.reads for s in scorers.values())
    pictures: dict[Any, list[np.ndarray]] = {s.sight().processor(): [] for s in scorers.values()}
    slots: dict[Any, int | Reject] = {}
    texts: dict[str, int] = {}
    pairs: dict[tuple[int, int], int] = {}
    asked, looked = [], 0
    gone = frozenset(item.get("gone", ()))
    for n, record in enumerate(rows(parent, item["shard"], item["first"], item["rows"])):
        if n in gone:
            asked.append(Asked((), (), (REASON, "")))
            continue
        for s in (s for s in record.segments if s.kind == "image" and place(s) not in slots):
            try:
                pixels = images.decode(bytes(parent.payload(item["shard"], s)))
            except Reject as e:
                slots[place(s)] = e
                continue
            slots[place(s)], looked = looked, looked + 1
            for processor, made in pictures.items():
                made.append(processor.picture(pixels))
        asked.append(needs(record, slots, texts if reading else None))
        pairs.update({(i, t): 0 for i in asked[-1].images for _, t in asked[-1].captions})
    sights = {s.sight() for s in scorers.values() if s.reads}
    return {
        **item,
        "pictures": {p: np.stack(made) for p, made in pictures.items() if made},
        "written": {sight.weights: sight.written(list(texts)) for sight in sights if texts},
        "pairs": np.array(list(pairs), np.int32).reshape(-1, 2),
        "asked": asked,
    }


def needs(record: Record, slots: dict[Any, int | Reject], texts: dict[str, int] | None) -> Asked:
    """What a record asks for; captions that are new get the next number. A record that is lost asks for nothing."""
    found = [slots[place(s)] for s in record.segments if s.kind == "image"]
    bad = next((f for f in found if isinstance(f, Reject)), None)
    if bad is not None:
        return Asked((), (), (bad.reason, bad.detail))
    captions = [] if texts is None else [(name, texts.setdefault(s.text or "", len(texts))) for name, s in named(record)]
    return Asked(tuple(n for n in found if isinstance(n, int)), tuple(captions))


class Score:
    """The step that holds the networks: each sight is loaded once per worker, whatever the number of scores that come of it."""

    def __init__(self, scorers: Scorers, device: str | None = None, cpus: int = 1) -> None:
        self.scorers, self.cpus = scorers, cpus
        sights = dict.fromkeys(s.sight() for s in scorers.values())
        self.machines = {sight: machine_for(sight.dtype, device) for sight in sights}
        self.networks = {sight: sight.look(self.machines[sight]) for sight in sights}
        self.fingerprints = {name: s.fingerprint(self.machines[s.sight()]) for name, s in scorers.items()}

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        seen = {sight: self.vectors(sight, 0, item["pictures"].get(sight.processor())) for sight in self.networks}
        reading = {s.sight() for s in self.scorers.values() if s.reads}
        said = {sight: self.vectors(sight, 1, item["written"].get(sight.weights)) for sight in reading}
        values = {}
        for name, scorer in self.scorers.items():
            a, b = seen[scorer.sight()], said.get(scorer.sight()) if scorer.reads else None
            at = item["pairs"] if scorer.reads else np.arange(0 if a is None else len(a))[:, None]
            values[name] = valued(name, scorer, a, b, at)
        return {**item, "pictures": None, "written": None, "values": values, "fingerprints": self.fingerprints}

    def vectors(self, sight: Sight, which: int, batch: np.ndarray | None) -> np.ndarray | None:
        """Pictures (0) or texts (1) through a sight's network."""
        network = self.networks[sight][which]
        if batch is None or network is None:
            return None
        with threads(self.machines[sight], self.cpus):
            return np.concatenate([as_float(some) for some in in_batches(network, batch, sight.batch)])


def valued(name: str, scorer: Scorer, seen: np.ndarray | None, said: np.ndarray | None, at: np.ndarray) -> Values:
    """The values at rows of (image,) or (image, caption). InputError when none of them is a number: then it is not a record's fault."""
    if seen is None or not len(at):
        return np.zeros(0)
    chunks = (at[k : k + CHUNK] for k in range(0, len(at), CHUNK))
    out = np.concatenate([scorer.values(seen[c[:, 0]], None if said is None else said[c[:, 1]]) for c in chunks])
    if not np.isfinite(out).any():
        what = f"{part_name(scorer)} gave no value that is a number"
        raise InputError(what, where=f"scores.{name}", next="try `dtype: f32`, and check the weights")
    return out


def write(item: dict[str, Any], dataset: tuple[str, str], root: str, scorers: Scorers) -> dict[str, Any]:
    """Publish the part: the parent's rows with scores, pointing at the parent's data file. Returns the commit record."""
    parent = open_cached(*dataset)
    shard, data = parent.shards[item["shard"]], data_file(parent, item["shard"])
    assert shard.data_sha256 is not None or data is None, "a curated dataset knows the hash of its data files, its own or another's"
    foreign = None if data is None else Foreign(storage.relative(data, storage.absolute(root)), shard.data_bytes, shard.data_sha256)
    numbers = {(i, t): n for n, (i, t) in enumerate(item["pairs"].tolist())}
    columns: dict[str, list[float]] = {}
    kept = parent.index(item["shard"]).slice(item["first"], item["rows"]).to_pylist()
    with PartWriter(root, item["part"], fingerprint=item["fingerprint"], foreign_data=foreign) as writer:
        for row, asked in zip(kept, item["asked"], strict=True):
            writer.emit()
            if asked.lost is not None and asked.lost[0] == REASON:
                writer.drop(record_of(row), "score", REASON)
                continue
            new = {k: v for name, s in scorers.items() for k, v in record_scores(name, s, asked, item["values"][name], numbers).items()}
            lost = asked.lost or next((("not_finite", f"{k} is {v}") for k, v in new.items() if not np.isfinite(v)), None)
            if lost is not None:
                writer.reject(row["origin"], "score", lost[0], lost[1], id=row["id"])
                continue
            scores = {k: v for k, v in row["scores"] or [] if not replaced(k, scorers)} | new
            for name, value in scores.items():
                columns.setdefault(name, []).append(value)
            writer.keep({**row, "scores": sorted(scores.items()) or None})
        looked = len({i for asked in item["asked"] for i in asked.images})
        counts = {"images": looked, "pairs": len(numbers)}
        return writer.commit({**counts, "scores": tally(columns), "scorers": item["fingerprints"]})


def record_scores(name: str, scorer: Scorer, asked: Asked, values: Values, numbers: dict[tuple[int, int], int]) -> dict[str, float]:
    """A record's scores of one scorer by column; none where it has no image, or no caption to compare."""
    if not asked.images:
        return {}
    if not scorer.reads:
        return {name: folded([float(values[i]) for i in asked.images], scorer.images)}
    each = {caption: folded([float(values[numbers[i, t]]) for i in asked.images], scorer.images) for caption, t in asked.captions}
    if not each:
        return {}
    return {name: scorer.own(list(each.values()))} | ({column(name, caption): value for caption, value in each.items()} if len(each) > 1 else {})


def replaced(key: str, scorers: Scorers) -> bool:
    """Whether a score that was there gives way to one of these."""
    return any(key == name or (s.reads and key.startswith(column(name, ""))) for name, s in scorers.items())
