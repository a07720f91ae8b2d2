"""MetaCLIP curation keeps what the published rule keeps, by draws that depend on the record and the entry alone."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import pipelines
from pipelines import build
from pipelines.balancing import Tails, rounded_up
from pipelines.build_entries import BuildEntries
from pipelines.curate import Curate
from pipelines.engine import open_job
from pipelines.entries import read_entries
from pipelines.format.chance import draw, uniform
from pipelines.format.dataset import Dataset
from pipelines.format.document import load, parse
from pipelines.format.errors import BudgetError, ConflictError, InputError, RecipeError, Stopped
from pipelines.format.record import Image, Record, Text
from pipelines.matching import scan
from pipelines.recipe import Recipe
from pipelines.summary import show_stats, stats
from tests.pipelines.balanced import ENTRIES, drops, made, recipe, stage


def by_definition(records, entries, t, seed=0):
    """The rule as the paper says it, a record and an entry at a time."""
    texts = [r.segments[0].text for r in records]
    found = {}
    for i, j in scan(texts, entries):
        found.setdefault(i, []).append(entries[j])
    counts = Counter(e for es in found.values() for e in es)
    out = {}
    for i, r in enumerate(records):
        kept = any(uniform(draw(r.h, seed, "balance", e)) < min(1.0, t / counts[e]) for e in found.get(i, []))
        if not kept:
            out[r.id] = "metaclip.balanced" if i in found else "metaclip.no_match"
    return out


@pytest.mark.parametrize("t", [1, 7, 40, 10_000])
def test_what_stays_is_what_the_rule_says_record_by_record(tmp_path, t):
    records = made(1500)
    got, _ = drops(stage(tmp_path, t=t), [records])
    assert got == by_definition(records, ENTRIES, t)
    assert set(got.values()) == ({"metaclip.no_match", "metaclip.balanced"} if t < 10_000 else {"metaclip.no_match"})


def test_it_depends_on_no_order_sharding_buckets_or_place_of_an_entry(tmp_path):
    records = made(800)
    want, _ = drops(stage(tmp_path, t=9), [records])
    shuffled = records[:]
    random.Random(1).shuffle(shuffled)
    for parts, buckets, entries in [
        ([shuffled[:1], shuffled[1:500], [], shuffled[500:]], 3, ENTRIES),
        ([[r] for r in shuffled[:100]] + [shuffled[100:]], 64, ENTRIES[::-1]),
    ]:
        assert drops(stage(tmp_path, entries, t=9, buckets=buckets), parts)[0] == want


def test_head_entries_keep_about_t_records_and_tail_entries_all(tmp_path):
    records = made(20_000)
    gone, _ = drops(stage(tmp_path, t=200), [records])
    kept = Counter(r.segments[0].text.rsplit(" ", 1)[0] for r in records if r.id not in gone)
    all_of = Counter(r.segments[0].text.rsplit(" ", 1)[0] for r in records)
    assert kept["axolotl"] == all_of["axolotl"] < 200
    dogs = all_of["a dog"] + all_of["dog and cat"]
    wanted = 200 * all_of["a dog"] / dogs  # records whose only entry is the dog
    assert abs(kept["a dog"] - wanted) < 5 * np.sqrt(wanted)


def test_a_larger_t_keeps_all_that_a_smaller_one_keeps_and_another_seed_keeps_others(tmp_path):
    records = made(2000)
    few, many = (set(drops(stage(tmp_path, t=t), [records])[0]) for t in (5, 60))
    assert many < few
    assert set(drops(stage(tmp_path, t=5, seed=1), [records])[0]) != few


def test_t_is_solved_for_the_wanted_number_of_pairs(tmp_path):
    records = made(3000)
    s = stage(tmp_path, pairs=400)
    gone, told = drops(s, [records[:1000], records[1000:]])
    t = s.report(told)["t"]
    assert len(records) - len(gone) >= 400
    assert gone == drops(stage(tmp_path, t=t), [records])[0]
    assert len(records) - len(drops(stage(tmp_path, t=t - 1), [records])[0]) < 400


def test_more_pairs_than_match_anything_is_a_budget_error_that_says_how_many_there_are(tmp_path):
    records = made(100)
    there = sum(reason != "metaclip.no_match" for reason in drops(stage(tmp_path, t=1), [records])[0].values())
    with pytest.raises(BudgetError, match="match"):
        drops(stage(tmp_path, pairs=101), [records])
    assert there < 100


def test_whole_numbers_are_rounded_up_to_four_digits_and_small_ones_not_at_all():
    t = np.array([1, 9, 9999, 10_000, 10_001, 123_456_789])
    assert rounded_up(t).tolist() == [1, 9, 9999, 10_000, 10_010, 123_500_000]


def test_only_the_named_captions_are_matched_and_a_record_counts_once_for_each_text(tmp_path):
    def pair(i, original, recaption):
        texts = [Text(original, atom=1, name="original"), Text(recaption, atom=2, name="recaption")]
        return Record.make("t", str(i), "image-text", [Image(b"x", atom=0), *texts])

    records = [pair(0, "a dog", "a dog again"), pair(1, "nothing", "a cat")]
    gone, told = drops(stage(tmp_path, t=10), [records])
    assert gone == {}
    assert stage(tmp_path, t=10).report(told)["matches"]["all"] == 3
    assert drops(stage(tmp_path, t=10, captions=["original"]), [records])[0] == {records[1].id: "metaclip.no_match"}


def test_other_languages_get_the_t_at_which_their_tail_holds_the_same_share(tmp_path):
    for name, entries in (("en", ["dog", "cat"]), ("fr", ["chien", "chat", "lynx"])):
        (tmp_path / f"{name}.json").write_text(json.dumps(entries))
    lists = {"en": str(tmp_path / "en.json"), "fr": str(tmp_path / "fr.json")}
    s = parse(Recipe, recipe(tmp_path, across=[{"metaclip": {"languages": lists, "t": 30}}])).across[0]
    said = [("en", "dog", 60), ("en", "cat", 20), ("fr", "chien", 300), ("fr", "chat", 95), ("fr", "lynx", 5), ("de", "dog", 9)]
    records = [Record.make("t", f"{w}{i}", "text", [Text(w)], fields={"language": lang}) for lang, w, n in said for i in range(n)]
    gone, told = drops(s, [records])
    tails = Tails(np.array([60, 20, 300, 95, 5]), [(0, 2), (2, 5)])
    assert tails.share(30) == 0.25 and tails.nearest(1, 0.25) == 95
    assert s.report(told)["t"] == {"en": 30, "fr": 95}
    kept = Counter(r.segments[0].text for r in records if r.id not in gone)
    assert kept["cat"] == 20 and kept["chat"] == 95 and kept["lynx"] == 5 and 0 < kept["dog"] < 60 and 0 < kept["chien"] < 200
    assert Counter(gone.values())["metaclip.no_match"] == 9, "German has no list"


def lines(path, records, files):
    path.mkdir()
    for k in range(files):
        chunk = records[k * len(records) // files : (k + 1) * len(records) // files]
        (path / f"{k}.jsonl").write_text("".join(json.dumps({"text": r.segments[0].text}) + "\n" for r in chunk))
    return path


def run(path, output, tmp_path, entries=ENTRIES, where="local", shard_bytes=10**6, cpus=1.0, **keys):
    (tmp_path / "entries.json").write_text(json.dumps(entries))
    across = [{"metaclip": {"entries": str(tmp_path / "entries.json"), **keys}}]
    r = parse(Recipe, {**recipe(path), "output": str(tmp_path / output), "across": across, "shard_bytes": shard_bytes, "resources": {"cpus": cpus}})
    with open_job(where) as job:
        return Curate("text").run(r, job)


def ids(root):
    ds = Dataset.open(root)
    return sorted(r.id for i in range(len(ds.shards)) for r in ds.records(i))


def test_a_dataset_says_in_its_card_why_its_numbers_are_what_they_are(tmp_path, capsys):
    records = made(600)
    path = lines(tmp_path / "in", records, 3)
    root = run(path, "d", tmp_path, t=20)
    said = stats(root)
    f = said["figures"]["metaclip"]
    assert said["in"] == 600 == said["written"] + sum(said["filtered"].values())
    assert f["records"]["all"] == f["texts"]["all"] == 600
    assert f["records"]["matched"] == f["texts"]["matched"] == 600 - said["filtered"]["metaclip.no_match"]
    counts = Counter(j for _, j in scan([r.segments[0].text for r in records], ENTRIES))
    assert f["matches"] == {
        "all": counts.total(),
        "head": sum(n for n in counts.values() if n > 20),
        "a_text": round(counts.total() / 600, 4),
    }
    assert f["entries"] == {"all": 8, "matched": len(counts), "unreachable": 1, "head": sum(n > 20 for n in counts.values())}
    assert f["t"] == 20 and sum(f["texts_with_entries"].values()) == 600 and list(f["texts_with_entries"]) == ["00", "01", "02"]
    show_stats(said)
    assert "entries a text matches" in capsys.readouterr().out


def test_shards_of_any_size_give_the_same_dataset_and_a_rerun_does_nothing(tmp_path):
    path = lines(tmp_path / "in", made(120), 3)
    one = ids(run(path, "a", tmp_path, t=5))
    assert ids(run(path, "b", tmp_path, t=5, shard_bytes=1, buckets=2)) == one
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}
    run(path, "a", tmp_path, t=5)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")} == before


def test_another_entry_list_at_the_same_path_is_another_recipe(tmp_path):
    path = lines(tmp_path / "in", made(60), 1)
    run(path, "a", tmp_path, t=5)
    with pytest.raises(ConflictError):
        run(path, "a", tmp_path, entries=["dog"], t=5)


@pytest.mark.ray
def test_on_ray_one_two_and_four_workers_sample_the_same_from_shards_of_any_size(tmp_path, ray_session):
    """Two processors: a step that takes 2, 1 or a half of one runs 1, 2 or 4 at a time."""
    path = lines(tmp_path / "in", made(300), 3)
    golden = run(path, "local", tmp_path, pairs=60)
    for cpus, shard_bytes in ((2.0, 10**6), (1.0, 2_000), (0.5, 10**6)):
        root = run(path, f"ray{cpus}", tmp_path, where="ray", shard_bytes=shard_bytes, cpus=cpus, pairs=60)
        assert ids(root) == ids(golden) and stats(root)["figures"] == stats(golden)["figures"]
        assert shard_bytes != 10**6 or Dataset.open(root).fingerprint == Dataset.open(golden).fingerprint


def test_entry_lists_are_read_from_json_and_text_and_anything_else_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('["dog", "dog", "", "New York", "a\\tb"]')
    (tmp_path / "b.txt").write_text("dog\r\nNew York\n\n")
    assert read_entries(str(tmp_path / "a.json")) == read_entries(str(tmp_path / "b.txt")) == ["dog", "New York"]
    for bad in ('{"a": 1}', "[1]", "[", "", "\n\n"):
        (tmp_path / "c.json").write_text(bad)
        with pytest.raises(InputError):
            read_entries(str(tmp_path / "c.json"))


BOTH = {"languages": {"en": "b"}}


@pytest.mark.parametrize("keys", [{}, {"entries": "a", **BOTH}, {"entries": "a", "t": 1, "pairs": 2}, {"entries": "a", "t": 0}])
def test_settings_that_contradict_each_other_are_refused(tmp_path, keys):
    with pytest.raises(RecipeError):
        parse(Recipe, recipe(tmp_path, across=[{"metaclip": keys}]))


def test_the_packaged_recipes_are_understood():
    here = Path(pipelines.__file__).parent / "recipes"
    assert load(Recipe, str(here / "metaclip.yaml")).across[0].t == 20_000
    assert load(BuildEntries, str(here / "entries.yaml")).max_entries == 500_000


def test_a_job_killed_before_its_card_finds_its_figures_again(tmp_path, monkeypatch):
    path = lines(tmp_path / "in", made(200), 2)
    golden = run(path, "golden", tmp_path, t=5)
    whole = build.publish_card

    def killed(root, *rest):
        if root.endswith("/d"):
            raise Stopped()
        return whole(root, *rest)

    monkeypatch.setattr(build, "publish_card", killed)
    with pytest.raises(Stopped):
        run(path, "d", tmp_path, t=5)
    monkeypatch.undo()
    again = run(path, "d", tmp_path, t=5)
    assert stats(again)["figures"] == stats(golden)["figures"] and not (tmp_path / "d" / "_work").exists()
    assert Dataset.open(again).fingerprint == Dataset.open(golden).fingerprint
