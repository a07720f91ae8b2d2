"""A log that lies a frame off its video is found by motion, and logs that fit are left alone."""

from __future__ import annotations

import numpy as np

from pipelines.motion_lag import SHORTEST, find_lag, motion


def drive(seed: int, n: int = 200, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Grey frames [n, 32, 32] of a camera that pans over a random texture, with sensor noise, and how far it goes from each frame to the next:
    a speed that wanders, with stops, as hands and cars do."""
    rng = np.random.default_rng(seed)
    texture = rng.normal(size=(64, 1024))
    for axis in (0, 1):
        texture = sum(np.roll(texture, k, axis) for k in range(-2, 3)) / 5
    speed = np.abs(np.cumsum(rng.normal(size=n)) * 0.2 + rng.normal(size=n) * 0.5)
    speed[rng.uniform(size=n) < 0.15] = 0
    place = np.concatenate([[0], np.cumsum(speed)[:-1]])
    columns = (place[:, None] + np.arange(32)[None]) % 1023
    low = columns.astype(int)
    part = (columns - low)[:, None, :]
    frames = np.stack([texture[:32, c] for c in low]) * (1 - part) + np.stack([texture[:32, c + 1] for c in low]) * part
    return (frames + rng.normal(size=frames.shape) * 0.05 * noise).astype(np.float32) * 40 + 128, speed


def test_no_log_that_fits_is_called_shifted():
    sure = [find_lag(motion(f), speed) for f, speed in (drive(seed) for seed in range(200))]
    assert [i for i, lag in enumerate(sure) if lag is None or lag.sure] == []
    noisy = [find_lag(motion(f), np.random.default_rng(s).permutation(v)) for s, (f, v) in enumerate(map(drive, range(200)))]
    assert [i for i, lag in enumerate(noisy) if lag and lag.sure] == []  # actions that have nothing to do with the frames say nothing


def test_every_log_that_lies_a_frame_off_is_found_either_way():
    for seed in range(100):
        frames, speed = drive(seed)
        late, early = np.concatenate([speed[:1], speed[:-1]]), np.concatenate([speed[1:], speed[-1:]])
        for log, wanted in ((late, 1), (early, -1)):
            lag = find_lag(motion(frames), log)
            assert lag is not None and lag.sure and lag.best == wanted, (seed, wanted, lag)


def test_too_little_or_nothing_that_changes_says_nothing():
    frames, speed = drive(0)
    assert find_lag(motion(frames[: SHORTEST - 1]), speed) is None
    assert find_lag(motion(frames), np.ones(200)) is None and find_lag(np.zeros(199), speed) is None
    assert find_lag(motion(frames), np.full(200, np.nan)) is None
