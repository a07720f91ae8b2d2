"""Sampling: the solvers against closed forms, guidance, determinism, and models trained on toy targets whose samples are the target's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import sqrt

import hand
import laid
import numpy as np
import pytest
import torch
from test_attention import model as transfusion
from torch import Tensor, nn

from trainer import sampling
from trainer.batch import LATENT, STRUCTURE, Batch
from trainer.flow import Noised, noised, shift_of, shifted, squared_error
from trainer.models.transfusion import Output
from trainer.run import Flow
from trainer.sampling import grid, sample


def answer(flow: Tensor) -> Output:
    return Output(torch.zeros(0), torch.zeros(0), flow)


def points(x: np.ndarray, first: int = 0, epoch: int = 0) -> Batch:
    """n points [n, C] as n documents BOI latent EOI: an image of one latent each."""
    n = len(x)
    row = lambda values, dtype: torch.from_numpy(np.tile(np.array(values, dtype), (n, 1)))
    each = lambda value, dtype: torch.full((n,), value, dtype=dtype)
    image = np.full((n, 3), -1, np.int32)
    image[:, 1] = np.arange(n)
    return Batch(
        tokens=row([hand.BOI, hand.PAD, hand.EOI], np.int32), kind=row([STRUCTURE, LATENT, STRUCTURE], np.uint8), doc=row([0] * 3, np.int32),
        turn=row([-1] * 3, np.int16), image=torch.from_numpy(image), position=row([0, 1, 2], np.int32), source=row([0] * 3, np.int16),
        condition=row([0] * 3, np.uint8), text_target=row([-100] * 3, np.int32), latents=torch.from_numpy(x.astype(np.float32)),
        latent_slot=torch.arange(n) * 3 + 1, latent_image=torch.arange(n, dtype=torch.int32), image_loss=each(True, torch.bool),
        image_hidden=each(False, torch.bool), image_h=torch.from_numpy(np.arange(first, first + n).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)),
        image_segment=each(0, torch.int16), image_epoch=each(epoch, torch.int16), seq=torch.arange(n),
    )  # fmt: skip


# ---- solvers ---------------------------------------------------------------------------------------------------------------------------------


def gaussian(spread: float, predict: str) -> Callable:
    """The exact model of data ~ N(0, spread²): z(1) = spread z(0), whatever the path."""

    def model(b: Batch, z: Tensor, t: Tensor, dropped: Tensor | None) -> Output:
        t = t[b.latent_image.long()].unsqueeze(1)
        variance = (1 - t) ** 2 + (t * spread) ** 2
        x = t * spread**2 / variance * z
        return answer(x if predict == "x" else (t * spread**2 - (1 - t)) / variance * z)

    return model


@pytest.mark.parametrize("predict", ["x", "v"])
def test_euler_converges_with_the_first_power_of_the_step_and_heun_with_the_second(predict: str) -> None:
    batch, noise = points(np.zeros((8, 1))), torch.linspace(-2, 2, 8)[:, None]
    off: dict[str, list[float]] = {}
    for sampler in ("euler", "heun"):
        made = [sample(gaussian(0.5, predict), batch, Flow(predict=predict), noise, None, n, 1.0, sampler) for n in (16, 32)]
        off[sampler] = [float((z - 0.5 * noise).abs().max()) for z in made]
    assert 1.7 < off["euler"][0] / off["euler"][1] < 2.4
    assert off["heun"][0] / off["heun"][1] > 3.2 and off["heun"][0] < off["euler"][1] / 3


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("predict", ["x", "v"])
def test_a_model_that_knows_the_data_samples_it_in_any_number_of_steps(predict: str, sampler: str) -> None:
    batch = hand.batch([[hand.document("b i I e", np.random.default_rng(0))]])
    truth = batch.latents

    def oracle(b: Batch, z: Tensor, t: Tensor, dropped: Tensor | None) -> Output:
        assert t[0] == 1, "an image that is given is clean"
        v = (truth - z) / (1 - t[b.latent_image.long()]).clamp(min=1e-6)[:, None]
        return answer(truth if predict == "x" else v)

    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    for steps in (1, 2, 25):
        found = sample(oracle, batch, Flow(predict=predict, shift=3.0), noise, None, steps, 3.0, sampler)
        assert torch.allclose(found, truth, atol=1e-4) and torch.equal(found[: hand.PATCHES], truth[: hand.PATCHES])


@pytest.mark.parametrize(("sampler", "passes"), [("euler", 5), ("heun", 9)])
def test_a_step_costs_what_is_said(sampler: str, passes: int) -> None:
    plain, captioned = (hand.batch([[hand.document("b c I e", np.random.default_rng(0), condition=c)]]) for c in (0, 1))
    for batch, guidance, expected in ((captioned, 1.0, passes), (captioned, 3.0, 2 * passes), (plain, 3.0, passes)):
        times: list[float] = []

        def model(b: Batch, z: Tensor, t: Tensor, dropped: Tensor | None, times: list[float] = times) -> Output:
            times.append(float(t[0]))
            return answer(torch.zeros_like(z))

        sample(model, batch, Flow(), torch.zeros_like(batch.latents), None, 5, guidance, sampler)
        assert len(times) == expected and max(times) < 1 and min(times) == 0


def test_the_grid_is_shifted_as_training_times_are_each_image_by_its_own_size() -> None:
    tokens = np.array([256, 1])
    found = grid(Flow(), tokens, 1152, 4)
    u = np.linspace(0, 1, 5)
    assert np.allclose(found[:, 0], u / (u + sqrt(256 * 1152 / 4096) * (1 - u))) and np.allclose(found[:, 1], u)
    assert np.allclose(grid(Flow(shift=3.0), tokens, 1152, 4)[:, 1], shifted(u, 3.0))
    assert np.allclose(found[:, 0], shifted(u, shift_of(256, 1152)))


def test_guidance_extrapolates_from_the_answer_without_the_condition() -> None:
    batch = hand.batch([[hand.document("b c I e", np.random.default_rng(0), condition=1)]])
    model = lambda b, z, t, dropped: answer(torch.full_like(z, 1.0 if dropped is None else 0.25))
    for guidance in (0.0, 1.0, 3.0):
        found = sample(model, batch, Flow(predict="v"), torch.zeros_like(batch.latents), guidance=guidance)
        assert torch.allclose(found, torch.full_like(found, 0.25 + guidance * 0.75), atol=1e-5)


def test_without_conditions_means_without_those_that_fell_in_training() -> None:
    batch = hand.batch([[laid.document("action", np.random.default_rng(0))]], 80)
    some = sampling.blind(Flow(cfg_drop={"action": 0.1, "context": 0.0}), batch)
    assert torch.equal(some, batch.condition == 2)
    assert torch.equal(sampling.blind(Flow(), batch), batch.condition > 0)  # type: ignore[arg-type]
    assert sampling.blind(Flow(cfg_drop={"caption": 0.1}), batch) is None


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_sample_is_a_function_of_its_noise_and_its_document(sampler: str) -> None:
    """The same numbers again, and in another batch; other images of the batch stay what they are."""
    net, flow = transfusion(width=16, heads=2, kv_heads=1), Flow(cfg_drop={"caption": 0.1})
    rng = np.random.default_rng(0)
    doc, other = laid.document("pair_text_first", rng), laid.document("video_noised", rng)
    alone, packed = hand.batch([[doc]], 64), hand.batch([[other, doc]], 64)
    noise = torch.randn(packed.latents.shape, generator=torch.Generator().manual_seed(0))
    n = len(doc.latents)
    first = sample(net, alone, flow, noise[-n:], None, 4, 3.0, sampler)
    assert torch.equal(first, sample(net, alone, flow, noise[-n:], None, 4, 3.0, sampler))
    which = torch.tensor([False] * 3 + [True])
    together = sample(net, packed, flow, noise, which, 4, 3.0, sampler)
    assert torch.allclose(together[-n:], first, atol=1e-4) and torch.equal(together[:-n], packed.latents[:-n])


# ---- trained models --------------------------------------------------------------------------------------------------------------------------


CORNERS = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
MASSES = (0.4, 0.3, 0.2, 0.1)  # unlike each other: a sampler that finds the corners and not their masses is off


def target(n: int, seed: int, which: int | None = None, masses: tuple[float, ...] = MASSES) -> np.ndarray:
    """Four round clouds in the plane, of standard deviation .2 and unlike masses; or one of them."""
    rng = np.random.default_rng(seed)
    corner = rng.choice(4, n, p=masses) if which is None else np.full(n, which)
    return CORNERS[corner] + 0.2 * rng.standard_normal((n, 2))


def energy_distance(x: np.ndarray | Tensor, y: np.ndarray | Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| (Székely and Rizzo): 0 if and only if the distributions are one. With n samples of each of one
    distribution it is about 2 E|X - X'| / n, not 0."""
    a, b = (torch.as_tensor(np.asarray(z), dtype=torch.float64) for z in (x, y))
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


