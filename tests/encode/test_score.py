"""A scored dataset is the same dataset with score columns: what the models say, the same bytes every time, and not a pixel of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encode.encoder import machine_for
from encode.recipe import EncodeRecipe
from encode.score import STAGE
from encode.scoring import parts
from encode.scoring.figures import figures, tally
from encode.scoring.recipe import ScoreRecipe
from encode.stage import STAGE as ENCODE
from pipelines.commands import gc
from pipelines.engine import open_job
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import load, parse
from pipelines.format.errors import ConflictError, InputError, RecipeError
from pipelines.format.failpoint import failpoint_steps
from pipelines.format.part import PartWriter
from pipelines.format.record import Image, Record, Text
from tests import toys
from tests.encode import models

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
SHAPE = (60, 44, 3)


def pictured(i, *captions, payload=None, **rest):
    """A pair: image number i, and captions by name."""
    segments = [Image(payload or models.jpeg(i), atom=0, shape=SHAPE)]
    segments += [Text(text, atom=k, name=name) for k, (name, text) in enumerate(captions, 1)]
    return Record.make("photos", f"{i}.jpg", "image-text", segments, group=f"g{i}", licence="CC0", **rest)


def curated(root, records, split=4):
    """A dataset of these records, `split` in each part."""
    commits = []
    for part, first in enumerate(range(0, len(records), split)):
        with PartWriter(str(root), part, fingerprint=f"f{part}") as w:
            for record in records[first : first + split]:
                w.emit()
                w.add(record)
            commits.append(w.commit())
    return toys.seal(str(root), "photos", records[0].data, commits, {})


def some_records():
    """One caption, several, none with a name, the same image and the same caption again, and a score that was there."""
    out = [pictured(i, ("original", f"a picture of {toys.words(i)}")) for i in range(4)]
    out += [pictured(4, ("original", "stone"), ("recaption", "a lamp in the north"), ("caption2", "stone"), scores={"language": 0.75})]
    out += [replace(pictured(4, (None, "stone"), (None, "river")), id="0" * 31 + "1", origin="again.jpg")]
    return out + [pictured(i, ("original", "stone"), ("recaption", toys.words(i))) for i in range(6, 11)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset and four models."""
    root = tmp_path_factory.mktemp("scoring")
    curated(root / "photos", some_records())
    (root / "siglip").mkdir()
    (root / "clip").mkdir()
    (root / "nsfw").mkdir()
    models.save_siglip(str(root / "siglip"))
    models.save_clip(str(root / "clip"))
    models.save_classifier(str(root / "nsfw"))
    models.save_head(str(root / "head.safetensors"))
    return root


def recipe(world, out, scores=None, **keys):
    every = {
        "clip": {"similarity": {"weights": str(world / "siglip"), "batch": 4}},
        "nsfw": {"image_class": {"weights": str(world / "nsfw"), "label": "nsfw", "batch": 4}},
        "aesthetic": {"embedding_head": {"tower": str(world / "clip"), "head": str(world / "head.safetensors"), "batch": 4}},
    }
    return parse(ScoreRecipe, {"dataset": str(world / "photos"), "scores": scores or every, "output": str(out), "engine": "local", **keys})


def score(world, out, scores=None, **keys):
    with open_job("local") as job:
        return Dataset.open(STAGE.run(recipe(world, out, scores, **keys), job))


CLIP = lambda world, **k: {"clip": {"similarity": {"weights": str(world / "siglip"), "batch": 4, **k}}}
NSFW = lambda world, **k: {"nsfw": {"image_class": {"weights": str(world / "nsfw"), "label": "nsfw", "batch": 4, **k}}}


@pytest.fixture(scope="module")
def scored(world):
    return score(world, world / "scored")


def records(dataset, payloads=False):
    return [r for i in range(len(dataset.shards)) for r in dataset.records(i, payloads)]


def by_hand(world, name, record):
    """Every value of a record, one picture and one caption at a time."""
    scorer = recipe(world, "x").scorers()[name]
    sight = scorer.sight()
    look, read = sight.look(machine_for("f32", "cpu"))
    from pipelines.media import images

    seen = look(sight.processor().picture(images.decode(record.segments[0].payload))[None].copy())()
    if not scorer.reads:
        return [scorer.values(seen, None)[0]]
    return [scorer.values(seen, read(sight.written([s.text]))())[0] for s in record.segments[1:]]


