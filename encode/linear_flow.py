"""What a codec does to the flow loss, in seconds and without chance: the best linear denoiser, in closed form.

In: latents as stored to learn from, exact latents to be judged on. Out: the flow loss of the best linear x-prediction per token from
z = t x + (1 - t) eps, its error in velocity space, at the times the trainer draws (uniform, shifted by sqrt(tokens channels / 4096)). For data of
mean m and covariance S the best linear predictor is Wiener's, m + t S (t^2 S + (1 - t)^2)^-1 (z - t m), and its expected loss over the noise is a sum
over the eigenvectors of S: nothing is drawn and nothing is trained by steps, so two codecs differ by what they store and by nothing else. A
transformer learns more than this; `benchmarks/codecs.py` trains one (docs/codecs.md).
"""

from __future__ import annotations

import numpy as np

LEVELS = 8  # times, at the middles of as many equal shares of the distribution
CLOSEST = 0.05  # of 1 - t, as in the trainer
CHANNELS = 1152  # at most so many, evenly spaced: eigenvectors of more would take minutes


def times(tokens: int, channels: int) -> np.ndarray:
    """t of the levels, 1 = clean, for images of `tokens` x `channels`."""
    u = (np.arange(LEVELS) + 0.5) / LEVELS
    shift = max(1.0, float(np.sqrt(tokens * channels / 4096)))
    return u / (u + shift * (1 - u))


def flow_loss(stored: np.ndarray, held: np.ndarray, exact: np.ndarray) -> float:
    """float [images, tokens, channels] each: learn from `stored`, be judged on `held`; both normalised by `exact`'s mean and deviation a channel."""
    t = times(*exact.shape[1:])
    chosen = np.linspace(0, exact.shape[-1] - 1, min(exact.shape[-1], CHANNELS)).astype(int)
    flat = [x.reshape(-1, x.shape[-1])[:, chosen].astype(np.float64) for x in (stored, held, exact)]
    mean, deviation = flat[2].mean(axis=0), np.sqrt(flat[2].var(axis=0) + 1e-5)
    x, y = ((z - mean) / deviation for z in flat[:2])
    middle = x.mean(axis=0)
    x -= middle
    spread, axes = np.linalg.eigh(x.T @ x / len(x))
    along = np.square((y - middle) @ axes).mean(axis=0)
    spread, noise = np.maximum(spread, 0)[None], (1 - t)[:, None]
    gain = t[:, None] * spread / (np.square(t[:, None]) * spread + np.square(noise))
    error = np.square(t[:, None] * gain - 1) * along + np.square(noise * gain)
    return float((error / np.square(np.maximum(noise, CLOSEST))).mean())
