"""Vision towers as frozen encoders: what SigLIP, DINOv2 and WebSSL have in common.

In: any picture, prepared as the model's own processor says. Out: the last hidden state of every patch, after the final LayerNorm *without its
weight and bias*, so that each token has mean 0 and variance 1 over its channels (RAE, Zheng et al., arXiv 2510.11690); class and register tokens
are dropped, nothing is pooled. Another resolution than the tower's own takes its positions interpolated: once, at load, in float32, by the
tower's own kernel, so that a batch costs nothing more and a compiled network has no such step.
"""

from __future__ import annotations

from typing import Any, Literal

from encode.encoder import Grid, Machine
from encode.frozen import Forward, FrozenEncoder
from encode.processor import Processor, published, read_processor
from encode.weights import pretrained, read_json
from pipelines.format.errors import InputError


class VisionTower(FrozenEncoder):
    """A tower cuts a picture into whole patches; what is left over at the right and bottom edge is not seen. `resize`: `exact` for Pillow's kernel
    to the last bit, `fast` for torch's, seldom a level off it at a quarter of the time for a photo of 640 px, an eighth for one of 2,560
    (`resampling.py`)."""

    resize: Literal["fast", "exact"] = "fast"

    def tower(self) -> dict[str, Any]:
        """The vision part of config.json, with the architecture's defaults, which files leave out."""
        raise NotImplementedError

    def prepared(self) -> Processor:
        settings = read_json(self.weights, "preprocessor_config.json", "processor_config.json")
        return processor_of(settings, self.weights, self.size, whole=False, exact=self.resize == "exact")

    def grid(self) -> Grid:
        tower, processor = self.tower(), self.processor
        patch = int(tower["patch_size"])
        rows, columns = processor.height // patch, processor.width // patch
        if rows * columns == 0:
            raise InputError("the picture is smaller than one patch", where=self.weights, found=f"{processor.height} px, patches of {patch}")
        return Grid(processor.height, processor.width, rows * columns, int(tower["hidden_size"]))

    def patches(self) -> tuple[int, int]:
        """Rows and columns of patches that a picture has."""
        processor, patch = self.processor, int(self.tower()["patch_size"])
        return processor.height // patch, processor.width // patch


class DinoTower(VisionTower):
    """DINOv2's architecture, with or without registers. `view`: `processor` is the crop that the model's own processor makes (for DINOv2: short
    side to 256, the middle 224 of it); `whole` resizes the short side to the final size instead, so that the middle square is seen to its edge."""

    view: Literal["processor", "whole"] = "processor"

    def tower(self) -> dict[str, Any]:
        config = read_json(self.weights, "config.json")
        kind = config.get("model_type")
        if kind not in MODELS:
            raise InputError(
                "these weights are not a DINOv2 tower",
                where=self.weights,
                found=kind,
                allowed=", ".join(MODELS),
                next="name one such as facebook/dinov2-large or facebook/webssl-dino300m-full2b-224",
            )
        registers = {"num_register_tokens": 4} if kind == "dinov2_with_registers" else {"num_register_tokens": 0}
        return {"hidden_size": 768, "patch_size": 14, "image_size": 224, **registers, **config}

    def prepared(self) -> Processor:
        settings = read_json(self.weights, "preprocessor_config.json", "processor_config.json")
        found = processor_of(settings, self.weights, self.size, whole=self.view == "whole", exact=self.resize == "exact")
        if found.height != found.width:
            raise InputError("a DINOv2 tower takes square pictures", where=self.weights, found=f"{found.height} x {found.width}")
        return found

    def forward(self, machine: Machine) -> Forward:
        tower = self.tower()
        model = pretrained(MODELS[tower["model_type"]], self.weights, machine, unread=("mask_token",))
        model.layernorm = without_affine(model.layernorm)
        table = model.embeddings.position_embeddings  # [1, 1 + positions, width], the class token's first
        # The towers without registers were trained without antialiasing in this step, those with registers with it.
        moved = interpolated(table[0, 1:], self.patches(), antialias=tower["num_register_tokens"] > 0)
        if moved is not None:
            import torch

            model.embeddings.position_embeddings = torch.nn.Parameter(torch.cat([table[:, :1], moved[None]], dim=1), requires_grad=False)
        first, dtype = 1 + int(tower["num_register_tokens"]), table.dtype
        return lambda pixels: model(pixel_values=pixels.to(dtype)).last_hidden_state[:, first:]


MODELS = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}


def processor_of(settings: dict[str, Any], where: str, size: int | None, whole: bool, exact: bool) -> Processor:
    """By the kind that the file names; a file that names none is taken at its word."""
    inner = settings.get("image_processor", settings)
    named = inner.get("image_processor_type") or inner.get("feature_extractor_type")
    return (published if named else read_processor)(settings, size=size, where=where, whole=whole, exact=exact)


def without_affine(norm: Any) -> Any:
    """The same LayerNorm with neither weight nor bias."""
    import torch

    return torch.nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)


def interpolated(table: Any, patches: tuple[int, int], antialias: bool = False) -> Any:
    """Positions [n, width] of a square grid for another one, in their own dtype; None where it is the same."""
    import torch

    side = round(len(table) ** 0.5)
    if patches == (side, side):
        return None
    grid = table.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    made = torch.nn.functional.interpolate(grid, size=patches, mode="bicubic", align_corners=False, antialias=antialias)
    return made.permute(0, 2, 3, 1).reshape(patches[0] * patches[1], -1).to(table.dtype)
