"""What tests of balancing share: records with captions, a stage with its list, and its rounds run by hand."""

import json
import random
from itertools import groupby

from pipelines.format.document import canon, parse
from pipelines.format.record import Image, Record, Text
from pipelines.recipe import Recipe

ENTRIES = ["dog", "cat", "red fox", "New York", ",", "U.S.", "lamp", "axolotl"]


def made(n, seed=0):
    """Records with one text each: dogs are common, lamps less so, axolotls rare, and one in five says nothing."""
    rng = random.Random(seed)
    words = ["a dog"] * 50 + ["a cat, asleep"] * 20 + ["my red fox"] * 6 + ["New York"] * 3 + ["a lamp"] * 10 + ["dog and cat"] * 5 + ["axolotl"]
    words += ["nothing here"] * 20
    return [Record.make("t", f"{i}", "text", [Text(f"{rng.choice(words)} {i}")]) for i in range(n)]


def pair(i, *texts, language=""):
    """An image with several captions."""
    named = [Text(t, atom=k + 1, name=f"caption{k}" if k else "original") for k, t in enumerate(texts)]
    return Record.make("t", str(i), "image-text", [Image(b"x", atom=0), *named], fields={"language": language})


def stage(tmp_path, entries=ENTRIES, **keys):
    path = tmp_path / f"{abs(hash(tuple(entries)))}.json"
    path.write_text(json.dumps(entries))
    return parse(Recipe, recipe(tmp_path, across=[{"metaclip": {"entries": str(path), **keys}}])).across[0]


def recipe(path, **more):
    return {"name": "t", "source": {"jsonl": {"path": str(path)}}, "engine": "local", "output": str(path / "out"), **more}


def drops(stage, parts):
    """What the rounds drop, said without an engine: (id → reason, what each round gave)."""
    told = []
    for map_rows, reduce_rows in stage.rounds():
        made = [list(map_rows(iter(p), told) if told else map_rows(iter(p))) for p in parts]
        if reduce_rows is None:
            return dict(pair for rows in made for pair in rows), told
        rows = sorted((b % stage.buckets, key, canon(value)) for part in made for b, key, value in part)
        grouped = {b: [(b, key, json.loads(value)) for _, key, value in same] for b, same in groupby(rows, key=lambda r: r[0])}
        told.append([json.loads(canon(v)) for b in range(stage.buckets) for v in reduce_rows(iter(grouped.get(b, [])))])
    raise AssertionError("the last round drops")
