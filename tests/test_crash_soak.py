"""Forty crashes of the thousand that `python -m tests.crash_soak` makes: every way to go down at least once."""

from __future__ import annotations

import sys

import pytest

from pipelines.media.child import close_children
from tests.crash_ops import WAYS
from tests.crash_soak import children, files, soak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts processes and files as Linux shows them")
def test_forty_crashes_cost_forty_records_and_nothing_is_left_over():
    close_children()
    before = children(), files()
    tally = soak(40, seed=1)
    close_children()
    assert tally.wrong == [] and sum(tally.outcomes.values()) == 40
    assert {way for way, _ in tally.outcomes} >= set(WAYS)
    assert (children(), files()) == before
