"""The cache: what comes out is what went in, whoever else uses the folder, whatever happens to its files, and never more of it than allowed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.format import again, storage, verified
from pipelines.format.cache import LEAST, Cache, key_of
from pipelines.format.errors import InputError, TemporaryError, VerifyError
from pipelines.format.haul import open_checked, packed, read_table
from pipelines.format.room import Room

REPO = Path(__file__).resolve().parents[2]
KEY = key_of("s3://bucket/file", "0" * 64)


def content(start: int, stop: int) -> bytes:
    """Bytes [start, stop) of the remote file that all tests pretend to read."""
    return (np.arange(start, stop, dtype=np.int64) * 2654435761 >> 7).astype(np.uint8).tobytes()


def one(*ranges: tuple[int, int]) -> list[tuple[int, bytes]]:
    return [(a, content(a, b)) for a, b in ranges]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 300)), min_size=1, max_size=6), max_size=5))
def test_every_range_that_was_put_is_found_and_no_other(tmp_path_factory: pytest.TempPathFactory, hauls: list[list[tuple[int, int]]]) -> None:
    cache = Cache(str(tmp_path_factory.mktemp("cache")), LEAST)
    there: list[tuple[int, int]] = []
    for haul in hauls:
        pieces, last = [], -1
        for start, n in sorted(haul):
            if start > last:
                pieces.append((start, start + n))
                last = start + n
        cache.put(KEY, one(*pieces))
        there += pieces
    rng = np.random.default_rng(0)
    asked = rng.integers(0, 4300, (200, 1)) + np.append(np.zeros((200, 1), int), rng.integers(1, 120, (200, 1)), axis=1)
    lacking = cache.missing(KEY, asked[:, 0], asked[:, 1])
    for (a, b), lack in zip(asked.tolist(), lacking.tolist(), strict=True):
        held = any(x <= a and b <= y for x, y in there)
        view = cache.view(KEY, a, b)
        assert lack == (not held) and (view is None) == (not held)
        assert view is None or bytes(view) == content(a, b)


def test_what_one_process_fetched_another_finds(tmp_path: Path) -> None:
    mine, theirs = Cache(str(tmp_path), LEAST), Cache(str(tmp_path), LEAST)
    assert theirs.view(KEY, 10, 20) is None
    mine.put(KEY, one((0, 100), (200, 300)))
    assert bytes(theirs.view(KEY, 210, 290)) == content(210, 290)
    assert theirs.view(KEY, 90, 210) is None and theirs.view(key_of("s3://bucket/file", "1" * 64), 0, 10) is None


@pytest.mark.parametrize("where", ["payload", "table", "count", "cut", "empty"])
@pytest.mark.parametrize("opened", [False, True])
def test_a_changed_file_is_noticed_and_removed(tmp_path: Path, where: str, opened: bool) -> None:
    cache = Cache(str(tmp_path), LEAST)
    cache.put(KEY, one((0, 1000), (4096, 5000)))
    if opened:
        assert cache.view(KEY, 0, 10) is not None
    else:
        cache = Cache(str(tmp_path), LEAST)
    (file,) = [p for p in (tmp_path / KEY).iterdir() if p.name != "lock"]
    data = bytearray(file.read_bytes())
    if where in ("cut", "empty"):
        data = data[: len(data) // 2 if where == "cut" else 0]
    else:
        data[{"payload": 500, "table": -20, "count": -8}[where]] ^= 4
    other = tmp_path / "changed"
    other.write_bytes(data)
    os.replace(other, file)
    assert cache.view(KEY, 480, 520) is None
    assert not file.exists()
    cache.put(KEY, one((0, 1000)))
    assert bytes(cache.view(KEY, 480, 520)) == content(480, 520)


def test_the_folder_never_holds_more_than_its_limit_and_the_newest_stay(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), LEAST)
    for i in range(60):
        cache.put(key_of(f"s3://b/{i % 7}"), one((i * 10**6, i * 10**6 + 50_000 + 997 * i)))
        assert cache.room.used() <= LEAST
    newest = 59
    assert cache.view(key_of(f"s3://b/{newest % 7}"), newest * 10**6, newest * 10**6 + 10) is not None
    assert cache.view(key_of("s3://b/0"), 0, 10) is None
    assert int((tmp_path / "used").read_text()) == cache.room.used()


def test_what_was_used_lately_outlives_what_was_not(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), LEAST)
    for i in range(10):
        cache.put(KEY, one((i * 10**6, i * 10**6 + 90_000)))
    for path in (tmp_path / KEY).iterdir():
        os.utime(path, (1, 1))
    assert Cache(str(tmp_path), LEAST).view(KEY, 3 * 10**6, 3 * 10**6 + 9) is not None  # looked at now
    cache.put(KEY, one((20 * 10**6, 20 * 10**6 + 200_000)))
    left = [i for i in range(10) if not Cache(str(tmp_path), LEAST).missing(KEY, np.array([i * 10**6]), np.array([i * 10**6 + 9]))[0]]
    assert 3 in left and len(left) < 10


def test_what_is_mapped_stays_readable_when_a_neighbour_evicts_it(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), LEAST)
    cache.put(KEY, one((0, 1000)))
    view = cache.view(KEY, 0, 1000)
    for path in (tmp_path / KEY).iterdir():
        path.unlink()
    assert bytes(view) == content(0, 1000) == bytes(cache.view(KEY, 0, 1000))
    assert Cache(str(tmp_path), LEAST).view(KEY, 0, 1000) is None


def test_rubbish_of_the_dead_is_removed_by_the_next_eviction(tmp_path: Path) -> None:
    old = tmp_path / "tmp-dead"
    old.write_bytes(b"x" * 1000)
    os.utime(old, (1, 1))
    young = tmp_path / "tmp-alive"
    young.write_bytes(b"x")
    room = Room(str(tmp_path), 100)
    with room.booked(60):
        pass
    with room.booked(60) as evicted:
        assert evicted
    assert not old.exists() and young.exists()


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(str(tmp_path), LEAST)

    def full(fd: int, data: object) -> int:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Exception, match="no space left"):
        cache.put(KEY, one((0, 1000)))
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name not in ("lock", "used")]


def test_one_at_a_time_fetches_among_threads_and_processes(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pipelines.format.cache import Cache\nc = Cache(sys.argv[1], 1 << 20)\n"
        "with c.fetching('k' * 32):\n    print('in', flush=True)\n    sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPO)
    assert other.stdout is not None and other.stdin is not None and other.stdout.readline() == b"in\n"
    cache, inside = Cache(str(tmp_path), LEAST), threading.Event()

    def enter() -> None:
        with cache.fetching("k" * 32):
            inside.set()

    thread = threading.Thread(target=enter)
    thread.start()
    try:
        assert not inside.wait(0.3)
    finally:
        other.kill()  # a lock goes with its holder
        other.wait()
        thread.join(5)
        other.stdin.close()
        other.stdout.close()
    assert inside.is_set()


def test_a_cache_folder_of_somebody_else_or_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(InputError, match="somebody else"):
        Cache(str(tmp_path / "link"), LEAST)
    assert os.stat(Cache(str(tmp_path / "new"), LEAST).folder).st_mode & 0o077 == 0


def test_a_haul_reads_back_as_it_was_packed(tmp_path: Path) -> None:
    name, parts, haul = packed(one((64, 128), (1000, 1001)))
    path = tmp_path / name
    path.write_bytes(b"".join(parts))
    found = read_table(str(path))
    assert found is not None and [x.tolist() for x in found[1:]] == [x.tolist() for x in haul[1:]]
    assert open_checked(str(path)) is not None and read_table(str(tmp_path / "none")) is None


# ---- second tries, and local files checked once ---------------------------------------------------------------------------------------


class Flaky:
    def __init__(self, faults: list[Exception]) -> None:
        self.faults = faults
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.faults:
            raise self.faults.pop(0)
        return "read"


def test_passing_faults_are_tried_again_and_lasting_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(again.time, "sleep", waits.append)
    client = type("ClientPayloadError", (Exception,), {"__module__": "aiohttp.client_exceptions"})
    flaky = Flaky([ConnectionResetError(), TimeoutError(), client("cut"), OSError(5, "i/o")])
    assert again.again("s3://x", flaky) == "read" and flaky.calls == 5
    assert len(waits) == 4 and all(0.05 * 2**i <= w <= 0.15 * 2**i for i, w in enumerate(waits))
    for lasting in (FileNotFoundError(), PermissionError(), OSError(28, "full"), ValueError("ours")):
        once = Flaky([lasting])
        with pytest.raises(type(lasting)):
            again.again("s3://x", once)
        assert once.calls == 1
    never = Flaky([OSError("reset")] * 99)
    with pytest.raises(TemporaryError, match="failed 8 times"):
        again.again("s3://x", never)
    assert never.calls == again.TRIES


def test_a_local_file_is_hashed_once_and_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(content(0, 5000))
    digest = verified.hashlib.sha256(content(0, 5000)).hexdigest()
    reads, map_file = [], storage.map_file
    monkeypatch.setattr(storage, "map_file", lambda p: reads.append(p) or map_file(p))
    for _ in range(3):
        verified.once(str(path), digest)
    assert len(reads) == 1
    path.write_bytes(content(0, 4999) + b"!")
    with pytest.raises(VerifyError, match="differs"):
        verified.once(str(path), digest)
