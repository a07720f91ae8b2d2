"""Prompts of published sets as their authors give them, and the layout in which their scorers look for pictures.

    geneval   evaluation_metadata.jsonl, a line a prompt                    <00000>/metadata.jsonl, samples/0000.png …, grid.png
    dpg       a folder of <id>.txt, the .csv of questions, or lines of JSON  <id>.png, 2 × 2 pictures
    wise      a .json list, or a published folder of them                    <prompt_id>.png

In: a path. Out: `Asked`, in the order in which they are written. Ids become names of files, so only letters, digits, - and _ are taken; DPG's scorer
ends an id at the first dot. Layouts are those of djghosh13/geneval and TencentQQGYLab/ELLA as of 2025, and PKU-YuanGroup/WISE as of April 2026
(eb51174), which has two folders of three parts: beside them data_verified has merge.json, all prompts once more, and WISE_legacy/data has
*_rewrite.json, the same ids in plainer words. In a folder both are passed over; by their own path they are read.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import InputError

Set = Literal["geneval", "dpg", "wise"]
IMAGES: dict[Set, int] = {"geneval": 4, "dpg": 4, "wise": 1}  # pictures a prompt, as the scorers expect them
NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
LONGEST = 20_000  # characters of a prompt; the longest of the three sets has under 2,000


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt. `kind`: what the set files it under; `line`: as it stood, for the scorer."""

    id: str
    text: str
    kind: str
    line: Any


def read(set: Set, path: str) -> list[Asked]:
    """All prompts. InputError with the place of what is not one, or of an id that comes twice."""
    found = list({"geneval": _geneval, "dpg": _dpg, "wise": _wise}[set](path))
    seen: dict[str, str] = {}
    for where, asked in found:
        if not NAME.fullmatch(asked.id):
            raise InputError("this id cannot be the name of a file", where=where, found=asked.id, allowed="letters, digits, - and _")
        if not 0 < len(asked.text) <= LONGEST:
            raise InputError("a prompt is text", where=where, found=f"{len(asked.text)} characters", allowed=f"1 to {LONGEST}")
        if asked.id in seen:
            raise InputError("two prompts of one id would be one picture", where=where, found=asked.id, next=seen[asked.id])
        seen[asked.id] = where
    if not found:
        raise InputError("no prompts", where=path)
    return [asked for _, asked in found]


def fingerprint_of(path: str) -> str:
    """sha256 of the file, or of the files of a folder by name."""
    return sha256_hex(b"".join(f"{name} {sha256_hex(storage.read(p))}\n".encode() for name, p in _files(path)))


def names(set: Set, asked: Asked, images: int) -> list[str]:
    """Files of a prompt, in the order in which they are written: the last one says that all are there."""
    if set == "geneval":
        return [*(f"{asked.id}/samples/{k:04d}.png" for k in range(images)), f"{asked.id}/grid.png", f"{asked.id}/metadata.jsonl"]
    return [f"{asked.id}.png"]


def files(set: Set, asked: Asked, pictures: list[np.ndarray], png: Any) -> list[bytes]:
    """What stands in `names`, of pictures uint8 [H, W, 3]."""
    columns = 2 if set == "dpg" else int(np.ceil(np.sqrt(len(pictures))))
    grid = bytes(png(tiled(pictures, min(columns, len(pictures)))))
    return [*(bytes(png(p)) for p in pictures), grid, json.dumps(asked.line).encode()] if set == "geneval" else [grid]


def tiled(pictures: list[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one size side by side without gaps, row by row; what is left of the last row is black."""
    h, w, _ = pictures[0].shape
    rows = -(-len(pictures) // columns)
    sheet = np.zeros((rows * h, columns * w, 3), np.uint8)
    for k, picture in enumerate(pictures):
        row, column = divmod(k, columns)
        sheet[row * h : (row + 1) * h, column * w : (column + 1) * w] = picture
    return sheet


def _files(path: str, suffixes: tuple[str, ...] | None = None) -> list[tuple[str, str]]:
    """(name, path) of a file, or of the files of a folder."""
    if not storage.exists(path):
        raise InputError("no such file of prompts", where=path)
    last = path.rstrip("/").rpartition("/")[2]
    found = [name for name, _, _ in storage.listing(path, suffixes)]
    if found == [last] and not storage.exists(storage.join(path, last)):  # a path to one file lists that file
        return [(last, path)]
    return [(name, storage.join(path, name)) for name in found]


def _lines(path: str) -> list[tuple[str, Any]]:
    out = []
    for number, line in enumerate(storage.read(path).decode().splitlines(), 1):
        if line.strip():
            try:
                out.append((f"{path}:{number}", json.loads(line)))
            except ValueError as e:
                raise InputError("not a line of JSON", where=f"{path}:{number}", found=str(e)) from None
    return out


def _text(said: Any, key: str, where: str) -> str:
    if not isinstance(said, dict) or not isinstance(said.get(key), str):
        raise InputError("not a prompt", where=where, found=sorted(said) if isinstance(said, dict) else type(said).__name__, allowed=f"`{key}`: text")
    return str(said[key]).strip()


def _geneval(path: str) -> list[tuple[str, Asked]]:
    lines = _lines(path)
    return [(w, Asked(f"{i:05d}", _text(x, "prompt", w), str(x.get("tag", "")), x)) for i, (w, x) in enumerate(lines)]


def _dpg(path: str) -> list[tuple[str, Asked]]:
    if path.endswith((".jsonl", ".json")):
        return [(w, Asked(_text(x, "id", w), _text(x, "prompt", w), "", x)) for w, x in _lines(path)]
    if path.endswith(".csv"):
        rows: dict[str, tuple[str, Asked]] = {}
        for number, row in enumerate(csv.DictReader(io.StringIO(storage.read(path).decode())), 2):
            where = f"{path}:{number}"
            rows.setdefault(_text(row, "item_id", where), (where, Asked(_text(row, "item_id", where), _text(row, "text", where), "", None)))
        return list(rows.values())
    return [(p, Asked(name.removesuffix(".txt"), storage.read(p).decode().strip(), "", None)) for name, p in _files(path, (".txt",))]


def _wise(path: str) -> list[tuple[str, Asked]]:
    out = []
    files = _files(path, (".json",))
    parts = [(name, file) for name, file in files if name != "merge.json" and not name.endswith("_rewrite.json")]
    for _, file in parts if len(files) > 1 else files:
        try:
            entries = json.loads(storage.read(file))
        except ValueError as e:
            raise InputError("not JSON", where=file, found=str(e)) from None
        for i, said in enumerate(entries if isinstance(entries, list) else []):
            where = f"{file}, entry {i}"
            text = _text(said, "Prompt", where)
            out.append((where, Asked(str(said.get("prompt_id", "")), text, str(said.get("Category", "")), said)))
    return out
