"""Compacting changes file names and places and nothing else: the same records in the same order, whoever runs it and however often it dies."""

import json
import os
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.check_dataset import check
from pipelines.compact import STAGE, Compact
from pipelines.compact_runs import find_runs, weights
from pipelines.curate import Curate
from pipelines.engine import open_job
from pipelines.format import rows, storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import fingerprint, parse
from pipelines.format.errors import RecipeError, StorageError, VerifyError
from pipelines.format.part import PartWriter
from pipelines.format.record import Image, Record, Text
from pipelines.format.shard import Foreign
from pipelines.recipe import Recipe
from tests import toys
from tests.peak import peak_bytes

KINDS = ("text", "image-text", "video", "action-video", "vqa")
MOVED = {"key", "segments"}  # of the segments only member and offset, which `told` leaves out


def scattered(root, data="image-text", counts=(2, 1, 3, 1, 1, 2), encoded=False, change=lambda r: r, **kept):
    """A dataset with counts[p] records in part p, their scores and the like filled in."""
    commits, n = [], 0
    for part, count in enumerate(counts):
        with PartWriter(str(root), part, fingerprint=fingerprint([data, part]), encoded=encoded, **kept) as w:
            for i in range(n, n + count):
                r = replace(toys.record(data, i), url=f"https://a.example/{i}", licence="CC0-1.0", phash=i * 2**40, scores={"clip": 0.1 * i})
                w.emit()
                w.add(change(toys.encode(r) if encoded else r))
            commits.append(w.commit())
        n += count
    return toys.seal(str(root), "toy", data, commits, {}, {"text": {"vocab": 55}} if encoded else None)


def compact(dataset, output, shard_bytes, job=None, **more):
    config = parse(Compact, {"dataset": str(dataset), "output": str(output), "shard_bytes": shard_bytes, "engine": "local", **more})
    if job is not None:
        return Dataset.open(STAGE.run(config, job))
    with open_job("local") as here:
        return Dataset.open(STAGE.run(config, here))


def told(dataset):
    """Everything that must not change: every flat column, and every segment with its payload in place of where it lies."""
    out = []
    for i in range(len(dataset.shards)):
        for row, r in zip(dataset.rows(i), dataset.records(i, payloads=True), strict=True):
            curated_image = lambda s: s.kind == "image"
            out.append(
                (
                    {k: v for k, v in row.items() if k not in MOVED},
                    [replace(s, offset=None, member=None if curated_image(s) else s.member) for s in r.segments],
                    [s.payload for s in r.segments],
                )
            )
    return out


def payloads(dataset, i):
    return {s.payload for r in dataset.records(i, payloads=True) for s in r.segments if s.payload is not None}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(KINDS),
    st.booleans(),
    st.lists(st.integers(1, 4), min_size=1, max_size=8),
    st.integers(1, 20_000),
    st.integers(200, 10_000),
)
def test_the_same_records_in_the_same_order_and_nothing_else_changed(tmp_path_factory, data, encoded, counts, before_bytes, shard_bytes):
    root = tmp_path_factory.mktemp("c")
    before = Dataset.open(scattered(root / "a", data, counts, encoded, shard_bytes=before_bytes))
    after = compact(before.path, root / "b", shard_bytes)
    assert told(after) == told(before)
    assert after.card["in"] == after.card["written"] == before.card["records"] and after.encoding == before.encoding
    assert check(after.path, {"deep": True}) == []
    keys = [row["key"] for i in range(len(after.shards)) for row in after.rows(i)]
    assert len(set(keys)) == len(keys) == sum(counts) and keys == sorted(keys)
    for i, s in enumerate(after.shards):
        held = payloads(after, i)
        stored = (s.data_bytes or 0) + (s.tokens_bytes or 0)
        overhead = 64 if encoded else 1024
        slack = 0 if encoded else 1024 + 3 * 1024 * s.records  # a tar's end, and each record's JSON
        assert stored <= sum(len(p) + overhead for p in held) + slack, "each distinct payload once"
    again = compact(after.path, root / "c", shard_bytes)
    assert told(again) == told(before)
    largest = max(w / s.records for w, s in zip(weights(after), after.shards, strict=True))
    assert shard_bytes < 8 * largest or len(again.shards) <= len(after.shards), "crumbs come only of records that are large for their shards"


