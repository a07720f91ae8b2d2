"""What a folder of ours may not lose: every file that a card, an older snapshot or a commit record names, and what those name in turn.

In: a folder and the names in it. Out: names. A snapshot is its card, its shard table and the files of every row of it: a part that was made anew
since has other files by now, and its commit record names only those.
"""

from __future__ import annotations

from typing import Any

from pipelines.format import storage
from pipelines.format.manifest import CARDS
from pipelines.format.shard import Shard, read_shard_table
from pipelines.format.storage import join


def snapshot_files(names: list[str]) -> list[str]:
    """Of file names, those of cards of single snapshots."""
    return [n for n in names if n.startswith("manifest-") and n.endswith(".json")]


def snapshots(path: str) -> list[dict[str, Any]]:
    """The cards of a dataset's older snapshots, by file name. The newest is `manifest.json`, whatever file has its name too."""
    newest = storage.read_json(join(path, "manifest.json")).get("fingerprint")
    there = snapshot_files([name for name, _, _ in storage.listing(path, (".json",)) if "/" not in name])
    found = [{**storage.read_json(join(path, name)), "path": path, "card_file": name} for name in there]
    return [card for card in found if card["fingerprint"] != newest]


def own_files(shards: list[Shard]) -> set[str]:
    """The files of rows of a shard table, but for those in other folders."""
    return {name for s in shards for name in (s.tokens_file, s.data, s.index) if name is not None and "/" not in name}


def named_by_card(path: str, card: dict[str, Any]) -> set[str]:
    """Every file that a card names: directly, as statistics, or through its shard table (which may be gone, as after a removal that was killed)."""
    kept = {entry["path"] for entry in card.get("files") or []}
    for key in ("shards", "tombstones", "row_files"):
        if isinstance(card.get(key), dict):
            kept.add(card[key]["file"])
    stats = (card.get("encoding") or {}).get("stats")
    kept |= {entry["file"] for entry in (stats, (stats or {}).get("position")) if isinstance(entry, dict) and "file" in entry}
    table = card.get("shards")
    if isinstance(table, dict) and storage.exists(join(path, table["file"])):
        kept |= own_files(read_shard_table(storage.read(join(path, table["file"]))))
    return kept


def committed(path: str, names: list[str], without: frozenset[str] = frozenset()) -> set[str]:
    """Every name that must stay in the folder at `path`; `without` are files of cards that shall count no more."""
    kept = {"log.jsonl"}
    for name in names:
        if name in without:
            continue
        if name in CARDS or snapshot_files([name]):
            kept |= {name, *named_by_card(path, storage.read_json(join(path, name)))}
        elif name.startswith("parts/") and name.endswith(".json"):
            kept |= {name, *(entry["path"] for entry in storage.read_json(join(path, name))["files"])}
    return kept
