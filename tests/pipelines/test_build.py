"""A dataset is built once, resumed exactly, refused to strangers, and stopped when too much goes wrong."""

import json
import os
from pathlib import Path

import pytest

from pipelines.build import ErrorBudget
from pipelines.curate import TEXT, Curate, _one
from pipelines.engine import open_job
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.format.errors import ConflictError, ErrorBudgetSpent, RecipeError, Reject, Stopped
from pipelines.format.part import PartWriter
from pipelines.recipe import Recipe
from tests import toys


def recipe(output, kind="image-text", scenes=600, **more):
    world = {"kind": kind, "scenes": scenes, "seed": more.pop("seed", 0)}
    return parse(Recipe, {"name": "w", "source": {"world": world}, "output": str(output), "engine": "local", **more})


def make(r, kind="image-text", **job):
    with open_job("local", **job) as j:
        return Curate(kind).run(r, j)


def digests(root):
    return [(s.index_sha256, s.data_sha256) for s in Dataset.open(str(root)).shards]


def test_a_second_run_writes_nothing(tmp_path):
    make(recipe(tmp_path / "d"))
    before = {p: p.stat().st_mtime_ns for p in Path(tmp_path / "d").rglob("*")}
    make(recipe(tmp_path / "d"))
    assert {p: p.stat().st_mtime_ns for p in Path(tmp_path / "d").rglob("*")} == before


@pytest.mark.parametrize("damage", ["delete", "truncate", "uncommit"])
def test_only_what_is_missing_is_redone(tmp_path, damage):
    make(recipe(tmp_path / "d"))
    golden, victim = digests(tmp_path / "d"), Dataset.open(str(tmp_path / "d")).shards[1]
    others = {p: p.stat().st_mtime_ns for p in (tmp_path / "d").glob("data-*") if p.name != victim.data}
    if damage == "uncommit":
        (tmp_path / "d" / "parts" / "00001.json").unlink()
    elif damage == "delete":
        (tmp_path / "d" / str(victim.data)).unlink()
    else:
        os.truncate(tmp_path / "d" / str(victim.data), 100)
    make(recipe(tmp_path / "d"))
    assert digests(tmp_path / "d") == golden
    assert {p: p.stat().st_mtime_ns for p in others} == others


def test_the_card_obeys_the_conservation_law(tmp_path):
    make(recipe(tmp_path / "d", filters=[{"caption_length": {"min_words": 6}}]))
    card = json.loads((tmp_path / "d" / "manifest.json").read_text())
    dropped = sum(card["filtered"].values()) + sum(card["rejected"].values())
    assert 0 < dropped < 600 and card["in"] == card["written"] + dropped == 600


def test_another_recipe_may_not_take_the_place(tmp_path):
    make(recipe(tmp_path / "d"))
    with pytest.raises(ConflictError) as e:
        make(recipe(tmp_path / "d", seed=1))
    assert e.value.exit == 6


def test_growing_keeps_the_old_snapshot(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "one"}\n')
    r = parse(Recipe, {"name": "t", "source": {"jsonl": {"path": str(folder)}}, "output": str(tmp_path / "d"), "engine": "local"})
    make(r, "text")
    first = Dataset.open(str(tmp_path / "d")).fingerprint
    (folder / "b.jsonl").write_text('{"text": "two"}\n' * 2)
    make(r, "text")
    now = Dataset.open(str(tmp_path / "d"))
    assert now.fingerprint != first and now.card["records"] == 3
    assert Dataset.open(str(tmp_path / "d"), first).card["records"] == 1


def test_a_verb_of_another_kind_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="another kind"):
        make(recipe(tmp_path / "d"), "text")
    with pytest.raises(RecipeError):
        TEXT.plan(recipe(tmp_path / "d"))


def test_the_error_budget_stops_a_row_and_a_share_of_failures():
    watch = ErrorBudget(in_a_row=3, window=1000).watch()
    watch.saw("x")
    watch.saw("x")
    watch.saw(None)
    watch.saw("x")
    watch.saw("x")
    with pytest.raises(ErrorBudgetSpent) as e:
        watch.saw("x")
    assert e.value.exit == 5
    watch = ErrorBudget(in_a_row=10**6, window=10, share=0.5).watch()
    for i in range(40):
        watch.saw("x" if i % 2 else None)
    with pytest.raises(ErrorBudgetSpent):
        watch.saw("x")
        watch.saw("x")


class Recipes:
    """A stand-in recipe whose one transform does as it is told."""

    filters: list = []

    def __init__(self, transform):
        self.transforms = [transform]


@pytest.mark.parametrize(
    ("apply", "fate"),
    [
        (lambda r: [], {"filtered": {"empty": 1}}),
        (lambda r: [r, r], {"written": 2}),
        (lambda r: (_ for _ in ()).throw(Reject("too_large")), {"rejected": {"too_large": 1}}),
        (lambda r: 1 / 0, {"rejected": {"error:ZeroDivisionError": 1}}),
    ],
)
def test_every_end_of_a_record_is_counted(tmp_path, apply, fate):
    class Told:
        pass

    told = Told()
    told.apply = apply
    with PartWriter(str(tmp_path), 0, fingerprint="x") as w:
        w.emit()
        _one(Recipes(told), toys.record("text", 0), w, ErrorBudget().watch())
        commit = w.commit()
    for key, value in fate.items():
        assert commit[key] == value


def test_a_stop_leaves_committed_parts_and_no_card(tmp_path):
    r = recipe(tmp_path / "d", scenes=256 * 4)
    with open_job("local") as job:
        job.stop.set()
        with pytest.raises(Stopped):
            Curate("image-text").run(r, job)
    assert (tmp_path / "d" / "parts").exists() and not (tmp_path / "d" / "manifest.json").exists()
    make(r)
    assert Dataset.open(str(tmp_path / "d")).card["records"] == 1024


@pytest.mark.ray
def test_ray_with_one_and_two_workers_and_this_process_give_equal_shards(tmp_path):
    make(recipe(tmp_path / "local"))
    for cpus in (1, 2):
        import ray

        ray.shutdown()
        with open_job("ray", cpus=cpus) as job:
            Curate("image-text").run(recipe(tmp_path / f"ray{cpus}"), job)
        assert digests(tmp_path / f"ray{cpus}") == digests(tmp_path / "local")


def test_a_dataset_on_s3_has_the_hashes_of_the_local_one(tmp_path, s3_bucket):
    make(recipe(tmp_path / "d"))
    make(recipe(f"{s3_bucket}/curated/d"))
    assert digests(f"{s3_bucket}/curated/d") == digests(tmp_path / "d")
    assert storage.exists(f"{s3_bucket}/curated/d/manifest.json")
    with open_job("local") as job:
        Curate("image-text").run(recipe(f"{s3_bucket}/curated/d"), job)
