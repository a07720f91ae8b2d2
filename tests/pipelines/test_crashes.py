"""Children that die in every way: each costs one record, and nothing stays behind."""

import sys

import pytest

from pipelines.media.child import close_children
from tests.crash_soak import QUICK, SLOW, left_over, soak


@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted in /proc")
def test_fifty_lost_children_are_fifty_reasons_and_leave_nothing_behind():
    soak(1)  # what loads once
    close_children()
    before = left_over()
    out = soak(41)
    close_children()
    assert sum(out.values()) == 41 and not any("no end" in name for name in out), out
    assert {name.split(":")[0] for name in out} >= {*QUICK, "killed"} and {name.split(":")[0] for name in out} & set(SLOW)
    assert left_over() == before
