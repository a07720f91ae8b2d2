"""Plans in an object store: the batches of the local ones, through a cache that is checked, while the store misbehaves."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import toyplan

from mixtures.plan import Plan
from pipelines.format import again
from pipelines.format.cache import Cache
from pipelines.format.errors import TemporaryError, VerifyError
from trainer import remote as remote_
from trainer.batch import Batch
from trainer.loop import train
from trainer.remote import merged, trips
from trainer.stream import Reading, Stream

BATCH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toyplan")
    toyplan.make(root, tokens=900, n=60)
    return root


@pytest.fixture(scope="module")
def there(folder: Path, s3_bucket: str) -> Plan:
    """The same plan and datasets on S3."""
    fs = fsspec.filesystem("s3")
    for path in folder.rglob("*"):
        if path.is_file():
            fs.put_file(str(path), f"{s3_bucket[5:]}/streams/{path.relative_to(folder)}")
    return Plan.open(f"{s3_bucket}/streams/plan")


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[Batch]:
    return [batch for batch, _ in Stream(Plan.open(str(folder / "plan")), BATCH)]


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in Batch.__slots__)


def read(plan: Plan, cache: Path, limit: int = 1 << 30, **more: int) -> tuple[list[Batch], Stream]:
    """A stream over a plan opened anew, so that nothing of an earlier one is in memory."""
    stream = Stream(Plan(plan.path, plan.card), BATCH, reading=Reading(cache_dir=str(cache), cache_bytes=limit, **more))
    return [batch for batch, _ in stream], stream


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_a_store_are_those_from_disk_and_a_second_time_nothing_is_fetched(
    there: Plan, plain: list[Batch], tmp_path: Path, workers: int
) -> None:
    first, stream = read(there, tmp_path, workers=workers)
    assert len(first) == len(plain) and all(same(a, b) for a, b in zip(first, plain, strict=True))
    again_, stream = read(there, tmp_path)
    assert all(same(a, b) for a, b in zip(again_, plain, strict=True))
    assert stream.reader.remote.gets == 0


def test_what_is_fetched_is_fetched_in_few_reads_and_once(there: Plan, tmp_path: Path) -> None:
    _, stream = read(there, tmp_path)
    fetched = stream.reader.remote
    files = sum((s.tokens_bytes or 0) + (s.data_bytes or 0) + s.index_bytes for d in stream.reader.plan.datasets for s in d.shards)
    assert fetched.kept <= files and fetched.gets <= 2 * 11  # four indexes, seven data files: one read each, or two where a step could not wait


def faults(monkeypatch: pytest.MonkeyPatch, share: float, kinds: tuple[str, ...] = ("reset", "payload", "short")) -> list[str]:
    """Make a share of all reads of S3 fail: an error, a client's own kind of error, or a body that ends early."""
    fs = fsspec.filesystem("s3", use_listings_cache=False)  # the one object that storage reads by
    drawn, seen, whole = random.Random(5), [], fs.cat_file
    payload = type("ClientPayloadError", (Exception,), {"__module__": "aiohttp.client_exceptions"})

    def flaky(path: str, start: int | None = None, end: int | None = None) -> bytes:
        kind = drawn.choice(kinds) if drawn.random() < share else ""
        seen.append(kind)
        if kind == "reset":
            raise ConnectionResetError("by peer")
        if kind == "payload":
            raise payload("not enough data")
        data: bytes = whole(path, start=start, end=end)
        return data[: len(data) // 2] if kind == "short" and end is not None else data

    monkeypatch.setattr(fs, "cat_file", flaky)
    monkeypatch.setattr(again, "FIRST_WAIT", 0.001)
    return seen


def test_one_read_in_five_fails_and_no_batch_is_lost_or_changed(
    there: Plan, plain: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = faults(monkeypatch, 0.2)
    for i in range(8):
        made, _ = read(there, tmp_path / str(i))
        assert len(made) == len(plain) and all(same(a, b) for a, b in zip(made, plain, strict=True))
    bad = sum(map(bool, seen))
    assert bad > 20 and {"reset", "payload", "short"} <= set(seen)


def test_a_store_that_is_gone_ends_the_run_with_a_status_that_says_later(there: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(there.path, there.card)
    assert plan.datasets and plan.row(0)  # cards and rows are read while there is a store
    stream = Stream(plan, BATCH, reading=Reading(cache_dir=str(tmp_path), cache_bytes=1 << 30))
    faults(monkeypatch, 1.0, ("reset", "payload"))
    with pytest.raises(TemporaryError, match="failed 8 times") as caught:
        stream.at(0)
    assert caught.value.exit == 75


def hauls(cache: Path) -> Iterator[Path]:
    return cache.glob("*/*-*")


def test_a_flipped_byte_anywhere_in_the_cache_is_noticed_and_fetched_again(there: Plan, plain: list[Batch], tmp_path: Path) -> None:
    read(there, tmp_path)
    drawn, files = random.Random(3), sorted(hauls(tmp_path))
    for file in files:
        data = bytearray(file.read_bytes())
        data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
        file.write_bytes(data)
    made, stream = read(there, tmp_path)
    assert all(same(a, b) for a, b in zip(made, plain, strict=True))
    assert stream.reader.remote.cache.damaged + stream.reader.remote.gets >= len(files)
    assert read(there, tmp_path)[1].reader.remote.gets == 0  # what was fetched anew stays


def test_a_byte_flipped_under_a_running_stream_is_noticed_at_the_next_read(there: Plan, plain: list[Batch], tmp_path: Path) -> None:
    stream = Stream(Plan(there.path, there.card), BATCH, reading=Reading(cache_dir=str(tmp_path), cache_bytes=1 << 30))
    assert same(stream.at(0), plain[0])
    for file in sorted(hauls(tmp_path)):
        data = bytearray(file.read_bytes())
        data[len(data) // 3] ^= 8
        file.write_bytes(data)
    assert all(same(stream.at(step), plain[step]) for step in range(stream.steps))
    assert stream.reader.remote.cache.damaged > 0


def test_bytes_that_the_store_itself_has_changed_are_never_trained_on(
    folder: Path, tmp_path: Path, s3_bucket: str, plain: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, root = fsspec.filesystem("s3"), f"{s3_bucket[5:]}/changed"
    for path in folder.rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            if path.name.startswith("latents") and "video" in str(path):
                data[len(data) // 2] ^= 1
            fs.pipe_file(f"{root}/{path.relative_to(folder)}", bytes(data))
    with pytest.raises(VerifyError, match="bytes differ from what its index says") as caught:
        read(Plan.open(f"s3://{root}/plan"), tmp_path)
    assert "/video" in str(caught.value.where)


def test_a_cache_far_smaller_than_the_data_gives_the_same_batches(
    there: Plan, plain: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.format.cache.LEAST", 120_000)
    made, stream = read(there, tmp_path, limit=120_000)
    assert all(same(a, b) for a, b in zip(made, plain, strict=True))
    assert stream.reader.remote.cache.room.used() <= 120_000
    assert stream.reader.remote.got > 120_000


def test_a_cache_that_is_deleted_under_a_running_stream_is_filled_again(there: Plan, plain: list[Batch], tmp_path: Path) -> None:
    stream = Stream(Plan(there.path, there.card), BATCH, reading=Reading(cache_dir=str(tmp_path / "cache"), cache_bytes=1 << 30))
    for step in range(stream.steps):
        assert same(stream.at(step), plain[step])
        if step in (1, 4):
            stream.close()  # nobody is in the middle of writing
            while (tmp_path / "cache").exists():
                shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def test_several_streams_share_a_cache_and_fetch_once(there: Plan, plain: list[Batch], tmp_path: Path) -> None:
    """Three ranks of one node, each with the others' records in view."""
    from concurrent.futures import ThreadPoolExecutor

    def rank(r: int) -> tuple[list[list[int]], int]:
        reading = Reading(cache_dir=str(tmp_path), cache_bytes=1 << 30, node=(0, 1, 2))
        stream = Stream(Plan(there.path, there.card), BATCH, r, 3, reading=reading)
        made = [batch.seq.tolist() for batch, _ in stream]
        return made, stream.reader.remote.kept

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(rank, range(3)))
    for step, batch in enumerate(plain):
        assert sorted(n for made, _ in found for n in made[step] if n >= 0) == sorted(n for n in batch.seq.tolist() if n >= 0)
    alone = read(there, tmp_path.with_name("alone"))[1].reader.remote.kept
    assert sum(kept for _, kept in found) == alone


def test_a_run_on_a_plan_in_a_store_has_the_weights_of_the_local_one(folder: Path, there: Plan, tmp_path: Path) -> None:
    from trainer.models.load import read_weights

    here = train(toyplan.run(str(folder / "plan"), tmp_path / "here", steps=6))
    how = {"cache": {"dir": str(tmp_path / "cache"), "bytes": "10M"}, "workers": 1, "verify": True}
    moved = train(toyplan.run(there.path, tmp_path / "there", steps=6, **how))
    assert here["fingerprint"] == moved["fingerprint"]
    a, b = read_weights(here["path"]), read_weights(moved["path"])
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_wanted_runs_are_joined_where_a_gap_costs_less_than_a_round_trip() -> None:
    assert merged([(0, 64), (64, 100), (128, 200), (600, 700)], 64) == [(0, 200), (600, 700)]
    gap = remote_.GAP
    assert trips([(0, 10), (gap, gap + 5), (3 * gap, 3 * gap + 1)]) == [[(0, 10), (gap, gap + 5)], [(3 * gap, 3 * gap + 1)]]


def test_local_data_files_are_checked_where_asked_for(tmp_path: Path) -> None:
    plan = Plan.open(toyplan.make(tmp_path, tokens=300, n=30))
    found = next(d for d in plan.datasets if d.shards[0].data)
    file = Path(found.path) / str(found.shards[0].data)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert len(list(Stream(Plan.open(plan.path), 4))) > 1
    with pytest.raises(VerifyError, match="differs from what its dataset says"):
        list(Stream(Plan.open(plan.path), 4, reading=Reading(verify=True)))


def test_a_piece_that_lies_in_no_cache_is_fetched_when_it_is_read(there: Plan, tmp_path: Path) -> None:
    stream = Stream(Plan(there.path, there.card), BATCH, reading=Reading(cache_dir=str(tmp_path), cache_bytes=1 << 30))
    document = stream.reader.sequence(0)[0]  # by the reader alone: nothing was brought before
    assert len(document) and stream.reader.remote.gets > 0
    assert np.isfinite(document.latents).all() and isinstance(stream.reader.remote.cache, Cache)