def test_every_caption_has_its_score_and_the_record_the_best_of_them(world, scored):
    seen = set()
    for before, after in zip(records(Dataset.open(str(world / "photos")), True), records(scored), strict=True):
        each = by_hand(world, "clip", before)
        names = [s.member or ("original", "caption2")[k] for k, s in enumerate(before.segments[1:])]
        expected = {"clip": max(each), **(dict(zip((f"clip.{n}" for n in names), each, strict=True)) if len(each) > 1 else {})}
        expected |= {"nsfw": by_hand(world, "nsfw", before)[0], "aesthetic": by_hand(world, "aesthetic", before)[0], **before.scores}
        assert after.scores.keys() == expected.keys()
        assert all(abs(after.scores[k] - v) <= 1e-5 for k, v in expected.items())
        seen.add(after.scores["clip"])
    assert len(seen) > 5


def test_nothing_of_an_index_changes_but_the_scores(world, scored):
    parent = Dataset.open(str(world / "photos"))
    for i in range(len(parent.shards)):
        before, after = (d.index(i).drop_columns(["scores"]) for d in (parent, scored))
        assert before.equals(after)


def test_pixels_are_pointed_at_and_not_copied(world, scored):
    parent = Dataset.open(str(world / "photos"))
    assert not list(Path(scored.path).glob("data-*")) and [s.data for s in scored.shards] == [f"../photos/{s.data}" for s in parent.shards]
    assert scored.card["bytes"] == sum(s.index_bytes for s in scored.shards)
    for a, b in zip(records(parent, True), records(scored, True), strict=True):
        assert [s.payload for s in a.segments] == [s.payload for s in b.segments]


def check(path):
    from pipelines.check_dataset import check

    return check(str(path), {"deep": True})


def test_verify_reads_the_parents_bytes_too_and_finds_what_changed_there(world, tmp_path):
    for name in ("photos", "siglip", "nsfw"):
        shutil.copytree(world / name, tmp_path / name)
    made = score(tmp_path, tmp_path / "out", NSFW(tmp_path))
    assert check(made.path) == []
    file = tmp_path / "photos" / Dataset.open(str(tmp_path / "photos")).shards[0].data
    data = bytearray(file.read_bytes())
    data[5000] ^= 1
    file.write_bytes(bytes(data))
    assert [p["file"] for p in check(made.path)] == [f"../photos/{file.name}"]
    shutil.move(tmp_path / "photos", tmp_path / "gone")
    assert all("is not there" in p["what"] for p in check(made.path)) and check(made.path)


def test_collecting_rubbish_of_either_leaves_both_whole(world, tmp_path):
    for name in ("photos", "nsfw"):
        shutil.copytree(world / name, tmp_path / name)
    made = score(tmp_path, tmp_path / "out", NSFW(tmp_path))
    import argparse

    for path in (tmp_path / "photos", tmp_path / "out"):
        assert gc.answer(argparse.Namespace(path=str(path), dry_run=False, older_than=0.0))["removed"] == []
    assert check(made.path) == []


def files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(Path(root).rglob("*")) if p.is_file() and p.name != "log.jsonl"}


def hashed(root):
    """What the work is: without the recipe's own paths, which stand in the card."""
    return {name: data for name, data in files(root).items() if name != "manifest.json"}


def test_the_same_recipe_gives_the_same_bytes_at_another_place_and_does_nothing_twice(world, scored):
    other = score(world, world / "other")
    assert hashed(other.path) == hashed(scored.path) and other.fingerprint == scored.fingerprint
    before = {p: p.stat().st_mtime_ns for p in Path(other.path).rglob("*")}
    score(world, world / "other")
    assert before == {p: p.stat().st_mtime_ns for p in Path(other.path).rglob("*")}


