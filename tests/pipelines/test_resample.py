"""Bringing one clock's numbers to another's times: interpolation is what it says, and nothing is invented where there is nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipelines.action_log import Log
from pipelines.resample import Resampling, increasing, slerp

DATA = os.environ.get("HEADWATER_DATA")
ROWS = np.array([0.0, 1.0, 2.0, 4.0])
VALUES = np.array([10.0, 20.0, 40.0, 0.0])


@pytest.mark.parametrize(
    ("align", "wanted"),
    [
        ("nearest", [10, 10, 20, 20, 40, 0, 0]),
        ("previous", [10, 10, 10, 20, 40, 40, 0]),
        ("linear", [10, 14, 16, 20, 30, 20, 0]),
    ],
)
def test_each_alignment_by_hand(align, wanted):
    at = np.array([0.0, 0.4, 0.6, 1.0, 2.5 if align != "linear" else 1.5, 3.1 if align != "linear" else 3.0, 4.0])
    assert Resampling(ROWS, at, align, max_distance=1.2).numbers(VALUES) == pytest.approx(wanted)


def test_nothing_is_invented_beyond_the_distance():
    at = np.array([-0.5, -0.05, 3.0, 4.05, 9.0])
    for align, known in (("nearest", [1, 3]), ("previous", [3]), ("linear", [])):
        found = Resampling(ROWS, at, align, max_distance=0.1).numbers(VALUES)
        assert np.flatnonzero(np.isfinite(found)).tolist() == known
    assert np.isnan(Resampling(ROWS[:0], at, "linear").numbers(VALUES[:0])).all()
    assert Resampling(ROWS[:0], at, "nearest").words([]) == [None] * 5


def test_between_takes_every_row_once_and_sums_exactly():
    rng = np.random.default_rng(0)
    rows = np.sort(rng.uniform(0, 10, 500))
    moved = rng.normal(size=500)
    at = np.arange(0, 10, 0.25)
    found = Resampling(rows, at, "between", combine="sum").numbers(moved)
    assert np.nansum(found) == pytest.approx(moved[rows >= 0].sum())
    words = Resampling(np.array([0.0, 0.1, 0.2, 1.1]), np.array([0.0, 1.0, 2.0]), "between").words(["w", "w", "none", "a"])
    assert words == ["w", "a", None]


def test_headings_turn_the_short_way_around():
    for a in np.linspace(-7, 7, 29):
        for turn in (-3.0, -1.0, -0.01, 0.0, 0.5, 3.1):
            yaw = np.array([a, a + turn + 2 * np.pi * 3])
            found = Resampling(np.array([0.0, 1.0]), np.array([0.25, 1.0]), "linear", 2.0).headings(yaw)
            assert np.cos(found - [a + turn / 4, a + turn]) == pytest.approx([1, 1], abs=1e-12)


def test_slerp_goes_along_the_great_arc_at_constant_speed_whatever_the_sign():
    rng = np.random.default_rng(1)
    q = rng.normal(size=(100, 4))
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    left, right, weight = np.arange(99), np.arange(1, 100), rng.uniform(0, 1, 99)
    mixed = slerp(q, left, right, weight)
    whole = np.arccos(np.clip(np.abs((q[left] * q[right]).sum(1)), 0, 1))
    part = np.arccos(np.clip(np.abs((q[left] * mixed).sum(1)), 0, 1))
    assert part == pytest.approx(weight * whole, abs=1e-6) and np.linalg.norm(mixed, axis=1) == pytest.approx(np.ones(99))
    flipped = slerp(q * np.where(np.arange(100) % 2, 1, -1)[:, None], left, right, weight)
    assert np.abs((flipped * mixed).sum(1)) == pytest.approx(np.ones(99))
    assert slerp(q, left, left, weight) == pytest.approx(q[left])


def test_yaw_from_slerped_quaternions_is_the_yaw_between():
    yaw = np.array([3.0, -3.0])
    q = np.stack([np.cos(yaw / 2), 0 * yaw, 0 * yaw, np.sin(yaw / 2)], axis=1)
    log = Log(np.array([0.0, 1.0]), poses=np.array([[0, 0, 3.0], [1, 2, -3.0]]), rotation=q)
    found = log.on(np.array([0.5]), lambda rows, at: Resampling(rows, at, "linear", 1.0))
    assert found.poses is not None and found.poses[0, :2].tolist() == [0.5, 1.0] and abs(found.poses[0, 2]) == pytest.approx(np.pi)


def test_rows_that_are_not_later_than_all_before_are_left_out():
    assert increasing(np.array([0, 1, 1, 0.5, np.nan, 2, 1.5, np.inf, 3])).tolist() == [True, True, False, False, False, True, False, False, True]


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA names no real files")
def test_a_real_cars_wheel_speed_at_frame_times_is_the_speed_of_its_poses():
    """comma2k19: CAN speed at 83 Hz and poses at 20 Hz are two instruments; they agree to 0.15 m/s (of 12), the scale of a tyre."""
    folder = Path(str(DATA)) / "action_only/comma2k19_segment40"
    can, frames = folder / "processed_log__CAN__speed", np.load(folder / "global_pose/frame_times.npy")
    t, speed = np.load(can / "t.npy"), np.load(can / "value.npy").ravel()
    posed = np.linalg.norm(np.load(folder / "global_pose/frame_velocities.npy"), axis=1)
    errors = {}
    for align in ("linear", "nearest", "previous"):
        found = Resampling(t, frames, align, 0.05).numbers(speed)
        known = np.isfinite(found)
        assert known.mean() > 0.99
        errors[align] = float(np.median(np.abs(found - posed)[known]))
    held_out = Resampling(t[::2], t[1::2], "linear", 0.05).numbers(speed[::2])
    nearest = Resampling(t[::2], t[1::2], "nearest", 0.05).numbers(speed[::2])
    both = np.isfinite(held_out) & np.isfinite(nearest)
    rms = [float(np.sqrt(np.mean((x - speed[1::2])[both] ** 2))) for x in (held_out, nearest)]
    print("median error against the poses, m/s:", errors, "held-out rows, rms m/s, linear and nearest:", rms)
    assert max(errors.values()) < 0.2 and rms[0] < rms[1]
