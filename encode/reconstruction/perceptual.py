"""LPIPS (Zhang, Isola, Efros, Shechtman & Wang 2018): how far two pictures are apart for the features of VGG16 (Simonyan & Zisserman 2014).

In: pictures in [0, 1] and two safetensors files: VGG16's convolutions as torchvision and timm name them (features.0.weight …), and LPIPS's five
learned weightings (lin0.model.1.weight …; its release is a pickled file of 7 KB: docs/decoders.md says how to convert it). Out: one distance a
picture. The network is written out here, thirteen convolutions, so that no other package is needed. Frozen; gradients go to the pictures alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.format import storage
from pipelines.format.errors import InputError

CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
PLACES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # of the convolutions among torchvision's layers
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS's own, for pictures in [-1, 1]


class Lpips(nn.Module):
    """float [B, 3, H, W] in [0, 1], twice -> [B]. At least 16 pixels a side."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        before = 3
        for widths in CHANNELS:
            stage = nn.ModuleList()
            for width in widths:
                stage.append(nn.Conv2d(before, width, 3, padding=1))
                before = width
            self.stages.append(stage)
        self.linear = nn.ParameterList(torch.zeros(widths[-1]) for widths in CHANNELS)
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1))

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Unit vectors over channels of what each of the five stages ends in."""
        x = (pictures * 2 - 1 - self.shift) / self.scale
        out = []
        for k, stage in enumerate(self.stages):
            x = F.max_pool2d(x, 2) if k else x
            for conv in stage:  # type: ignore[attr-defined]
                x = F.relu(conv(x))
            out.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return out

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each picture of `a` from its fellow in `b`; gradients go to `a` alone."""
        with torch.no_grad():
            known = self.features(b)
        total: Any = 0.0
        for x, y, w in zip(self.features(a), known, self.linear, strict=True):
            total = total + torch.einsum("bchw,c->bhw", (x - y).square(), w).mean(dim=(1, 2))
        return total


def load(features: str, linear: str) -> Lpips:
    """The network from its two files. InputError for what is not there."""
    model = Lpips()
    convs, weights = tensors(features), tensors(linear)
    with torch.no_grad():
        for stage, places in zip(model.stages, PLACES, strict=True):
            for conv, place in zip(stage, places, strict=True):  # type: ignore[call-overload]
                for kind in ("weight", "bias"):
                    _fill(getattr(conv, kind), convs, (f"features.{place}.{kind}", f"{place}.{kind}"), features)
        for k, w in enumerate(model.linear):
            _fill(w, weights, (f"lin{k}.model.1.weight", f"lins.{k}.model.1.weight"), linear)
    return model.eval().requires_grad_(False)


def tensors(path: str) -> dict[str, Tensor]:
    """All tensors of one safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load as unpacked

    if not storage.exists(path):
        raise InputError("no weights there", where=path, allowed="a safetensors file")
    try:
        return unpacked(storage.read(path))
    except SafetensorError as e:
        raise InputError("this file is not safetensors", where=path, found=e, next="pickled weights are never loaded: convert them first") from None


def _fill(into: Tensor, found: dict[str, Tensor], names: tuple[str, ...], where: str) -> None:
    value = next((found[n] for n in names if n in found), None)
    if value is None or value.numel() != into.numel():
        size = "nothing of that name" if value is None else f"shape {tuple(value.shape)}"
        raise InputError(f"{names[0]} is missing or of another size", where=where, found=size, allowed=f"shape {tuple(into.shape)}")
    into.copy_(value.float().reshape(into.shape))
