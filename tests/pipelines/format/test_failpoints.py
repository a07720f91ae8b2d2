"""The shard writer dies at every one of its I/O steps in turn, on disk and on an object store: no torn file, and a rerun ends in the same bytes."""

import os
import re
import signal
import subprocess
import sys
import uuid

import pytest

from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import InputError, StorageError
from pipelines.format.part import PartWriter
from tests import toys

NAMED = re.compile(r"-([0-9a-f]{16})\.(tar|bin|parquet)$")


def write_part(root: str) -> dict:
    """One part with several shards, rejects and a commit: every kind of file a stage writes."""
    with PartWriter(root, 0, fingerprint="f", shard_bytes=4_000) as w:
        for r in toys.records("image-text", 8):
            w.emit()
            w.add(r)
        w.emit()
        w.reject("bad.jpg", "read", "unreadable", "empty file")
        return w.commit()


def look(root: str) -> bool:
    """Every visible file is whole; returns whether the part is committed."""
    try:
        there = [(p, n) for p, n, _ in storage.listing(root) if not p.startswith(storage.TMP)]
    except InputError:
        return False
    for path, _ in there:
        data = storage.read(storage.join(root, path))
        named = NAMED.search(path)
        assert named is None or sha256_hex(data).startswith(named[1]), f"torn: {path}"
    committed = any(p == "parts/00000.json" for p, _ in there)
    if committed:
        for f in storage.read_json(storage.join(root, "parts/00000.json"))["files"]:
            assert sha256_hex(storage.read(storage.join(root, f["path"]))) == f["sha256"]
    return committed


@pytest.mark.parametrize("place", ["local", "s3"])
def test_no_failing_step_leaves_a_torn_file(place, tmp_path, request, monkeypatch):
    root = str(tmp_path / "d") if place == "local" else f"{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}"
    golden = write_part(str(tmp_path / "golden"))
    for k in range(1, 1000):
        storage.failpoint_steps(reset=True)
        monkeypatch.setenv("HEADWATER_FAIL_AT", str(k))
        try:
            write_part(root)
            break
        except StorageError:
            pass
        finally:
            monkeypatch.delenv("HEADWATER_FAIL_AT")
        if look(root):  # it failed after the commit: the work is done, and a rerun would see so
            storage.delete(storage.join(root, "parts/00000.json"))
    assert k > 60
    assert look(root) and storage.read_json(storage.join(root, "parts/00000.json")) == golden


def test_a_kill_at_any_step_leaves_no_torn_file(tmp_path):
    code = "import sys; from tests.pipelines.format.test_failpoints import write_part; write_part(sys.argv[1])"
    steps = (1, 2, 30, 61, 64, 67, 70, 72, 75, 78, 80, 84)  # a process start each, so a spread of steps; the test above does every one
    killed = 0
    for k in steps:
        root = str(tmp_path / f"{k}")
        env = {**os.environ, "HEADWATER_FAIL_AT": f"{k}:kill"}
        done = subprocess.run([sys.executable, "-c", code, root], env=env, cwd=os.getcwd(), capture_output=True)
        killed += done.returncode == -signal.SIGKILL
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()[-500:]
        look(root)
        assert write_part(root) == write_part(str(tmp_path / "golden"))
        assert look(root)
    assert killed >= 6
