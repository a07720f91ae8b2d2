"""Plans and moves by arithmetic: geometry undone by itself, errors against evo's formula and by hand, the released priors in units of the text."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluate._moves import Wording, after, between, wrap
from trainer.evaluate._plans import Prior, errors, moves_of, planned, poses_of


class Bytes:
    """A tokenizer that is none."""

    def encode(self, text, add_special_tokens=False):
        return type("E", (), {"ids": list(text.encode())})()


TEXT = "action: dx=+1.338, dy=-0.659, dyaw=+0.012, rel_t=+0.031"


def test_a_move_undoes_itself():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 3, (50, 3)), rng.normal(0, 3, (50, 3))
    again = after(a, between(a, b))
    assert np.allclose(again[:, :2], b[:, :2]) and np.allclose(wrap(again[:, 2] - b[:, 2]), 0)
    assert wrap(np.pi) == np.pi and wrap(-np.pi) == np.pi


def test_an_action_said_again_with_its_own_numbers_is_the_same_text():
    wording = Wording(TEXT, Bytes())
    told = wording.numbers()
    assert wording.say(np.array([told["dx"], told["dy"], told["dyaw"]]), 4) == TEXT
    assert wording.say(np.array([-0.0001, 2, -1])) == "action: dx=+0.000, dy=+2.000, dyaw=-1.000, rel_t=+0.008"


def test_another_template_keeps_its_words_and_its_digits():
    wording = Wording("go dyaw=+0.5 then dx=+1.25, dy=-0.50; keys=w", Bytes())
    assert wording.say(np.array([1, 2, 3])) == "go dyaw=+3.0 then dx=+1.00, dy=+2.00; keys=w"


def test_an_action_without_a_move_is_refused():
    with pytest.raises(Exception, match="names no move"):
        Wording("action: keys=w+space, steer=+0.1", Bytes())


def test_the_released_priors_in_waypoints():
    recon = Prior.named("recon")  # (-0.1 + 1) / 2 * 7.5 - 2.5, and deviations times half the range
    assert np.allclose(recon.mean, [0.875, 0, 0]) and np.allclose(recon.deviation, [0.075, 0.4, 0.1 * np.pi])
    assert np.allclose(Prior.named("tartan").mean, [3.125, 0, 0])


def test_a_plan_is_a_straight_line_told_in_the_frame_of_each_step():
    plan = np.array([[0.6, 0.8, 0.5]])
    poses = poses_of(plan, 8)[0]
    assert np.allclose(poses[:, :2], np.arange(9)[:, None] * plan[0, :2])
    walked = [np.zeros((1, 3))]
    for move in moves_of(plan, 8)[0]:
        walked.append(after(walked[-1], move[None]))
    assert np.allclose(np.concatenate(walked), poses)
    assert np.allclose(moves_of(plan, 8)[0, 1:-1], [1, 0, 0])  # after the first turn it goes ahead, a step at a time
    assert poses[-1, 2] == pytest.approx(np.arctan2(0.8, 0.6) + 0.5)


def evo(reference: np.ndarray, estimate: np.ndarray) -> tuple[float, float]:
    """APE and RPE RMSE of the translation part as evo's core/metrics.py has them, over 4 x 4 matrices with one orientation for all."""
    pose = lambda p: np.block([[np.eye(3), np.array([[p[0]], [p[1]], [0.0]])], [np.zeros((1, 3)), np.ones((1, 1))]])
    q, p, inverse = [pose(x) for x in reference], [pose(x) for x in estimate], np.linalg.inv
    ape = [np.linalg.norm(b[:3, 3] - a[:3, 3]) for a, b in zip(q, p, strict=True)]
    rpe = [np.linalg.norm((inverse(inverse(q[i]) @ q[i + 1]) @ (inverse(p[i]) @ p[i + 1]))[:3, 3]) for i in range(len(q) - 1)]
    return tuple(float(np.sqrt(np.mean(np.square(e)))) for e in (ape, rpe))


def test_errors_are_those_of_evo():
    rng = np.random.default_rng(1)
    for _ in range(20):
        truth, plan = np.cumsum(rng.normal(0, 1, (9, 3)), axis=0), rng.normal(0, 1, 3)
        found = errors(plan, truth)
        ape, rpe = evo(between(truth[:1], truth)[1:], poses_of(plan[None], 8)[0, 1:])
        assert found["ate"] == pytest.approx(ape) and found["rpe"] == pytest.approx(rpe)


def test_a_plan_that_is_the_path_has_no_error_and_one_beside_it_has_a_known_one():
    plan = np.array([1.0, 0.0, 0.3])
    truth = after(np.array([[4.0, -2.0, 1.1]]), poses_of(plan[None], 8)[0])
    assert max(errors(plan, truth).values()) < 1e-9
    beside = errors(np.array([1.0, 0.0, 0.3]) * 2, truth)  # k steps off after k steps, one step each time
    assert beside["ate"] == pytest.approx(np.sqrt(np.mean(np.arange(1, 9) ** 2))) and beside["rpe"] == pytest.approx(1)
    assert beside["position"] == pytest.approx(8) and beside["yaw"] == pytest.approx(0.3)


def test_the_method_finds_a_minimum_across_the_circle_and_is_a_function_of_its_key():
    best = np.array([0.2, -0.3, np.pi - 0.05])
    cost = lambda plans, _: np.abs(plans[:, :2] - best[:2]).sum(axis=1) + np.abs(wrap(plans[:, 2] - best[2]))
    prior = Prior.named("world")
    found = planned(prior, cost, 3, 400, 10, 12)
    assert np.abs(found[:2] - best[:2]).max() < 0.02 and abs(wrap(found[2] - best[2])) < 0.05
    assert np.array_equal(found, planned(prior, cost, 3, 400, 10, 12)) and not np.array_equal(found, planned(prior, cost, 4, 400, 10, 12))
    once = planned(prior, cost, 3, 120, 5, 1)  # the mean of the five best of what is drawn
    from pipelines.format import chance

    drawn = prior.draw(int(chance.draw(3, 0, "cem", 0)), 120)
    assert np.allclose(once[:2], drawn[np.argsort(cost(drawn, 0))[:5], :2].mean(axis=0))
