"""A decoder-only transformer over text tokens and image latents: next-token logits at text, a flow prediction at latents.

In: a Batch, its latents as seen (z), each image's time (t), which conditions fell. Out: logits where asked, and one row per latent. The paper's
family (arXiv 2603.03276 sections 3 and 4), linear projections in and out of latents, and blocks whose weights are

    ffn: shared          one for all tokens (Transfusion)                    per_modality    a feed-forward each, attention shared
    ffn: mot             attention, norms and feed-forward each (MoT)        moe             experts chosen by a router, attention shared

Where the paper is silent we chose: time enters as an embedding added to the image's latents; 1-D rotary positions plus learned patch positions,
which start large (0.5), since a model that first has to find out where a patch lies learns nothing else meanwhile.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from pipelines.format.document import Part
from trainer.batch import IGNORED, Batch
from trainer.models import flops
from trainer.models.attention import Attend, Backend, order, prepare
from trainer.models.blocks import Block, Modulation, TimeEmbedding, When, shifted
from trainer.models.experts import Experts, Routed, RoutedFFN, gathered
from trainer.models.layers import (
    Activation,
    Attention,
    AttentionPerModality,
    Norm,
    NormPerModality,
    PerModalityFFN,
    SharedFFN,
    norm,
    rotary_tables,
)  # fmt: skip
from trainer.models.sizes import Size, filled


class Transfusion(Part):
    """The model's shape. `size` names a row of sizes.py whose values stand where the YAML says nothing.

    norm layer and activation relu2 are the fast choices on CPU; rms and swiglu the paper family's. `output_skip` adds k(t) z to the flow
    prediction, the best linear guess for unit-variance latents: a narrow trunk need not carry the noise through. time `adaln` lets t shift, scale
    and gate the latents in every block (6 width^2 more parameters a block). rope `axial` gives an image's latents places in a square, row and
    column counted from the position where the image begins; text keeps its line.
    """

    # Keys that a model of given weights does not depend on: how they were drawn, how products are done, how experts are kept even.
    IDLE: ClassVar[frozenset[str]] = frozenset(("size", "ffn_width", "embedding_std", "patch_position_std", "attention", "experts.balance",
                                                "experts.balance_weight", "experts.bias_rate", "experts.execution"))  # fmt: skip

    size: Size | None = None
    layers: int = Field(16, ge=1)
    width: int = Field(2048, ge=8)
    heads: int = Field(32, ge=1)
    kv_heads: int | None = Field(None, ge=1)
    ffn: Literal["shared", "per_modality", "mot", "moe"] = "per_modality"
    ffn_width: int | None = Field(None, ge=1)
    experts: Experts = Experts()
    norm: Norm = "rms"
    activation: Activation = "swiglu"
    qk_norm: bool = True
    rope_theta: float = 500_000.0
    rope: Literal["line", "axial"] = "line"
    tie_embeddings: bool = False
    embedding_std: float = 0.02
    patch_positions: bool = True
    patch_position_std: float = 0.5
    time: Literal["added", "adaln", "none"] = "added"
    output_skip: bool = False
    attention: Backend = "auto"

    @model_validator(mode="before")
    @classmethod
    def _sized(cls, data: Any) -> Any:
        return filled(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _fits(self) -> Transfusion:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.ffn == "moe" and 4 * self.width % self.experts.granularity:
            raise ValueError(f"4 x width {self.width} must be a multiple of experts.granularity {self.experts.granularity}")
        if self.ffn != "moe" and "experts" in self.model_fields_set:
            raise ValueError(f"experts are given, and ffn is {self.ffn}: say ffn: moe, or leave them out")
        return self

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the keys that came later, where they have no effect: a run keeps the name it had before there were any."""
        quiet = {"experts": self.ffn != "moe", "rope": self.rope == "line"}
        return {k: v for k, v in handler(self).items() if not quiet.get(k, False)}

    @property
    def inner(self) -> int:
        """Feed-forward width: an expert's by granularity; else as given, else 4 x width, or 8/3 x width to a multiple of 64 for SwiGLU's three
        matrices."""
        if self.ffn == "moe":
            return 4 * self.width // self.experts.granularity
        if self.ffn_width:
            return self.ffn_width
        return 4 * self.width if self.activation == "relu2" else math.ceil(8 * self.width / 3 / 64) * 64

    def build(
        self, vocab: int, channels: int, patches: int, predict: Literal["x", "v"] = "x", made_channels: int = 0, made_patches: int = 0
    ) -> TransfusionModel:
        """The module, parameters unset (under `torch.device("meta")` it costs nothing); `initialise` fills them.

        vocab: ids, structure tokens included. channels, patches: width and number of an image's latents (0 when there are no images).
        made_channels, made_patches: those of images with loss, where another encoder makes them.
        """
        return TransfusionModel(self, vocab, channels, patches, predict, (made_channels, made_patches) if made_channels else None)


