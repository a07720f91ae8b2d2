"""The soak of killed ablations, in short: what it does five times over, here once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_killed_ablation_ends_in_the_bytes_of_one_that_was_not() -> None:
    command = [sys.executable, "-m", "tests.ablate_soak", "--kills", "1", "--seed", "1"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "the same results.parquet to the byte" in done.stdout