def test_values_do_not_depend_on_how_rows_are_parted_or_on_the_batch(world, scored, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "MAX_IMAGES", 2)
    small = score(world, tmp_path / "small")
    assert len(small.shards) > len(scored.shards)
    large = score(world, tmp_path / "large", {**CLIP(world, batch=7), **NSFW(world, batch=1)})
    for a, b, c in zip(records(scored), records(small), records(large), strict=True):
        assert a.id == b.id == c.id and a.scores.keys() == b.scores.keys() > c.scores.keys()
        assert all(abs(a.scores[k] - b.scores[k]) <= 1e-6 for k in b.scores) and all(abs(a.scores[k] - c.scores[k]) <= 1e-6 for k in c.scores)
    theirs, ours = small.card["figures"]["scores"], scored.card["figures"]["scores"]
    assert theirs.keys() == ours.keys() and all(theirs[k]["p50"] == pytest.approx(ours[k]["p50"], rel=0.01) for k in ours)


def test_a_dataset_is_the_same_whatever_the_order_in_which_parts_are_done(world, scored):
    asked = recipe(world, world / "turned")
    with open_job("local") as job:
        map_ = job.map
        job.map = lambda steps, items: map_(steps, items[::-1])
        made = STAGE.run(asked, job)
    assert hashed(made) == hashed(scored.path)


RUN = """
import sys, json
from encode.score import STAGE
from encode.scoring.recipe import ScoreRecipe
from pipelines.engine import open_job
from pipelines.format import storage
from pipelines.format.document import parse
with open_job("local") as job:
    STAGE.run(parse(ScoreRecipe, json.loads(sys.argv[1])), job)
"""


def test_a_job_killed_midway_goes_on_and_ends_in_the_same_bytes(world, monkeypatch):
    keys = {"scores": NSFW(world), "dataset": str(world / "photos"), "engine": "local"}
    monkeypatch.setenv("HEADWATER_FAIL_AT", "1000000")
    failpoint_steps(reset=True)
    golden, steps = hashed(score(world, world / "golden", NSFW(world)).path), failpoint_steps()
    out = world / "killed"
    argv = [sys.executable, "-c", RUN, json.dumps({**keys, "output": str(out)})]
    killed = subprocess.run(argv, env={**os.environ, "HEADWATER_FAIL_AT": f"{steps // 2}:kill"}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-500:]
    done = len(list((out / "parts").glob("*.json")))
    assert 0 < done < 3 and not (out / "manifest.json").exists()
    score(world, out, NSFW(world))
    left = {k: v for k, v in hashed(out).items() if not k.startswith("_tmp/")}
    assert left == golden


class Counting:
    """A network that counts the rows it is given."""

    def __init__(self, network, seen):
        self.network, self.seen = network, seen

    def __call__(self, batch):
        self.seen.append(len(batch))
        return self.network(batch)


def test_each_distinct_image_and_caption_of_a_part_is_looked_at_once_however_many_scores_come_of_it(world, tmp_path, monkeypatch):
    from encode.scorers.image_class import Classifier
    from encode.scoring.towers import Towers

    seen = {"pictures": [], "texts": [], "classes": []}
    tower, classify = Towers.look, Classifier.look
    monkeypatch.setattr(Towers, "look", lambda s, m: tuple(Counting(n, seen[k]) for n, k in zip(tower(s, m), ("pictures", "texts"), strict=True)))
    monkeypatch.setattr(Classifier, "look", lambda s, m: (Counting(classify(s, m)[0], seen["classes"]), None))
    same = {"weights": str(world / "clip"), "batch": 1}
    head = {"tower": str(world / "clip"), "head": str(world / "head.safetensors"), "batch": 1}
    label = lambda name: {"image_class": {"weights": str(world / "nsfw"), "label": name, "batch": 1}}
    scores = {"clip": {"similarity": same}, "worst": {"similarity": {**same, "captions": "min"}}, "aesthetic": {"embedding_head": head}}
    made = score(world, tmp_path, {**scores, "nsfw": label("nsfw"), "drawing": label("drawing")})
    images = texts = 0
    for i in range(len(made.shards)):
        held = list(made.records(i))
        images += len({s.offset for r in held for s in r.segments if s.kind == "image"})
        texts += len({s.text for r in held for s in r.segments if s.kind == "text"})
    assert images == 10 and len(records(made)) == 11
    assert (sum(seen["pictures"]), sum(seen["texts"]), sum(seen["classes"])) == (images, texts, images)
    several = records(made)[4].scores
    assert several["worst"] == min(v for k, v in several.items() if k.startswith("clip.")) and several["worst"] < several["clip"]


