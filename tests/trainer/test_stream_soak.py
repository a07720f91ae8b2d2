"""Four of the hundred trials that `python -m tests.stream_soak` makes: stopped, killed, moved to another world, and nobody can tell."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import toyplan

from mixtures.plan import Plan
from tests.stream_soak import soak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes as Linux shows them")
def test_streams_that_are_killed_and_moved_read_what_one_undisturbed_stream_reads(tmp_path: Path) -> None:
    assert soak(Plan.open(toyplan.make(tmp_path, tokens=400, n=40)), 4, seed=1) == []