@pytest.mark.parametrize("data", KINDS)
@pytest.mark.parametrize("encoded", [False, True])
def test_what_was_compacted_is_compact_and_costs_no_second_copy(tmp_path, data, encoded, capfd):
    number = iter(range(10**6))

    def own(r):  # no two records share bytes, so weights add up exactly
        segments = [replace(s, text=f"{next(number):08d}") if s.text else s for s in r.segments]
        return replace(r, segments=tuple(replace(s, payload=s.payload + b"%08d" % next(number)) if s.payload else s for s in segments))

    scattered(tmp_path / "a", data, [1] * 40, encoded, own)
    limit = sum(weights(Dataset.open(str(tmp_path / "a")))) // 8
    once = compact(tmp_path / "a", tmp_path / "b", limit)
    assert 8 <= len(once.shards) <= 14
    capfd.readouterr()
    again = compact(once.path, tmp_path / "deep" / "c", limit)
    assert "already compact" in capfd.readouterr().err
    assert again.path != once.path and again.shards == once.shards and told(again) == told(once) and check(again.path, {"deep": True}) == []
    assert again.card["parents"][0]["path"] == "../../b" and again.card["in"] == again.card["written"] == 40
    for s in again.shards:
        assert os.path.samefile(f"{again.path}/{s.index}", f"{once.path}/{s.index}"), "linked, not copied"
    shutil.rmtree(once.path)
    assert check(again.path, {"deep": True}) == [], "each stands without the other"


def test_links_across_stores_are_copies_and_a_damaged_file_is_found(tmp_path, s3_bucket):
    once = compact(scattered(tmp_path / "a", "text", [1] * 6), tmp_path / "b", 300)
    far = compact(once.path, f"{s3_bucket}/linked/c", 300)
    assert far.shards == once.shards and told(far) == told(once) and check(far.path, {"deep": True}) == []
    victim = tmp_path / "b" / once.shards[0].index
    raw = bytearray(victim.read_bytes())
    raw[20] ^= 1
    for damaged, said in ((bytes(raw), "differs from what its card says"), (bytes(len(raw)), "cannot be read")):
        victim.write_bytes(damaged)
        with pytest.raises(VerifyError, match=said):
            compact(once.path, f"{s3_bucket}/linked/d", 300)
    assert not storage.exists(f"{s3_bucket}/linked/d/manifest.json")


