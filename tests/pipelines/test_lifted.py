"""Large arrays of a value travel beside it, and nobody who reads them copies them."""

import numpy as np
import pytest

from pipelines.engine import open_job
from pipelines.lifted import LARGE, Lifted, lift, lower
from pipelines.stage import Step
from tests.pipelines.lifting import Look, make


def test_what_is_lifted_comes_back_equal_and_is_not_copied():
    rng = np.random.default_rng(0)
    pictures, small = rng.integers(0, 256, (9, 400, 400, 3), dtype=np.uint8), np.arange(5)
    rest, beside = lift({"a": pictures, "b": small, "c": "text", "d": None})
    assert isinstance(rest["a"], Lifted) and rest["b"] is small and np.shares_memory(beside, pictures)
    back = lower(rest, beside)
    assert np.shares_memory(back["a"], pictures) and back["c"] == "text" and list(back) == list("abcd")
    np.testing.assert_array_equal(back["a"], pictures)


def test_several_arrays_of_any_kind_and_order_come_back_equal():
    rng = np.random.default_rng(0)
    odd = rng.integers(0, 256, LARGE + 3, dtype=np.uint8)
    value = {"odd": odd, "f8": rng.standard_normal((400, 400)), "turned": rng.standard_normal((3, 500, 500)).T, "big": np.arange(LARGE, dtype=">i4")}
    back = lower(*lift(value))
    for key, array in value.items():
        assert back[key].dtype == array.dtype
        np.testing.assert_array_equal(back[key], array)


@pytest.mark.parametrize("value", [None, 3, [np.zeros(2 * LARGE, np.uint8)], {"x": np.array([{}] * LARGE)}, {}])
def test_everything_else_stays_as_it_is(value):
    rest, beside = lift(value)
    assert rest is value and beside.nbytes == 1 and (lower(rest, beside) is value or lower(rest, beside) == value)


@pytest.mark.ray
def test_on_ray_rows_with_and_without_large_arrays_arrive_as_they_were_sent(ray_session):
    sizes = [0, 3 << 20, 10, 2 << 20, 0, 3 << 20, 5 << 20, 1]
    with open_job("ray") as job:
        seen = sorted(job.map([Step(make), Step(Look, cpus=0.5), Step(make)], sizes), key=lambda x: x["at"])
    assert len(seen) == len(sizes)
    assert sorted(x["sum"] for x in seen) == sorted(sum(range(256)) * (n // 256) + sum(range(n % 256)) for n in sizes)
    assert all(x["zero_copy"] for x in seen if x["bytes"] > LARGE)
