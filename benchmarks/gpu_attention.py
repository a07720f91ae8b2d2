"""Masked attention on an accelerator: its numerics against the dense reference, for every mark that a mask knows and rows short and long; its speed
against a dense mask and a plain causal kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_rows import Row, Sizes, row, timed
from benchmarks.packed import document, packed


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


LENGTHS = (32, 38, 96, 128, 200, 1024)


def marks(device: str) -> Iterator[Row]:
    """Isolated turns, hidden images and fallen conditions together, output and gradient, in rows of lengths that kernels treat differently: as a
    training step computes them, and cut into documents as what is only read."""
    from trainer.models.attention import order, prepare

    worst: dict[str, tuple[float, int]] = {}
    for length in LENGTHS:
        batch, dropped = marked(length)
        batch, dropped = batch.to(device), dropped.to(device)
        where = order(batch)
        torch.manual_seed(length)
        given, grad = (torch.randn(len(where.slots), n, 32, device=device) for n in (8, 4))
        found = {}
        for backend in ("dense", "auto", "documents"):
            qkv = given.clone().requires_grad_()
            out = prepare(batch, where, dropped, backend)(qkv, 4)  # type: ignore[arg-type]
            out.backward(grad)
            found[backend] = (out.detach(), qkv.grad)
        for backend in ("auto", "documents"):
            off = max(float((a - b).abs().max()) for a, b in zip(found[backend], found["dense"], strict=True))  # type: ignore[operator]
            worst[backend] = max(worst.get(backend, (0.0, 0)), (off, length))
    for backend, (off, length) in worst.items():
        unit = f"largest difference, f32, {backend} from dense, output and gradient, all marks, rows of {LENGTHS[0]} to {LENGTHS[-1]} (at {length})"
        yield row(f"attention.marks.{backend}", off, unit, None, "", "<= 1e-3 (TF32 in the kernel)", off <= 1e-3)


def marked(length: int, n: int = 3) -> tuple[Any, torch.Tensor]:
    """(a batch of `n` rows with all marks, bool[n, length] where a condition fell)."""
    from trainer.batch import TEXT, collate

    rng = np.random.default_rng(length)
    rows = []
    for _ in range(n):
        members, free = [], length
        while free >= 8:
            images, words = int(rng.integers(3)), int(rng.integers(1, 24))
            if 2 + 6 * images + words > free:
                images, words = 0, free - 2
            d = document(rng, images, words, 4, 8, 300)
            text = np.flatnonzero(d.kind == TEXT)
            if rng.random() < 0.5:
                d.turn[text[len(text) // 3 :]] = np.arange(len(text) - len(text) // 3) * 3 // len(text)
            else:
                d.condition[text] = 1
            d.image_hidden = rng.random(images) < 0.5
            members.append(d)
            free -= len(d)
        rows.append(members)
    batch = collate(rows, range(n), length, 299, 8)
    return batch, (batch.condition == 1) & (batch.doc % 2 == 0)