def test_parts_of_an_earlier_run_that_are_no_more_are_cleared(tmp_path):
    """A dataset that was compact, and so linked part by part, has grown by shards that are joined."""
    r = {"name": "t", "source": {"jsonl": {"path": str(tmp_path / "in")}}, "output": str(tmp_path / "a"), "engine": "local"}
    (tmp_path / "in").mkdir()
    for k, text in enumerate(["long " * 40, "", "long " * 40]):  # the part in the middle has no shard
        (tmp_path / "in" / f"{k}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    for more in (0, 5):
        for k in range(more):
            (tmp_path / "in" / f"1{k}.jsonl").write_text(json.dumps({"text": f"short {k}"}) + "\n")
        with open_job("local") as job:
            Curate("text").run(parse(Recipe, r), job)
        after = compact(tmp_path / "a", tmp_path / "b", 200)
        assert told(after) == told(Dataset.open(str(tmp_path / "a"))) and check(after.path, {"deep": True}) == []
    assert len(after.shards) < 7


@pytest.mark.parametrize("data", ["text", "image-text"])
def test_weights_are_what_writers_count_and_a_natural_dataset_is_compact(tmp_path, data):
    with PartWriter(str(tmp_path), 0, fingerprint="x", shard_bytes=5_000) as w:
        for i in range(60):
            r = toys.record(data, i)
            w.emit()
            w.add(replace(r, segments=tuple(replace(s, text="水" * 80) if s.text else s for s in r.segments)))
        commit = w.commit()
    ds = Dataset.open(toys.seal(str(tmp_path), "s", data, [commit], {}))
    sizes = weights(ds)
    assert len(sizes) > 2 and all(5_000 <= size < 7_500 for size in sizes[:-1]), sizes
    assert all(r.pieces == r.stop - r.first == 1 for r in find_runs(ds.shards[:-1], sizes[:-1], 5_000))


class Row:
    foreign, data, records = False, None, 10**6


@given(st.lists(st.integers(0, 5_000), max_size=60), st.integers(1, 3_000))
def test_runs_cover_the_table_in_order_and_pieces_are_neither_crumbs_nor_giants(sizes, limit):
    runs = find_runs([Row] * len(sizes), sizes, limit)
    assert [i for r in runs for i in range(r.first, r.stop)] == list(range(len(sizes)))
    for r in runs:
        total = sum(sizes[r.first : r.stop])
        if r.pieces > 1:
            assert limit * 2 / 3 <= total / r.pieces <= limit * 1.5 and r.roll == -(-total // r.pieces)
        elif r.stop - r.first > 1:
            assert total <= limit
    for a, b in pairwise(runs):
        last = sum(sizes[a.first : a.stop]) / a.pieces
        assert last + sizes[b.first] > limit - 1, "neighbours that fit would have been joined"


def test_one_large_shard_becomes_even_ones(tmp_path):
    scattered(tmp_path / "a", "text", [100, 1])
    size = sum(weights(Dataset.open(str(tmp_path / "a"))))
    after = compact(tmp_path / "a", tmp_path / "b", -(-size // 4))
    assert [s.records for s in after.shards] == pytest.approx([101 / 4] * 4, abs=3)
    assert told(after) == told(Dataset.open(str(tmp_path / "a")))


def test_the_webdataset_library_reads_what_comes_of_it(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    scattered(tmp_path / "a", "vqa", [1] * 9)
    after = compact(tmp_path / "a", tmp_path / "b", 20_000)
    tars = [f"{after.path}/{s.data}" for s in after.shards]
    assert len(tars) < 9
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    records = [r for i in range(len(tars)) for r in after.records(i, payloads=True)]
    assert [s["__key__"] for s in samples] == [row["key"] for i in range(len(tars)) for row in after.rows(i)]
    assert [s["0.jpg"] for s in samples] == [r.segments[0].payload for r in records]


def test_frames_that_shards_had_each_for_themselves_are_stored_once(tmp_path):
    same = toys.jpeg(1, 64)
    share = lambda r: replace(r, segments=tuple(replace(s, payload=same) if s.payload else s for s in r.segments))
    before = Dataset.open(scattered(tmp_path / "a", "video", [1] * 20, change=share))
    after = compact(before.path, tmp_path / "b", 10**6)
    (shard,) = after.shards
    assert shard.data_bytes < len(same) + 20 * 2048 + 4096 < sum(s.data_bytes for s in before.shards)
    assert told(after) == told(before)


def scored(root, of, each=2):
    """The rows of a dataset with a score more, `each` in a part, their pictures where they lie: what `pipelines run score` writes."""
    parent, commits = Dataset.open(str(of)), []
    for i, s in enumerate(parent.shards):
        found = list(parent.rows(i))
        name = storage.relative(f"{parent.path}/{s.data}", str(root))
        for k in range(0, len(found), each):
            foreign = Foreign(name, s.data_bytes, s.data_sha256) if s.data else None
            with PartWriter(str(root), len(commits), fingerprint="x", foreign_data=foreign) as w:
                for row in found[k : k + each]:
                    w.emit()
                    w.keep({**row, "scores": [("aesthetic", 0.5 * k), *row["scores"]]})
                commits.append(w.commit())
    return toys.seal(str(root), "toy", parent.data, commits, {})


@pytest.mark.parametrize("data", ["text", "vqa", "video"])
def test_a_scored_dataset_comes_to_stand_alone_and_what_it_points_at_is_left_alone(tmp_path, data):
    a = Dataset.open(scattered(tmp_path / "a", data, [6, 6]))
    s = Dataset.open(scored(tmp_path / "deep" / "s", a.path))
    assert len(s.shards) == 6 and all(x.borrowed == (data != "text") for x in s.shards)
    before, theirs = told(s), files(a.path)
    size = sum(weights(s))
    assert size == pytest.approx(sum(weights(a)), rel=0.5), "each picture counts once and not each tar"
    for limit, out in ((10**6, "c"), (max(weights(s)), "one")):
        c = compact(s.path, tmp_path / out, limit)
        assert told(c) == before and not any(x.borrowed for x in c.shards) and check(c.path, {"deep": True}) == []
    assert files(a.path) == theirs
    shutil.rmtree(a.path)
    assert told(Dataset.open(str(tmp_path / "c"))) == before


# ---- whoever runs it, and however often it dies ---------------------------------------------------------------------------------------------


class Backwards:
    """A job whose parts are finished in another order."""

    def __init__(self, job):
        self.job = job

    def __getattr__(self, name):
        return getattr(self.job, name)

    def map(self, chain, items):
        return self.job.map(chain, items[::-1])


def files(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in Path(root).rglob("*") if p.is_file() and p.name != "log.jsonl"}


def test_the_order_of_parts_changes_no_byte(tmp_path):
    scattered(tmp_path / "a", "action-video")
    golden = compact(tmp_path / "a", tmp_path / "b", 10_000)
    with open_job("local") as job:
        compact(tmp_path / "a", tmp_path / "b2", 10_000, Backwards(job))
    mine, theirs = files(golden.path), files(tmp_path / "b2")
    assert len(golden.shards) > 1 and mine.pop("manifest.json") and theirs.pop("manifest.json") and mine == theirs  # the recipe names `output`


@pytest.mark.parametrize("encoded", [False, True])
def test_a_failure_at_any_step_is_resumed_to_the_same_bytes(tmp_path, monkeypatch, encoded):
    scattered(tmp_path / "a", "image-text", [1, 1, 1, 1], encoded)
    limit = sum(weights(Dataset.open(str(tmp_path / "a")))) // 2
    golden = compact(tmp_path / "a", tmp_path / "golden", limit)
    assert 1 < len(golden.shards) < 4
    k = 0
    for k in range(1, 1000, 5 if encoded else 4):
        storage.failpoint_steps(reset=True)
        monkeypatch.setenv("HEADWATER_FAIL_AT", str(k))
        try:
            compact(tmp_path / "a", tmp_path / f"b{k}", limit)
            break
        except StorageError:
            monkeypatch.delenv("HEADWATER_FAIL_AT")
            assert not (tmp_path / f"b{k}" / "manifest.json").exists() or check(str(tmp_path / f"b{k}"), {"deep": True}) == []
            resumed = compact(tmp_path / "a", tmp_path / f"b{k}", limit)
            assert resumed.shards == golden.shards and resumed.fingerprint == golden.fingerprint
        finally:
            monkeypatch.delenv("HEADWATER_FAIL_AT", raising=False)
    assert 30 < k < 999


def test_only_what_is_missing_is_made_again_and_a_second_run_writes_nothing(tmp_path):
    scattered(tmp_path / "a")
    after = compact(tmp_path / "a", tmp_path / "b", 5_000)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "b").rglob("*")}
    compact(tmp_path / "a", tmp_path / "b", 5_000)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "b").rglob("*")} == before
    victim = tmp_path / "b" / str(after.shards[1].data)
    victim.unlink()
    compact(tmp_path / "a", tmp_path / "b", 5_000)
    assert victim.exists() and all(p.stat().st_mtime_ns == t for p, t in before.items() if p.name.startswith("data-") and p != victim)


def test_a_dataset_that_was_moved_is_not_copied_again(tmp_path):
    scattered(tmp_path / "a")
    compact(tmp_path / "a", tmp_path / "b", 5_000)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "b").glob("*-*")}
    os.rename(tmp_path / "a", tmp_path / "elsewhere")
    compact(tmp_path / "elsewhere", tmp_path / "b", 5_000)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "b").glob("*-*")} == before


