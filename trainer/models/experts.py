"""Mixture of experts: a router sends each token to a few small feed-forwards. In: x [T,W]. Out: what they make of it, and what the router did.

    scores = router(x) in fp32    chosen = top k of scores (+ bias)    p = softmax(scores) over all E experts
    gate = k p[chosen] / sum of p[chosen]                              out = sum over chosen of gate x expert(x) + shared expert(x)

Granularity G = 4 width / inner width of an expert (the paper, arXiv 2603.03276 section 4): 16 active experts at G = 16 compute what one dense
feed-forward of 4 width does. Gates sum to the number of chosen experts, so at equal gates the layer is that dense feed-forward; a shared
expert replaces one of the chosen and has weight 1. No capacity: no token is dropped, and what a token gets does not depend on its neighbours.

Statistics belong to the whole optimiser step, of all ranks and micro-batches, and act on the next one. Each layer only returns sums over its
tokens (padding never enters; recomputation returns the same sums again, and nobody adds them), the loop adds them, `after_step` keeps them. So
balancing is linear in tokens, and exact under any cutting into ranks and micro-batches. The price: it knows of the load one step late.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipelines.format.document import Document
from trainer.models.layers import Activation, PerModalityFFN, SharedFFN, activate

Execution = Literal["auto", "loop", "grouped"]


class Experts(Document):
    """Experts of a block. Defaults are the paper's choice: 254 routed and one shared a modality, 16 active.

    count: experts in all, shared ones included. granularity: 4 width / inner width. top_k: active ones of a token, its shared one included.
    balance: `aux` adds balance_weight x (sum over layers of E/k sum f P) to the loss (Switch, arXiv 2101.03961); `bias` moves a number added to
    an expert's scores when choosing by bias_rate against its load after each step (arXiv 2408.15664), the gate untouched.
    renormalise: whether a token's gates are divided by their sum (null: unless a single expert is chosen, whose gate would be constant).
    execution: a loop over experts, or one grouped product; auto takes the latter where the machine has it.
    """

    count: int = Field(256, ge=1)
    granularity: int = Field(16, ge=1)
    top_k: int = Field(16, ge=1)
    shared: Literal["none", "global", "per_modality"] = "per_modality"
    balance: Literal["aux", "bias", "none"] = "aux"
    balance_weight: float = Field(0.01, ge=0)
    bias_rate: float = Field(0.01, ge=0)
    renormalise: bool | None = None
    execution: Execution = "auto"

    @model_validator(mode="after")
    def _fits(self) -> Experts:
        if self.top_k - (self.shared != "none") < 1:
            raise ValueError(f"top_k {self.top_k} with shared: {self.shared} leaves no expert to choose; raise top_k or say shared: none")
        if self.routed < self.chosen:
            raise ValueError(f"top_k {self.top_k} of count {self.count} with shared: {self.shared} leaves too few experts to choose from")
        return self

    @property
    def routed(self) -> int:
        """Experts to choose from."""
        return self.count - {"none": 0, "global": 1, "per_modality": 2}[self.shared]

    @property
    def chosen(self) -> int:
        """Experts chosen for a token."""
        return self.top_k - (self.shared != "none")


class Routed(NamedTuple):
    """What the routers of L layers did with a batch's `tokens`: counts [L,E] of tokens that chose each expert (float32, no gradient; rows sum to
    k x tokens), share [L,E] the sums over tokens of router probabilities (with gradient; rows sum to tokens)."""

    counts: Tensor
    share: Tensor
    tokens: int


Told = tuple[Tensor, Tensor]  # one layer's counts and share, [E] each


class Router(nn.Module):
    """Scores of experts, in fp32 whatever surrounds it: a rounded score chooses another expert. parallel.py keeps its weight in fp32."""

    full_precision = True

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width))

    def forward(self, x: Tensor) -> Tensor:
        """x [T,W] of any type → float32 [T,E]."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float())