def test_a_record_whose_image_cannot_be_read_is_rejected_and_nothing_else_is_lost(world, tmp_path):
    made = [pictured(i, ("original", "stone"), payload=p) for i, p in enumerate((models.jpeg(0), models.jpeg(1)[:200], b"no image", models.jpeg(3)))]
    curated(tmp_path / "photos", made)
    shutil.copytree(world / "siglip", tmp_path / "siglip")
    got = score(tmp_path, tmp_path / "out", CLIP(tmp_path))
    card = got.card
    assert (card["in"], card["written"], card["filtered"], sum(card["rejected"].values())) == (4, 2, {}, 2)
    assert [r.origin for r in records(got)] == ["0.jpg", "3.jpg"] and check(got.path) == []
    keys = [row["key"] for row in got.index(0, ["key"]).to_pylist()]
    assert keys == ["00000-000000", "00000-000003"], "keys name what lies in the parent's tar, so they do not close up"
    assert card["figures"]["scores"]["clip"]["n"] == 2


def test_a_part_of_which_nothing_can_be_read_is_done_all_the_same(world, tmp_path):
    data = curated(tmp_path / "photos", [pictured(i, ("original", "stone"), payload=b"no image" if i < 2 else None) for i in range(4)], split=2)
    got = score(world, tmp_path / "out", dataset=data)
    assert (got.card["in"], got.card["written"], len(got.shards)) == (4, 2, 1) and check(got.path) == []


def test_on_an_object_store_the_bytes_are_those_of_a_disk(world, s3_bucket, tmp_path):
    held = {p: s3_bucket + f"/scores/photos/{p.relative_to(world / 'photos').as_posix()}" for p in (world / "photos").rglob("*") if p.is_file()}
    for file, place in held.items():
        storage.publish(place, file.read_bytes())
    there = score(world, f"{s3_bucket}/scores/out", NSFW(world), dataset=f"{s3_bucket}/scores/photos")
    here = score(world, world / "plain", NSFW(world))
    assert [(s.index_sha256, s.data) for s in there.shards] == [(s.index_sha256, s.data) for s in here.shards] and check(there.path) == []
    mixed = score(world, tmp_path / "out", NSFW(world), dataset=f"{s3_bucket}/scores/photos")
    assert mixed.fingerprint == here.fingerprint and check(mixed.path) == [], "pictures in a store, scores on a disk"


def test_a_value_that_is_no_number_costs_its_record_and_nothing_but_such_values_the_job(world, tmp_path, monkeypatch):
    from encode.scorers.image_class import ImageClass

    values = ImageClass.values
    monkeypatch.setattr(ImageClass, "values", lambda s, seen, said: np.where(np.arange(len(seen)) == 1, np.nan, values(s, seen, said)))
    made = score(world, tmp_path / "a", NSFW(world))
    assert made.card["rejected"] == {"not_finite": 3} and made.card["written"] == 8
    monkeypatch.setattr(ImageClass, "values", lambda s, seen, said: np.full(len(seen), np.nan))
    with pytest.raises(InputError, match="no value that is a number"):
        score(world, tmp_path / "b", NSFW(world))


def test_a_score_that_is_there_is_made_anew_only_when_asked(world, scored, tmp_path):
    again = {"clip": {"similarity": {"weights": str(world / "clip"), "batch": 4}}}
    with pytest.raises(InputError, match="this score already"):
        score(world, tmp_path, again, dataset=scored.path)
    made = score(world, tmp_path / "deeper" / "out", again, dataset=scored.path, replace=True)
    for a, b in zip(records(scored), records(made), strict=True):
        assert a.scores.keys() == b.scores.keys() and a.scores["nsfw"] == b.scores["nsfw"] and a.scores["clip"] != b.scores["clip"]
    assert made.card["scorers"].keys() == scored.card["scorers"].keys()
    assert made.card["scorers"]["nsfw"] == scored.card["scorers"]["nsfw"] and made.card["scorers"]["clip"] != scored.card["scorers"]["clip"]
    pixels = Dataset.open(str(world / "photos")).shards[0].data
    assert (tmp_path / "deeper" / "out" / made.shards[0].data).resolve() == (world / "photos" / pixels).resolve(), "not at what pointed at them"
    assert check(made.path) == []
    with pytest.raises(InputError, match=r"clip\.original"):
        dotted = curated(tmp_path / "dotted", [pictured(0, ("original", "x"), scores={"clip.original": 0.5})])
        score(world, tmp_path / "x", CLIP(world), dataset=dotted)


