"""Published statistics of latents: a `.pt` file of two tensors, as RAE releases it, read without running anything it says, and written.

In: `torch.save({"mean": …, "var": …})`, each [C, H, W], [1, C, H, W], [C, 1, 1] or [C]. Out: means and variances [tokens, C], token t = row * W +
column (RAE flattens its grid in rows), or [C] where the file tells no positions. A file says neither how many images it is of nor which: its count
is unknown (n = 0, and m2 is the variance itself), so it is applied as it is and merged with nothing. Written files hold float32: the count and the
digits beyond the seventh stay behind.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from encode.stats import Statistics
from pipelines.format.errors import InputError
from pipelines.format.moments import Moments

MAX_BYTES = 256 << 20  # the largest published file is 2.4 MB
LAYOUT = '{"mean", "var"}: floating point, [C, H, W], [1, C, H, W], [C, 1, 1] or [C] each'


def read(data: bytes, where: str) -> tuple[Statistics, tuple[int, int] | None]:
    """(statistics, (H, W) or None) of a file. InputError for code, for other keys or shapes, and for values that are no mean or variance."""
    found = _tensors(data, where)
    mean, var = (_values(found[name], name, where) for name in ("mean", "var"))
    if mean.shape != var.shape:
        raise _refused("its mean and variance have two shapes", where, f"{list(mean.shape)} and {list(var.shape)}")
    if not np.isfinite(mean).all() or not np.isfinite(var).all():
        raise _refused("it holds values that are not finite", where, f"{int((~np.isfinite(mean) | ~np.isfinite(var)).sum()):,} of them")
    if (var < 0).any():
        raise _refused("it holds negative variances", where, f"{int((var < 0).sum()):,}, the lowest {var.min():g}")
    if mean.ndim == 1:
        return Statistics(Moments(0, mean, var), None), None
    grid = (mean.shape[1], mean.shape[2])
    position = Moments(0, *(np.ascontiguousarray(x.reshape(len(x), -1).T) for x in (mean, var)))
    # Without counts all positions weigh the same, as they do in images that are never cut.
    channel = Moments(0, position.mean.mean(axis=0), position.m2.mean(axis=0) + position.mean.var(axis=0))
    return Statistics(channel, position), grid


def write(statistics: Statistics, grid: tuple[int, int] | None) -> bytes:
    """RAE's file: [C, H, W] of statistics by position, [C, 1, 1] of those by channel alone."""
    import torch

    if statistics.position is None or grid is None:
        tensors = {"mean": statistics.channel.mean[:, None, None], "var": statistics.channel.variance[:, None, None]}
    else:
        position = statistics.position
        tensors = {"mean": position.mean.T.reshape(-1, *grid), "var": position.variance.T.reshape(-1, *grid)}
    out = io.BytesIO()
    torch.save({name: torch.from_numpy(np.ascontiguousarray(x, np.float32)) for name, x in tensors.items()}, out)
    return out.getvalue()


def _tensors(data: bytes, where: str) -> dict[str, Any]:
    import torch

    if len(data) > MAX_BYTES:
        raise _refused("it is too large for statistics", where, f"{len(data):,} bytes", f"at most {MAX_BYTES:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old protocols; what matters is an error below
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises anything from KeyError to RuntimeError for what is damaged, and UnpicklingError for what is code
        said = next((line.strip() for line in str(e).splitlines() if "GLOBAL" in line or "Unsupported" in line), type(e).__name__)
        raise _refused("it is not a file of tensors and nothing else; nothing in it was run", where, said[:300]) from e
    if not isinstance(found, dict) or set(found) != {"mean", "var"}:
        keys = sorted(map(str, found))[:8] if isinstance(found, dict) else type(found).__name__
        raise _refused("it does not hold a mean and a variance", where, keys)
    return found


def _values(tensor: Any, name: str, where: str) -> np.ndarray:
    """float64 [C] or [C, H, W]."""
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
        found = f"{tensor.dtype}, {tensor.layout}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise _refused(f"its {name} is not a tensor of floating point values", where, found)
    shape = list(tensor.shape)
    if tensor.ndim == 4 and shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim not in (1, 3) or tensor.numel() == 0 or tensor.numel() * 2 > MAX_BYTES:
        raise _refused(f"its {name} has a shape that statistics do not have", where, shape)
    if tensor.ndim == 3 and tensor.shape[1:] == (1, 1):
        tensor = tensor[:, 0, 0]
    return np.array(tensor.to(torch.float64).numpy())


def _refused(what: str, where: str, found: Any, allowed: str = LAYOUT) -> InputError:
    return InputError(f"this file cannot be taken for latent statistics: {what}", where=where, found=found, allowed=allowed)
