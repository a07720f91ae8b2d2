"""Chance in generation: which token, which noise, and the path from noise to an image. Nothing here keeps state.

Every number is a draw keyed by (seed, prompt, sample, position in the document), so what comes out for a prompt does not depend on who stands
beside it, on the batch size, or on the order of work. A token costs one uniform number (inverse distribution over ids in order: a difference in the
last bits of a logit moves a choice only where the number falls on an edge).
"""

from __future__ import annotations

from collections.abc import Generator as Coroutine
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipelines.format import chance
from trainer.generate.recipe import Sampling
from trainer.run import Flow
from trainer.sampling import LAST, Sampler, grid

Path = Coroutine[tuple[Tensor, float], Tensor, Tensor]


def times(how: Sampling, flow: Flow, tokens: int, channels: int) -> list[float]:
    """Times [steps + 1] from 0 to 1 for an image of `tokens` latents, shifted as in training or as the sampling says."""
    said = flow if how.shift is None else flow.model_copy(update={"shift": how.shift})
    return [float(t) for t in grid(said, np.array([tokens]), channels, how.steps)[:, 0]]


def uniform(id: str, sample: int, position: int, seed: int) -> float:
    """The number that decides the token at a position."""
    return float(chance.uniform(chance.draw(chance.group_hash(id), seed, "token", sample, position)))


def noise(id: str, sample: int, position: int, seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Where the image whose BOI stands at a position begins."""
    return chance.noise(int(chance.draw(chance.group_hash(id), seed, "image", sample, position)), shape)


def chosen(logits: Tensor, allowed: Tensor, u: list[float], how: Sampling) -> np.ndarray:
    """Ids [A] from logits [A, V], of those `allowed` bool[A, V], by one uniform number each."""
    logits = logits.float().masked_fill(~allowed, float("-inf"))
    if how.temperature == 0:
        return logits.argmax(dim=1).cpu().numpy()
    p = nucleus(logits / how.temperature, how.top_k, how.top_p).double().softmax(dim=1)
    total = p.cumsum(dim=1)
    at = torch.tensor(u, dtype=torch.float64, device=p.device).unsqueeze(1) * total[:, -1:]
    ids = torch.searchsorted(total, at, right=True).squeeze(1)
    last = p.shape[1] - 1 - (p > 0).flip(1).to(torch.uint8).argmax(dim=1)  # where u * total rounds up to total
    return torch.minimum(ids, last).cpu().numpy()


def nucleus(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits [A, V] with all but the `top_k` largest, then all but the fewest that hold `top_p` of what is left, at -inf. Equals share a fate in
    the first, and go by id in the second."""
    if top_k is not None and top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=1).values[:, -1:], float("-inf"))
    if top_p is not None and top_p < 1:
        ordered, ids = logits.sort(dim=1, descending=True, stable=True)
        p = ordered.double().softmax(dim=1)
        spare = p.cumsum(dim=1) - p >= top_p
        logits = logits.masked_fill(torch.zeros_like(spare).scatter(1, ids, spare), float("-inf"))
    return logits


def path(z: Tensor, at: list[float], sampler: Sampler) -> Path:
    """From noise z [n, C] to an image, as `sampling.sample` goes: yields (z, t), is sent the velocity there, returns the image.

    A coroutine, so that each image of a batch stands at a step of its own.
    """
    for now, then in pairwise(at):
        dt = then - now
        v = yield z, now
        if sampler == "heun" and then < 1:
            v = (v + (yield z + dt * v, then)) / 2
        z = z + dt * v
    return z


def velocity(prediction: Tensor, z: Tensor, t: float, predict: Literal["x", "v"]) -> Tensor:
    """What the model says, as a velocity."""
    return prediction.float() if predict == "v" else (prediction.float() - z) / max(1 - t, LAST)