def test_another_recipe_at_the_same_place_is_a_conflict(world, tmp_path):
    score(world, tmp_path, NSFW(world))
    with pytest.raises(ConflictError):
        score(world, tmp_path, NSFW(world, label="normal"))


@pytest.mark.parametrize("kind", ["video", "vqa", "action-video"])
def test_records_of_several_images_and_no_caption_are_scored_by_what_needs_none(world, tmp_path, kind):
    data = toys.curated(str(tmp_path / kind), kind, n=3)
    made = score(world, tmp_path / "out", {**NSFW(world), "mean": NSFW(world, images="mean")["nsfw"]}, dataset=data)
    assert check(made.path) == []
    for record in records(made):
        assert record.scores.keys() == {"nsfw", "mean"} and record.scores["nsfw"] >= record.scores["mean"]
    with pytest.raises(RecipeError, match="compares pictures with captions"):
        score(world, tmp_path / "no", CLIP(world), dataset=data)


def test_text_and_encoded_datasets_are_refused(world, tmp_path):
    text = toys.curated(str(tmp_path / "text"), "text")
    with pytest.raises(InputError, match="holds no images"):
        score(world, tmp_path / "a", NSFW(world), dataset=text)
    pairs = toys.curated(str(tmp_path / "pairs"))
    with pytest.raises(InputError, match="is encoded"):
        score(world, tmp_path / "b", NSFW(world), dataset=toys.encoded(str(tmp_path / "e"), pairs))


def test_names_of_scores_have_no_dot_and_there_is_at_least_one(world):
    for scores, said in (({}, "at least one"), ({"a.b": NSFW(world)["nsfw"]}, "no name for a score"), ({"a": {"similarty": {}}}, "did you mean")):
        with pytest.raises(RecipeError, match=said):
            parse(ScoreRecipe, {"dataset": "x", "scores": scores, "output": "y"})


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(world, tmp_path):
    told = STAGE.plan(recipe(world, tmp_path / "out")).as_dict()
    assert (told["records"], told["images"], told["image_references"], told["parts"]) == (11, 10, 11, 3)
    assert told["bytes_read"] == sum(p.stat().st_size for p in (world / "photos").glob("data-*")) and told["bytes_copied"] == 0
    assert [row["score"] for row in told["table"]] == ["clip", "nsfw", "aesthetic"] and not (tmp_path / "out").exists()


def test_the_card_says_who_scored_and_how_scores_are_spread(world, scored):
    scorers, told = scored.card["scorers"], scored.card["figures"]["scores"]
    assert scorers["clip"]["scorer"]["similarity"]["weights"] == str(world / "siglip") and len(scorers["clip"]["weights_sha256"]) == 64
    assert len({s["fingerprint"] for s in scorers.values()}) == 3
    assert set(told) == {"clip", "nsfw", "aesthetic", "language", "clip.original", "clip.recaption", "clip.caption2"}
    values = np.array([r.scores["clip"] for r in records(scored)])
    assert told["clip"]["n"] == 11 and told["clip"]["missing"] == 0 and told["language"] == {**told["language"], "n": 1, "missing": 10}
    assert told["clip"]["min"] == pytest.approx(values.min(), rel=1e-5) and told["clip"]["max"] == pytest.approx(values.max(), rel=1e-5)
    assert told["clip"]["mean"] == pytest.approx(values.mean(), rel=1e-4)
    assert told["clip"]["p50"] == pytest.approx(np.sort(values)[5], rel=0.005)
    assert [p["fingerprint"] for p in scored.card["parents"]] == [Dataset.open(str(world / "photos")).fingerprint]


