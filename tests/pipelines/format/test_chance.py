"""Draws depend on nothing but their arguments, and the contract's own check holds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.format import chance

U64 = st.integers(0, 2**64 - 1)


def test_the_check_value_of_the_contract_holds():
    id = chance.record_id("captions", "a.jpg")
    assert id == "137bd4d4f8c9cc10030030b1ce8d7056"
    assert chance.draw(chance.hash64(id), 0, "order", 0) == 5195859944059316780


@given(st.lists(U64, min_size=1, max_size=20), st.integers(0, 9), st.sampled_from(["order", "split", "t"]))
def test_an_array_draws_what_its_elements_draw(hs, seed, purpose):
    array = chance.draw(np.array(hs, dtype=np.uint64), seed, purpose, 1)
    assert array.tolist() == [chance.draw(h, seed, purpose, 1) for h in hs]
    assert chance.uniform(array).tolist() == [chance.uniform(int(u)) for u in array]


def test_purpose_seed_and_extra_each_change_the_draw():
    draws = {chance.draw(7, s, p, e) for s in (0, 1) for p in ("order", "split") for e in (0, 1)}
    assert len(draws) == 8


def test_uniform_is_uniform_and_never_one():
    u = chance.uniform(chance.draw(np.arange(100_000, dtype=np.uint64), 0, "order"))
    assert u.min() >= 0 and u.max() < 1
    assert np.abs(np.histogram(u, 20, (0, 1))[0] / 5_000 - 1).max() < 0.1
    assert chance.uniform(2**64 - 1) < 1


def test_order_sorts_by_draw_and_breaks_ties_by_id():
    h = np.array([5, 5, 9], dtype=np.uint64)
    first = chance.order(h, 0, "order", 0, ids=["b", "a", "c"]).tolist()
    assert first.index(1) < first.index(0)


def test_held_out_is_by_group_alone_and_of_the_stated_share():
    groups = [f"scene-{i}" for i in range(20_000)]
    held = chance.held_out(groups, 0.02, 0)
    assert 0.015 < held.mean() < 0.025
    assert held[17] == chance.held_out("scene-17", 0.02, 0)
    assert chance.held_out(groups, 0.02, 1).tolist() != held.tolist()


def test_noise_is_a_function_of_its_key():
    a, b = chance.noise(3, (4, 5)), chance.noise(3, (4, 5))
    assert a.dtype == np.float32 and np.array_equal(a, b) and not np.array_equal(a, chance.noise(4, (4, 5)))
