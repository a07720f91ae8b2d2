"""The statistics of a report, by arithmetic and by simulation: intervals that hold, tests that do not cry out too often, designs sized honestly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainer.report.compare.equivalence import EQUIVALENT, OPEN, verdict
from trainer.report.resampling import Contrast, Scores, contrast, groups, resample
from trainer.report.statistics import holm, interval, paired_sd, sign_flip, smallest_difference


def crossed(random: np.random.Generator, seeds: int, items: int, seed_sd: float, item_sd: float, noise: float) -> np.ndarray:
    """Differences whose true mean is 0: a departure a seed, one an item, one of both."""
    u, v = seed_sd * random.standard_normal((seeds, 1)), item_sd * random.standard_normal((1, items))
    return u + v + noise * random.standard_normal((seeds, items))


def test_the_smallest_difference_is_the_textbooks_for_many_seeds():
    assert smallest_difference(10**6, 10**6, 1.0, 0.0) == pytest.approx(2.8016 / 1000, rel=0.03)
    assert smallest_difference(1, 400, 0.0, 2.0) == pytest.approx(2.8016 / 10, rel=0.03)


def test_the_smallest_difference_falls_with_seeds_items_and_correlation_and_grows_with_tests():
    small = smallest_difference(6, 1000, 0.01, paired_sd(0.5, 0.6))
    assert small < smallest_difference(3, 1000, 0.01, paired_sd(0.5, 0.6)) < smallest_difference(2, 1000, 0.01, paired_sd(0.5, 0.6))
    assert small < smallest_difference(6, 250, 0.01, paired_sd(0.5, 0.6))
    assert small < smallest_difference(6, 1000, 0.01, paired_sd(0.5, 0.1))
    assert small < smallest_difference(6, 1000, 0.01, paired_sd(0.5, 0.6), tests=3)


@pytest.mark.parametrize("seeds", [2, 3, 6])
@pytest.mark.parametrize(("items", "seed_sd", "item_sd"), [(150, 0.032, 0.155), (1, 0.05, 0.0)], ids=["seeds and items", "seeds alone"])
def test_a_difference_as_large_as_the_smallest_is_found_in_four_of_five_runs(seeds, items, seed_sd, item_sd):
    random, true = np.random.default_rng(0), smallest_difference(seeds, items, seed_sd, item_sd)
    lows = [interval(crossed(random, seeds, items, seed_sd, item_sd, 0))[0] for _ in range(500)]
    assert np.mean(np.array(lows) + true > 0) == pytest.approx(0.8, abs=0.06)


def test_what_holm_leaves_of_several_arms_is_found_in_four_of_five_runs_too():
    random, true = np.random.default_rng(1), smallest_difference(4, 60, 0.03, 0.2, tests=3)
    made = [true + crossed(random, 4, 60, 0.03, 0.2, 0) for _ in range(300)]
    p = [contrast(resample([Scores(d, np.ones(60))]), [1.0]).p() for d in made]
    assert np.mean(np.array(p) * 3 < 0.05) == pytest.approx(0.8, abs=0.06)
    assert smallest_difference(4, 60, 0.03, 0.2, tests=250) == math.inf  # a 250th of 5 % is less than draws can show


def test_a_design_of_one_seed_knows_items_alone_and_without_items_nothing():
    assert smallest_difference(1, 1000, 5.0, 0.4) == smallest_difference(1, 1000, 0.0, 0.4) > 0
    assert smallest_difference(1, 0, 0.1, 0.0) == math.inf
    assert smallest_difference(2, 0, 0.1, 0.0) > 1  # two seeds, one degree of freedom


def test_the_smallest_difference_is_the_same_each_time_and_in_any_unit():
    assert smallest_difference(3, 90, 0.03, 0.2) == pytest.approx(smallest_difference(3, 90, 3, 20) / 100, rel=1e-4)


def test_a_design_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="seeds ≥ 1"):
        smallest_difference(0, 10, 1, 1)


def test_draws_that_are_not_known_speak_for_nothing():
    of = Contrast(0.0, np.array([0.0, 0.001, np.nan, -0.001] * 50))
    assert of.beyond(0.1, above=True) == of.beyond(-0.1, above=False) == 51 / 201
    assert not of.known and np.isnan(of.interval()).all() and verdict(of, 0.1)[1] == OPEN
    beyond = Contrast(0.0, np.array([0.0] * 100 + [np.inf] * 20 + [-1.0] * 80))
    assert beyond.known and beyond.interval() == (-1.0, np.inf) and beyond.beyond(0.5, above=True) == 21 / 201


@pytest.mark.parametrize("scores", [[0.51, 0.53], [0.3, 0.2, 0.7, 0.6, 0.1, 0.9]])
def test_seeds_that_differ_equally_are_no_proof_without_items(scores):
    a, b = (Scores(np.array(scores)[:, None] + more, np.ones(1)) for more in (0.01, 0.0))
    of = contrast(resample([a, b]), [1, -1])
    assert of.point == pytest.approx(0.01) and of.p() == 1 and not of.known and np.isnan(of.interval()).all()
    assert contrast(resample([a, b]), [1, 0]).known


# What "nominal" is allowed to be: 200 draws of a 95 % interval hold the truth 95 ± 3 % of the time (two standard errors).
LOWEST = 0.91


@pytest.mark.parametrize(
    ("spreads", "plain_fails"),
    [((0.05, 0.0, 0.001), True), ((0.0, 0.3, 0.0), False), ((0.0, 0.0, 0.4), False), ((0.03, 0.3, 0.3), False)],
    ids=["seeds alone", "items alone", "both together alone", "all three"],
)
def test_with_six_seeds_the_interval_holds_the_truth_about_as_often_as_it_says(spreads, plain_fails):
    random = np.random.default_rng(0)
    made = [crossed(random, 6, 80, *spreads) for _ in range(200)]
    held = np.mean([low <= 0 <= high for low, high in map(interval, made)])
    assert LOWEST <= held <= 0.995
    assert (np.mean([low <= 0 <= high for low, high in map(uncorrected, made)]) < LOWEST) == plain_fails


def uncorrected(d: np.ndarray, draws: int = 500) -> tuple[float, float]:
    """The bootstrap as it usually stands: seeds, then items, percentiles, no correction."""
    random, (seeds, n) = np.random.default_rng(1), d.shape
    w, c = random.multinomial(seeds, [1 / seeds] * seeds, draws) / seeds, random.multinomial(n, [1 / n] * n, draws) / n
    low, high = np.quantile(((w @ d) * c).sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize("seeds", [2, 3])
def test_with_two_or_three_seeds_the_interval_is_wide_and_still_holds(seeds):
    random = np.random.default_rng(1)
    held = [low <= 0 <= high for _ in range(200) for low, high in [interval(crossed(random, seeds, 60, 0.05, 0.1, 0.05))]]
    assert np.mean(held) >= LOWEST


def test_perplexitys_interval_holds_where_documents_differ_in_length_and_seeds_in_level():
    random, held = np.random.default_rng(2), []
    for _ in range(200):
        weights = random.integers(20, 400, 80).astype(float)
        nats = 3 + crossed(random, 6, 80, 0.02, 0.5, 0.1)
        low, high = contrast(resample([Scores(nats, weights)], np.exp), [1.0]).interval()
        held.append(low <= np.exp(3) * np.exp(0.02**2 / 2) <= high)
    assert LOWEST <= np.mean(held) <= 0.995


def test_questions_on_one_image_count_as_one():
    random, held, alone = np.random.default_rng(3), [], []
    names = tuple(f"image{i}/{j}" for i in range(60) for j in range(5))
    for _ in range(150):
        d = crossed(random, 4, 60, 0.0, 0.4, 0.0).repeat(5, axis=1) + 0.1 * random.standard_normal((4, 300))
        for found, given in ((held, names), (alone, ())):
            low, high = contrast(resample([Scores(d, np.ones(300), given)]), [1.0]).interval()
            found.append(low <= 0 <= high)
    assert np.mean(held) >= LOWEST and np.mean(alone) < 0.75


def test_no_difference_is_found_in_about_one_of_twenty():
    random = np.random.default_rng(4)
    p = [contrast(resample([Scores(crossed(random, 6, 60, 0.03, 0.2, 0.2), np.ones(60))]), [1.0]).p() for _ in range(300)]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.09


def test_the_interval_leaves_out_nothing_just_when_p_is_below_5_percent():
    random = np.random.default_rng(5)
    for shift in (0, 0.05, 0.1, 0.2):
        c = contrast(resample([Scores(shift + crossed(random, 6, 60, 0.05, 0.2, 0.2), np.ones(60))]), [1.0])
        assert (c.p() < 0.05) == (not c.interval()[0] <= 0 <= c.interval()[1])


def test_two_one_sided_tests_call_arms_at_the_margin_equivalent_in_at_most_one_of_twenty():
    random, margin, found = np.random.default_rng(6), 0.02, []
    for _ in range(300):
        d = np.log1p(margin) + crossed(random, 6, 80, 0.004, 0.02, 0.02)
        p, said = verdict(contrast(resample([Scores(d, np.ones(80))]), [1.0], np.expm1), margin)
        found.append(said == EQUIVALENT)
        assert (p < 0.05) == (said == EQUIVALENT)
    assert np.mean(found) <= 0.08


def test_two_one_sided_tests_find_arms_that_are_the_same():
    random = np.random.default_rng(7)
    drawn = [contrast(resample([Scores(crossed(random, 6, 200, 0.002, 0.02, 0.02), np.ones(200))]), [1.0], np.expm1) for _ in range(50)]
    assert np.mean([verdict(d, 0.02)[1] == EQUIVALENT for d in drawn]) > 0.9


def test_holm_keeps_the_chance_of_any_false_finding_below_5_percent():
    random = np.random.default_rng(8)
    families = random.random((4000, 4)) ** np.array([1, 1, 1, 20])  # three true nothings, one clear effect
    false = [any(p < 0.05 for p in holm(f.tolist())[:3]) for f in families]
    assert np.mean(false) <= 0.055
    assert np.mean([any(p < 0.05 for p in f[:3]) for f in families]) > 0.1


def test_signs_are_flipped_exactly():
    assert sign_flip([1.0, 2, 3, 4, 5, 6]) == 2 / 64
    assert sign_flip([1.0, 1, 1, -1]) == pytest.approx(10 / 16)
    assert sign_flip([0.0, 0.0]) == 1 and sign_flip([1.0]) is None


def test_signs_of_nothing_are_found_in_at_most_one_of_twenty():
    random = np.random.default_rng(9)
    assert np.mean([sign_flip(list(random.standard_normal(6))) <= 0.05 for _ in range(600)]) <= 0.06


def test_many_items_are_dealt_into_a_thousand_groups_and_cost_no_accuracy():
    assert len(set(groups([], 5000))) == 1000 and len(set(groups([f"a{i // 2}/{i % 2}" for i in range(600)], 600))) == 300
    random = np.random.default_rng(10)
    low, high = interval(crossed(random, 1, 20_000, 0, 1, 0))
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(20_000), rel=0.1)


def test_names_that_would_leave_too_few_groups_are_items_of_their_own():
    assert len(set(groups([f"geneval/{i}" for i in range(300)], 300))) == 300
