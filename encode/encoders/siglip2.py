"""SigLIP and SigLIP 2 vision towers (Tschannen et al., arXiv 2502.14786), as representation autoencoders use them (RAE, Zheng et al. 2025).

In: any picture, both sides stretched to the tower's resolution as its own processor does. Out: every patch's last hidden state, layer-normed
without weight and bias (`towers.py`). so400m/14 at 224 px gives 256 x 1152, base/16 at 256 px gives 256 x 768. `size` asks for another
resolution: positions are interpolated. Fixed-resolution checkpoints only (the NaFlex variants have another input).
"""

from __future__ import annotations

from typing import Any

from encode.encoder import Machine
from encode.frozen import Forward
from encode.towers import VisionTower, interpolated, without_affine
from encode.weights import pretrained, read_json
from pipelines.format.errors import InputError


class Siglip2(VisionTower):
    """`weights`: a local folder or a hub id such as google/siglip2-so400m-patch14-224."""

    def tower(self) -> dict[str, Any]:
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

    def forward(self, machine: Machine) -> Forward:
        import torch

        model = pretrained("SiglipVisionModel", self.weights, machine, unread=("head.",))
        tower = getattr(model, "vision_model", model)  # transformers before 5.4 nests the tower
        tower.post_layernorm = without_affine(tower.post_layernorm)
        tower.use_head = False  # attention pooling, which nothing here reads
        table = tower.embeddings.position_embedding.weight
        moved = interpolated(table, self.patches())
        if moved is not None:
            tower.embeddings.position_embedding = torch.nn.Embedding.from_pretrained(moved)
            tower.embeddings.position_ids = torch.arange(len(moved), device=moved.device)[None]
        dtype = table.dtype
        return lambda pixels: model(pixel_values=pixels.to(dtype)).last_hidden_state
