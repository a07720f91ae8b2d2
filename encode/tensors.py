"""The codecs and the statistics once more, on tensors: what a GPU does beside the network, so that only stored bytes cross to the host.

In: latents as a tensor [images, tokens, channels] on any device. Out: their bytes, bit for bit those of pipelines/format/codec.py, the latents as
they will be read, and moments and codec error in float64. On the host this takes 2 to 4 ms an image of 256 x 1152, which one core cannot do at the
rate of a GPU; on the GPU it is some passes over memory.

Bits are equal because every step is one that IEEE 754 rounds: the largest of a group, a true division, rounding to nearest even. A division by a
Python number is none of these on CUDA (torch multiplies by the reciprocal), so the divisor is a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from encode.codec_error import CodecError
from encode.stats import Moments
from pipelines.format.codec import CHANNELS_PER_SCALE, LARGEST, aligned, known, nbytes

CHUNK = 1 << 23  # values looked at together: the float64 copies of 28 images of 256 x 1152 are 67 MB each


def stored(x: Any, codec: str) -> tuple[Any, Any]:
    """[images, tokens, channels], floating and finite -> (uint8 [images, nbytes], float32 [images, tokens, channels] as read back)."""
    import torch

    known(codec)
    if codec == "bf16":
        half = x.to(torch.bfloat16).contiguous()
        return half.flatten(1).view(torch.uint8), half.float()
    x = x.float().contiguous()
    if codec == "f32":
        return x.flatten(1).view(torch.uint8), x
    n, width = x.shape[1:]
    grouped = torch.nn.functional.pad(x, (0, -width % CHANNELS_PER_SCALE)).unflatten(-1, (-1, CHANNELS_PER_SCALE))
    largest = torch.full((), float(LARGEST[codec]), device=x.device)
    scales = grouped.abs().amax(dim=-1) / largest
    quotient = grouped / torch.where(scales == 0, torch.ones_like(scales), scales).unsqueeze(-1)
    quotient.clamp_(-float(LARGEST[codec]), float(LARGEST[codec]))
    codes = quotient.to(torch.float8_e4m3fn) if codec == "f8e4m3" else quotient.round_().to(torch.int8)
    back = (codes.float() * scales.unsqueeze(-1)).flatten(-2)[..., :width]
    out = torch.zeros(len(x), nbytes(codec, n, width), dtype=torch.uint8, device=x.device)
    out[:, : n * width] = codes.view(torch.uint8).flatten(-2)[..., :width].flatten(1)
    out[:, aligned(n * width) :] = scales.flatten(1).view(torch.uint8)
    return out, back


def finite(x: Any) -> Any:
    """A boolean tensor on the device: whether every value is a number. One pass over bf16, and nothing waits for it."""
    return x.isfinite().all()


def moments(x: Any) -> Moments:
    """Of [images, ...]: mean and sum of squared deviations of each place, in float64, left on the device."""
    import torch

    variance, mean = torch.var_mean(x.double(), dim=0, correction=0)
    on_device: tuple[Any, Any] = (mean, variance * len(x))  # merging is arithmetic that tensors do as well
    return Moments(len(x), *on_device)


def error(exact: Any, kept: Any) -> Any:
    """float64 [4] on the device: squared error, squared norm of the exact latents, cosines added up, and the worst cosine of a token."""
    import torch

    a, b = exact.double(), kept.double()
    aa, bb, ab = (x * y for x, y in ((a, a), (b, b), (a, b)))
    aa, bb, ab = aa.sum(dim=-1), bb.sum(dim=-1), ab.sum(dim=-1)
    cosine = torch.where(aa * bb > 0, ab / (aa * bb).sqrt(), torch.ones_like(ab))
    return torch.stack([(a - b).square().sum(), aa.sum(), cosine.sum(), cosine.min()])


class Tally:
    """What is counted of a part on its device, batch by batch; `done` brings it home."""

    def __init__(self, shape: tuple[int, int], codec: str) -> None:
        self.tokens, self.channels = shape
        self.codec = codec
        self.moments: Moments | None = None
        self.errors: list[Any] = []
        self.finite: list[Any] = []
        self.vectors: list[int] = []  # how many latent vectors each of them is of

    def add(self, batch: Any) -> list[Any]:
        """Latents of real pictures [images, tokens, channels] -> their bytes, some images a tensor."""
        import torch

        self.finite.append(finite(batch))
        out = []
        for x in batch.split(max(1, CHUNK // (self.tokens * self.channels))):
            coded, kept = stored(x, self.codec)
            out.append(coded)
            if not (self.codec == "f32" or (self.codec == "bf16" and x.dtype == torch.bfloat16)):
                self.errors.append(error(x, kept))
                self.vectors.append(x.shape[0] * x.shape[1])
            found = moments(kept)
            self.moments = found if self.moments is None else self.moments.merged(found)
        return out

    def done(self, to_host: Callable[[Any], Callable[[], np.ndarray]]) -> Callable[[], tuple[bool, Moments, CodecError]]:
        """Starts what was counted on its way to the host; the function that is returned waits for it: (whether all were numbers, moments
        [tokens, channels], codec error), as numpy."""
        import torch

        if self.moments is None:
            return lambda: (True, Moments.none((self.tokens, self.channels)), CodecError())
        n, vectors = self.moments.n, self.vectors
        sums = torch.stack(self.errors) if self.errors else None
        on_device: tuple[Any, Any] = (self.moments.mean, self.moments.m2)
        mean, m2 = (to_host(x) for x in on_device)
        good, errors = to_host(torch.stack(self.finite)), None if sums is None else to_host(sums)

        def counted() -> tuple[bool, Moments, CodecError]:
            found = Moments(n, mean(), m2())
            if errors is None:
                return bool(good().all()), found, CodecError.nothing(found)
            rows = errors().tolist()
            return bool(good().all()), found, CodecError.total(CodecError(k, *row) for k, row in zip(vectors, rows, strict=True))

        return counted
