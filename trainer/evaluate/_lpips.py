"""LPIPS over AlexNet: how unlike two pictures look (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR
2018).

In: pictures uint8 [n, H, W, 3] and a folder with two files' worth of weights, which this project does not bring: torchvision's AlexNet
(`features.0.weight`, …) and LPIPS 0.1's five linear layers (`lin0.model.1.weight`, …), as .safetensors, or as .pth read with weights_only. Out:
distances, 0 for a picture with itself. The network is the published one: pictures in [-1, 1], shifted and scaled; the five activations after a
ReLU, each vector of unit length; squared differences, weighted by channel, averaged over places and summed over layers. Pictures below 32 pixels
are refused: AlexNet ends in nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.format import storage
from pipelines.format.errors import InputError

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# torchvision's number of a convolution in `features`: channels in and out, kernel, stride, padding. A pooling of 3 by 2 stands before POOLED.
LAYERS = {0: (3, 64, 11, 4, 2), 3: (64, 192, 5, 1, 2), 6: (192, 384, 3, 1, 1), 8: (384, 256, 3, 1, 1), 10: (256, 256, 3, 1, 1)}
POOLED = {3, 6}
SMALLEST, EPSILON, BLOCK = 32, 1e-10, 64


class Lpips(nn.Module):
    """The distance. Weights begin at random, as torch begins them: `load` fills them."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = {str(n): nn.Conv2d(i, o, k, stride=s, padding=p) for n, (i, o, k, s, p) in LAYERS.items()}
        self.features = nn.ModuleDict(convolutions)
        self.weighed = nn.ModuleList([nn.Conv2d(shape[1], 1, 1, bias=False) for shape in LAYERS.values()])
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def load(cls, folder: str, device: str = "cpu") -> Lpips:
        """With the weights of a folder. InputError naming those that are missing or of another shape."""
        found, made = _weights(folder), cls()
        state = {}
        for name, wanted in made.state_dict().items():
            kind, place, rest = name.split(".")
            stored = f"features.{place}.{rest}" if kind == "features" else f"lin{place}.model.1.weight"
            given = next((found[k] for k in (stored, stored.replace("model.1.", "")) if k in found), None)
            if given is None or given.shape != wanted.shape:
                shape = None if given is None else list(given.shape)
                raise InputError("LPIPS's weights are not all here", where=folder, found=f"{stored}: {shape}",
                                 allowed=f"{stored} {list(wanted.shape)}", next="torchvision's alexnet, and alex.pth of lpips 0.1")  # fmt: skip
            state[name] = given.float()
        made.load_state_dict(state)
        return made.to(device).eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances [n] of pictures [n, 3, H, W] in [-1, 1]."""
        total = torch.zeros(len(a), device=a.device)
        for (x, y), weigh in zip(zip(self._activations(a), self._activations(b), strict=True), self.weighed, strict=True):
            total = total + weigh((_unit(x) - _unit(y)) ** 2).mean(dim=(1, 2, 3))
        return total

    @torch.inference_mode()
    def to_one(self, pictures: np.ndarray, one: np.ndarray) -> np.ndarray:
        """Distances [n] of uint8 [n, H, W, 3] to uint8 [H, W, 3]."""
        if min(one.shape[:2]) < SMALLEST:
            raise InputError("LPIPS needs larger pictures", found=list(one.shape[:2]), allowed=f"{SMALLEST} or more", next="score: pixel")
        device, out = self.get_buffer("shift").device, []
        goal = _ready(one[None], device)
        for start in range(0, len(pictures), BLOCK):
            x = _ready(pictures[start : start + BLOCK], device)
            out.append(self(x, goal.expand_as(x)).double().cpu().numpy())
        return np.concatenate(out)

    def _activations(self, x: Tensor) -> list[Tensor]:
        out, x = [], (x - self.get_buffer("shift")) / self.get_buffer("scale")
        for n in LAYERS:
            x = F.relu(self.features[str(n)](F.max_pool2d(x, 3, 2) if n in POOLED else x))
            out.append(x)
        return out


def _unit(x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(dim=1, keepdim=True).sqrt() + EPSILON)


def _ready(pictures: np.ndarray, device: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _weights(folder: str) -> dict[str, Tensor]:
    """All tensors of a folder's files by name."""
    import io

    import safetensors.torch

    out: dict[str, Tensor] = {}
    for name, *_ in sorted(storage.listing(folder, (".safetensors", ".pth", ".pt"))):
        data = storage.read(storage.join(folder, name))
        try:
            out |= safetensors.torch.load(data) if name.endswith(".safetensors") else torch.load(io.BytesIO(data), "cpu", weights_only=True)
        except Exception as e:
            raise InputError("a file of weights cannot be read", where=storage.join(folder, name), found=str(e)[:200]) from e
    return out
