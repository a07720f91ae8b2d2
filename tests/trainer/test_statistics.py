"""The statistics of a report, by arithmetic and by simulation: intervals that hold, tests that do not cry out too often, designs sized honestly."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.report.statistics import interval, paired_sd, smallest_difference


def crossed(random: np.random.Generator, seeds: int, items: int, seed_sd: float, item_sd: float, noise: float) -> np.ndarray:
    """Differences whose true mean is 0: a departure a seed, one an item, one of both."""
    u, v = seed_sd * random.standard_normal((seeds, 1)), item_sd * random.standard_normal((1, items))
    return u + v + noise * random.standard_normal((seeds, items))


def test_the_smallest_difference_is_the_textbooks_for_many_seeds():
    assert smallest_difference(10**6, 10**6, 1.0, 0.0) == pytest.approx(2.8016 / 1000, rel=1e-3)
    assert smallest_difference(1, 400, 0.0, 2.0) == pytest.approx(2.8016 / 10, rel=0.01)


def test_the_smallest_difference_falls_with_seeds_items_and_correlation_and_grows_with_tests():
    small = smallest_difference(6, 1000, 0.01, paired_sd(0.5, 0.6))
    assert small < smallest_difference(3, 1000, 0.01, paired_sd(0.5, 0.6)) < smallest_difference(2, 1000, 0.01, paired_sd(0.5, 0.6))
    assert small < smallest_difference(6, 250, 0.01, paired_sd(0.5, 0.6))
    assert small < smallest_difference(6, 1000, 0.01, paired_sd(0.5, 0.1))
    assert small < smallest_difference(6, 1000, 0.01, paired_sd(0.5, 0.6), tests=3)


def test_a_difference_as_large_as_the_smallest_is_found_in_four_of_five_runs():
    random, asked = np.random.default_rng(0), (6, 200, 0.02, 0.3)
    true = smallest_difference(*asked)
    found = [interval(true + crossed(random, 6, 200, 0.02, 0.3, 0))[0] > 0 for _ in range(150)]
    assert 0.65 <= np.mean(found) <= 0.92


def test_a_design_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="seeds ≥ 1"):
        smallest_difference(0, 10, 1, 1)