def test_figures_are_within_a_bin_of_the_exact_ones_and_add_up_in_any_grouping():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=4000), -np.exp(rng.normal(size=999) * 4), [0.0]]).astype(np.float32)
    whole = figures([tally({"x": values.tolist()})], 6000)
    split = figures([tally({"x": v.tolist()}) for v in np.array_split(rng.permutation(values), 13)], 6000)
    mean, other = whole["x"].pop("mean"), split["x"].pop("mean")
    assert whole == split and mean == pytest.approx(other, rel=1e-5) and whole["x"]["missing"] == 1000
    ordered = np.sort(values)
    for q in (1, 5, 10, 30, 50, 70, 90, 95, 99):
        assert whole["x"][f"p{q:02}"] == pytest.approx(ordered[int(np.ceil(q / 100 * 5000)) - 1], rel=0.005)
    assert len(figures([tally({f"c.{i}": [1.0] for i in range(100)} | {"c": [1.0]})], 1)) == 64


def test_an_encoded_dataset_keeps_the_scores_and_a_mixture_asks_for_them(world, scored, tmp_path):
    from encode.fit_tokenizer import STAGE as FIT
    from encode.fit_tokenizer import FitTokenizer
    from mixtures.mixture import Mixture
    from mixtures.plan import Plan
    from mixtures.stage import STAGE as MIX

    with open_job("local") as job:
        words = FIT.run(parse(FitTokenizer, {"datasets": [scored.path], "vocab": 280, "output": str(tmp_path / "words")}), job)
        keys = {"text": {"text_tokens": {"tokenizer": words}}, "images": {"pixels": {"size": 28, "patch": 14}}}
        for storage in ("bf16", "none"):
            made = ENCODE.run(parse(EncodeRecipe, {**keys, "dataset": scored.path, "output": str(tmp_path / storage), "storage": storage}), job)
            assert [r.scores for r in records(Dataset.open(made))] == [r.scores for r in records(scored)]
            assert [len(bytes(Dataset.open(made).payload(0, r.segments[0]))) for r in Dataset.open(made).records(0)]
        limit = float(np.median([r.scores["clip"] for r in records(scored)]))
        where = {"scores": {"clip": {"min": limit}}}
        source = {"dataset": str(tmp_path / "bf16"), "epochs": 1, "where": where}
        plan = MIX.run(parse(Mixture, {"sequence_length": 256, "sources": {"pairs": source}, "output": str(tmp_path / "plan")}), job)
    table = Plan.open(plan).card
    wanted = [r.id for r in records(scored) if np.float32(r.scores["clip"]) >= np.float32(limit)]
    assert table["sources"]["pairs"]["records"] == len(wanted) == 6


def test_scores_are_shown_by_stats_and_inspect(scored):
    from pipelines import look, summary

    told = summary.stats(scored.path)["figures"]["scores"]
    assert {"n", "missing", "min", "p01", "p50", "p99", "max", "mean"} <= told["clip"].keys()
    found = look.plain(scored, next(iter(look.first(scored, 1, 0))))
    assert found["scores"].keys() == {"clip", "nsfw", "aesthetic"}


def test_the_entry_point_loads_neither_torch_nor_ray():
    code = "import encode.score, encode.scoring.chain, encode.scorers.similarity, encode.scorers.embedding_head, sys\n"
    code += "print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_recipe_that_ships_is_valid():
    made = load(ScoreRecipe, str(Path(__file__).parents[2] / "encode/recipes/scores.yaml"))
    assert made.output.startswith("out/") and "clip" in made.scores


def test_what_the_parent_forgot_gets_no_score_and_is_counted(world, tmp_path):
    from pipelines.check_dataset import check as problems
    from pipelines.tombstones import add

    place = curated(tmp_path / "photos", some_records())
    make = lambda: score(world, tmp_path / "out", NSFW(world), dataset=place)
    before = [r.id for r in records(make())]
    add(Dataset.open(place), {"id": [before[2]]}, "asked")
    after = make()
    assert [r.id for r in records(after)] == [i for i in before if i != before[2]]
    assert after.card["filtered"] == {"tombstone": 1} and after.card["in"] == len(before) and problems(after.path, {"deep": True}) == []
