"""Scenes: pure functions of (seed, number), with one group for every place a cast can stand in."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.format.chance import held_out
from pipelines.world.scene import COLOURS, KINDS, SIZES, Dice, Scene, Shape, make_scene, place_name

numbers = st.integers(0, 2**40)


def test_scene_0_of_seed_0_is_what_it_always_was():
    assert make_scene(0, 0).symbols() == [["small", "blue", "triangle", 2], ["small", "yellow", "square", 1]]
    assert make_scene(7, 123_456, grid=3).symbols() == [
        ["large", "yellow", "triangle", 2],
        ["large", "red", "square", 4],
        ["large", "white", "circle", 0],
    ]


@given(st.integers(0, 10**6), numbers, st.sampled_from([2, 3]))
def test_a_scene_has_one_to_three_shapes_of_different_kinds_in_different_cells(seed, number, grid):
    scene = make_scene(seed, number, grid)
    assert scene == make_scene(seed, number, grid)
    assert 1 <= len(scene.shapes) <= 3
    assert len({s.kind for s in scene.shapes}) == len({s.cell for s in scene.shapes}) == len(scene.shapes)
    for s in scene.shapes:
        assert (s.size in SIZES, s.colour in COLOURS, s.kind in KINDS, 0 <= s.cell < grid * grid) == (True,) * 4


@given(numbers)
def test_the_group_names_the_cast_and_not_its_places(number):
    small, large = make_scene(0, number, 2), make_scene(0, number, 3)
    moved = Scene(5, 6, 2, tuple(Shape(s.size, s.colour, s.kind, (s.cell + 1) % 4) for s in reversed(small.shapes)))
    assert small.group == large.group == moved.group
    assert all(s.look in small.group for s in small.shapes)


def test_a_different_cast_is_a_different_group():
    groups = {make_scene(0, n).group for n in range(3000)}
    casts = {frozenset((s.size, s.colour, s.kind) for s in make_scene(0, n).shapes) for n in range(3000)}
    assert len(groups) == len(casts) > 1500


def test_a_fraction_of_scenes_near_the_asked_one_is_held_out():
    for fraction in (0.02, 0.1):
        share = sum(held_out(make_scene(0, n).group, fraction, 0) for n in range(6000)) / 6000
        assert 0.4 * fraction < share < 1.8 * fraction


@pytest.mark.parametrize("n", [2, 3, 6, 7])
def test_dice_are_fair(n):
    dice = Dice(1, 2, "test")
    counts = Counter(dice.below(n) for _ in range(7000))
    assert set(counts) == set(range(n))
    chi2 = sum((c - 7000 / n) ** 2 / (7000 / n) for c in counts.values())
    assert chi2 < 25  # 6 degrees of freedom at most: p < 0.001


@given(st.lists(st.integers(), unique=True, min_size=1, max_size=9), st.data())
def test_a_sample_holds_different_members_of_its_options(options, data):
    n = data.draw(st.integers(0, len(options)))
    sample = Dice(0, 0, "test").sample(options, n)
    assert len(sample) == len(set(sample)) == n and set(sample) <= set(options)


def test_streams_of_different_purposes_numbers_and_seeds_differ():
    first = {Dice(s, n, p).octets(16).tobytes() for s in range(3) for n in range(20) for p in ("scene", "noise")}
    assert len(first) == 3 * 20 * 2


def test_octets_are_a_prefix_of_the_longer_run():
    assert Dice(0, 0, "x").octets(5).tolist() == Dice(0, 0, "x").octets(40)[:5].tolist()


def test_every_cell_has_a_name_of_its_own():
    assert [place_name(2, c) for c in range(4)] == ["top left", "top right", "bottom left", "bottom right"]
    assert len({place_name(3, c) for c in range(9)}) == 9 and place_name(3, 4) == "middle center"
