"""The fit-decoder recipe: frames and the encoder that sees them -> a decoder for its latents.

    dataset: out/video-siglip2               encoded, its curated parent still there; or a curated one, with `encoder`
    size: XL                                 XL | L | B | S | T, or {depth, width, heads, mlp}
    steps: 40K                               or tokens: 5B
    perceptual: {features: vgg16.safetensors, linear: lpips.safetensors}
    adversarial: {patch: {}}                 or {features: {weights: facebook/dino-vits8}}
    output: out/decoders/video-siglip2

Defaults are those of the published decoders (RAE's configs/stage1/training): AdamW 2e-4 with betas 0.9 and 0.95 and no weight decay, warmed up over a
sixteenth of the run, then a cosine to a tenth; noise 0.8; L1 + 1.0 LPIPS + 0.75 adaptive GAN, the last from half of the run on; EMA 0.9978.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from encode.encoder import ImageEncoder
from encode.recipe import Resources
from encode.reconstruction.sizes import SIZES, SizeName, VitSize
from pipelines.format.document import Document, PartOf, Percent, Size


class HeldOut(Document):
    """Frames that are never trained on: those of a share of the groups, at most `frames` of them."""

    fraction: Percent = Field(0.02, gt=0, lt=1)
    frames: Size = Field(512, ge=1)
    seed: int = 0


class Perceptual(Document):
    """LPIPS (Zhang et al. 2018) on VGG16. `features`: torchvision's tensors (features.0.weight …); `linear`: the five learned weightings."""

    features: str
    linear: str
    weight: float = Field(1.0, gt=0)


class PatchCritic(Document):
    """A small convolutional critic of patches (Isola et al. 2017), from scratch: no weights are needed, and it knows only these frames."""

    width: int = Field(64, ge=8)
    layers: int = Field(3, ge=1, le=5)


class FeatureCritic(Document):
    """Heads on the frozen features of a vision transformer, as RAE's (DINO-S/8): `weights` is a ViT in safetensors, folder or hub id."""

    weights: str
    layers: tuple[int, ...] = (2, 5, 8, 11)


class Adversarial(Document):
    """A critic with the hinge loss, its weight set by the ratio of gradients at the last layer (Esser et al. 2021). It learns from `learn` of the
    run on, and is heeded from `start` on."""

    patch: PatchCritic | None = None
    features: FeatureCritic | None = None
    weight: float = Field(0.75, gt=0)
    learn: Percent = Field(0.375, ge=0, le=1)
    start: Percent = Field(0.5, ge=0, le=1)
    lr: float = Field(2e-4, gt=0)

    @model_validator(mode="after")
    def _one(self) -> Adversarial:
        if (self.patch is None) == (self.features is None):
            raise ValueError("name one critic: `patch: {}` (from scratch), or `features: {weights: …}`")
        if self.learn > self.start:
            raise ValueError("a critic is heeded (`start`) no earlier than it learns (`learn`)")
        return self


class FitDecoder(Document):
    """`patch`: pixels a side made of each latent; left out, as many as the encoder took, so that a picture keeps its size. `noise`: tau of RAE,
    each image's latents get noise of deviation U(0, tau) times their own, so that latents that a model only came near to still decode."""

    name: str = ""
    dataset: str
    encoder: Annotated[Any, PartOf("encode.encoders")] | None = None
    size: SizeName | VitSize = "B"
    patch: int | None = Field(None, ge=1)
    steps: Size | None = Field(None, ge=1)
    tokens: Size | None = Field(None, ge=1)
    batch: int = Field(64, ge=1)
    lr: float = Field(2e-4, gt=0)
    final_lr: float = Field(0.1, ge=0, le=1, description="share of lr at the end")
    warmup: Percent = Field(0.0625, ge=0, lt=1)
    clip: float | None = Field(None, gt=0)
    ema: float = Field(0.9978, ge=0, lt=1)
    noise: float = Field(0.8, ge=0)
    perceptual: Perceptual | None = None
    adversarial: Adversarial | None = None
    held_out: HeldOut = HeldOut()
    checkpoint_every: Size = Field(500, ge=1)
    dtype: Literal["auto", "f32", "bf16"] = "auto"
    seed: int = 0
    output: str
    engine: Literal["ray", "local"] = "local"
    resources: Resources = Resources()

    @field_validator("encoder")
    @classmethod
    def _image(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, ImageEncoder):
            raise ValueError("`encoder` takes an image encoder, such as siglip2 or pixels")
        return value

    @model_validator(mode="after")
    def _budget(self) -> FitDecoder:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("say how long: `steps`, or `tokens` (latent tokens seen)")
        return self

    def measures(self) -> VitSize:
        """Depth, width, heads and MLP."""
        return SIZES[self.size] if isinstance(self.size, str) else self.size

    def total(self, tokens: int) -> int:
        """Optimiser steps, for images of so many tokens."""
        return self.steps or max(1, -(-(self.tokens or 0) // (self.batch * tokens)))

    def rate(self, step: int, steps: int) -> float:
        """Share of the learning rate at a step: linear warm-up, then a cosine down to `final_lr`."""
        warm = max(1, round(self.warmup * steps)) if self.warmup else 0
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, steps - warm)
        return self.final_lr + (1 - self.final_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2

    def decay(self, step: int, steps: int) -> float:
        """Of the moving average: `ema`, which averages over 1 / (1 - ema) steps, or over a fiftieth of a run that is shorter than fifty of these;
        and it begins at the first step's weights, not at random ones."""
        short = 1 - 1 / max(2.0, steps / 50)
        return min(self.ema, short, (1 + step) / (10 + step))
