"""What can be wrong with tars of packed sequences, and in which file: the check behind `pipelines verify`.

In: the folder and {"deep": bool}. Out: a row per problem. Shallow: every file is there with its size. Deep: every byte hashed, every sample complete
and numbered without gaps in the order of consumption, its arrays as long as the card says.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from mixtures.plan_file import listed_files
from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.manifest import read_card
from trainer.webdataset import PER_IMAGE, PER_LATENT, PER_POSITION

Problem = dict[str, str]
MEMBERS = frozenset(f"{name}.npy" for name in (*PER_POSITION, *PER_LATENT, *PER_IMAGE)) | {"json"}


def check(path: str, options: dict[str, Any]) -> list[Problem]:
    """Every problem found; none when the tars are what the card says."""
    return list(_problems(path, bool(options.get("deep"))))


def _problems(path: str, deep: bool) -> Iterator[Problem]:
    card = read_card(path)
    table = card.get("row_files")
    if table and not storage.exists(storage.join(card["path"], table["file"])):
        yield {"file": table["file"], "what": "is not there"}
        return
    next_of: dict[str, int] = {}
    for entry in listed_files(card["path"], card):
        name, where = entry["path"], storage.join(card["path"], entry["path"])
        if not storage.exists(where):
            yield {"file": name, "what": "is not there"}
        elif (found := storage.size(where)) != entry["bytes"]:
            yield {"file": name, "what": f"has {found:,} bytes, its card says {entry['bytes']:,}"}
        elif deep and sha256_hex(storage.map_file(where)) != entry["sha256"]:
            yield {"file": name, "what": "its sha256 differs from the card's"}
        elif deep and name.endswith(".tar"):
            yield from _samples(card, name, where, next_of)
    for split, said in card["sequences"]["splits"].items():
        if deep and next_of.get(split, 0) != said["records"]:
            yield {"file": card["card_file"], "what": f"{split}: {next_of.get(split, 0):,} samples counted, {said['records']:,} said"}


def _samples(card: dict[str, Any], name: str, where: str, next_of: dict[str, int]) -> Iterator[Problem]:
    """The samples of one tar: complete, in order, of the right length."""
    split = name.partition("-")[0]
    length = card["sequences"]["sequence_length"]
    for key, members in _grouped(where):
        wrong = sorted(MEMBERS ^ set(members))
        seq = next_of.get(split, 0)
        if wrong:
            yield {"file": name, "what": f"sample {key}: {wrong[0]} is missing or unknown"}
        elif int(key) != seq or json.loads(members["json"])["seq"] != seq:
            yield {"file": name, "what": f"sample {key} stands where {seq} was expected"}
        else:
            sizes = {k: len(np.load(io.BytesIO(members[f"{k}.npy"]), allow_pickle=False)) for k in (*PER_POSITION, *PER_LATENT, *PER_IMAGE)}
            alike = [{sizes[k] for k in group} for group in (PER_POSITION, PER_LATENT, PER_IMAGE)]
            if alike[0] != {length} or any(len(found) != 1 for found in alike):
                yield {"file": name, "what": f"sample {key}: its arrays are not of one length"}
        next_of[split] = seq + 1


def _grouped(where: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    with storage.open_read(where) as f, tarfile.open(fileobj=f, mode="r:") as tar:
        key, members = "", dict[str, bytes]()
        for member in tar:
            base, _, ending = member.name.partition(".")
            if base != key and members:
                yield key, members
                members = {}
            key, file = base, tar.extractfile(member)
            members[ending] = file.read() if file else b""
        if members:
            yield key, members
