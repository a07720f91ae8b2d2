"""The soak of kills inside saves, in short: what it does fifty times over, here twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_runs_killed_inside_a_save_go_on_to_the_numbers_of_one_that_was_not() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.trainer_soak", "--trials", "2"], cwd=REPO, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "2 of 2 as promised: 2 killed inside a save" in done.stdout
