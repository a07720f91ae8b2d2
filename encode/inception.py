"""The Inception network of the usual FID, as a feature space: pictures -> 2,048 values. Weights by path; none are shipped and none are fetched.

It is the network of 2015 with 1,008 classes that Heusel et al. (arXiv 1706.08500) used, in the form in which PyTorch users have its
weights (`pt_inception-2015-12-05`, 94 convolutions named Conv2d_1a_3x3.conv.weight and on). It differs from later Inceptions (Szegedy et al., arXiv
1512.00567) in that average pooling does not count the padding, and the last block pools by maximum. Pictures are resized to 299 × 299 without
smoothing (bilinear, as that port does), so values compare with those of it, not with those of resizers that smooth first.

A weights file is data: `.safetensors`, or a `.pth` read by torch's loader for weights only, which runs no code of the file. TorchScript is not read,
since loading it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from pipelines.format.document import Part
from pipelines.format.errors import InputError

SIDE, FEATURES = 299, 2048
IGNORED = ("fc.", "AuxLogits.")  # of the file: the classifiers
# name: (in, out, height, width, stride); padding is half of the size except where _VALID says none
_STEM = {"Conv2d_1a_3x3": (3, 32, 3, 3, 2), "Conv2d_2a_3x3": (32, 32, 3, 3, 1), "Conv2d_2b_3x3": (32, 64, 3, 3, 1),
         "Conv2d_3b_1x1": (64, 80, 1, 1, 1), "Conv2d_4a_3x3": (80, 192, 3, 3, 1)}  # fmt: skip
_VALID = {"Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_4a_3x3"}


class Inception(Part):
    """`weights`: a file. `batch` pictures at a time."""

    weights: str
    batch: int = Field(50, ge=1)

    def load(self) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
        """A function from pictures uint8 [H, W, 3] of any sizes to float32 [n, 2048]. InputError for a file of something else."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = build()
        kept = {k: v for k, v in _read(self.weights).items() if not k.startswith(IGNORED) and not k.endswith("num_batches_tracked")}
        wanted = {k: v.shape for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
        if {k: v.shape for k, v in kept.items()} != wanted:
            wrong = sorted({k for k in (kept.keys() | wanted.keys()) if k not in kept or kept[k].shape != wanted.get(k)})
            told = f"{len(wrong)} tensors differ: {', '.join(wrong[:3])}"
            raise InputError("these are not the weights of the FID Inception network", where=self.weights, found=told)
        network.load_state_dict(kept, strict=False)
        network.to(device).eval()

        @torch.inference_mode()
        def features(pictures: Sequence[np.ndarray]) -> np.ndarray:
            out = []
            for first in range(0, len(pictures), self.batch):
                some = [torch.from_numpy(np.array(p)).to(device).permute(2, 0, 1)[None].float() / 255 for p in pictures[first : first + self.batch]]
                sized = [torch.nn.functional.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False) for x in some]
                out.append(network(2 * torch.cat(sized) - 1).float().cpu().numpy())
            return np.concatenate(out)

        return features


def _read(path: str) -> dict[str, Any]:
    import pickle

    import safetensors.torch
    import torch

    try:
        found = safetensors.torch.load_file(path) if path.endswith(".safetensors") else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, safetensors.SafetensorError) as e:
        said = (str(e).splitlines() or [type(e).__name__])[0][:200]
        raise InputError("these weights cannot be read", where=path, found=said, allowed=".safetensors, or a .pth of tensors alone") from e
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise InputError("these are no weights by name", where=path, found=type(found).__name__)
    return found


