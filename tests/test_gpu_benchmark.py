"""The accelerator's benchmark runs, at toy size, where there is none: when one is at hand there is no time to mend it."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_every_section_runs_at_toy_size_and_the_numerics_hold():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--toy", "--json"], capture_output=True, text=True, timeout=240)
    rows = {r["name"]: r for r in json.loads(done.stdout.splitlines()[-1])}
    assert not [name for name, r in rows.items() if r["unit"].startswith("failed")]
    assert all(rows[name]["ok"] for name in ("encode.f32", "encode.bytes", "attention.256.numerics", "train.toy shared.loss"))
