"""A dataset made of a dataset: the same records under the same ids, fewer of them, each accounted for, and the way back to the raw file."""

import json
import shutil
from pathlib import Path

import pytest

from pipelines.check_dataset import check
from pipelines.commands import main
from pipelines.curate import Curate
from pipelines.engine import open_job
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import fingerprint, parse
from pipelines.format.errors import ConflictError, InputError, RecipeError, StorageError
from pipelines.format.part import PartWriter
from pipelines.format.record import Image, Record
from pipelines.recipe import Recipe
from tests import toys
from tests.peak import peak_bytes
from tests.pipelines.test_compact import compact, forget, scattered, scored, told

KINDS = ("text", "image-text", "video", "action-video", "vqa")


def recipe(path, output, **more):
    document = {"name": "derived", "source": {"dataset": {"path": str(path)}}, "output": str(output), "engine": "local", **more}
    return parse(Recipe, document)


def make(path, output, kind="text", **more):
    with open_job("local") as job:
        return Dataset.open(Curate(kind).run(recipe(path, output, **more), job))


def records(dataset):
    return [r for i in range(len(dataset.shards)) for r in dataset.records(i)]


def ids(dataset):
    return [r.id for r in records(dataset)]


def written(folder, texts, files=3):
    """A dataset of texts by way of JSON Lines."""
    (folder / "in").mkdir(parents=True, exist_ok=True)
    for k in range(files):
        (folder / "in" / f"{k}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts[k::files]))
    r = parse(Recipe, {"name": "raw", "source": {"jsonl": {"path": str(folder / "in")}}, "output": str(folder / "a"), "engine": "local"})
    with open_job("local") as job:
        return Dataset.open(Curate("text").run(r, job))


TEXTS = [f"{'word ' * (i % 7 + 1)}{i % 5}" for i in range(60)]


@pytest.mark.parametrize("kind", KINDS)
def test_without_filters_every_record_is_the_one_it_was(tmp_path, kind):
    before = Dataset.open(scattered(tmp_path / "a", kind))
    after = make(before.path, tmp_path / "b", kind)
    assert told(after) == told(before) and after.data == kind and check(after.path, {"deep": True}) == []
    assert [s.records for s in after.shards] == [s.records for s in before.shards], "a part is a shard of the parent"


def test_raw_files_to_a_dataset_to_a_filtered_one(tmp_path):
    a = written(tmp_path, TEXTS)
    b = make(a.path, tmp_path / "b", filters=[{"text_length": {"min_words": 4}}])
    kept = [r for r in records(a) if len(r.segments[0].text.split()) >= 4]
    assert ids(b) == [r.id for r in kept] and 0 < len(kept) < 60
    assert {r.source for r in records(b)} == {"raw"} and set(b.card["sources"]) == {"raw"}
    assert b.card["in"] == 60 and b.card["written"] + sum(b.card["filtered"].values()) == 60


def test_whole_dataset_stages_run_on_it_and_twins_go(tmp_path):
    a = written(tmp_path, TEXTS)
    b = make(a.path, tmp_path / "b", across=["exact_text"], keep_dropped=True)
    assert len({r.segments[0].text for r in records(a)}) == len(ids(b)) < 60 and set(ids(b)) < set(ids(a))
    assert b.card["filtered"] == {"exact_text": 60 - len(ids(b))} and check(b.path, {"deep": True}) == []
    dropped = Dataset.open(f"{b.path}/dropped")
    assert sorted(ids(b) + ids(dropped)) == sorted(ids(a))
    assert b.card["parents"] == [{"path": "../a", "fingerprint": a.fingerprint}]
    assert dropped.card["parents"] == [{"path": "../../a", "fingerprint": a.fingerprint}], "the same parent, seen from below"


def test_pairs_with_the_same_caption_are_twins_too_and_pictures_come_along(tmp_path):
    """Captions of toys repeat every eight."""
    a = Dataset.open(scattered(tmp_path / "a", "image-text", [5, 5, 5, 5]))
    b = make(a.path, tmp_path / "b", "image-text", across=["exact_text"])
    assert len(ids(b)) == 8 and set(ids(b)) < set(ids(a)) and b.card["filtered"] == {"exact_text": 12}
    of = {row[0]["id"]: row for row in told(a)}
    assert told(b) == [of[i] for i in ids(b)] and b.card["parents"][0]["path"] == "../a" and check(b.path, {"deep": True}) == []


def test_pictures_are_resized_under_their_old_ids(tmp_path):
    a = Dataset.open(scattered(tmp_path / "a", "image-text"))
    b = make(a.path, tmp_path / "b", "image-text", transforms=[{"resize_image": {"size": 16, "mode": "center_crop"}}])
    assert ids(b) == ids(a) and {r.segments[0].shape for r in records(b)} == {(16, 16, 3)}
    same = ("group", "origin", "url", "licence", "phash", "scores", "fields")
    assert [[getattr(r, k) for k in same] for r in records(b)] == [[getattr(r, k) for k in same] for r in records(a)]


def test_a_scored_dataset_is_filtered_by_its_scores(tmp_path):
    a = Dataset.open(scattered(tmp_path / "a", "image-text", [6, 6]))
    s = Dataset.open(scored(tmp_path / "s", a.path))
    b = make(s.path, tmp_path / "b", "image-text", filters=[{"score_range": {"scores": {"aesthetic": {"min": 1.0}}}}])
    wanted = [r.id for r in records(s) if r.scores["aesthetic"] >= 1.0]
    assert ids(b) == wanted and 0 < len(wanted) < 12 and not any(x.borrowed for x in b.shards)
    shutil.rmtree(a.path)
    shutil.rmtree(s.path)
    assert check(b.path, {"deep": True}) == [], "its pictures are its own"


def test_lineage_and_trace_go_back_to_the_raw_file(tmp_path, capfd):
    a = written(tmp_path, TEXTS)
    b = make(a.path, tmp_path / "b", filters=[{"text_length": {"min_words": 4}}])
    c = compact(b.path, tmp_path / "c", 10**6)
    capfd.readouterr()
    assert main(["stats", c.path, "--json"]) == 0
    lineage = json.loads(capfd.readouterr().out)["lineage"]
    assert [(Path(p["path"]).name, p["found"]) for p in lineage] == [("b", "yes"), ("a", "yes")]
    last = records(c)[-1]
    assert main(["trace", last.id, c.path, "--json"]) == 0
    trail = json.loads(capfd.readouterr().out)["trail"]
    assert [(t["at"], Path(t.get("path", "")).name) for t in trail] == [("source", ""), ("dataset", "a"), ("dataset", "b"), ("dataset", "c")]
    assert trail[0]["kind"] == "jsonl" and trail[0]["there"] and trail[0]["file"].endswith(last.origin.partition("#")[0])


def test_what_was_forgotten_is_rejected_and_a_later_tombstone_costs_one_part(tmp_path):
    a = Dataset.open(scattered(tmp_path / "a", "text", [3, 3, 3]))
    rows = ids(a)
    forget(a.path, id=rows[1])
    b = make(a.path, tmp_path / "b")
    assert ids(b) == [i for i in rows if i != rows[1]] and b.card["rejected"] == {"tombstone": 1} and b.card["in"] == 9
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b" / "parts").glob("*")}
    forget(a.path, url=records(a)[7].url)
    b = make(a.path, tmp_path / "b")
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b" / "parts").glob("*")}
    assert [n for n in sorted(after) if after[n] != before[n]] == ["00002.json"]
    assert ids(b) == [i for i in rows if i not in (rows[1], rows[7])] and check(b.path, {"deep": True}) == []


def test_when_the_parent_grows_only_what_is_new_is_read(tmp_path):
    written(tmp_path, TEXTS)
    b = make(tmp_path / "a", tmp_path / "b")
    first, old = b.fingerprint, {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b" / "parts").glob("*")}
    (tmp_path / "in" / "3.jsonl").write_text('{"text": "one more"}\n')
    a = Dataset.open(str(tmp_path / "a"))
    r = parse(Recipe, {"name": "raw", "source": {"jsonl": {"path": str(tmp_path / "in")}}, "output": a.path, "engine": "local"})
    with open_job("local") as job:
        Curate("text").run(r, job)
    b = make(tmp_path / "a", tmp_path / "b")
    new = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b" / "parts").glob("*")}
    assert [n for n in new if new[n] != old.get(n)] == ["00003.json"] and b.card["records"] == 61
    assert b.card["parents"][0]["fingerprint"] == Dataset.open(a.path).fingerprint != a.fingerprint
    assert Dataset.open(b.path, first).card["records"] == 60, "the snapshot before is still there"


def test_a_failure_at_any_step_is_resumed_to_the_same_bytes(tmp_path, monkeypatch):
    scattered(tmp_path / "a", "image-text", [2, 2])
    filters = [{"caption_length": {"min_words": 2}}]
    golden = make(tmp_path / "a", tmp_path / "golden", "image-text", filters=filters)
    k = 0
    for k in range(1, 1000, 6):
        storage.failpoint_steps(reset=True)
        monkeypatch.setenv("HEADWATER_FAIL_AT", str(k))
        try:
            make(tmp_path / "a", tmp_path / f"b{k}", "image-text", filters=filters)
            break
        except StorageError:
            monkeypatch.delenv("HEADWATER_FAIL_AT")
            assert make(tmp_path / "a", tmp_path / f"b{k}", "image-text", filters=filters).shards == golden.shards
        finally:
            monkeypatch.delenv("HEADWATER_FAIL_AT", raising=False)
    assert 30 < k < 999


def test_a_second_run_writes_nothing_and_a_moved_parent_is_the_same_parent(tmp_path):
    scattered(tmp_path / "a", "vqa")
    make(tmp_path / "a", tmp_path / "b", "vqa")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "b").rglob("*")}
    make(tmp_path / "a", tmp_path / "b", "vqa")
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    make(tmp_path / "elsewhere", tmp_path / "b", "vqa")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "b").rglob("*")} == before


