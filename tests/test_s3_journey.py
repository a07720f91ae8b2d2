"""One whole journey with an object store as input and output of every stage leaves the same artifacts as on disk."""

import json
import subprocess
import sys

import pytest

from pipelines.format import storage
from pipelines.format.document import sha256_hex
from tests import tiny

CARDS = ("manifest.json", "plan.json", "run.json")


def fingerprints(runs):
    return [next(storage.read_json(f"{r.output}/{c}")["fingerprint"] for c in CARDS if storage.exists(f"{r.output}/{c}")) for r in runs]


def journey(folder, root):
    """Every stage in one child process, so that this one stays free of torch."""
    runs = tiny.write(folder, root, engine="local")
    code = "import json, sys\nfrom pipelines.commands import main\nfor argv in json.load(sys.stdin):\n    assert main(argv) in (0, None), argv"
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps([r.argv() for r in runs]), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return runs


@pytest.mark.slow
def test_a_journey_on_an_object_store_has_the_hashes_of_the_local_one(tmp_path, s3_bucket):
    here = journey(tmp_path / "yaml", str(tmp_path / "out"))
    there = journey(tmp_path / "yaml-s3", f"{s3_bucket}/journey")
    assert fingerprints(here) == fingerprints(there)
    weights = [sha256_hex(storage.read(f"{runs[-1].output}/model.safetensors")) for runs in (here, there)]
    assert weights[0] == weights[1]
