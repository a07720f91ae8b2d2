"""RAE's ViT decoder (Zheng et al. 2025): for latents of SigLIP 2, DINOv2, MAE, or any encoder that `fit-decoder` fitted one to.

In: latents as the encoder gives them (for SigLIP 2: the last hidden state after a LayerNorm without its affine, as `siglip2` stores it). The stat
files that come with published decoders normalise latents for a *generator* and are inverted before decoding, so none is asked for here: what is
stored or sampled by our trainer is in the encoder's own units already. Out: patch x rows by patch x columns pixels. A published
decoder makes 16 px of each token: 16 x 16 tokens become 256 x 256, whatever the encoder's own patch was.
"""

from __future__ import annotations

from functools import cached_property
from math import isqrt
from typing import Any

import numpy as np
from pydantic import Field

from encode.decoder import Decoder
from encode.device import TorchNetwork
from encode.encoder import Grid, ImageEncoder, Machine, Network, Pending
from encode.weights import tensors_sha256
from pipelines.format.document import part_name
from pipelines.format.errors import InputError


class Rae(Decoder):
    """`weights`: a local folder (of `fit-decoder`, of `convert-decoder`, of diffusers' AutoencoderRAE) or a hub id. `image_mean` and `image_std` are
    what pixels were normalised by, asked for only where neither the folder nor the encoder's image processor says it."""

    weights: str
    image_mean: tuple[float, float, float] | None = Field(None)
    image_std: tuple[float, float, float] | None = Field(None)

    @cached_property
    def measures(self) -> Any:
        """The shape, from file headers: cheap enough for whoever only plans."""
        from encode.reconstruction import layout

        return layout.measures(self.weights)

    def weights_sha256(self) -> str:
        return tensors_sha256(self.weights)

    def size(self, grid: Grid) -> tuple[int, int]:
        shape = self.measures
        if grid.channels != shape.channels:
            raise InputError(
                "this decoder is for latents of another width",
                where=self.weights,
                found=f"{grid.channels} channels in the dataset",
                allowed=f"{shape.channels} channels, as the decoder was trained for",
                next="name the decoder of this encoder, or fit one: pipelines run fit-decoder",
            )
        rows, columns = rows_columns(grid)
        return rows * shape.patch, columns * shape.patch

    def network(self, grid: Grid, encoder: ImageEncoder, machine: Machine) -> Network:
        from encode.reconstruction import layout

        published = layout.read(self.weights)
        return picture_network(published.model, *self.numbers(published, encoder), rows_columns(grid), machine)

    def numbers(self, published: Any, encoder: ImageEncoder) -> tuple[Any, Any]:
        """Image mean and deviation: this part's, else the folder's, else those of the encoder's image processor."""
        prepared = encoder.preprocessing()
        mean = self.image_mean or published.mean or prepared.get("mean")
        std = self.image_std or published.std or prepared.get("std")
        if mean is None or std is None:
            raise InputError(
                "nothing says which mean and deviation this decoder's pixels were normalised by",
                where=self.weights,
                found=f"none in its config.json, none in the image processor of {part_name(encoder)}",
                next="give image_mean and image_std: three numbers each, on the scale 0 to 1",
            )
        return tuple(mean), tuple(std)


def rows_columns(grid: Grid) -> tuple[int, int]:
    """The grid of tokens: as square as the picture is. Tokens are in reading order."""
    rows = max(1, round((grid.tokens * grid.height / grid.width) ** 0.5))
    if grid.tokens % rows:
        rows = isqrt(grid.tokens)
    if grid.tokens % rows or (grid.height == grid.width and rows * rows != grid.tokens):
        raise InputError("these latents are of no rectangular grid", found=f"{grid.tokens} tokens of {grid.height} x {grid.width} pixels")
    return rows, grid.tokens // rows


def picture_network(model: Any, mean: Any, std: Any, grid: tuple[int, int], machine: Machine) -> Network:
    """A VitDecoder as a network of uint8 pictures on a machine."""
    import torch

    dtype = torch.bfloat16 if machine.dtype == "bf16" else torch.float32
    model = model.to(machine.device, dtype).eval()
    shift, scale = (torch.tensor(v, device=machine.device).view(3, 1, 1) for v in (mean, std))

    def forward(latents: Any) -> Any:
        pixels = model(latents.to(dtype), grid).float() * scale + shift
        return (pixels.clamp(0, 1) * 255).round().permute(0, 2, 3, 1)

    network = TorchNetwork(forward, machine)

    def start(latents: np.ndarray) -> Pending:
        pending = network(latents)
        return lambda: pending().astype(np.uint8)

    return start
