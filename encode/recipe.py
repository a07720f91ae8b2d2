"""The encode recipe: a curated dataset and two encoders -> an encoded dataset.

    dataset: out/captions
    text:   {text_tokens: {tokenizer: tokenizer.json}}
    images: {siglip2: {weights: google/siglip2-so400m-patch14-224}}      or {reuse: {dataset: out/captions-siglip2}}
                                                                          or {dual: {context: {siglip2: …}, target: {sd_vae: …}}}
    storage: bf16                                                        bf16 | f32 | int8 | f8e4m3 | none (docs/codecs.md)
    estimate: {sample: 32, gpu_hour: 2.5}                                what `--dry-run` measures and what things cost; changes no byte
    statistics: 2048                                                     with `storage: none`: images that the statistics are made of
    output: out/captions-siglip2

`text` is always there, for silent video too, because the ids of the structure tokens come from it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from encode.encoder import Codec, ImageEncoder, TextEncoder
from pipelines.format.document import Document, PartOf, Size
from pipelines.format.part import SHARD_BYTES


class Resources(Document):
    """What one encoding worker takes, and how many there are. `gpus` (0.5 puts two on one) defaults to 1 where there is a GPU, else 0."""

    cpus: int = Field(1, ge=1)
    gpus: float | None = Field(None, ge=0)
    actors: int | None = Field(None, ge=1)


class Costs(Document):
    """What `--dry-run` looks at, and prices. `sample` images (0: none) go through the network, until `seconds` are over. Prices are assumptions to
    be replaced by your own, in one currency: a GPU and a processor for an hour, a terabyte (10^12 bytes) kept for a month; and how many months."""

    sample: int = Field(32, ge=0)
    seconds: float = Field(20, gt=0)
    gpu_hour: float = Field(2.5, ge=0)
    cpu_hour: float = Field(0.05, ge=0)
    tb_month: float = Field(23, ge=0)
    months: float = Field(3, ge=0)


class EncodeRecipe(Document):
    """`dataset` is a curated dataset; its images need `images`. See the module's text for the rest."""

    name: str = ""
    dataset: str
    text: Annotated[Any, PartOf("encode.encoders")]
    images: Annotated[Any, PartOf("encode.encoders")] | None = None
    storage: Codec = "bf16"
    shard_bytes: Size = SHARD_BYTES
    statistics: Size = Field(2048, ge=0)
    seed: int = 0
    output: str
    engine: Literal["ray", "local"] = "ray"
    resources: Resources = Resources()
    estimate: Costs = Costs()

    @field_validator("text")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if not isinstance(value, TextEncoder):
            raise ValueError("`text` takes a text encoder, such as text_tokens")
        return value

    @field_validator("images", mode="before")
    @classmethod
    def _reuse_in_short(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("reuse"), str):
            return {"reuse": {"dataset": value["reuse"]}}
        return value

    @field_validator("images")
    @classmethod
    def _images(cls, value: Any) -> Any:
        from encode.encoders.reuse import Reuse

        if value is not None and not isinstance(value, ImageEncoder | Reuse):
            raise ValueError("`images` takes an image encoder, such as siglip2 or pixels, or {reuse: DATASET}")
        return value

    @model_validator(mode="after")
    def _two_are_stored(self) -> EncodeRecipe:
        from encode.encoders.dual import Dual

        if isinstance(self.images, Dual) and self.storage == "none":
            raise ValueError("`storage: none` leaves encoding to the trainer, which takes one encoder; two need another storage")
        return self