class Net(nn.Module):
    """A small network of (z, t) in place of the transformer, for points in the plane, added to the best linear guess as `output_skip` does."""

    def __init__(self, predict: str) -> None:
        super().__init__()
        self.predict = predict
        self.layers = nn.Sequential(nn.Linear(2 + 9, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, batch: Batch, z: Tensor, t: Tensor, dropped: Tensor | None = None) -> Output:
        t = t[batch.latent_image.long()].unsqueeze(1)
        waves = torch.cat([t, *(f(k * torch.pi * t / 2) for k in (1, 2, 4, 8) for f in (torch.sin, torch.cos))], dim=1)
        signal = t if self.predict == "x" else 2 * t - 1
        return answer(self.layers(torch.cat([z, waves], dim=1)) + signal / ((1 - t) ** 2 + t**2) * z)


@cache
def plane(predict: str, space: str) -> tuple[Net, Flow]:
    torch.manual_seed(0)
    flow, net = Flow(predict=predict, loss_space=space, shift=1.5), Net(predict)
    x, epochs, size, steps = target(4096, seed=1), 6, 256, 1000
    seen = [(points(x, epoch=e), noised(flow, points(x, epoch=e), seed=0)) for e in range(epochs)]
    z0, z, t, noise = (torch.cat([getattr(o, name) for o in (pair[side] for pair in seen)])
                       for side, name in ((0, "latents"), (1, "z"), (1, "t"), (1, "noise")))  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    shell = points(np.zeros((size, 2)))
    for _ in range(steps):
        some = torch.randint(len(z0), (size,))
        shell.latents = z0[some]
        error = squared_error(flow, net(shell, z[some], t[some]).flow, shell, Noised(z[some], t[some], noise[some])).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        decay.step()
    return net.eval(), flow


@cache
def bound(n: int, which: int | None = None) -> float:
    """Twice the largest distance of 20 pairs of true sample sets of n points each: what a perfect sampler would stay below, nearly always, with
    room for a fit that is not perfect."""
    return 2 * max(energy_distance(target(n, 100 + 2 * i, which), target(n, 101 + 2 * i, which)) for i in range(20))


def test_the_bound_tells_the_target_from_its_likes() -> None:
    """From noise, from clouds of other masses, of one cloud less, and of clouds too wide."""
    true, rng = target(1000, 99), np.random.default_rng(0)
    likes = {
        "noise": rng.standard_normal((1000, 2)), "three clouds": target(1000, 1, masses=(0.5, 0.3, 0.2, 0.0)),
        "equal masses": target(1000, 1, masses=(0.25,) * 4), "blurred": target(1000, 1) + 0.5 * rng.standard_normal((1000, 2)),
    }  # fmt: skip
    for name, points_ in likes.items():
        assert energy_distance(points_, true) > bound(1000), name
    assert energy_distance(target(1000, 98), true) < bound(1000)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize(("predict", "space"), [("x", "v"), ("v", "v"), ("x", "x")])
def test_a_model_trained_on_points_in_the_plane_samples_them(predict: str, space: str, sampler: str) -> None:
    net, flow = plane(predict, space)
    noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(5))
    found = sample(net, points(np.zeros((1000, 2))), flow, noise, None, 25, 1.0, sampler)
    assert energy_distance(found, target(1000, 99)) < bound(1000)