@pytest.mark.ray
def test_ray_makes_the_same_bytes(tmp_path, ray_session):
    scattered(tmp_path / "a", "vqa")
    golden = compact(tmp_path / "a", tmp_path / "b", 5_000)
    with open_job("ray") as job:
        assert compact(tmp_path / "a", tmp_path / "b2", 5_000, job).shards == golden.shards


def test_it_runs_on_an_object_store(tmp_path, s3_bucket):
    scattered(tmp_path / "a", "text")
    scattered(f"{s3_bucket}/compact/a", "text")
    golden = compact(tmp_path / "a", tmp_path / "b", 400)
    assert compact(f"{s3_bucket}/compact/a", f"{s3_bucket}/compact/b", 400).shards == golden.shards


# ---- damage, forgetting, memory ---------------------------------------------------------------------------------------------------------------


def test_damage_is_never_given_a_new_hash(tmp_path):
    before = Dataset.open(scattered(tmp_path / "a"))
    (s,) = [s for s in next(before.records(2)).segments if s.offset is not None]
    path = tmp_path / "a" / str(before.shards[2].data)
    raw = bytearray(path.read_bytes())
    raw[s.offset + 100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(VerifyError, match="not those that its index names"):
        compact(tmp_path / "a", tmp_path / "b", 10**6)
    assert not (tmp_path / "b" / "manifest.json").exists() and not list((tmp_path / "b").glob("data-*"))


def forget(root, **named):
    from pipelines.tombstones import add

    add(Dataset.open(str(root)), {k: [v] for k, v in named.items()}, "asked")


def test_what_was_forgotten_is_left_out_counted_and_gone_from_the_bytes(tmp_path):
    before = Dataset.open(scattered(tmp_path / "a", "image-text", [3, 3, 3]))
    rows = [row for i in range(3) for row in before.rows(i)]
    gone = {"id": rows[0]["id"], "url": rows[2]["url"], "sha256": rows[4]["sha256"], "phash": rows[8]["phash"]}
    for key, value in gone.items():
        forget(tmp_path / "a", **{key: value})
    after = compact(tmp_path / "a", tmp_path / "b", 10**6)
    assert [r.id for i in range(len(after.shards)) for r in after.records(i)] == [rows[i]["id"] for i in (1, 3, 5, 6, 7)]
    assert after.card["in"] == 9 and after.card["written"] == 5 and after.card["filtered"] == {"tombstone": 4}
    assert "tombstones" not in after.card and check(after.path, {"deep": True}) == []
    whole = b"".join((tmp_path / "b" / str(s.data)).read_bytes() for s in after.shards)
    left = {i: toys.jpeg(i) in whole for i in range(9)}
    assert [i for i, there in left.items() if there] == [1, 3, 5, 6, 7]


def test_a_later_tombstone_makes_anew_only_the_part_that_holds_what_it_names(tmp_path):
    before = Dataset.open(scattered(tmp_path / "a", "image-text", [2] * 8))
    once = compact(tmp_path / "a", tmp_path / "b", 12_000)
    assert len(once.shards) > 2
    old = {p: p.stat().st_mtime_ns for p in (tmp_path / "b" / "parts").glob("*")}
    forget(tmp_path / "a", id=next(before.records(0)).id)
    again = compact(tmp_path / "a", tmp_path / "b", 12_000)
    new = {p: p.stat().st_mtime_ns for p in (tmp_path / "b" / "parts").glob("*")}
    assert {p.name for p in new if new[p] != old[p]} == {"00000.json"} and again.card["filtered"] == {"tombstone": 1}
    assert again.shards[1:] == once.shards[1:] and check(again.path, {"deep": True}) == []


def compacted_in_small_groups(before, after):
    rows.GROUP_BYTES = 2 << 20  # in a process of its own
    compact(before, after, 256 << 20)


def test_memory_does_not_grow_with_shards(tmp_path):
    """96 payloads of 1 MiB, of which 16 MiB may stay in memory; and 60 MiB of text, in row groups of 2 MiB. Imports of the process count too."""
    big = lambda i: Image(i.to_bytes(4, "big") * (1 << 18), atom=0, shape=(1, 1, 3))
    prose = lambda i: Text(f"{i:07d} " * 512)
    for data, n, parts, one, most in (("image-text", 96, 8, big, 48), ("text", 16_000, 20, prose, 40)):
        commits = []
        for part in range(parts):
            with PartWriter(str(tmp_path / data), part, fingerprint="x") as w:
                for i in range(part * n // parts, (part + 1) * n // parts):
                    w.emit()
                    w.add(Record.make("s", f"{i}", data, [one(i)]))
                commits.append(w.commit())
        toys.seal(str(tmp_path / data), "s", data, commits, {})
        peak = peak_bytes(compacted_in_small_groups, tmp_path / data, tmp_path / f"{data}-c") >> 20
        after = Dataset.open(str(tmp_path / f"{data}-c"))
        assert len(after.shards) == 1 and after.card["records"] == n
        assert peak < most, f"{peak} MiB for {data}"


def test_it_says_what_it_would_do_and_refuses_itself(tmp_path):
    scattered(tmp_path / "a", "text", [1] * 30)
    config = parse(Compact, {"dataset": str(tmp_path / "a"), "output": str(tmp_path / "b"), "shard_bytes": 1_000})
    said = STAGE.plan(config)
    assert said.facts["shards"] == 30 and said.facts["bytes"] == sum(weights(Dataset.open(str(tmp_path / "a"))))
    assert said.facts["shards_after"] == len(compact(tmp_path / "a", tmp_path / "b", 1_000).shards) and not said.warnings
    assert "already compact" in STAGE.plan(config.model_copy(update={"dataset": str(tmp_path / "b")})).warnings[0]
    with pytest.raises(RecipeError, match="into itself"):
        compact(tmp_path / "a", tmp_path / "a", 1_000)


def test_pictures_that_a_scored_dataset_left_with_its_parent_are_brought_home(tmp_path):
    before = Dataset.open(scattered(tmp_path / "a", "image-text", [3, 2]))
    commits = []
    for part, shard in enumerate(before.shards):
        there = Foreign(f"../a/{shard.data}", shard.data_bytes, shard.data_sha256)
        with PartWriter(str(tmp_path / "b"), part, fingerprint="x", foreign_data=there) as w:
            for row in before.rows(part):
                w.emit()
                w.keep({**row, "scores": [("clip", 0.25)]})
            commits.append(w.commit())
    toys.seal(str(tmp_path / "b"), "toy", "image-text", commits, {})
    scored = Dataset.open(str(tmp_path / "b"))
    for limit in (1, 256 << 20):
        home = compact(scored.path, tmp_path / f"c{limit}", limit)
        assert told(home) == told(scored) and check(home.path, {"deep": True}) == []
        assert not any(s.borrowed for s in home.shards) and all(s.borrowed for s in scored.shards)
