"""A law over mixtures: recovered where it holds, chosen by what predicts, and a next mixture that stays where arms vouch for it."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.scaling import mixing
from trainer.scaling.next_mixture import inside_hull, propose


def arms(count: int = 30, sources: int = 3, seed: int = 0, sparse: bool = True):
    shares = np.random.default_rng(seed).dirichlet(np.full(sources, 0.7), count)
    if sparse:
        shares = np.where(shares < 0.08, 0, shares)
    return shares / shares.sum(1, keepdims=True)


def effective(x, worth=(1.0, 0.3, 0.05), beta=0.4):
    return 2.0 + 0.8 * (np.asarray(x) @ np.array(worth)) ** -beta


def exponential(x, t=(-3.0, -0.5, 0.4)):
    return 1.5 + np.exp(np.asarray(x) @ np.array(t))


@pytest.mark.parametrize(("truth", "form"), [(effective, "effective"), (exponential, "exponential")])
def test_the_form_that_made_the_losses_is_chosen_and_predicts_new_mixtures(truth, form):
    x, new = arms(), arms(50, seed=1)
    law = mixing.fit(x, truth(x))
    assert law.form == form and law.rank > 0.98 and law.error < 0.05 * law.null
    assert np.abs(law.at(new) - truth(new)).max() < 0.03 * truth(new).std() + 0.01


def test_worth_says_what_a_token_of_a_source_counts_beside_the_best():
    x = arms(60)
    law = mixing.fit(x, effective(x), "effective")
    assert law.worth == pytest.approx([1.0, 0.3, 0.05], rel=0.15)


def test_unequal_totals_are_told_apart_from_shares():
    x = arms(40) * np.random.default_rng(3).choice([0.2, 1.0, 2.0], (40, 1))
    law = mixing.fit(x, effective(x))
    assert law.form == "effective" and effective([[2, 0, 0]]) == pytest.approx(law.at([[2.0, 0, 0]]), rel=0.01)


def test_the_law_is_the_same_in_any_unit_of_loss():
    x = arms()
    law, bits = mixing.fit(x, effective(x), "effective"), mixing.fit(x, 100 + 7 * effective(x), "effective")
    assert bits.at(x) == pytest.approx(100 + 7 * law.at(x), rel=1e-4)


def test_noise_without_a_law_is_not_called_one():
    x = arms()
    law = mixing.fit(x, np.random.default_rng(0).normal(3, 0.1, len(x)))
    assert law.error > 0.8 * law.null and abs(law.rank) < 0.5


def test_seeds_of_an_arm_stay_together_in_cross_validation():
    # Losses that belong to arms and follow no law: a fold that holds an arm's other seed would predict them.
    x = np.repeat(arms(12), 4, axis=0)
    loss = np.repeat(np.random.default_rng(1).normal(3, 0.1, 12), 4)
    assert mixing.fit(x, loss, "effective", groups=np.repeat(np.arange(12), 4)).error > 0.08


def test_too_few_mixtures_and_impossible_ones_are_refused():
    with pytest.raises(ValueError, match="4 different mixtures of 3 sources: a law of mixtures needs at least 5"):
        mixing.fit(np.repeat(arms(4), 3, axis=0), np.ones(12))
    with pytest.raises(ValueError, match="not all 0"):
        mixing.fit(np.zeros((8, 2)), np.ones(8))
    with pytest.raises(ValueError, match="not all 0"):
        mixing.fit(arms(8), np.full(8, np.nan))


def two_losses(x):
    return np.stack([effective(x, (1.0, 0.05, 0.05)), effective(x, (0.05, 1.0, 0.05))], 1)


def test_the_next_mixture_is_the_best_there_is():
    x = arms(40)
    laws = [mixing.fit(x, y, "effective") for y in two_losses(x).T]
    found = propose(laws, x, two_losses(x), [1, 1], draws=30)
    grid = np.array([[a, b, 1 - a - b] for a in np.linspace(0, 1, 51) for b in np.linspace(0, 1 - a, 26)])
    assert two_losses(found.shares[None]).sum() == pytest.approx(two_losses(grid).sum(1).min(), rel=0.005)
    assert found.shares == pytest.approx([0.5, 0.5, 0], abs=0.06) and found.inside and found.shares.sum() == pytest.approx(1)
    assert found.predicted <= found.best + 1e-9 and found.gain.value == pytest.approx(found.best - found.predicted)


def test_weights_of_losses_move_the_next_mixture():
    x = arms(40)
    laws = [mixing.fit(x, y, "effective") for y in two_losses(x).T]
    first, second = (propose(laws, x, two_losses(x), w, draws=0).shares for w in ([9, 1], [1, 9]))
    assert first[0] > second[0] + 0.2 and second[1] > first[1] + 0.2


def test_without_bounds_it_stays_among_the_arms_and_with_bounds_says_when_it_leaves_them():
    x = arms(60)
    x = x[(x[:, 0] < 0.4) & (x[:, 0] > 0.05)]
    laws = [mixing.fit(x, effective(x), "effective")]
    within = propose(laws, x, effective(x)[:, None], [1], draws=0)
    assert within.inside and within.shares[0] <= x[:, 0].max() + 1e-6
    outside = propose(laws, x, effective(x)[:, None], [1], bounds=[[0, 0.8], [0, 1], [0.1, 1]], draws=0)
    assert not outside.inside and outside.shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    with pytest.raises(ValueError, match="bounds hold no mixture"):
        propose(laws, x, effective(x)[:, None], [1], bounds=[[0, 0.2], [0, 0.2], [0, 0.2]], draws=0)


def test_the_chance_of_a_gain_is_high_where_there_is_one_and_open_where_there_is_none():
    x, random = arms(40), np.random.default_rng(0)
    some = two_losses(x) + random.normal(0, 0.01, (40, 2))
    laws = [mixing.fit(x, y, "effective") for y in some.T]
    poor = two_losses(x).sum(1) > np.quantile(two_losses(x).sum(1), 0.5)  # arms that missed the good mixtures
    found = propose([mixing.fit(x[poor], y[poor], "effective") for y in some.T], x[poor], some[poor], [1, 1], draws=40)
    assert found.gain.value > 0 and found.chance > 0.8
    best = propose(laws, x, some, [1, 1], draws=40)
    assert best.gain.value < found.gain.value


def test_a_hull_holds_its_corners_and_middle_and_nothing_beyond():
    corners = np.array([[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]])
    assert inside_hull(corners, corners[0]) and inside_hull(corners, corners.mean(0)) and not inside_hull(corners, np.array([1.0, 0, 0]))
