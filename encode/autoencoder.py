"""Autoencoders of latent diffusion (Rombach et al., arXiv 2112.10752) as frozen encoders: diffusers' `AutoencoderKL`, and back.

In: any picture; short side to `size` by Lanczos, the middle square, values in [-1, 1], as diffusers' own `VaeImageProcessor` does with
`resize_mode="crop"`. Out: the mean of the posterior (no noise is drawn, so equal pictures give equal latents), moved and scaled as config.json says:
z = (mean - shift_factor) * scaling_factor, which diffusion models are trained on; then cut into patches of `patch` x `patch` latent pixels. 224 px
are 28 x 28 latent pixels, hence 14 x 14 = 196 tokens.

A token's values are channel by channel, and within a channel the rows and columns of its patch: value c * patch * patch + y * patch + x. Tokens
are in reading order. That is how FLUX packs its latents, and `pictures` undoes it exactly before it decodes.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from encode.encoder import Grid, Machine
from encode.frozen import Forward, FrozenEncoder
from encode.processor import Processor
from encode.weights import read_json, refused, subfolder, tensors_sha256
from pipelines.format.document import part_name
from pipelines.format.errors import InputError

DECODED = 8  # pictures decoded at a time: a decoder's widest layer takes 25 MB a picture of 224 px
FILES = ("config.json", "model_index.json", "diffusion_pytorch_model*.safetensors", "vae/*.json", "vae/*.safetensors")


class Autoencoder(FrozenEncoder):
    """`weights`: a local folder or a hub id, of the autoencoder or of a pipeline that holds it as `vae`. `size`: pixels a side, 224 where none is
    given. `patch`: latent pixels a side of a token."""

    latents: ClassVar[int]  # channels of its latents, which tell the families apart
    patch: int = Field(2, ge=1)

    @property
    def side(self) -> int:
        return self.size or 224

    def config(self) -> dict[str, Any]:
        """config.json of the autoencoder, with the library's defaults."""
        return _config(self.weights, part_name(self), self.latents)

    def cell(self) -> int:
        """Pixels a side of one token."""
        return int(2 ** (len(self.config()["block_out_channels"]) - 1)) * self.patch

    def grid(self) -> Grid:
        cell = self.cell()
        if self.side % cell:
            raise InputError(f"{self.side} px do not divide into tokens of {cell} px", next=f"choose a `size` that is a multiple of {cell}")
        return Grid(self.side, self.side, (self.side // cell) ** 2, self.latents * self.patch**2)

    def prepared(self) -> Processor:
        half = (0.5,) * 3
        return Processor(self.side, self.side, self.side, "lanczos", 1 / 255, half, half)

    def weights_sha256(self) -> str:
        return tensors_sha256(str(vae_folder(self.weights)))

    def forward(self, machine: Machine) -> Forward:
        model, config = autoencoder(vae_folder(self.weights), machine), self.config()
        shift, scale, p = config["shift_factor"] or 0.0, config["scaling_factor"], self.patch

        def encoded(pixels: Any) -> Any:
            mean = model.encode(pixels.to(model.dtype)).latent_dist.mean
            z = (mean.float() - shift) * scale
            b, c, h, w = z.shape
            cut = z.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
            return cut.reshape(b, (h // p) * (w // p), c * p * p).to(mean.dtype)

        return encoded

    def pictures(self, latents: np.ndarray) -> np.ndarray:
        grid, machine = self.grid(), self.machine()
        out = np.empty((len(latents), grid.height, grid.width, 3), np.uint8)
        for first in range(0, len(latents), DECODED):
            out[first : first + DECODED] = self._decoded(latents[first : first + DECODED], machine)
        return out

    def _decoded(self, latents: np.ndarray, machine: Machine) -> np.ndarray:
        import torch

        model, config = autoencoder(vae_folder(self.weights), machine), self.config()
        p, rows = self.patch, self.side // self.cell()
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(latents, dtype=np.float32)).to(machine.device)
            z = x.reshape(len(x), rows, rows, -1, p, p).permute(0, 3, 1, 4, 2, 5).reshape(len(x), -1, rows * p, rows * p)
            z = z / config["scaling_factor"] + (config["shift_factor"] or 0.0)
            values = model.decode(z.to(model.dtype)).sample.float()
            levels = ((values / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            return np.asarray(levels.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def vae_folder(weights: str) -> Path:
    """Where the autoencoder itself lies."""
    return subfolder(weights, "vae", FILES)


@lru_cache(maxsize=8)
def _config(weights: str, name: str, latents: int) -> dict[str, Any]:
    found = {"latent_channels": 4, "scaling_factor": 0.18215, "shift_factor": None, "block_out_channels": [64]}
    where = str(vae_folder(weights))
    found |= read_json(where, "config.json")
    if found.get("_class_name") != "AutoencoderKL" or found["latent_channels"] != latents:
        raise InputError(
            f"these weights are not an AutoencoderKL of {latents} latent channels, which {name} is",
            where=where,
            found=f"{found.get('_class_name')} of {found['latent_channels']}",
            next="4 channels: sd_vae, 16 channels: flux_vae",
        )
    if find_spec("diffusers") is None:
        raise InputError(f"{name} needs diffusers, which is not installed", next="pip install 'headwater[vae]'")
    return found


@lru_cache(maxsize=2)
def autoencoder(where: Path, machine: Machine) -> Any:
    """The frozen model on its device, once per process: encoding and decoding share it. From safetensors alone; InputError when a tensor is
    not there."""
    import torch
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.disable_progress_bar()
    dtype = torch.bfloat16 if machine.dtype == "bf16" else torch.float32
    options = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False, "output_loading_info": True}
    try:
        model, told = AutoencoderKL.from_pretrained(str(where), torch_dtype=dtype, **options)
    except (OSError, ValueError, RuntimeError) as e:
        raise InputError("these weights cannot be loaded", where=where, found=f"{type(e).__name__}: {e}"[:300]) from None
    refused("AutoencoderKL", str(where), told)
    return model.to(machine.device).eval().requires_grad_(False)
