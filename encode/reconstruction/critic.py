"""The critic of an adversarial fit: it tells frames from reconstructions, and the decoder learns to make that hard.

In: pictures in [0, 1]. Out: scores [B, places], higher where a picture looks real. Two kinds. `PatchCritic` (Isola et al. 2017) is a small
convolutional net from scratch with group norm, so that no score depends on what else is in the batch. `FeatureCritic` puts heads on several layers
of a frozen vision transformer (projected GANs, Sauer et al. 2021; RAE uses DINO-S/8): it sees what the transformer sees, and only the heads learn.
Losses: hinge for the critic, minus the mean score for the decoder, weighted by the ratio of gradients at the decoder's last layer (Esser et al.
2021).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from encode.encoder import Machine
from encode.reconstruction.recipe import Adversarial
from encode.weights import folder, read_json
from pipelines.format.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST = 1e4  # of the adaptive weight


class PatchCritic(nn.Module):
    """Convolutions of stride 2, each doubling the channels up to 8 x `width`, then one score a place."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        steps: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        before = width
        for k in range(1, layers + 1):
            after = width * min(2**k, 8)
            steps += [nn.Conv2d(before, after, 4, 2 if k < layers else 1, 1), nn.GroupNorm(8, after), nn.LeakyReLU(0.2)]
            before = after
        self.steps = nn.Sequential(*steps, nn.Conv2d(before, 1, 4, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, places]."""
        scores: Tensor = self.steps(pictures * 2 - 1)
        return scores.flatten(1)


class FeatureCritic(nn.Module):
    """Heads on layers of a frozen transformer; pictures are brought to the size that it was trained at."""

    mean: Tensor
    std: Tensor
    tower: Any

    def __init__(self, tower: Any, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.__dict__["tower"] = tower  # not a submodule: its weights belong to no checkpoint of ours
        config = tower.config
        if max(layers) >= config.num_hidden_layers:
            raise InputError("the critic's transformer has fewer layers", found=max(layers), allowed=f"0 to {config.num_hidden_layers - 1}")
        self.layers, self.side = layers, int(config.image_size)
        self.heads = nn.ModuleList(Head(config.hidden_size) for _ in layers)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, tokens x layers]."""
        x = F.interpolate(pictures, size=(self.side, self.side), mode="bilinear", align_corners=False, antialias=True)
        states = self.tower(pixel_values=(x - self.mean) / self.std, output_hidden_states=True).hidden_states
        return torch.cat([head(states[k + 1]) for k, head in zip(self.layers, self.heads, strict=True)], dim=1)


class Head(nn.Module):
    """A layer's tokens -> a score each: narrowed, looked at with their neighbours, scored."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow = spectral_norm(nn.Conv1d(width, width, 1))
        self.beside = spectral_norm(nn.Conv1d(width, width, 9, padding=4, padding_mode="circular"))
        self.score = spectral_norm(nn.Conv1d(width, 1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, width] -> [B, T]."""
        x = F.leaky_relu(self.narrow(tokens.transpose(1, 2)), 0.2)
        x = (x + F.leaky_relu(self.beside(x), 0.2)) / 2**0.5
        return self.score(x).squeeze(1)


def build(asked: Adversarial, machine: Machine, seed: int) -> nn.Module:
    """The critic on its device; its random weights follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if asked.patch is not None:
            made: nn.Module = PatchCritic(asked.patch.width, asked.patch.layers)
        else:
            assert asked.features is not None
            made = FeatureCritic(frozen(asked.features.weights, machine), asked.features.layers)
    return made.to(machine.device)


def frozen(weights: str, machine: Machine) -> Any:
    """A ViT or DINOv2 of transformers, from safetensors, without the pooling layer that self-supervised ones lack."""
    import transformers

    kind = read_json(weights, "config.json").get("model_type")
    classes = {"vit": ("ViTModel", {"add_pooling_layer": False}), "dinov2": ("Dinov2Model", {})}
    if kind not in classes:
        raise InputError("a critic's features come from a vision transformer", where=weights, found=kind, allowed=", ".join(classes))
    name, options = classes[kind]
    model = getattr(transformers, name).from_pretrained(
        str(folder(weights)), use_safetensors=True, local_files_only=True, trust_remote_code=False, **options
    )
    return model.to(machine.device).eval().requires_grad_(False)


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """The critic's loss: real scores above 1, made ones below -1."""
    return (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2


def adaptive(near: Tensor, fooling: Tensor, last: Tensor) -> Tensor:
    """How much fooling the critic counts: as much, at the last layer, as coming near does."""
    near_grad, fooling_grad = (torch.autograd.grad(loss, last, retain_graph=True)[0].float().norm() for loss in (near, fooling))
    return (near_grad / (fooling_grad + 1e-6)).clamp(0, MOST).detach()


def eight_bits(pictures: Tensor) -> Tensor:
    """As a stored picture would be: a critic must not learn to tell fractions from whole numbers."""
    return (pictures.clamp(0, 1) * 255).round() / 255
