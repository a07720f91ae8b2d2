"""Masked attention on an accelerator: its numerics against the dense reference, its speed against a dense mask and a plain causal kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu_rows import Row, Sizes, row, timed
from benchmarks.packed import packed


def attention(device: str, s: Sizes) -> Iterator[Row]:
    import torch.nn.functional as F

    from trainer.models.attention import order, prepare

    heads, kv, width = s.attention_heads
    masked = "flex" if device == "cuda" else "documents"
    for length in s.lengths:
        batch = packed(s, length).to(device)
        where = order(batch)
        qkv = torch.randn(len(where.slots), heads + 2 * kv, width, device=device)
        dense32 = prepare(batch, where, None, "dense")(qkv, heads)
        ours32 = prepare(batch, where, None, masked)(qkv, heads)
        worst = float((dense32 - ours32).abs().max())
        unit = f"largest difference, f32, {masked} from dense"
        yield row(f"attention.{length}.numerics", worst, unit, None, "", "<= 1e-3 (TF32 in the kernel)", worst <= 1e-3)
        kind = torch.bfloat16 if device == "cuda" else torch.float32
        x = qkv.to(kind).requires_grad_()
        grad = torch.randn(len(where.slots), heads, width, device=device, dtype=kind)

        def both(attend: Any, x: torch.Tensor = x, grad: torch.Tensor = grad) -> None:
            attend(x, heads).backward(grad)
            x.grad = None

        flex_s, dense_s = (timed(lambda a=prepare(batch, where, None, backend): both(a), 10) for backend in (masked, "dense"))  # type: ignore[misc]
        q = torch.randn(1, heads, length, width, device=device, dtype=kind, requires_grad=True)
        k, v = (torch.randn(1, heads, length, width, device=device, dtype=kind, requires_grad=True) for _ in range(2))
        causal_s = timed(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward(), 10)  # noqa: B023
        made_s = timed(lambda: prepare(batch, where, None, masked), 5)  # noqa: B023
        unit = f"calls/s forward and backward, {masked}"
        yield row(f"attention.{length}.dense", 1 / flex_s, unit, 1 / dense_s, "dense mask through SDPA", "> 1", flex_s < dense_s)
        yield row(f"attention.{length}.causal", 1 / flex_s, unit, 1 / causal_s, "plain causal SDPA over the whole row")
        yield row(f"attention.{length}.mask", made_s * 1e3, "ms to make the mask of a batch, once a step")
