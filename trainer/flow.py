"""Flow matching on latents: t = 1 is data, t = 0 is noise, z_t = (1 - t) eps + t z0, velocity v = z0 - eps.

In: a Batch with clean latents. Out: what the model sees (z, t, dropped conditions) and what it should have said. Every number that chance
decides is a draw keyed by (record, seed, epoch, image), made on the CPU: the same at any rank, world size, worker and resume point.

The choices (prediction, loss space, times, shift) are `trainer.run.Flow`. RAE and Scale-RAE write noise as t = 1; their shift
tau' = s tau / (1 + (s - 1) tau) is t' = t / (t + s (1 - t)) in this convention.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from pipelines.format import chance
from trainer.batch import Batch
from trainer.run import Flow

CONDITIONS = {"caption": 1, "action": 2, "context": 3}
CLOSEST = 0.05  # 1 - t is clamped here where a division by it turns x into v: a weight of at most 400 on a squared error


@dataclass(slots=True)
class Noised:
    """What the model sees of a batch's images: z [N,C], t [I] (1 = clean), noise [N,C] or None when all is clean, dropped bool[B,S] or None."""

    z: Tensor
    t: Tensor
    noise: Tensor | None = None
    dropped: Tensor | None = None

    def to(self, device: torch.device | str) -> Noised:
        move = lambda x: None if x is None else x.to(device, non_blocking=True)
        return Noised(self.z.to(device), self.t.to(device), move(self.noise), move(self.dropped))


def shift_of(tokens: int | np.ndarray, channels: int | np.ndarray) -> np.ndarray:
    """s = max(1, sqrt(tokens * channels / 4096)); 8.49 for 256 x 1152, 1.75 for 196 x 64."""
    return np.maximum(1.0, np.sqrt(np.asarray(tokens, np.float64) * channels / 4096))


def shifted(t, s):
    """t' = t / (t + s (1 - t)): more noise for larger latents; keeps 0 and 1. Any array type."""
    return t / (t + s * (1 - t))


def clean(batch: Batch) -> Noised:
    """The batch with every image as it is (t = 1) and nothing dropped: for text metrics."""
    return Noised(batch.latents, torch.ones(len(batch.image_loss)))


def noised(flow: Flow, batch: Batch, seed: int, t: np.ndarray | None = None, drop: bool = True) -> Noised:
    """Draw t and noise for each image that takes loss (others stay clean at t = 1) and the conditions that fall. Host tensors in and out.

    t [I]: use these times instead of drawn ones (evaluation at fixed times), noise still drawn. drop=False keeps every condition.
    """
    loss = batch.image_loss.numpy()
    times = np.ones(len(loss), np.float32)
    if not loss.any():
        return Noised(batch.latents, torch.from_numpy(times))
    latents = batch.latents.numpy()
    count = np.bincount(batch.latent_image.numpy(), minlength=len(loss))
    stop, width = np.cumsum(count), batch.widths.tolist()
    noise = np.zeros_like(latents)
    h, segment, epoch = batch.image_h.numpy(), batch.image_segment.numpy(), batch.image_epoch.numpy()
    for i in np.flatnonzero(loss):
        key, extra = int(h[i]), (int(epoch[i]), int(segment[i]))
        times[i] = t[i] if t is not None else _time(flow, key, seed, extra, count[i], width[i])
        noise[stop[i] - count[i] : stop[i], : width[i]] = chance.noise(int(chance.draw(key, seed, "noise", *extra)), (int(count[i]), width[i]))
    per_latent = times[batch.latent_image.numpy(), None]
    z = (1 - per_latent) * noise + per_latent * latents
    dropped = _dropped(flow, batch, seed, loss) if drop and flow.cfg_drop else None
    return Noised(torch.from_numpy(z), torch.from_numpy(times), torch.from_numpy(noise), dropped)


def _time(flow: Flow, h: int, seed: int, extra: tuple[int, int], tokens: int, channels: int) -> float:
    u = float(chance.uniform(chance.draw(h, seed, "t", *extra)))
    if flow.time == "logit_normal":
        u = 1 / (1 + np.exp(-NormalDist().inv_cdf(min(max(u, 1e-12), 1 - 1e-12))))
    s = float(shift_of(tokens, channels)) if flow.shift == "auto" else flow.shift
    return float(shifted(u, s))


def _dropped(flow: Flow, batch: Batch, seed: int, loss: np.ndarray) -> Tensor | None:
    """bool[B,S]: positions whose condition falls in their document. Only documents with a trained image can lose one."""
    condition = batch.condition.numpy()
    chances = np.zeros(4)
    for name, share in flow.cfg_drop.items():
        chances[CONDITIONS[name]] = float(share)
    if not condition.any() or not chances.any():
        return None
    rows, length = condition.shape
    document = np.where(batch.doc.numpy() >= 0, batch.doc.numpy() + 1, 0) + np.arange(rows)[:, None] * (length + 1)
    first = np.searchsorted(batch.latent_image.numpy(), np.arange(len(loss)))  # each image's first latent
    of_image = document.reshape(-1)[batch.latent_slot.numpy()[first]]
    level = np.full(rows * (length + 1), 2.0)
    h, epoch = batch.image_h.numpy(), batch.image_epoch.numpy()
    for i in np.flatnonzero(loss):
        level[of_image[i]] = float(chance.uniform(chance.draw(int(h[i]), seed, "cfg", int(epoch[i]))))
    dropped = level[document] < chances[condition]
    return torch.from_numpy(dropped) if dropped.any() else None


def velocity(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """v from a prediction of the data: (x - z) / (1 - t), 1 - t clamped at .05; t broadcasts."""
    return (x - z) / (1 - t).clamp(min=CLOSEST)


def data(v: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """The data from a velocity: z + (1 - t) v."""
    return z + (1 - t) * v


def squared_error(flow: Flow, prediction: Tensor, batch: Batch, seen: Noised) -> Tensor:
    """Mean over channels of the squared error in `loss_space`, per latent [N], for every latent (mask by image_loss outside). A prediction narrower
    than the batch's latents is of two encoders, and is judged in its own width.

    With predict x, loss_space v the error is (x_hat - z0) / max(1 - t, .05): the same clamp on both sides, so its minimum is 0 at x_hat = z0.
    """
    t = seen.t[batch.latent_image.long()].unsqueeze(1)
    prediction = prediction.float()
    data = batch.latents[:, : prediction.shape[1]]
    if flow.predict == "x":
        error = prediction - data
        if flow.loss_space == "v":
            error = error / (1 - t).clamp(min=CLOSEST)
    else:
        noise = seen.noise[:, : prediction.shape[1]] if seen.noise is not None else torch.zeros_like(data)
        error = prediction - (data - noise)
        if flow.loss_space == "x":
            error = error * (1 - t)
    return error.square().mean(dim=1)