class Output(NamedTuple):
    """logits [A, vocab] at the flat positions `at` [A] of [B,S], flow [N, C], one row per latent of the batch (of two encoders as wide as what
    is made, and 0 for the others), and what routers did (None when there are none)."""

    logits: Tensor
    at: Tensor
    flow: Tensor
    routed: Routed | None = None


class TransfusionModel(nn.Module):
    """See Transfusion. Attributes are the wrap points of parallel.py: `blocks` one by one, then the whole."""

    def __init__(
        self, shape: Transfusion, vocab: int, channels: int, patches: int, predict: Literal["x", "v"], made: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        for n in (patches, *(made or ())[1:]):
            if shape.rope == "axial" and math.isqrt(n) ** 2 != n:
                raise ValueError(f"rope: axial needs images of n x n latents, and these have {n}; say rope: line")
        self.shape, self.vocab, self.predict = shape, vocab, predict
        # channels, patches: of images with loss, which are made. looked: of those without, where they have an encoder of their own.
        self.looked = None if made is None else (channels, patches)
        self.channels, self.patches = made or (channels, patches)
        width, split = shape.width, shape.ffn == "mot"
        self.embed = nn.Parameter(torch.empty(vocab, width))
        self.head = None if shape.tie_embeddings else nn.Parameter(torch.empty(vocab, width))
        self.latent_in = nn.Linear(channels, width)
        self.latent_out = nn.Linear(width, self.channels)
        self.patch = nn.Parameter(torch.empty(patches, width)) if shape.patch_positions else None
        self.made_in = None if made is None else nn.Linear(made[0], width)
        self.made_patch = nn.Parameter(torch.empty(made[1], width)) if made is not None and shape.patch_positions else None
        self.time = TimeEmbedding(width) if shape.time != "none" else None
        self.blocks = nn.ModuleList(_block(shape) for _ in range(shape.layers))
        self.final_norm = NormPerModality(shape.norm, width) if split else norm(shape.norm, width)
        self.modulation = Modulation(width, 2) if shape.time == "adaln" else None
        # Tied logits start at unit variance whatever the embedding's scale; 1.1 at width 2048 and std .02, so nothing changes there.
        self.logit_scale = 1.0 if self.head is not None else 1 / (shape.embedding_std * math.sqrt(width))

    def forward(
        self, batch: Batch, z: Tensor, t: Tensor, dropped: Tensor | None = None, at: Tensor | None = None, attend: Attend | None = None
    ) -> Output:
        """z [N,C] latents as seen, t [I], dropped bool[B,S] or None, at: flat positions wanting logits (default: those with a target), attend: what
        mixes positions, called by every block in order (default: the mask of this batch)."""
        where = order(batch)
        words, slots = where.text, where.slots
        image, place = _places(batch, len(t))
        when = When(F.silu(self.time(t)), image) if self.time is not None and self.modulation is not None else None
        made = None if self.looked is None else batch.image_loss[image]
        x = torch.cat([F.embedding(batch.tokens.reshape(-1)[slots[:words]].long(), self.embed), self._latents(z, t, image, place, made)])
        attend = prepare(batch, where, dropped, self.shape.attention) if attend is None else attend
        position = batch.position.reshape(-1)[slots]
        if self.shape.rope == "axial":
            side: int | Tensor = math.isqrt(self.patches)
            if self.looked is not None and made is not None:
                side = torch.where(made, side, math.isqrt(self.looked[1]))
            position = _plane(position, words, place, side)
        cos, sin = rotary_tables(position, self.shape.width // self.shape.heads, self.shape.rope_theta)
        told = []
        for block in self.blocks:
            x, routed = block(x, words, cos, sin, attend, when)
            if routed is not None:
                told.append(routed)
        if at is None:
            target = batch.text_target.reshape(-1)[slots[:words]]
            rows = torch.nonzero(target != IGNORED).squeeze(1)
            at = slots[rows]
        else:
            rows = torch.searchsorted(slots[:words], at)  # text slots ascend
        text, latent = x.tensor_split([words])
        final = self.final_norm
        text_norm, latent_norm = (final.text, final.latent) if isinstance(final, NormPerModality) else (final, final)
        head = self.embed if self.head is None else self.head
        logits = F.linear(text_norm(text.index_select(0, rows)), head)
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
        latent = latent_norm(latent)
        if self.modulation is not None and when is not None:
            latent = shifted(latent, 0, *self.modulation(when))
        return Output(logits, at, self._flow(latent, z, t, image, made), gathered(told, len(slots)))

    def _latents(self, z: Tensor, t: Tensor, image: Tensor, place: Tensor, made: Tensor | None) -> Tensor:
        if made is None or self.made_in is None:
            x = _entered(z, place, self.latent_in, self.patch)
        else:
            x = z.new_zeros(len(z), self.shape.width, dtype=self.latent_in.weight.dtype)
            for rows, door, patch in ((~made, self.latent_in, self.patch), (made, self.made_in, self.made_patch)):
                at = torch.nonzero(rows).squeeze(1)
                x = x.index_copy(0, at, _entered(z.index_select(0, at)[:, : door.in_features], place[at], door, patch))
        if self.time is not None and self.modulation is None:
            x = x + F.embedding(image, self.time(t))
        return x

    def _flow(self, x: Tensor, z: Tensor, t: Tensor, image: Tensor, made: Tensor | None) -> Tensor:
        if made is not None:  # latents that are looked at have no flow
            at, count = torch.nonzero(made).squeeze(1), len(x)
            flow = self._flow(x.index_select(0, at), z.index_select(0, at)[:, : self.latent_out.out_features], t, image[at], None)
            return flow.new_zeros(count, flow.shape[1]).index_copy(0, at, flow)
        prediction = self.latent_out(x)
        if not self.shape.output_skip:
            return prediction
        t = t[image].unsqueeze(1)
        signal = t if self.predict == "x" else 2 * t - 1
        return prediction + signal / ((1 - t) ** 2 + t**2) * z

    def initial(self, name: str, parameter: Tensor) -> float | None:
        """Standard deviation a parameter starts with; 0 = zeros, None = ones.

        Matrices: 1/sqrt(fan in), those that write to the stream divided by sqrt(2 layers) as well (GPT-2); an expert that writes has the fan in
        of all that are active. Gains one, biases and modulation zero, the flow head zero: it starts by predicting nothing.
        """
        part = name.rsplit(".", 1)[-1]
        if name in ("embed", "patch", "made_patch"):
            return self.shape.embedding_std if name == "embed" else self.shape.patch_position_std
        if part == "bias" or name == "latent_out.weight" or "modulation." in name:
            return 0.0
        if parameter.ndim == 1 or part == "qk_gain":
            return None
        fan_in = max(parameter.shape[-1], 1)
        if self.shape.ffn == "moe" and ".ffn." in name and name.endswith(("down", "down.weight")):
            fan_in *= self.shape.experts.top_k
        std = fan_in**-0.5
        writes = name.endswith(("out.weight", "down.weight", "experts.down")) and name.startswith("blocks.")
        return std / math.sqrt(2 * self.shape.layers) if writes else std

    def decays(self, name: str, parameter: Tensor) -> bool:
        """Whether weight decay acts on a parameter: on matrices, not on tables, gains and biases."""
        return parameter.ndim >= 2 and name not in ("embed", "patch", "made_patch") and not name.endswith("qk_gain")

    def parameters_by_use(self) -> dict[str, int]:
        """Counts by group, and what acts on one text token (logits apart) and on one latent: see flops.parameters."""
        return flops.parameters(self)

    def training_flops(self, text: int, latents: int, targets: int, pairs: int, images: int | None = None, made: int | None = None) -> int:
        """FLOPs of forward and backward over so many positions: see flops.training_flops."""
        return flops.training_flops(self, text, latents, targets, pairs, images, made)


def _block(shape: Transfusion) -> Block:
    width, split = shape.width, shape.ffn == "mot"
    kind = AttentionPerModality if split else Attention
    attention = kind(width, shape.heads, shape.kv_heads or shape.heads, shape.norm if shape.qk_norm else None)
    if shape.ffn == "moe":
        ffn: nn.Module = RoutedFFN(width, shape.inner, shape.activation, shape.experts)
    else:
        ffn = (SharedFFN if shape.ffn == "shared" else PerModalityFFN)(width, shape.inner, shape.activation)
    return Block(attention, ffn, width, shape.norm, split, shape.time == "adaln")


def _entered(z: Tensor, place: Tensor, door: nn.Linear, patch: Tensor | None) -> Tensor:
    """Latents as the stream has them: projected, and told their place in the image."""
    x: Tensor = door(z.to(door.weight.dtype))
    return x if patch is None else x + F.embedding(place, patch)


def _places(batch: Batch, images: int) -> tuple[Tensor, Tensor]:
    """Of each latent [N]: its image, and its place in it."""
    image = batch.latent_image.long()
    count = torch.bincount(image, minlength=images)
    return image, torch.arange(len(image), device=image.device) - (count.cumsum(0) - count)[image]


def _plane(position: Tensor, text: int, place: Tensor, side: int | Tensor) -> Tensor:
    """Places in a plane [T,2] for positions [T], text first: text at (p, p), a latent at (p0 + row, p0 + column), p0 its image's first position."""
    first = position[text:].index_select(0, torch.arange(len(place), device=place.device) - place).long()
    latents = torch.stack([first + place // side, first + place % side], dim=1)
    return torch.cat([position[:text, None].expand(-1, 2), latents.to(position.dtype)])