def build() -> Any:
    """The network without its classifier, weights at chance: float32 [n, 3, 299, 299] in [-1, 1] -> [n, 2048]."""
    from torch import Tensor, cat, nn
    from torch.nn.functional import avg_pool2d, max_pool2d, relu

    class Conv(nn.Module):
        def __init__(self, i: int, o: int, h: int = 1, w: int = 1, stride: int = 1, padded: bool = True) -> None:
            super().__init__()
            self.conv = nn.Conv2d(i, o, (h, w), stride, (h // 2, w // 2) if padded else 0, bias=False)
            self.bn = nn.BatchNorm2d(o, eps=0.001)

        def forward(self, x: Tensor) -> Tensor:
            return relu(self.bn(self.conv(x)))

    class Block(nn.Module):
        """Branches side by side: each a chain of convolutions, of which a tuple is two that both read what came before; `pool` feeds the last."""

        def __init__(self, chains: list[list[Any]], pool: str) -> None:
            super().__init__()
            self.chains, self.pool = [[n if isinstance(n, tuple) else (n,) for n, *_ in _named(c)] for c in chains], pool
            for name, *sizes in (x for c in chains for x in _flat(c)):
                self.add_module(name, Conv(*sizes))

        def forward(self, x: Tensor) -> Tensor:
            out = []
            for chain in self.chains:
                y = self._pooled(x) if chain[0][0] == "branch_pool" else x
                for names in chain:
                    y = cat([getattr(self, n)(y) for n in names], 1)
                out.append(y)
            if self.pool == "reduce":
                out.append(max_pool2d(x, 3, 2))
            return cat(out, 1)

        def _pooled(self, x: Tensor) -> Tensor:
            return max_pool2d(x, 3, 1, 1) if self.pool == "max" else avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, sizes in _STEM.items():
                self.add_module(name, Conv(*sizes, padded=name not in _VALID))
            for name, (chains, pool) in _blocks().items():
                self.add_module(name, Block(chains, pool))

        def forward(self, x: Tensor) -> Tensor:
            for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"):
                x = getattr(self, name)(x)
            x = max_pool2d(x, 3, 2)
            for name in ("Conv2d_3b_1x1", "Conv2d_4a_3x3"):
                x = getattr(self, name)(x)
            x = max_pool2d(x, 3, 2)
            for name in _blocks():
                x = getattr(self, name)(x)
            return x.mean(dim=(2, 3))

    return Network()


def _flat(chain: list[Any]) -> list[tuple[Any, ...]]:
    return [x for step in chain for x in (step if isinstance(step, list) else [step])]


def _named(chain: list[Any]) -> list[tuple[Any, ...]]:
    """Each step's name first; of two side by side, both names."""
    return [(tuple(x[0] for x in step),) if isinstance(step, list) else (step[0],) for step in chain]


def _blocks() -> dict[str, tuple[list[list[Any]], str]]:
    """name → (branches, how the last is pooled), in order. A convolution: name, in, out, height, width, stride, padded."""

    def a(i: int, pool: int) -> tuple[list[list[Any]], str]:
        three = [("branch3x3dbl_1", i, 64), ("branch3x3dbl_2", 64, 96, 3, 3), ("branch3x3dbl_3", 96, 96, 3, 3)]
        return [[("branch1x1", i, 64)], [("branch5x5_1", i, 48), ("branch5x5_2", 48, 64, 5, 5)], three, [("branch_pool", i, pool)]], "average"

    def c(m: int) -> tuple[list[list[Any]], str]:
        seven = [("branch7x7_1", 768, m), ("branch7x7_2", m, m, 1, 7), ("branch7x7_3", m, 192, 7, 1)]
        double = [("branch7x7dbl_1", 768, m), ("branch7x7dbl_2", m, m, 7, 1), ("branch7x7dbl_3", m, m, 1, 7), ("branch7x7dbl_4", m, m, 7, 1)]
        return [[("branch1x1", 768, 192)], seven, [*double, ("branch7x7dbl_5", m, 192, 1, 7)], [("branch_pool", 768, 192)]], "average"

    def e(i: int, pool: str) -> tuple[list[list[Any]], str]:
        three = [("branch3x3_1", i, 384), [("branch3x3_2a", 384, 384, 1, 3), ("branch3x3_2b", 384, 384, 3, 1)]]
        double = [("branch3x3dbl_1", i, 448), ("branch3x3dbl_2", 448, 384, 3, 3)]
        double = [*double, [("branch3x3dbl_3a", 384, 384, 1, 3), ("branch3x3dbl_3b", 384, 384, 3, 1)]]  # type: ignore[list-item]
        return [[("branch1x1", i, 320)], three, double, [("branch_pool", i, 192)]], pool

    shrinks = [("branch3x3dbl_1", 288, 64), ("branch3x3dbl_2", 64, 96, 3, 3), ("branch3x3dbl_3", 96, 96, 3, 3, 2, False)]
    last = [("branch7x7x3_1", 768, 192), ("branch7x7x3_2", 192, 192, 1, 7), ("branch7x7x3_3", 192, 192, 7, 1)]
    last = [*last, ("branch7x7x3_4", 192, 192, 3, 3, 2, False)]  # type: ignore[list-item]
    return {
        "Mixed_5b": a(192, 32), "Mixed_5c": a(256, 64), "Mixed_5d": a(288, 64),
        "Mixed_6a": ([[("branch3x3", 288, 384, 3, 3, 2, False)], shrinks], "reduce"),
        "Mixed_6b": c(128), "Mixed_6c": c(160), "Mixed_6d": c(160), "Mixed_6e": c(192),
        "Mixed_7a": ([[("branch3x3_1", 768, 192), ("branch3x3_2", 192, 320, 3, 3, 2, False)], last], "reduce"),
        "Mixed_7b": e(1280, "average"), "Mixed_7c": e(2048, "max"),
    }  # fmt: skip
