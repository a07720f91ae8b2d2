"""How near a reconstruction comes: PSNR and SSIM of uint8 pictures, in float64, one number a picture.

PSNR = 10 log10(255^2 / MSE) over all three channels. SSIM is that of Wang, Bovik, Sheikh & Simoncelli 2004 ("Image quality assessment: from error
visibility to structural similarity"): luma, an 11 x 11 Gaussian window of deviation 1.5 that never leaves the picture, K1 = 0.01, K2 = 0.03, L = 255,
moments weighted by the window, the mean over all windows. Others count it per channel, or with a uniform window: such figures differ.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SIDE, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601
BEST = 100.0  # dB: what equal pictures are given, since infinity has no mean


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """uint8 [h, w, 3] each -> dB; 100 for equal pictures."""
    error = float(np.mean(np.square(a.astype(np.float64) - b.astype(np.float64))))
    return min(BEST, 10 * np.log10(255**2 / error)) if error else BEST


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """uint8 [h, w, 3] each, at least 11 pixels a side -> [-1, 1], 1 for equal pictures; NaN for smaller ones."""
    if min(a.shape[:2]) < SIDE:
        return float("nan")
    x, y = (picture.astype(np.float64) @ LUMA for picture in (a, b))
    mx, my = _blurred(x), _blurred(y)
    vx, vy, vxy = _blurred(x * x) - mx * mx, _blurred(y * y) - my * my, _blurred(x * y) - mx * my
    found = ((2 * mx * my + C1) * (2 * vxy + C2)) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return float(found.mean())


def window() -> np.ndarray:
    """float64 [11]: the Gaussian, which sums to 1; its outer product with itself is the window."""
    g = np.exp(-np.square(np.arange(SIDE) - SIDE // 2) / (2 * SIGMA**2))
    return np.asarray(g / g.sum())


def _blurred(x: np.ndarray) -> np.ndarray:
    """Weighted means under every window inside the picture: float64 [h - 10, w - 10]."""
    g = window()
    rows = sliding_window_view(x, SIDE, axis=0) @ g
    return np.asarray(sliding_window_view(rows, SIDE, axis=1) @ g)


def summary(values: np.ndarray) -> dict[str, float]:
    """Mean, the worst tenth's upper bound and the worst of one figure over frames, rounded for a card."""
    kept = values[np.isfinite(values)]
    if not len(kept):
        return {}
    return {"mean": round(float(kept.mean()), 4), "p10": round(float(np.quantile(kept, 0.1)), 4), "worst": round(float(kept.min()), 4)}
