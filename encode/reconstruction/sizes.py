"""Named sizes of the ViT decoder. XL, L and B are the published ones (RAE's configs/decoder); S and T are for small encoders and small machines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipelines.format.document import Document

SizeName = Literal["XL", "L", "B", "S", "T"]


class VitSize(Document):
    """`depth` blocks of `width` channels, `heads` attention heads, `mlp` channels inside the MLP."""

    depth: int = Field(ge=1)
    width: int = Field(ge=4)
    heads: int = Field(ge=1)
    mlp: int = Field(ge=1)

    @model_validator(mode="after")
    def _divides(self) -> VitSize:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of heads {self.heads}")
        return self


SIZES: dict[str, VitSize] = {
    "XL": VitSize(depth=28, width=1152, heads=16, mlp=4096),
    "L": VitSize(depth=24, width=1024, heads=16, mlp=4096),
    "B": VitSize(depth=12, width=768, heads=12, mlp=3072),
    "S": VitSize(depth=8, width=384, heads=6, mlp=1536),
    "T": VitSize(depth=4, width=256, heads=4, mlp=1024),
}


def heads_of(depth: int, width: int, mlp: int) -> int | None:
    """The heads of the named size that has these measures: the one thing that tensors do not show."""
    return next((s.heads for s in SIZES.values() if (s.depth, s.width, s.mlp) == (depth, width, mlp)), None)
