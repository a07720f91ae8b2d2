"""Old snapshots that still hold forgotten records: removed, with every file that nothing else needs.

In: a dataset that was rewritten. Out: the bytes are gone from this folder. The card first says which snapshots are erased, so that a plan which
pinned one meets one clear error and no half of a dataset; then files go, then shard tables, then the old cards. Killed in between, the same command
again goes on. Nothing goes while another dataset points into it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipelines.committed import committed, named_by_card, snapshots
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.forgotten import rows_named, tombstones
from pipelines.format.manifest import read_card
from pipelines.format.storage import join
from pipelines.tombstones import publish_snapshot


def erase(path: str, others: Iterable[str]) -> dict[str, Any]:
    """Remove the snapshots of the dataset at `path` that hold forgotten records. `others` are datasets that may point into its files: InputError
    where one does. Returns {snapshots: fingerprints, files, bytes}."""
    newest = Dataset.open(path)
    path = newest.path
    old = [card for card in snapshots(path) if _holds_forgotten(newest, card)]
    there = {name: size for name, size, _ in storage.listing(path)}
    kept = committed(path, list(there), frozenset(card["card_file"] for card in old))
    tables = {card["shards"]["file"] for card in old} - kept
    going = {name for card in old for name in named_by_card(path, card)} - kept - tables
    _refuse_borrowed(path, going, others)
    prints = sorted({card["fingerprint"] for card in old})
    if prints:
        card = {key: value for key, value in read_card(path).items() if key not in ("path", "card_file")}
        card["erased"] = sorted({*card.get("erased", []), *prints})
        publish_snapshot(path, card)
    for name in [*sorted(going), *sorted(tables), *(card["card_file"] for card in old)]:
        storage.delete(join(path, name))
    gone = [name for name in (going | tables) if name in there]
    return {"snapshots": prints, "files": len(gone), "bytes": sum(there[name] for name in gone)}


def _holds_forgotten(newest: Dataset, card: dict[str, Any]) -> bool:
    """Whether a snapshot has shards that the newest has not, and in them a record that tombstones name. One whose removal was begun counts too."""
    if card["fingerprint"] in (newest.card.get("erased") or []):
        return True
    if not storage.exists(join(newest.path, card["shards"]["file"])):
        return False
    stones, named = tombstones(newest), {s.index for s in newest.shards}
    old = Dataset(newest.path, card)
    alike = (i for i, s in enumerate(old.shards) if s.index not in named)
    return stones is not None and any(storage.exists(join(old.path, old.shards[i].index)) and len(rows_named(old, i, stones)[0]) for i in alike)


def _refuse_borrowed(path: str, going: set[str], others: Iterable[str]) -> None:
    files = {storage.resolve(name, storage.absolute(path)) for name in going}
    for other in others:
        child = Dataset.open(other)
        at = storage.absolute(child.path)
        if any(s.data is not None and s.borrowed and storage.resolve(s.data, at) in files for s in child.shards):
            raise InputError(
                "another dataset points into files that would be erased",
                where=child.path,
                found=f"it has no pictures or latents of its own, but those of {path}",
                next="make it anew from the new snapshot (the command that made it), or let it stand alone "
                f"(pipelines run compact dataset={child.path} output=…) and remove it; then give the same command again. All else is done",
            )


