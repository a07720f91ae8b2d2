"""Nothing half-written is ever visible, whatever step fails, in any place; and of many writers exactly one wins."""

import hashlib
import os
import threading
import uuid

import pytest

from pipelines.format import failpoint, storage
from pipelines.format.errors import InputError, StorageError


@pytest.fixture(params=["local", "memory", "s3"])
def root(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "place")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return f"{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}"


def names(root):
    try:
        return [path for path, _, _ in storage.listing(root) if not path.startswith(storage.TMP)]
    except InputError:
        return []


def test_a_published_file_is_whole_and_hashed(root):
    with storage.building(root) as b:
        assert b.write(b"abc") == 0 and b.write(b"def") == 3
        digest = b.sha256
        path = b.publish(root, "x/y.bin")
    assert digest == hashlib.sha256(b"abcdef").hexdigest()
    assert storage.read(path) == b"abcdef" and storage.read(path, 2, 4) == b"cd" and storage.size(path) == 6
    assert names(root) == ["x/y.bin"]


def test_an_exception_in_the_body_publishes_nothing(root):
    with pytest.raises(RuntimeError), storage.building(root) as b:
        b.write(b"abc")
        raise RuntimeError
    assert names(root) == []


def test_every_failing_step_leaves_no_torn_file(root, monkeypatch):
    """Run with the k-th I/O step failing, for every k: afterwards each file is absent or whole."""
    content = b"0123456789" * 1000

    def job():
        with storage.building(root) as b:
            b.write(content[:5000])
            b.write(content[5000:])
            b.publish(root, "data.bin")
        storage.create_exclusive(storage.join(root, "commit.json"), b"{}")

    for k in range(1, 100):
        storage.failpoint_steps(reset=True)
        monkeypatch.setenv("HEADWATER_FAIL_AT", str(k))
        try:
            job()
            finished = True
        except StorageError as e:
            finished = False
            assert e.exit == 74 and "no space" in e.what
        monkeypatch.delenv("HEADWATER_FAIL_AT")
        there = names(root)
        for name in there:
            assert storage.read(storage.join(root, name)) == (content if name == "data.bin" else b"{}")
        assert "commit.json" not in there or "data.bin" in there
        if finished:
            break
        for name in there:
            storage.delete(storage.join(root, name))
    assert finished and k > 4


def test_exactly_one_of_many_writers_creates(root):
    path = storage.join(root, "parts/00000.json")
    won, start = [], threading.Barrier(8)

    def writer(i):
        start.wait()
        if storage.create_exclusive(path, f"{i}".encode()):
            won.append(i)

    if root.startswith("memory"):
        pytest.skip("the in-memory store belongs to one thread")
    threads = [threading.Thread(target=writer, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(won) == 1 and storage.read(path) == f"{won[0]}".encode()


def test_a_listing_is_sorted_by_path_bytes_and_shows_no_hidden_file(root):
    for name in ("b/2", "a/10", "a/9", ".hidden", "B"):
        storage.publish(storage.join(root, name), b"x")
    assert names(root) == ["B", "a/10", "a/9", "b/2"]
    assert [p for p, _, _ in storage.listing(storage.join(root, "a/9"))] == ["9"]


def test_a_missing_file_is_an_input_error(root):
    with pytest.raises(InputError):
        storage.read(storage.join(root, "nothing"))


@pytest.mark.parametrize("path", ["zip::file://x.zip", "simplecache::s3://a/b", "pipe:cat x", "ftp://h/x", "reference://x"])
def test_only_known_kinds_of_paths_are_opened(path):
    if path.startswith("pipe"):
        with pytest.raises(InputError):
            storage.read(path)  # an ordinary file name that is not there; no shell ever sees it
        return
    with pytest.raises(InputError, match="not opened"):
        storage.read(path)


@pytest.mark.parametrize("start", ["/data/a/b", "s3://bucket/a/b"])
def test_relative_references_come_back(start):
    for target in ("/data/a/c", "/data/x/y/z", "/data/a/b/c") if start.startswith("/") else ("s3://bucket/a/c", "s3://bucket/x"):
        assert storage.resolve(storage.relative(target, start), start) == target


def test_steps_are_counted_only_when_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADWATER_FAIL_AT", "1000000")
    failpoint.failpoint_steps(reset=True)
    storage.publish(str(tmp_path / "x"), b"1")
    assert failpoint.failpoint_steps() >= 4
    assert os.listdir(tmp_path / storage.TMP) == []
