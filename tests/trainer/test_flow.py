"""Flow matching: t = 1 is data, draws are keyed, conversions agree, and a model that knows the answer samples it."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import hand
import numpy as np
import pytest
import torch

from pipelines.format import chance
from trainer import flow
from trainer.run import Flow


def test_the_shift_reproduces_the_known_values() -> None:
    known = {(256, 1152): 8.49, (256, 1024): 8.0, (256, 588): 6.06, (196, 64): 1.75, (196, 16): 1.0}
    for (tokens, channels), s in known.items():
        assert float(flow.shift_of(tokens, channels)) == pytest.approx(s, abs=0.005)
    assert np.sqrt(196 * 16 / 4096) == 0.875  # which is clamped: less noise than uniform helps nobody
    assert flow.shift_of(np.array([256, 196]), 1152).tolist() == pytest.approx([8.485, 7.425], abs=0.001)


def test_drawn_times_are_the_closed_form_of_their_draws() -> None:
    """t' = t / (t + s (1 - t)), with t uniform or the sigmoid of a normal number, s by the image's size or as given."""
    docs = [[hand.document("b I e", np.random.default_rng(i), h=i)] for i in range(50)]
    batch = hand.batch(docs)
    u = np.array([float(chance.uniform(chance.draw(i, 3, "t", 0, 0))) for i in range(50)])
    normal = np.array([1 / (1 + np.exp(-NormalDist().inv_cdf(x))) for x in u])
    auto = np.sqrt(4 * 6 / 4096)
    assert auto < 1
    for settings, t, s in (({}, u, 1.0), ({"shift": 2.5}, u, 2.5), ({"shift": 0.5}, u, 0.5), ({"time": "logit_normal", "shift": 2.5}, normal, 2.5)):
        found = flow.noised(Flow(**settings), batch, seed=3).t.double().numpy()
        assert np.allclose(found, t / (t + s * (1 - t)), atol=1e-6)
    assert np.allclose(flow.shifted(flow.shifted(u, 3.0), 1 / 3.0), u)


def test_the_shift_is_the_noise_time_shift_of_rae_seen_from_the_other_end() -> None:
    t, s = np.linspace(0, 1, 11), 3.0
    tau = 1 - t
    assert np.allclose(flow.shifted(t, s), 1 - s * tau / (1 + (s - 1) * tau))
    assert flow.shifted(t, s)[0] == 0 and flow.shifted(t, s)[-1] == 1


def test_x_and_v_predictions_agree_through_conversion_up_to_the_clamp() -> None:
    g = torch.Generator().manual_seed(0)
    z0, eps = torch.randn(50, 6, generator=g, dtype=torch.float64), torch.randn(50, 6, generator=g, dtype=torch.float64)
    t = torch.linspace(0, 0.95, 50, dtype=torch.float64)[:, None]
    z = (1 - t) * eps + t * z0
    assert torch.allclose(flow.velocity(z0, z, t), z0 - eps, atol=1e-6)
    assert torch.allclose(flow.data(z0 - eps, z, t), z0, atol=1e-6)


@pytest.mark.parametrize("predict", ["x", "v"])
def test_the_error_in_v_is_the_error_in_x_over_one_minus_t_squared_at_most_400_times(predict) -> None:
    batch = hand.batch([[hand.document("b I I I I e", np.random.default_rng(0))]])
    times = np.array([0.0, 0.5, 0.9, 0.99])
    seen = flow.noised(Flow(), batch, seed=0, t=times)
    guess = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
    v, x = (flow.squared_error(Flow(predict=predict, loss_space=space), guess, batch, seen) for space in ("v", "x"))
    weight = (v / x).reshape(4, -1).mean(dim=1).numpy()
    expected = 1 / np.maximum(1 - times, 0.05 if predict == "x" else 0) ** 2
    assert np.allclose(weight, expected, rtol=1e-3) and (predict == "v" or weight.max() < 401)


@pytest.mark.parametrize("space", ["v", "x"])
def test_the_same_guess_costs_the_same_as_x_and_as_v(space) -> None:
    batch = hand.batch([[hand.document("b I I e", np.random.default_rng(0))]])
    seen = flow.noised(Flow(), batch, seed=0, t=np.array([0.3, 0.8]))
    t = seen.t[batch.latent_image.long()][:, None]
    x = batch.latents + 0.1
    costs = [
        flow.squared_error(Flow(predict=p, loss_space=space), guess, batch, seen)
        for p, guess in (("x", x), ("v", flow.velocity(x, seen.z, t)))
    ]
    assert torch.allclose(costs[0], costs[1], rtol=1e-4)


def test_each_image_has_the_time_and_noise_of_its_own_key_and_clean_ones_have_none() -> None:
    rng = np.random.default_rng(0)
    doc = hand.document("b i I I e", rng, h=77, epoch=2)
    alone = flow.noised(Flow(), hand.batch([[doc]]), seed=5)
    other = hand.document("b I t e", rng)
    packed = flow.noised(Flow(), hand.batch([[other], [other, doc]]), seed=5)
    assert torch.equal(packed.t[-3:], alone.t) and torch.equal(packed.z[-12:], alone.z)
    assert alone.t[0] == 1 and torch.equal(alone.z[:4], torch.from_numpy(doc.latents[:4]))
    u = chance.uniform(chance.draw(77, 5, "t", 2, 1))  # image = segment index
    assert float(alone.t[1]) == pytest.approx(u) and alone.t[1] != alone.t[2]
    noise = chance.noise(int(chance.draw(77, 5, "noise", 2, 2)), (4, hand.WIDTH))
    expected = (1 - alone.t[2]) * noise + alone.t[2] * doc.latents[8:12]
    assert torch.allclose(alone.z[8:12], expected)


def test_another_seed_or_epoch_gives_other_noise() -> None:
    doc = hand.document("b I e", np.random.default_rng(0), h=1)
    first = flow.noised(Flow(), hand.batch([[doc]]), seed=0)
    for seed, epoch in ((1, 0), (0, 1)):
        again = flow.noised(Flow(), hand.batch([[replace(doc, epoch=epoch)]]), seed=seed)
        assert again.t[0] != first.t[0] and not torch.equal(again.noise, first.noise)


def test_logit_normal_times_are_symmetric_around_one_half_before_the_shift() -> None:
    docs = [[hand.document("b I e", np.random.default_rng(i))] for i in range(600)]
    t = flow.noised(Flow(time="logit_normal", shift=1.0), hand.batch(docs), seed=0).t
    assert abs(float(t.mean()) - 0.5) < 0.03 and 0.18 < float(t.std()) < 0.24  # the sigmoid of a standard normal: .2083


def test_conditions_fall_at_the_stated_rate_only_before_trained_images() -> None:
    rng = np.random.default_rng(0)
    docs = [[hand.document("b c c I e", rng, condition=1), hand.document("b i c t e", rng, condition=3)] for _ in range(400)]
    batch = hand.batch(docs)
    seen = flow.noised(Flow(cfg_drop={"caption": 0.25, "context": 0.9}), batch, seed=0)
    fallen = seen.dropped[batch.kind == 0]
    caption = batch.condition[batch.kind == 0] == 1
    assert 0.19 < float(fallen[caption].float().mean()) < 0.31
    assert not seen.dropped[batch.condition == 3].any() and not seen.dropped[batch.condition == 0].any()
    both = seen.dropped[batch.condition == 1].reshape(400, 2)
    assert torch.equal(both[:, 0], both[:, 1])  # a record's caption falls whole
