"""Stages over a whole dataset do not depend on parts, shards or workers, and what they drop is counted."""

import json

import pytest

from pipelines.curate import Curate
from pipelines.engine import open_job
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.format.errors import Stopped
from pipelines.recipe import Recipe

TEXTS = ["one river", "two stones", "One  RIVER", "three", "two stones", "two stones", "short", "four ﬁelds", "four fields"]


def folder(tmp_path, files):
    path = tmp_path / f"in{files}"
    path.mkdir()
    for k in range(files):
        chunk = TEXTS[k * len(TEXTS) // files : (k + 1) * len(TEXTS) // files]
        (path / f"{k}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in chunk))
    return path


def recipe(path, output, **more):
    document = {"name": "t", "source": {"jsonl": {"path": str(path)}}, "across": ["exact_text"], "engine": "local", "output": str(output), **more}
    return parse(Recipe, document)


def run(r, where="local"):
    with open_job(where) as job:
        return Curate("text").run(r, job)


def texts(root):
    ds = Dataset.open(str(root))
    return sorted(r.segments[0].text.lower().split()[0] for i in range(len(ds.shards)) for r in ds.records(i))


def test_one_copy_of_each_text_survives_and_the_others_are_counted(tmp_path):
    run(recipe(folder(tmp_path, 1), tmp_path / "d"))
    card = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert texts(tmp_path / "d") == ["four", "one", "short", "three", "two"]
    assert card["filtered"] == {"exact_text": 4} and card["in"] == 9 and card["written"] == 5


def test_filters_come_first_and_their_counts_are_carried(tmp_path):
    run(recipe(folder(tmp_path, 2), tmp_path / "d", filters=[{"text_length": {"min_words": 2}}]))
    card = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert card["filtered"].pop("exact_text") == 4 and sum(card["filtered"].values()) == 2
    assert card["in"] == 9 and card["written"] == 3
    ds = Dataset.open(str(tmp_path / "d"))
    assert ds.card["records"] == 3


def test_the_work_is_gone_when_the_card_is_there_and_a_rerun_does_nothing(tmp_path):
    r = recipe(folder(tmp_path, 2), tmp_path / "d")
    run(r)
    assert not (tmp_path / "d" / "_work").exists()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "d").rglob("*")}
    run(r)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "d").rglob("*")} == before


def test_a_stop_between_rounds_is_resumed_to_the_same_bytes(tmp_path, monkeypatch):
    source = folder(tmp_path, 3)
    run(recipe(source, tmp_path / "golden"))
    from pipelines import rounds

    whole = rounds._reduce_unit
    monkeypatch.setattr(rounds, "_reduce_unit", lambda item, **kw: (_ for _ in ()).throw(Stopped()) if item["unit"] == 0 else whole(item, **kw))
    monkeypatch.setattr(rounds._reduce_unit, "__name__", "_reduce_unit")
    with pytest.raises(Stopped):
        run(recipe(source, tmp_path / "d"))
    assert not (tmp_path / "d" / "manifest.json").exists()
    monkeypatch.undo()
    run(recipe(source, tmp_path / "d"))
    assert Dataset.open(str(tmp_path / "d")).shards == Dataset.open(str(tmp_path / "golden")).shards


def test_the_survivor_does_not_depend_on_what_is_read_first(tmp_path):
    """Origins decide ids, and ids decide survivors: with the same names in another split into parts the same copies stay."""
    source = folder(tmp_path, 3)
    survivors = set()
    for buckets in (1, 64):
        run(recipe(source, tmp_path / f"d{buckets}", across=[{"exact_text": {"buckets": buckets}}], shard_bytes=1 if buckets == 1 else 10**6))
        ds = Dataset.open(str(tmp_path / f"d{buckets}"))
        survivors.add(tuple(sorted(r.id for i in range(len(ds.shards)) for r in ds.records(i))))
    assert len(survivors) == 1


def test_it_runs_on_an_object_store(tmp_path, s3_bucket):
    source = folder(tmp_path, 2)
    run(recipe(source, f"{s3_bucket}/across/d"))
    run(recipe(source, tmp_path / "d"))
    assert Dataset.open(f"{s3_bucket}/across/d").fingerprint == Dataset.open(str(tmp_path / "d")).fingerprint
    assert not [p for p, _, _ in storage.listing(f"{s3_bucket}/across/d") if p.startswith("_work")]