BASIS = np.linalg.qr(np.random.default_rng(3).standard_normal((hand.PATCHES * hand.WIDTH, 2)))[0].T * sqrt(hand.PATCHES * hand.WIDTH / 2)


def captioned(n: int, seed: int) -> tuple[list, np.ndarray]:
    """Images of 4 x 6 numbers that lie in a plane of the 24-dimensional space, there in one of the four clouds, which a caption names."""
    rng = np.random.default_rng(seed)
    corner = rng.choice(4, n, p=MASSES)
    docs = []
    for i in range(n):
        doc = hand.document("b c I e", rng, h=int(rng.integers(0, 2**63)), condition=1)
        doc.tokens[1] = corner[i]
        doc.latents[:] = ((CORNERS[corner[i]] + 0.2 * rng.standard_normal(2)) @ BASIS).reshape(hand.PATCHES, hand.WIDTH)
        docs.append(doc)
    return docs, corner


@cache
def low_rank() -> tuple[nn.Module, Flow]:
    flow = Flow(predict="x", loss_space="v", shift=1.5, cfg_drop={"caption": 0.2})
    net = transfusion(layers=2, width=48, heads=2, kv_heads=2, norm="layer", activation="relu2", embedding_std=1.0, output_skip=True)
    torch.nn.init.zeros_(net.latent_out.weight)
    size, steps = 48, 450
    optimizer = torch.optim.AdamW(net.parameters(), lr=6e-3, betas=(0.9, 0.98), weight_decay=0.0)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        docs, _ = captioned(size, 10_000 + step)
        batch = hand.batch([docs], 9 * size)
        seen = noised(flow, batch, seed=0)
        error = squared_error(flow, net(batch, seen.z, seen.t, seen.dropped).flow, batch, seen).mean()
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay.step()
    return net.eval(), flow


