"""SigLIP and SigLIP 2 vision towers (Tschannen et al., arXiv 2502.14786), as representation autoencoders use them (RAE, Zheng et al. 2025).

In: any picture, prepared exactly as the model's own processor does. Out: the last hidden state of every patch after the final LayerNorm
*without its weight and bias*, so that each token has mean 0 and variance 1 over its channels; no pooling. so400m/14 at 224 px gives
256 x 1152, base/16 at 256 px gives 256 x 768. `size` asks for another resolution: positions are interpolated.
Fixed-resolution checkpoints only (the NaFlex variants have another input).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from pydantic import Field

from encode.device import TorchNetwork
from encode.encoder import Grid, ImageEncoder, Machine, Network
from encode.processor import Processor, read_processor
from encode.weights import folder, read_json, tensors_sha256
from pipelines.format.errors import InputError


class Siglip2(ImageEncoder):
    """`weights`: a local folder or a hub id such as google/siglip2-so400m-patch14-224."""

    weights: str
    size: int | None = Field(None, ge=1)

    def tower(self) -> dict[str, Any]:
        """The vision part of config.json; files leave out what equals the architecture's defaults."""
        config = read_json(self.weights, "config.json")
        config = config.get("vision_config", config)
        if config.get("model_type", "siglip_vision_model") not in ("siglip_vision_model", "siglip"):
            raise InputError(
                "these weights are not a fixed-resolution SigLIP tower",
                where=self.weights,
                found=config["model_type"],
                next="name one such as google/siglip2-so400m-patch14-224",
            )
        return {"hidden_size": 768, "patch_size": 16, "image_size": 224, **config}

    @cached_property
    def processor(self) -> Processor:
        """The model's own image processor; asked for once per picture, so read once."""
        settings = read_json(self.weights, "preprocessor_config.json", "processor_config.json")
        return read_processor(settings, self.size, self.weights)

    def grid(self) -> Grid:
        tower, processor = self.tower(), self.processor
        patch = tower["patch_size"]
        return Grid(processor.height, processor.width, (processor.height // patch) * (processor.width // patch), tower["hidden_size"])

    def picture(self, pixels: np.ndarray) -> np.ndarray:
        return self.processor.picture(pixels)

    def preprocessing(self) -> dict[str, Any]:
        return self.processor.describe()

    def weights_sha256(self) -> str:
        return tensors_sha256(self.weights)

    def network(self, machine: Machine) -> Network:
        import torch
        from transformers import SiglipVisionModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # loading takes a second; stderr belongs to our own progress
        dtype = torch.bfloat16 if machine.dtype == "bf16" else torch.float32
        model: Any = SiglipVisionModel.from_pretrained(
            str(folder(self.weights)), dtype=dtype, use_safetensors=True, attn_implementation="sdpa", local_files_only=True
        )
        model = model.to(machine.device).eval().requires_grad_(False)
        tower = getattr(model, "vision_model", model)  # transformers before 5.4 nests the tower
        final = tower.post_layernorm
        tower.post_layernorm = torch.nn.LayerNorm(final.normalized_shape, eps=final.eps, elementwise_affine=False)
        tower.use_head = False  # attention pooling, which nothing here reads
        processor, grid = self.processor, self.grid()
        native = (grid.height, grid.width) == (self.tower()["image_size"],) * 2
        numbers = processor.numbers(machine.device)

        def forward(pictures: Any) -> Any:
            return model(pixel_values=numbers(pictures).to(dtype), interpolate_pos_encoding=not native).last_hidden_state

        return TorchNetwork(forward, machine)
