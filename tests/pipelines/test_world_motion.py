"""Motion: shapes slide without meeting, walkers stay on the floor, and actions say exactly how to get from pose to pose."""

import math
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.world import motion
from pipelines.world.scene import make_scene

angles = st.floats(-10, 10)
places = st.floats(-50, 50)
poses = st.tuples(places, places, angles).map(np.array)
numbers = st.integers(0, 10**9)


@given(numbers, st.sampled_from([2, 3]))
def test_something_slides_and_no_cell_is_used_twice(number, grid):
    scene = make_scene(0, number, grid)
    moves = motion.slides(scene)
    assert [a for a, _ in moves] == [s.cell for s in scene.shapes]
    assert any(a != b for a, b in moves)
    used = [c for a, b in moves for c in {a, b}]
    assert len(used) == len(set(used))
    for a, b in moves:
        (r0, c0), (r1, c1) = scene.place(a), scene.place(b)
        assert abs(r0 - r1) + abs(c0 - c1) <= 1


@given(numbers)
def test_shapes_slide_at_constant_speed_and_never_cover_one_another(number):
    scene = make_scene(0, number)
    centres = np.array(motion.slide_centres(scene, motion.slides(scene), 4, 32))
    assert np.allclose(np.diff(centres, 2, axis=0), 0)
    for i in range(len(scene.shapes)):
        for j in range(i):
            assert np.abs(centres[:, i] - centres[:, j]).max(axis=-1).min() >= 15.99  # a cell apart in x or in y


@given(numbers, st.sampled_from([2, 3]), st.integers(5, 40))
def test_walkers_stay_on_the_floor_and_their_yaw_is_wrapped(number, grid, steps):
    path = motion.walk(make_scene(0, number, grid), steps)
    assert path.shape == (steps, 3)
    assert path[:, :2].min() >= motion.MARGIN and path[:, :2].max() <= grid * motion.CELL - motion.MARGIN
    assert path[:, 2].min() > -math.pi and path[:, 2].max() <= math.pi


def test_a_step_is_a_quarter_turn_or_half_to_one_and_a_half_ahead():
    kinds = Counter()
    for number in range(100):
        path = motion.walk(make_scene(0, number), 12)
        for a, b in pairwise(path):
            dx, dy, dyaw = motion.relative(a, b)
            if dx == dy == 0:
                assert abs(dyaw) == pytest.approx(math.pi / 2)
                kinds["turn"] += 1
            else:
                assert 0.5 <= math.hypot(dx, dy) < 1.5 and abs(dyaw) <= 0.3
                assert math.atan2(dy, dx) == pytest.approx(dyaw)
                kinds["walk"] += 1
    assert kinds["walk"] > 2 * kinds["turn"] > 200


@given(poses, poses)
def test_applying_the_relative_pose_to_the_origin_gives_the_goal(origin, goal):
    dx, dy, dyaw = motion.relative(origin, goal)
    x = origin[0] + dx * math.cos(origin[2]) - dy * math.sin(origin[2])
    y = origin[1] + dx * math.sin(origin[2]) + dy * math.cos(origin[2])
    assert (x, y) == pytest.approx((goal[0], goal[1]), abs=1e-9)
    assert math.cos(origin[2] + dyaw - goal[2]) == pytest.approx(1)
    assert -math.pi < dyaw <= math.pi


@given(poses, poses, angles)
def test_the_relative_pose_does_not_depend_on_where_the_world_points(origin, goal, turn):
    def turned(pose):
        c, s = math.cos(turn), math.sin(turn)
        return np.array([c * pose[0] - s * pose[1], s * pose[0] + c * pose[1], pose[2] + turn])

    dx, dy, dyaw = motion.relative(origin, goal)
    dx2, dy2, dyaw2 = motion.relative(turned(origin), turned(goal))
    assert (dx2, dy2) == pytest.approx((dx, dy), abs=1e-9)
    assert math.cos(dyaw - dyaw2) == pytest.approx(1)


def test_the_action_text_is_spelled_as_the_format_says():
    assert motion.action_text(1.3384, -0.6594, 0.0121, 4) == "action: dx=+1.338, dy=-0.659, dyaw=+0.012, rel_t=+0.031"
    assert motion.action_text(-0.0004, -0.0, 0.0, -8) == "action: dx=+0.000, dy=+0.000, dyaw=+0.000, rel_t=-0.062"


@given(st.floats(-100, 100), st.floats(-100, 100), st.floats(-3.2, 3.2), st.integers(-128, 128))
def test_the_action_text_has_one_form_and_no_negative_zero(dx, dy, dyaw, offset):
    text = motion.action_text(dx, dy, dyaw, offset)
    number = r"([+-]\d+\.\d{3})"
    match = re.fullmatch(rf"action: dx={number}, dy={number}, dyaw={number}, rel_t={number}", text)
    assert match and "-0.000" not in text
    assert float(match[1]) == pytest.approx(dx, abs=5.1e-4) and float(match[4]) == pytest.approx(offset / 128, abs=5.1e-4)


def test_goals_cover_all_offsets_inside_the_walk_evenly_and_never_the_present():
    offsets = Counter(motion.goal_offset(h, 0, 0, t=5, steps=12, horizon=8) for h in range(5500))
    assert set(offsets) == {-5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6}
    assert min(offsets.values()) > 400 and max(offsets.values()) < 600


def test_goals_of_one_observation_differ_by_k():
    assert len({motion.goal_offset(99, 0, k, 20, 60, 16) for k in range(64)}) > 16


@given(angles)
def test_wrapping_keeps_the_direction(angle):
    assert math.cos(motion.wrap(angle) - angle) == pytest.approx(1)
    assert -math.pi < motion.wrap(angle) <= math.pi
