"""The records of another plan: so that arms with different encoders see the same pictures, however many tokens each makes of them.

What comes in: a plan. What goes out: per source and pass, the hashes of the records it trains on. Draws depend on ids alone, so the arm that
takes these records takes them in the same order, with the same captions and the same order of image and text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mixtures.plan_file import ROWS_PER_FILE, RowFile, row_path
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.manifest import read_card

Chosen = dict[int, tuple[NDArray[np.uint64], int]]  # per pass: the records' hashes, and their payload tokens


def chosen(path: str) -> dict[str, Chosen]:
    """{source: {epoch: (hashes, payload)}} of the training split of the plan at `path`."""
    card = read_card(path)
    if card["kind"] != "plan":
        raise InputError("records are taken from a plan", where=path, found=card["kind"])
    at = storage.absolute(card["path"])
    hashes, starts = [], []
    for entry in card["datasets"]:
        dataset = Dataset.open(storage.resolve(entry["path"], at), entry["fingerprint"])
        tables = [dataset.index(i, ["h"]) for i in range(len(dataset.shards))]
        hashes.append(np.concatenate([np.zeros(0, np.uint64), *(np.asarray(t["h"], np.uint64) for t in tables)]))
        starts.append(np.cumsum([0, *(t.num_rows for t in tables)]))
    names = sorted(card["sources"])
    seen: dict[str, dict[int, list[NDArray[np.uint64]]]] = {n: {} for n in names}
    payload: dict[tuple[str, int], int] = {}
    for first in range(0, card["records"], ROWS_PER_FILE):
        spans = RowFile.read(row_path(card["path"], "train", first)).spans
        for i, name in enumerate(names):
            for epoch in np.unique(spans["epoch"][spans["source"] == i]).tolist():
                mine = np.flatnonzero((spans["source"] == i) & (spans["epoch"] == epoch))
                dataset_at = int(spans["dataset"][mine[0]])
                at_row = starts[dataset_at][spans["shard"][mine]] + spans["row"][mine]
                seen[name].setdefault(epoch, []).append(np.unique(hashes[dataset_at][at_row]))
                tokens = int((spans["stop"][mine].astype(np.int64) - spans["start"][mine]).sum())
                payload[name, epoch] = payload.get((name, epoch), 0) + tokens
    return {n: {e: (np.unique(np.concatenate(parts)), payload[n, e]) for e, parts in seen[n].items()} for n in names}


def refuse_missing(name: str, dataset: str, found: dict[int, tuple[int, int]]) -> None:
    """InputError unless all wanted records of each pass are there: {pass: (here, wanted)}."""
    for here, wanted in found.values():
        if here < wanted:
            raise InputError(
                "this dataset lacks records that the other plan trains on",
                where=f"sources.{name} ({dataset})",
                found=f"{wanted - here:,} of {wanted:,} records missing or not fitting",
                allowed="an encoding of the same curated dataset, with the same held_out, where and sequence_length",
            )