class ExpertStack(nn.Module):
    """E feed-forwards of inner width M as two tensors, so that one grouped product computes them and shards cut between experts."""

    def __init__(self, experts: int, width: int, inner: int, activation: Activation, execution: Execution) -> None:
        super().__init__()
        self.activation, self.execution = activation, execution
        self.up = nn.Parameter(torch.empty(experts, inner * (2 if activation == "swiglu" else 1), width))
        self.down = nn.Parameter(torch.empty(experts, width, inner))

    def forward(self, x: Tensor, chosen: Tensor, gate: Tensor, counts: Tensor) -> Tensor:
        """x [T,W], chosen and gate [T,k], counts [E] of chosen → [T,W], the sum of each token's experts by their gates."""
        k = chosen.shape[1]
        order = chosen.reshape(-1).argsort(stable=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        token = order // k
        rows, weight = _Sent.apply(x, token, back, k), gate.reshape(-1).index_select(0, order).to(x.dtype)[:, None]
        # Inner widths are a quarter of the stream's: weighing there is the cheapest place.
        if self.execution == "grouped" or (self.execution == "auto" and groupable(rows, self.down)):
            ends = counts.cumsum(0).to(torch.int32)
            out = _grouped(activate(_grouped(rows, self.up, ends), self.activation) * weight, self.down, ends)
        else:
            out = self._loop(rows, weight, counts)
        return _Collected.apply(out, token, back, k)  # type: ignore[no-any-return]

    @torch.compiler.disable
    def _loop(self, rows: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        """The reference: expert after expert over its run of rows. Those without a row take part, so that every weight has a gradient."""
        sizes = [int(n) for n in counts.tolist()]
        parts = zip(rows.split(sizes), weight.split(sizes), self.up.unbind(), self.down.unbind(), strict=True)
        return torch.cat([F.linear(activate(F.linear(x, up), self.activation) * w, down) for x, w, up, down in parts])


def groupable(rows: Tensor, down: Tensor) -> bool:
    """Whether the grouped product takes these: rows to multiply, strides of whole 16 bytes, and bf16, or fp32 on a CPU that does not compile."""
    if not len(rows) or _grouped_mm is None or any(n * rows.element_size() % 16 for n in down.shape[1:]):
        return False
    return rows.dtype == torch.bfloat16 or (rows.dtype == torch.float32 and not rows.is_cuda and not torch.compiler.is_compiling())


# Public since torch 2.10 or so; before that under its private name (CPU since 2.9).
_grouped_mm: Any = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def _grouped(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return _grouped_mm(rows, weight.transpose(1, 2), offs=ends)  # type: ignore[no-any-return]


class _Sent(torch.autograd.Function):
    """Rows in the order of experts, a token k times. Its gradient is `_Collected`: left to autograd, both would be atomic additions in an order of
    their own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, back: Tensor, k: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(back)
        ctx.k = k
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        (back,) = ctx.saved_tensors
        return grad.index_select(0, back).unflatten(0, (-1, ctx.k)).sum(1), None, None, None


class _Collected(torch.autograd.Function):
    """Sums of each token's k rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, token: Tensor, back: Tensor, k: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(token)
        return rows.index_select(0, back).unflatten(0, (-1, k)).sum(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        (token,) = ctx.saved_tensors
        return grad.index_select(0, token), None, None, None


class RoutedFFN(nn.Module):
    """The feed-forward of a block by experts. Buffers, of the last step and equal on all ranks: `load` [E], an expert's tokens over the mean of
    all, and `bias` [E], what is added to its scores when choosing."""

    def __init__(self, width: int, inner: int, activation: Activation, experts: Experts) -> None:
        super().__init__()
        self.config, self.k = experts, experts.chosen
        self.renormalise = experts.renormalise if experts.renormalise is not None else self.k > 1
        self.router = Router(width, experts.routed)
        self.experts = ExpertStack(experts.routed, width, inner, activation, experts.execution)
        kind = {"none": None, "global": SharedFFN, "per_modality": PerModalityFFN}[experts.shared]
        self.shared = None if kind is None else kind(width, inner, activation)
        self.load: Tensor
        self.bias: Tensor
        for name in ("load", "bias"):
            self.register_buffer(name, torch.zeros(experts.routed, dtype=torch.float32))

    def forward(self, x: Tensor, text: int) -> tuple[Tensor, Told]:
        """x [T,W], the first `text` rows text → [T,W], and (counts, share) [E]."""
        scores = self.router(x)
        probability = scores.softmax(dim=-1)
        chosen = self.choose(scores)
        gate = probability.gather(1, chosen)
        if self.renormalise:
            gate = gate / gate.sum(dim=1, keepdim=True)
        counts = torch.zeros_like(self.load).scatter_add_(0, chosen.reshape(-1), self.load.new_ones(chosen.numel()))
        out = self.experts(x, chosen, gate * self.k, counts)
        if self.shared is not None:
            out = out + self.shared(x, text)[0]
        return out, (counts, probability.sum(dim=0))

    def choose(self, scores: Tensor) -> Tensor:
        """scores [T,E] → the experts of each token [T,k], by no gradient."""
        scores = scores.detach()
        return (scores + self.bias if self.config.balance == "bias" else scores).topk(self.k, dim=-1).indices


def gathered(told: list[Told], tokens: int) -> Routed | None:
    """What the layers told, as one; None when no layer routes."""
    return Routed(torch.stack([c for c, _ in told]), torch.stack([s for _, s in told]), tokens) if told else None


def layers_of(model: nn.Module) -> list[RoutedFFN]:
    """The routed layers, first to last."""
    return [m for m in model.modules() if isinstance(m, RoutedFFN)]


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within, every eager pass through the model adds, first layer to last, the experts that its tokens chose: [T,k] a layer, tokens in the order of
    hidden states (attention.order). A router is asked a second time for them, so that a pass which nobody watches keeps nothing."""
    seen: list[Tensor] = []
    hooks = [layer.router.register_forward_hook(lambda _, __, scores, layer=layer: seen.append(layer.choose(scores))) for layer in layers_of(model)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def balance_loss(model: nn.Module, routed: Routed, tokens_of_step: float) -> Tensor:
    """This batch's part of balance_weight x sum over layers of E/k sum_i f_i P_i, which is 1 a layer when all is even.

    f: each expert's share of the last step's tokens (E/k f is the buffer `load`; 0 in the first step). P: mean router probability over the
    tokens of this step, all ranks and micro-batches, of which this batch contributes its sum.
    """
    layers = layers_of(model)
    weight = layers[0].config.balance_weight if layers[0].config.balance == "aux" else 0.0
    return weight * (torch.stack([m.load for m in layers]) * routed.share).sum() / max(tokens_of_step, 1)


@torch.no_grad()
def after_step(model: nn.Module, counts: Tensor) -> None:
    """Keep a step's counts [L,E], summed over all ranks and micro-batches, and move the biases: up where an expert had fewer tokens than the mean,
    down where it had more, then all by the same so that their mean stays 0. Once after each optimiser step, on every rank."""
    for layer, mine in zip(layers_of(model), counts, strict=True):
        mean = mine.mean()
        if float(mean) > 0:
            layer.load.copy_(mine / mean)
        if layer.config.balance == "bias":
            layer.bias += layer.config.bias_rate * torch.sign(mean - mine).to(layer.bias)
            layer.bias -= layer.bias.mean()


def load_line(counts: np.ndarray) -> dict[str, float]:
    """For metrics: the busiest expert's tokens over the mean, in the worst layer and on average of layers, and the share of experts without any."""
    top = counts.max(axis=1) / np.maximum(counts.mean(axis=1), 1e-9)
    return {"experts/load_worst": float(top.max()), "experts/load": float(top.mean()), "experts/idle": float((counts == 0).mean())}
