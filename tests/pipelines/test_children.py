"""Child processes feed a class and write behind it: the same results, in order, and nobody is left behind."""

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.children import Children, possible
from pipelines.engine import _call, open_job
from pipelines.format.errors import InputError, Stopped, TemporaryError
from pipelines.stage import Step
from tests.pipelines.working import Invert, Same, count, fail, grow, slow

pytestmark = pytest.mark.skipif(not possible(), reason="this system has no memory without a name")


def open_descriptors():
    gc.collect()  # a pool that was shut down keeps its pipes until then
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("at_once", [1, 2])
def test_results_are_those_of_one_process_in_order_and_each_step_is_where_it_should_be(at_once):
    def seen(processes):
        chain = [Step(grow, processes=processes), Step(Invert, at_once=at_once), Step(count, processes=processes)]
        with open_job("local") as job:
            return list(job.map(chain, list(range(14))))

    alone, many = seen(0), seen(2)
    assert [(x["at"], x["sum"]) for x in alone] == [(x["at"], x["sum"]) for x in many]
    assert many[2]["sum"] == (1 << 21) * (2 ^ 255)
    assert {x[k] for x in alone for k in ("loaded by", "worked by", "ended by")} == {os.getpid()} == {x["worked by"] for x in many}
    loaders, writers = {x["loaded by"] for x in many}, {x["ended by"] for x in many}
    assert len(loaders) == 2 and not loaders & writers and os.getpid() not in loaders | writers


@pytest.mark.parametrize("where", [0, 2])
@pytest.mark.parametrize(("kind", "error"), [("headwater", InputError), ("other", ZeroDivisionError), ("dies", TemporaryError)])
def test_an_error_in_a_child_reaches_the_person_and_so_does_its_death(kind, error, where):
    before = open_descriptors()
    chain = [Step(slow, {"seconds": 0}, processes=1), Step(Same), Step(slow, {"seconds": 0}, processes=1)]
    chain[where] = Step(fail, {"kind": kind, "at": 3}, processes=1)
    with open_job("local") as job, pytest.raises(error):
        list(job.map(chain, list(range(9))))
    assert open_descriptors() <= before


def test_a_stop_drops_what_was_in_hand_and_closes_what_was_open():
    before = open_descriptors()
    with open_job("local") as job, pytest.raises(Stopped):
        for _ in job.map([Step(grow, processes=2), Step(Invert), Step(count, processes=1)], list(range(100))):
            job.stop.set()
    assert open_descriptors() <= before


def test_memory_is_given_back_with_the_last_array_that_shows_it():
    before, children = open_descriptors(), Children([grow, Same()], 1, _call)
    try:
        kept = children.submit(2).result()["array"]
        for _ in range(5):
            assert (children.submit(4).result()["array"] == 4).all()
    finally:
        children.close()
    np.testing.assert_array_equal(kept, np.full(1 << 21, 2, np.uint8))
    assert open_descriptors() == before + 1
    del kept
    assert open_descriptors() == before


def test_children_end_with_a_parent_that_was_killed(tmp_path):
    command = f"from tests.pipelines.working import hang\nif __name__ == '__main__': hang({str(tmp_path)!r})"
    (tmp_path / "run.py").write_text(command)
    inside = tmp_path / "children"
    inside.mkdir()
    (tmp_path / "run.py").write_text(command.replace(repr(str(tmp_path)), repr(str(inside))))
    root = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], env={**os.environ, "PYTHONPATH": root}, cwd=root)
    deadline = time.monotonic() + 60
    while len(list(inside.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    found = [int(p.name) for p in inside.iterdir()]
    parent.kill()
    parent.wait()
    assert len(found) == 2
    while any(Path(f"/proc/{pid}").exists() for pid in found) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in found)