def in_the_plane(z: Tensor) -> tuple[np.ndarray, float]:
    """Coordinates [n, 2] of images in the plane, and the share of their energy that lies outside it."""
    x = z.double().numpy().reshape(-1, hand.PATCHES * hand.WIDTH)
    inside = x @ BASIS.T / (BASIS[0] @ BASIS[0])
    return inside, float(((x - inside @ BASIS) ** 2).sum() / (x**2).sum())


def test_a_transformer_trained_on_images_of_rank_two_samples_them_with_and_without_captions() -> None:
    net, flow = low_rank()
    docs, corner = captioned(300, seed=1)
    batch = hand.batch([docs], 9 * 300)
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(5))
    draw = lambda guidance, sampler, steps: in_the_plane(sample(net, batch, flow, noise, None, steps, guidance, sampler))
    for sampler, steps in (("euler", 25), ("heun", 13)):
        found, outside = draw(1.0, sampler, steps)
        assert outside < 0.02
        for k in range(4):
            some = found[corner == k]
            assert energy_distance(some, target(len(some), 99, k)) < bound(len(some), k), k
    found, outside = draw(0.0, "euler", 25)
    assert outside < 0.03 and energy_distance(found, target(300, 99)) < bound(300)
    guided, _ = draw(3.0, "euler", 25)
    nearest = ((guided[:, None] - CORNERS) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == corner).mean() > 0.99