def test_encoded_datasets_other_kinds_and_the_parents_own_place_are_refused(tmp_path):
    scattered(tmp_path / "a", "text")
    scattered(tmp_path / "e", "text", encoded=True)
    with pytest.raises(InputError, match="encoded dataset") as e:
        make(tmp_path / "e", tmp_path / "b")
    assert e.value.exit == 2 and not (tmp_path / "b").exists()
    with pytest.raises(RecipeError, match="another kind of record"):
        make(tmp_path / "a", tmp_path / "b", "vqa")
    with pytest.raises(InputError, match="no artifact here"):
        make(tmp_path / "nowhere", tmp_path / "b")
    with pytest.raises(ConflictError):
        make(tmp_path / "a", tmp_path / "a")


def read_96_mib(at, output):
    source = recipe(at, output).source
    (part,) = source.parts()
    assert sum(len(r.segments[0].payload) for r in source.read(part.spec, "x")) == 96 << 20


def test_a_shard_is_never_in_memory_whole(tmp_path):
    commits = []
    with PartWriter(str(tmp_path / "a"), 0, fingerprint=fingerprint("a")) as w:
        for i in range(96):
            w.emit()
            w.add(Record.make("s", f"{i}", "image-text", [Image(i.to_bytes(4, "big") * (1 << 18), atom=0, shape=(1, 1, 3))]))
        commits.append(w.commit())
    toys.seal(str(tmp_path / "a"), "s", "image-text", commits, {})
    peak = peak_bytes(read_96_mib, tmp_path / "a", tmp_path / "b") >> 20
    assert peak < 48, f"{peak} MiB"
