"""Planted faults of clocks: every one is found by its name, and clean logs give none. Two hundred random plantings of each."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipelines.clocks import GAP_STEPS, idle_rows, meet, stretch, usual_step

PLANTINGS = range(200)


def clean(seed: int) -> tuple[np.random.Generator, np.ndarray, float]:
    """Times of 80 to 300 rows at 4 to 120 a second, steps uneven by up to 30 %, on a clock that began at any time."""
    rng = np.random.default_rng(seed)
    step = 1 / rng.uniform(4, 120)
    n = int(rng.integers(80, 300))
    start = rng.choice([0.0, rng.uniform(0, 1e5), 1.7e9])
    return rng, start + np.cumsum(step * rng.uniform(0.7, 1.3, n)), step


def reasons(times: np.ndarray, **keys) -> list[tuple[int, str]]:
    return [(row, reason) for row, reason, _ in stretch(times, None, keys.get("max_gap"), keys.get("idle"))[1]]


def test_clean_logs_give_no_finding_and_one_stretch():
    for seed in PLANTINGS:
        _, times, _ = clean(seed)
        found, problems = stretch(times, None, None)
        assert problems == [] and found == [list(range(len(times)))], seed


@pytest.mark.parametrize("fault", ["gap", "clock_forward", "clock_back", "duplicate", "nan", "stray"])
def test_every_planted_fault_is_found_where_it_is_and_nothing_else(fault):
    for seed in PLANTINGS:
        rng, times, step = clean(seed)
        row = int(rng.integers(5, len(times) - 5))
        if fault == "gap":  # rows are missing
            row = int(rng.integers(5, len(times) - 45))
            times = np.delete(times, range(row, row + int(rng.integers(12, 40))))
            wanted = [(row, "gap")]
        elif fault == "clock_forward":
            times[row:] += rng.uniform(GAP_STEPS + 3, 1000) * step
            wanted = [(row, "gap")]
        elif fault == "clock_back":
            times[row:] -= rng.uniform(3, 1000) * step
            wanted = [(row, "clock_back")]
        elif fault == "duplicate":
            times = np.insert(times, row, times[row - 1])
            wanted = [(row, "duplicate_time")]
        elif fault == "nan":
            times[row] = rng.choice([np.nan, np.inf, -np.inf])
            wanted = [(row, "bad_time")]
        else:
            times[row] += rng.choice([-1, 1]) * rng.uniform(50, 1e6) * step
            wanted = [(row, "bad_time")]
        assert reasons(times) == wanted, (fault, seed)


def test_a_single_missing_row_is_a_gap_when_asked_for():
    for seed in PLANTINGS:
        rng = np.random.default_rng(seed)
        times = np.arange(100) * 0.05 + rng.uniform(-0.005, 0.005, 100)
        row = int(rng.integers(1, 99))
        assert reasons(times, max_gap=0.075) == [] and reasons(np.delete(times, row), max_gap=0.075) == [(row, "gap")]


def test_what_comes_after_a_fault_is_kept_and_nothing_spans_it():
    times = np.concatenate([np.arange(50) * 0.1, 100 + np.arange(50) * 0.1, np.arange(50) * 0.1])
    found, problems = stretch(times, None, None)
    assert found == [list(range(50)), list(range(50, 100)), list(range(100, 150))]
    assert Counter(reason for _, reason, _ in problems) == {"gap": 1, "clock_back": 1}


def test_idle_stretches_are_found_with_their_rows_and_short_ones_are_not():
    for seed in PLANTINGS:
        rng, times, step = clean(seed)
        still = np.zeros(len(times), bool)
        row, n = int(rng.integers(5, len(times) - 40)), int(rng.integers(20, 30))
        still[row : row + n] = True
        limit = 8 * step * 1.31
        assert np.flatnonzero(idle_rows(still, times, None, limit)).tolist() == list(range(row, row + n))
        still[row + 5 : row + n : 5] = False
        assert not idle_rows(still, times, None, limit).any()


def test_idle_rows_break_a_stretch():
    idle = np.zeros(30, bool)
    idle[10:20] = True
    assert stretch(np.arange(30.0), None, None, idle)[0] == [list(range(10)), list(range(20, 30))]
    episodes = ["a"] * 15 + ["b"] * 15
    still, times = np.ones(30, bool), np.arange(30.0)
    assert not idle_rows(still, times, episodes, 14.5).any() and idle_rows(still, times, episodes, 13).all()


# ---- rows and frames -------------------------------------------------------------------------------------------------------------------------


def pair(seed: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """Frame times of a video of any rate, even or a little uneven, and rows stamped near them."""
    rng = np.random.default_rng(seed)
    step, n = 1 / rng.uniform(5, 60), int(rng.integers(20, 400))
    frames = np.arange(n) * step + rng.choice([0.0, 0.15]) * step * rng.uniform(-1, 1, n)
    frames = np.sort(frames - frames[0])
    return rng, frames, frames + rng.uniform(-0.1, 0.1, n) * step


def test_rows_and_frames_that_fit_are_neither_shifted_nor_drifting():
    for seed in PLANTINGS:
        rng, frames, rows = pair(seed)
        m = meet(rows, frames)
        assert m.lag == 0 and m.drift_s is not None and abs(m.drift_s) < 0.5 * m.step, seed
        assert (m.frame == np.arange(len(rows))).all() and m.report()["rows_met"] == len(rows)
        fewer = np.sort(rng.choice(len(rows), len(rows) // 2, replace=False))
        assert (meet(rows[fewer], frames).frame == fewer).all() and meet(rows[fewer], frames).lag == 0


@pytest.mark.parametrize("by", [-1, 1])
def test_every_log_that_lies_a_frame_off_is_found(by):
    for seed in PLANTINGS:
        _, frames, rows = pair(seed)
        m = meet(rows + by * usual_step(frames), frames)
        assert m.lag == by, seed


def test_every_drift_of_more_than_a_frame_is_found_and_measured():
    for seed in PLANTINGS:
        rng, frames, rows = pair(seed)
        span = frames[-1]
        drift = rng.choice([-1, 1]) * rng.uniform(2, 6) * usual_step(frames)
        m = meet(rows, frames * (1 + drift / span))
        assert m.drift_s == pytest.approx(drift, abs=0.5 * usual_step(frames)) and abs(m.drift_s) > usual_step(frames), seed
        assert m.lag == 0


def test_the_tolerance_is_half_a_frame_unless_it_is_said():
    frames = np.arange(20) * 0.1
    rows = np.array([0.0, 0.149, 0.151, 0.35, 1.9, 1.96, np.nan])
    assert meet(rows, frames).frame.tolist() == [0, 1, 2, 3, 19, -1, -1]
    assert meet(rows, frames, 1e-4).frame.tolist() == [0, -1, -1, -1, 19, -1, -1]
    assert meet(rows, frames[:0]).frame.tolist() == [-1] * 7
