"""The comparison of the encode job with its network runs, at toy size: numbers are taken on a quiet machine, not here."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_rows_of_one_process_are_made_at_toy_size():
    command = [sys.executable, "-m", "benchmarks.encode", "--toy", "--only", "core", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {"encode.toy.core", "encode.toy.loop"}
    for row in rows.values():
        assert row["ours"] > 0 and row["peer"] > 0 and len(row["runs"]) >= 5 and row["ok"] == (row["ratio"] >= row["bar"])
