"""A decoder-only transformer over text tokens and image latents: next-token logits at text, a flow prediction at latents.

In: a Batch, its latents as seen (z), each image's time (t), which conditions fell. Out: logits where asked, and one row per latent. The paper's
model (arXiv 2603.03276 section 3): attention shared, feed-forward shared or one per modality, linear projections in and out of latents.

Where the paper is silent we chose: time enters as an embedding added to the image's latents; 1-D rotary positions plus learned patch positions,
which start large (0.5), since a model that first has to find out where a patch lies learns nothing else meanwhile.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipelines.format.document import Part
from trainer.batch import IGNORED, Batch
from trainer.models.attention import Attend, Backend, order, prepare
from trainer.models.layers import Activation, Attention, Block, Norm, PerModalityFFN, SharedFFN, TimeEmbedding, norm, rotary_tables

# Blocks of known sizes; parameters without embeddings. The last is the paper's: 1.498B with a shared FFN and 128,256 untied ids, 2.304B split.
SIZES: dict[str, dict[str, int]] = {
    "1m": {"layers": 4, "width": 128, "heads": 4, "kv_heads": 4, "ffn_width": 512},
    "10m": {"layers": 6, "width": 320, "heads": 5, "kv_heads": 5, "ffn_width": 1280},
    "100m": {"layers": 12, "width": 768, "heads": 12, "kv_heads": 4, "ffn_width": 2816},
    "400m": {"layers": 16, "width": 1280, "heads": 20, "kv_heads": 4, "ffn_width": 5120},
    "1.5b": {"layers": 16, "width": 2048, "heads": 32, "kv_heads": 8, "ffn_width": 8192},
}


class Transfusion(Part):
    """The model's shape. `size` names a row of SIZES whose values stand where the YAML says nothing.

    norm layer and activation relu2 are the fast choices on CPU; rms and swiglu the paper family's. `output_skip` adds k(t) z to the flow
    prediction, the best linear guess for unit-variance latents: a narrow trunk need not carry the noise through.
    """

    size: Literal["1m", "10m", "100m", "400m", "1.5b"] | None = None
    layers: int = Field(16, ge=1)
    width: int = Field(2048, ge=8)
    heads: int = Field(32, ge=1)
    kv_heads: int | None = Field(None, ge=1)
    ffn: Literal["shared", "per_modality"] = "per_modality"
    ffn_width: int | None = Field(None, ge=1)
    norm: Norm = "rms"
    activation: Activation = "swiglu"
    qk_norm: bool = True
    rope_theta: float = 500_000.0
    tie_embeddings: bool = False
    embedding_std: float = 0.02
    patch_positions: bool = True
    patch_position_std: float = 0.5
    time: Literal["added", "none"] = "added"
    output_skip: bool = False
    attention: Backend = "auto"

    @model_validator(mode="before")
    @classmethod
    def _sized(cls, data: Any) -> Any:
        named = SIZES.get(data.get("size") or "") if isinstance(data, dict) else None
        return named | data if named else data

    @model_validator(mode="after")
    def _fits(self) -> Transfusion:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self

    @property
    def inner(self) -> int:
        """Feed-forward width: as given, else 4 x width, or 8/3 x width to a multiple of 64 for the three matrices of SwiGLU."""
        if self.ffn_width:
            return self.ffn_width
        return 4 * self.width if self.activation == "relu2" else math.ceil(8 * self.width / 3 / 64) * 64

    def build(self, vocab: int, channels: int, patches: int, predict: Literal["x", "v"] = "x") -> TransfusionModel:
        """The module, parameters unset (under `torch.device("meta")` it costs nothing); `initialise` fills them.

        vocab: ids, structure tokens included. channels, patches: width and number of an image's latents (0 when there are no images).
        """
        return TransfusionModel(self, vocab, channels, patches, predict)


class Output(NamedTuple):
    """logits [A, vocab] at the flat positions `at` [A] of [B,S], and flow [N, C], one row per latent of the batch."""

    logits: Tensor
    at: Tensor
    flow: Tensor


class TransfusionModel(nn.Module):
    """See Transfusion. Attributes are the wrap points of parallel.py: `blocks` one by one, then the whole."""

    def __init__(self, shape: Transfusion, vocab: int, channels: int, patches: int, predict: Literal["x", "v"]) -> None:
        super().__init__()
        self.shape, self.vocab, self.channels, self.patches, self.predict = shape, vocab, channels, patches, predict
        width, ffn = shape.width, PerModalityFFN if shape.ffn == "per_modality" else SharedFFN
        self.embed = nn.Parameter(torch.empty(vocab, width))
        self.head = None if shape.tie_embeddings else nn.Parameter(torch.empty(vocab, width))
        self.latent_in = nn.Linear(channels, width)
        self.latent_out = nn.Linear(width, channels)
        self.patch = nn.Parameter(torch.empty(patches, width)) if shape.patch_positions else None
        self.time = TimeEmbedding(width) if shape.time == "added" else None
        self.blocks = nn.ModuleList(
            Block(
                Attention(width, shape.heads, shape.kv_heads or shape.heads, shape.norm if shape.qk_norm else None),
                ffn(width, shape.inner, shape.activation), width, shape.norm,
            )
            for _ in range(shape.layers)
        )  # fmt: skip
        self.final_norm = norm(shape.norm, width)
        # Tied logits start at unit variance whatever the embedding's scale; 1.1 at width 2048 and std .02, so nothing changes there.
        self.logit_scale = 1.0 if self.head is not None else 1 / (shape.embedding_std * math.sqrt(width))

    def forward(
        self, batch: Batch, z: Tensor, t: Tensor, dropped: Tensor | None = None, at: Tensor | None = None, attend: Attend | None = None
    ) -> Output:
        """z [N,C] latents as seen, t [I], dropped bool[B,S] or None, at: flat positions wanting logits (default: those with a target).

        `attend` replaces the one made from the batch, for generation with a cache; every block calls it once, in order.
        """
        where = order(batch)
        words, slots = where.text, where.slots
        x = torch.cat([F.embedding(batch.tokens.reshape(-1)[slots[:words]].long(), self.embed), self._latents(batch, z, t)])
        attend = attend or prepare(batch, where, dropped, self.shape.attention)
        cos, sin = rotary_tables(batch.position.reshape(-1)[slots], self.shape.width // self.shape.heads, self.shape.rope_theta)
        for block in self.blocks:
            x = block(x, words, cos, sin, attend)
        if at is None:
            target = batch.text_target.reshape(-1)[slots[:words]]
            rows = torch.nonzero(target != IGNORED).squeeze(1)
            at = slots[rows]
        else:
            rows = torch.searchsorted(slots[:words], at)  # text slots ascend
        text, latent = x.tensor_split([words])
        head = self.embed if self.head is None else self.head
        logits = F.linear(self.final_norm(text.index_select(0, rows)), head)
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
        return Output(logits, at, self._flow(self.final_norm(latent), z, t, batch))

    def _latents(self, batch: Batch, z: Tensor, t: Tensor) -> Tensor:
        x = self.latent_in(z.to(self.latent_in.weight.dtype))
        image = batch.latent_image.long()
        if self.patch is not None:
            count = torch.bincount(image, minlength=len(t))
            place = torch.arange(len(image), device=image.device) - (count.cumsum(0) - count)[image]
            x = x + F.embedding(place, self.patch)
        if self.time is not None:
            x = x + F.embedding(image, self.time(t))
        return x

    def _flow(self, x: Tensor, z: Tensor, t: Tensor, batch: Batch) -> Tensor:
        prediction = self.latent_out(x)
        if not self.shape.output_skip:
            return prediction
        t = t[batch.latent_image.long()].unsqueeze(1)
        signal = t if self.predict == "x" else 2 * t - 1
        return prediction + signal / ((1 - t) ** 2 + t**2) * z

    def initial(self, name: str, parameter: Tensor) -> float | None:
        """Standard deviation a parameter starts with; 0 = zeros, None = ones.

        Matrices: 1/sqrt(fan in), those that write to the stream divided by sqrt(2 layers) as well (GPT-2). Gains one, biases zero, the
        flow head zero: it starts by predicting nothing.
        """
        part = name.rsplit(".", 1)[-1]
        if name in ("embed", "patch"):
            return self.shape.embedding_std if name == "embed" else self.shape.patch_position_std
        if part == "bias" or name == "latent_out.weight":
            return 0.0
        if parameter.ndim == 1 or part == "qk_gain":
            return None
        std = max(parameter.shape[1], 1) ** -0.5
        writes = name.endswith(("attention.out.weight", "down.weight")) and name.startswith("blocks.")
        return std / math.sqrt(2 * self.shape.layers) if writes else std

    def decays(self, name: str, parameter: Tensor) -> bool:
        """Whether weight decay acts on a parameter: on matrices, not on tables, gains and biases."""
        return parameter.ndim == 2 and name not in ("embed", "patch") and not name.endswith("qk_gain")

    def parameters_by_use(self) -> dict[str, int]:
        """Counts: all, the embedding tables, and the matrices that act on one text token (logits apart) and on one latent."""
        sizes = {name: p.numel() for name, p in self.named_parameters()}
        of = lambda *parts: sum(n for name, n in sizes.items() if any(part in name for part in parts))
        total, tables = sum(sizes.values()), sizes["embed"] + sizes.get("head", 0)
        blocks = of("blocks.")
        text, latent = blocks - of(".ffn.latent."), blocks - of(".ffn.text.") + of("latent_in", "latent_out")
        return {"total": total, "embedding": tables, "active_text": text, "active_latent": latent}

    def training_flops(self, text: int, latents: int, targets: int, pairs: int) -> int:
        """FLOPs of forward and backward: 6 per active parameter and position, 6 per logit and channel, 12 per layer, pair and channel.

        text: text and structure positions; latents: latent rows; targets: positions with logits; pairs: query-key pairs.
        """
        of, width = self.parameters_by_use(), self.shape.width
        return 6 * (of["active_text"] * text + of["active_latent"] * latents + self.vocab * width * targets) + 12 * self.shape.layers * width * pairs
