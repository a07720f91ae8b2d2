"""From noise to images: the flow's equation dz/dt = v(z, t) solved from t = 0 to 1, with guidance.

In: a batch whose other positions are given, the noise to start from, a model. Out: latents. Nothing is drawn here, so a sample is a function of
its noise, and the callers make that a draw on the record. Steps are equal in t before the shift and shifted as training times were (`grid`), so a
model spends them where it was trained.

    euler   z += dt v(z, t)                                     one evaluation of the model a step
    heun    z += dt (v(z, t) + v(z + dt v(z, t), t')) / 2        two, but one in the last step, since v divides by 1 - t' = 0 there

With guidance g an evaluation is two passes: v = v_without + g (v_with - v_without).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.batch import Batch
from trainer.flow import CONDITIONS, shift_of, shifted
from trainer.run import Flow

Sampler = Literal["euler", "heun"]
LAST = 1e-6  # 1 - t is no smaller where an x-prediction is divided by it; the last step of a grid has 1 - t = dt, far above


def grid(flow: Flow, tokens: np.ndarray, channels: int | np.ndarray, steps: int) -> np.ndarray:
    """Times [steps + 1, I] from 0 to 1 for images of `tokens` [I] latents of `channels`, shifted as the run's own times."""
    s = shift_of(tokens, channels) if flow.shift == "auto" else np.full(len(tokens), flow.shift)
    return shifted(np.linspace(0, 1, steps + 1)[:, None], s)


def blind(flow: Flow, batch: Batch) -> Tensor | None:
    """What a pass without conditions does not see, bool[B,S]: those that fell in training (`cfg_drop`), or all when the run dropped none.

    Others stay seen, for a model that never missed them cannot say what it would do without. None: the batch has no such condition.
    """
    named = [CONDITIONS[name] for name, share in flow.cfg_drop.items() if share] or list(CONDITIONS.values())
    out = torch.isin(batch.condition, torch.tensor(named, dtype=batch.condition.dtype, device=batch.condition.device))
    return out if bool(out.any()) else None


@torch.no_grad()
def sample(
    model: Callable,
    batch: Batch,
    flow: Flow,
    noise: Tensor,
    which: Tensor | None = None,
    steps: int = 25,
    guidance: float = 3.0,
    sampler: Sampler = "euler",
) -> Tensor:
    """Sample the images `which` (bool[I], default: those with loss) at once, given everything else in the batch clean.

    noise [N,C] is the start (rows of other images are ignored). guidance 1 is the model as it is, 0 the model without its conditions. Returns
    latents [N,C], normalised, sampled rows replaced (of two encoders as wide as what is made). Hidden frames of a `clean_copy` video are
    sampled each from the clean copies before it.
    """
    which = batch.image_loss if which is None else which
    image = batch.latent_image.long()
    chosen = which[image].unsqueeze(1)
    z = torch.where(chosen, noise, batch.latents)
    count = torch.bincount(image, minlength=len(which)).cpu().numpy()
    times = torch.from_numpy(grid(flow, count, batch.widths, steps)).float().to(z.device)
    without = blind(flow, batch) if guidance != 1 else None

    def field(z: Tensor, now: Tensor) -> Tensor:
        t = torch.where(which, now, 1.0)
        v = _velocity(model, batch, flow, z, t, None)
        if without is None:
            return v
        unled = _velocity(model, batch, flow, z, t, without)
        return unled + guidance * (v - unled)

    for step, (now, then) in enumerate(pairwise(times)):
        dt = (then - now)[image].unsqueeze(1)
        v = field(z, now)
        moved = torch.where(chosen, z + dt * v, z)
        if sampler == "heun" and step + 1 < steps:
            moved = torch.where(chosen, z + dt * (v + field(moved, then)) / 2, z)
        z = moved
    return z[:, : batch.made_width]


def _velocity(model: Callable, batch: Batch, flow: Flow, z: Tensor, t: Tensor, dropped: Tensor | None) -> Tensor:
    prediction = model(batch, z, t, dropped).flow.float()
    prediction = F.pad(prediction, (0, z.shape[1] - prediction.shape[1]))  # of two encoders what is made may be the narrower
    if flow.predict == "v":
        return prediction
    # No clamp at .05 here: z + dt (x - z) / (1 - t) must land on x in the last step, where 1 - t = dt.
    return (prediction - z) / (1 - t[batch.latent_image.long()]).clamp(min=LAST).unsqueeze(1)
