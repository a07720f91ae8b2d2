"""The parts of a block: norms, rotary positions, attention, feed-forward. Single-device code.

Hidden states are flat, x [T, E], text first and latents last (see attention.py): per-modality weights act on slices. Shapes: T tokens, E width,
H query heads, K key-value heads, d head width, M feed-forward width. No module here draws a number: `Transfusion.initial` says how each
parameter starts, so that it starts the same under any sharding.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.attention import Attend

Norm = Literal["rms", "layer"]
Activation = Literal["swiglu", "relu2"]


def norm(kind: Norm, width: int) -> nn.Module:
    """RMSNorm, or LayerNorm without bias: torch fuses the latter on CPU (0.7 ms against 1.6 ms a call at demo size), not the former."""
    return nn.RMSNorm(width, eps=1e-6) if kind == "rms" else nn.LayerNorm(width, eps=1e-6, bias=False)


def rotary_tables(position: Tensor, head: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [T, 1, d/2] of rotary angles (Su et al., arXiv 2104.09864) at integer positions [T], or at places [T,2] in a plane.

    In a plane, angles take turns: even ones rotate by the first coordinate, odd ones by the second, so that both have all frequencies. Equal
    coordinates are the positions on a line, which is how text stands in the same space as images.
    """
    frequency = theta ** (-torch.arange(0, head, 2, device=position.device, dtype=torch.float32) / head)
    if position.ndim == 2:
        position = position[:, torch.arange(head // 2, device=position.device) % 2]
        angle = position[:, None, :].float() * frequency
    else:
        angle = position[:, None, None].float() * frequency
    return angle.cos(), angle.sin()


class _Rotated(torch.autograd.Function):
    """Rotary positions written once: forward rotates queries and keys into the buffer that values join, backward rotates back.

    Left to autograd the same costs 20 small operations a layer and two concatenations; this is 8 (2 ms of a 35 ms step at demo size).
    """

    @staticmethod
    def forward(ctx: Any, cos: Tensor, sin: Tensor, v: Tensor, *parts: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        ctx.heads = [part.shape[1] for part in parts]
        turned = sum(ctx.heads)
        out = v.new_empty(len(v), turned + v.shape[1], v.shape[2])
        for part, place in zip(parts, out[:, :turned].split(ctx.heads, dim=1), strict=True):
            _turn(part, cos, sin, place)
        out[:, turned:] = v
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        turned = sum(ctx.heads)
        back = []
        for part in grad[:, :turned].split(ctx.heads, dim=1):
            back.append(torch.empty_like(part, memory_format=torch.contiguous_format))
            _turn(part, cos, -sin, back[-1])
        return None, None, grad[:, turned:], *back


class _RotatedWhole(torch.autograd.Function):
    """The same where queries, keys and values still lie in one tensor (no norm between): no concatenation of their gradients either."""

    @staticmethod
    def forward(ctx: Any, cos: Tensor, sin: Tensor, qkv: Tensor, turned: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        ctx.turned = turned
        return _turned(qkv, cos, sin, turned)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return None, None, _turned(grad, cos, -sin, ctx.turned), None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _turn(x[:, :heads], cos, sin, out[:, :heads])
    out[:, heads:] = x[:, heads:]
    return out


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Rotate the halves of each head of x [T, heads, d] into one another, into `out`."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    first, second = out[..., :half], out[..., half:]
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(a, sin, out=second).addcmul_(b, cos)


def rotate(parts: tuple[Tensor, ...], v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries and keys, together or apart, [T, .., d] rotated by the tables, and v [T, K, d] as it is, in one tensor [T, H + 2 K, d] of v's type."""
    cos, sin = cos.to(v.dtype), sin.to(v.dtype)
    if torch.compiler.is_compiling():  # a compiler makes one kernel of the formula, and cannot follow writes into views
        halves = [part.chunk(2, dim=-1) for part in parts]
        return torch.cat([*(torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1) for a, b in halves), v], dim=1)
    return _Rotated.apply(cos, sin, v, *parts)  # type: ignore[no-any-return]


def rotate_whole(qkv: Tensor, turned: int, cos: Tensor, sin: Tensor) -> Tensor:
    """qkv [T, H + 2 K, d] with its first `turned` heads rotated by the tables."""
    if torch.compiler.is_compiling():
        return rotate((qkv[:, :turned],), qkv[:, turned:], cos, sin)
    return _RotatedWhole.apply(cos.to(qkv.dtype), sin.to(qkv.dtype), qkv, turned)  # type: ignore[no-any-return]


class _SquaredReLU(torch.autograd.Function):
    """max(x, 0)^2, keeping only max(x, 0): two passes forward, one backward, against seven by way of relu and square."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        positive = x.clamp_min(0)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        (positive,) = ctx.saved_tensors
        return torch.addcmul(grad.new_zeros(()), grad, positive, value=2)  # one pass; doubling a product would be two


def activate(h: Tensor, activation: Activation) -> Tensor:
    """[.., M or 2 M] → [.., M]: silu(first half) x second half (Shazeer, arXiv 2002.05202), or max(h, 0)^2 (So et al., arXiv 2109.08668)."""
    if activation == "relu2":
        return _SquaredReLU.apply(h)  # type: ignore[no-any-return]
    gate, h = h.chunk(2, dim=-1)
    return F.silu(gate) * h


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and, by choice, normalised queries and keys (Dehghani et al., arXiv 2302.05442)."""

    def __init__(self, width: int, heads: int, kv_heads: int, qk_norm: Norm | None) -> None:
        super().__init__()
        self.qk_norm = qk_norm
        self.heads, self.kv_heads, self.head = heads, kv_heads, width // heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        # One gain for queries and one for keys, kept as one parameter so that both are normalised in one pass.
        self.qk_gain = nn.Parameter(torch.empty(2, self.head)) if qk_norm else None

    def forward(self, x: Tensor, text: int, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [T,E] → [T,E]."""
        if self.qk_gain is None:
            qkv = self.qkv(x).view(len(x), self.heads + 2 * self.kv_heads, self.head)
            return self.out(attend(rotate_whole(qkv, self.heads + self.kv_heads, cos, sin), self.heads).flatten(1))
        parts, v = self.asked(x)
        return self.out(attend(rotate(parts, v, cos, sin), self.heads).flatten(1))

    def asked(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """x [T,E] → queries and keys [T, H + K, d], or apart, and values [T, K, d], not rotated yet."""
        split, norm = self.qkv(x).view(len(x), self.heads + 2 * self.kv_heads, self.head), (self.head,)
        if self.qk_norm == "layer" and self.qk_gain is not None:
            # The kernel applies gains itself, queries and keys apart: 6.5 ms against 7.8 (2,048 tokens of 8 heads of 64, forward and backward).
            q, k, v = split.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            return (F.layer_norm(q, norm, self.qk_gain[0], eps=1e-6), F.layer_norm(k, norm, self.qk_gain[1], eps=1e-6)), v
        qk, v = split.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        if self.qk_gain is not None:
            gain = torch.cat([self.qk_gain[:1].expand(self.heads, -1), self.qk_gain[1:].expand(self.kv_heads, -1)])
            qk = F.rms_norm(qk, norm, eps=1e-6) * gain
        return (qk,), v


class AttentionPerModality(nn.Module):
    """Projections and gains of its own for each modality, one attention over all tokens (Mixture-of-Transformers, arXiv 2411.04996)."""

    def __init__(self, width: int, heads: int, kv_heads: int, qk_norm: Norm | None) -> None:
        super().__init__()
        self.text = Attention(width, heads, kv_heads, qk_norm)
        self.latent = Attention(width, heads, kv_heads, qk_norm)

    def forward(self, x: Tensor, text: int, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [T,E], the first `text` rows text → [T,E]."""
        words, latents = x.tensor_split([text])
        (of_words, v_words), (of_latents, v_latents) = self.text.asked(words), self.latent.asked(latents)
        parts = tuple(torch.cat(pair) for pair in zip(of_words, of_latents, strict=True))
        turned = rotate(parts, torch.cat([v_words, v_latents]), cos, sin)
        words, latents = attend(turned, self.text.heads).flatten(1).tensor_split([text])
        return torch.cat([self.text.out(words), self.latent.out(latents)])


class NormPerModality(nn.Module):
    """A norm with gains of its own for each modality."""

    def __init__(self, kind: Norm, width: int) -> None:
        super().__init__()
        self.text, self.latent = norm(kind, width), norm(kind, width)

    def forward(self, x: Tensor, text: int) -> Tensor:
        """x [T,E], the first `text` rows text → [T,E]."""
        words, latents = x.tensor_split([text])
        return torch.cat([self.text(words), self.latent(latents)])


class FeedForward(nn.Module):
    """Two matrices of inner width M around squared ReLU, or three around SwiGLU, the first two of them as one."""

    def __init__(self, width: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, inner * (2 if activation == "swiglu" else 1), bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [T,E] → [T,E]."""
        return self.down(activate(self.up(x), self.activation))


class SharedFFN(nn.Module):
    """One feed-forward for all tokens (Transfusion, arXiv 2408.11039)."""

    def __init__(self, width: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.all = FeedForward(width, inner, activation)

    def forward(self, x: Tensor, text: int) -> tuple[Tensor, None]:
        """x [T,E], the first `text` rows text → [T,E], and nothing to tell of experts."""
        return self.all(x), None


class PerModalityFFN(nn.Module):
    """One feed-forward for text and structure, one for latents (the paper's default: 2.3B in all, 1.5B active per token)."""

    def __init__(self, width: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.text = FeedForward(width, inner, activation)
        self.latent = FeedForward(width, inner, activation)

    def forward(self, x: Tensor, text: int) -> tuple[Tensor, None]:
        """x [T,E], the first `text` rows text → [T,E], and nothing to tell of experts."""
        words, latents = x.tensor_split([text])
        return torch.cat([self.text(words), self.latent(latents)]), None
