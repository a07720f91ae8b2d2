"""The accelerator's benchmark runs, at toy size, where there is none: when one is at hand there is no time to mend it."""

import json
import subprocess
import sys

import pytest

# As on a machine that has torch and transformers only: what is None here cannot be imported.
BARE = """
import runpy, sys
sys.modules.update(dict.fromkeys(("ray", "zstandard", "decord", "av", "cv2")))
sys.argv = ["benchmarks.gpu", "--toy", "--json"]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""
EXACT = ("encode.f32", "encode.bytes", "attention.256.numerics", "train.toy shared.loss")
CODECS = ("bf16", "f8e4m3", "int8")


@pytest.mark.slow
def test_every_section_runs_at_toy_size_without_ray_or_codecs_and_the_numerics_hold():
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, timeout=240)
    rows = {r["name"]: r for r in json.loads(done.stdout.splitlines()[-1])}
    assert not [name for name, r in rows.items() if r["unit"].startswith("failed")]
    assert all(rows[name]["ok"] for name in (*EXACT, *(f"encode.codec.{c}.bytes" for c in CODECS)))
    jpeg = [f"encode.jpeg.{what}" for what in ("bare", "loop", "load", "write")]
    for name in (*jpeg, "encode.compiled", *(f"encode.stored.{c}" for c in CODECS)):
        assert rows[name]["ours"] > 0 and rows[name]["peer"] > 0
    assert rows["train.toy experts.dense"]["bar"] == ">= 0.6" and rows["train.toy experts.dense"]["ratio"] > 0
    assert rows["train.toy shared.save"]["ok"] and rows["train.toy shared.micro_1"]["peer"] > 0
    assert "matrix products" in rows["train.toy shared.busy"]["unit"]
    assert rows["encode.jpeg.bare"]["bar"] == ">= 0.95" and rows["encode.jpeg.loop"]["bar"] == ">= 1.5"
    assert "not compiled" in rows["encode.jpeg.bare"]["unit"], "a CPU compiles nothing by itself, and the row says so"
