"""What the scorers of published prompt sets found, as rows and items: numbers are theirs, read and averaged as their own summaries do.

    geneval   results.jsonl, a line a picture                          mean over tags of the share of correct pictures
    dpg       the text file of --res-path                              mean over prompts of the mean over pictures, 0 to 1
    wise      the *_scores lines of one or all three parts             mean over prompts of the judge's `score`, 0 or 1 (vllm_eval.py), or of
                                                                       (0.7 consistency + 0.2 realism + 0.1 aesthetic) / 2 (WISE_legacy/gpt_eval.py)

Nothing here judges a picture. Results of another number of pictures or prompts than were painted are refused: a part of a set is not the set.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from typing import Any, NamedTuple

from pipelines.format import storage
from pipelines.format.errors import InputError
from trainer.evaluate._prompt_sets import Asked, Set

WISE = ("consistency", "realism", "aesthetic_quality")  # what the older judge says; the newer one says `score`
FAILED = 999  # what WISE's scorer writes where its judge gave no answer
SUMMARY = ("Model:", "L1 category", "L2 category", "Image path:", "Save results", "DPG-Bench")


class Found(NamedTuple):
    """One thing that was scored: its name, what it is filed under, the score from 0 to 1."""

    item: str
    kind: str
    value: float


def read(set: Set, paths: list[str], asked: list[Asked], images: int) -> list[Found]:
    """Of every picture (geneval) or prompt (dpg, wise). InputError for what is no result, or not of what was painted."""
    if set == "wise" and len({"score" in said for path in paths for _, said in _json(path, ("prompt_id",))}) > 1:
        raise InputError("results of two judges, which score otherwise", where=", ".join(paths), allowed=f"`score`, or {', '.join(WISE)}, in all")
    found = [f for path in paths for f in {"geneval": _geneval, "dpg": _dpg, "wise": _wise}[set](path, {a.id: a for a in asked})]
    expected = len(asked) * (images if set == "geneval" else 1)
    if len({f.item for f in found}) != len(found) or len(found) != expected:
        what = "pictures" if set == "geneval" else "prompts"
        raise InputError("results of something else than was painted", where=", ".join(paths), found=f"{len(found)} {what}", allowed=str(expected))
    return found


def rows(set: Set, found: list[Found]) -> list[dict[str, Any]]:
    """The set's own overall number as split `all`, and one of every kind there is."""
    kinds = dict.fromkeys(f.kind for f in found)
    values = {kind: [f.value for f in found if f.kind == kind] for kind in kinds}
    whole = sum(w * f.value for w, f in zip(weights(set, found), found, strict=True))
    out = [{"metric": set, "split": "all", "value": whole, "n": len(found), "chance": None}]
    named = {kind: v for kind, v in values.items() if kind}
    return out + [{"metric": set, "split": kind, "value": sum(v) / len(v), "n": len(v), "chance": None} for kind, v in named.items()]


def weights(set: Set, found: list[Found]) -> list[float]:
    """Of every item in the overall number: equal, but GenEval's tags count equally whatever the pictures in them."""
    counts: dict[str, int] = defaultdict(int)
    for f in found:
        counts[f.kind] += 1
    return [1 / (len(counts) * counts[f.kind]) if set == "geneval" else 1 / len(found) for f in found]


def _lines(path: str) -> list[tuple[str, str]]:
    if not storage.exists(path):
        raise InputError("no such results", where=path, next="run the set's scorer, or leave `results` out")
    return [(f"{path}:{i}", line) for i, line in enumerate(storage.read(path).decode().splitlines(), 1) if line.strip()]


def _json(path: str, keys: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    out = []
    for where, line in _lines(path):
        try:
            said = json.loads(line)
        except ValueError as e:
            raise InputError("not a line of JSON", where=where, found=str(e)) from None
        if not isinstance(said, dict) or not set(keys) <= said.keys():
            raise InputError("not a result", where=where, found=sorted(said) if isinstance(said, dict) else said, allowed=", ".join(keys))
        out.append((where, said))
    return out


def _named(asked: dict[str, Asked], id: str, where: str) -> Asked:
    if id not in asked:
        raise InputError("a result of a prompt that was not painted", where=where, found=id)
    return asked[id]


def _geneval(path: str, asked: dict[str, Asked]) -> list[Found]:
    out = []
    for where, said in _json(path, ("filename", "tag", "correct")):
        name = str(said["filename"]).replace("\\", "/").split("/")
        if len(name) < 3 or not isinstance(said["correct"], bool):
            raise InputError("not a result", where=where, found=said["filename"], allowed="…/00000/samples/0000.png, and whether it is correct")
        one = _named(asked, name[-3], where)
        out.append(Found(f"{one.id}/{name[-1].removesuffix('.png')}", str(said["tag"]), float(said["correct"])))
    return out


def _dpg(path: str, asked: dict[str, Asked]) -> list[Found]:
    out = []
    for where, line in _lines(path):
        if line.startswith(SUMMARY) or line[0] == "\t":
            continue
        matched = re.fullmatch(r"(.+)\.png((?:, [0-9.e-]+)+)", line.strip())
        if matched is None:
            raise InputError("not a result", where=where, found=line[:100], allowed="…/<id>.png, a score a picture, their mean")
        one = _named(asked, matched[1].replace("\\", "/").rpartition("/")[2], where)
        out.append(Found(one.id, one.kind, _share(float(matched[2].rpartition(", ")[2]), where)))
    return out


def _wise(path: str, asked: dict[str, Asked]) -> list[Found]:
    out = []
    for where, said in _json(path, ("prompt_id",)):
        one = _named(asked, str(said["prompt_id"]), where)
        if "score" in said:
            if said["score"] not in (0, 1):
                raise InputError("a score outside its range", where=where, found=said["score"], allowed="0 or 1")
            out.append(Found(one.id, one.kind, float(said["score"])))
            continue
        if not {*WISE} <= said.keys():
            raise InputError("not a result", where=where, found=sorted(said), allowed=f"prompt_id, and `score` or {', '.join(WISE)}")
        scores = [said[p] for p in WISE]
        if FAILED in scores:
            raise InputError("the judge gave no answer here", where=where, found=scores, next="score this prompt again")
        value = sum(w * _share(s / 2, where) for w, s in zip((0.7, 0.2, 0.1), scores, strict=True))
        out.append(Found(one.id, one.kind, value))
    return out


def _share(value: float, where: str) -> float:
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise InputError("a score outside its range", where=where, found=value, allowed="0 to 1")
    return value
