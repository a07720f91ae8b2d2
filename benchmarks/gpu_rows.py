"""What the accelerator's benchmark is made of: its sizes, a row, a timing, and the table as committed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

Row = dict[str, Any]


class Sizes(NamedTuple):
    """How large everything is: the paper's shapes, or toys."""

    layers: int
    hidden: int
    inner: int
    heads: int
    image: int
    batch: int
    pictures: int
    lengths: tuple[int, ...]
    attention_heads: tuple[int, int, int]  # query heads, key heads, head width
    models: tuple[tuple[str, dict[str, Any]], ...]
    sequence: int
    patches: int
    channels: int
    vocab: int
    steps: int
    rows: int  # sequences a training step
    micro: int  # of them at once
    jpegs: int  # files to encode from, in shards of one batch each
    steady: int  # parts of a run of the encode job that are timed


REAL = Sizes(
    27, 1152, 4304, 16, 224, 256, 4096, (4096, 8192), (32, 8, 64),
    (("1.5b shared", {"size": "1.5b"}), ("2.3b per modality", {"size": "2.3b"}), ("3.9b experts", {"size": "3.9b"})),
    4096, 256, 1152, 128_256, 12, 8, 4, 2048, 48,
)  # fmt: skip
TOY = Sizes(
    2, 32, 64, 2, 28, 4, 16, (256,), (4, 2, 16),
    (
        ("toy shared", {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "ffn": "shared", "ffn_width": 256}),
        ("toy experts", {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "ffn": "moe",
                         "experts": {"count": 8, "granularity": 4, "top_k": 4, "shared": "none"}}),
    ),
    128, 4, 8, 300, 3, 4, 2, 16, 4,
)  # fmt: skip


def row(name: str, ours: float, unit: str, peer: float | None = None, against: str = "", bar: str = "", ok: bool | None = None) -> Row:
    ratio = None if not peer else round(ours / peer, 4)
    return {"name": name, "ours": ours, "unit": unit, "peer": peer, "against": against, "ratio": ratio, "bar": bar, "ok": ok}


def timed(run: Callable[[], Any], times: int) -> float:
    """Median seconds of a call, the device's work included; two calls go before and do not count."""
    took = []
    for i in range(times + 2):
        sync()
        began = time.perf_counter()
        run()
        sync()
        if i >= 2:
            took.append(time.perf_counter() - began)
    return float(np.median(took))


def sync() -> None:
    """Waits for the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak(device: str, toy: bool) -> float:
    """FLOP/s of this device at a large bf16 matrix product: what a share of it is a share of."""
    n = 256 if toy else 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / timed(lambda: a @ b, 10)


def table(rows: list[Row], machine: str) -> str:
    """Markdown, as committed."""
    out = [f"# On an accelerator\n\n{machine}. Rewritten by `python -m benchmarks.gpu --table benchmarks/gpu.md`.\n"]
    out.append("| name | ours | unit | peer | which is | ratio | bar | |\n|---|---:|---|---:|---|---:|---|---|")
    for r in rows:
        ok = {True: "ok", False: "**missed**", None: ""}[r["ok"]]
        cells = [r["name"], figure(r["ours"]), r["unit"], figure(r["peer"]), r["against"], figure(r["ratio"]), r["bar"], ok]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def figure(x: float | None) -> str:
    """As a cell shows it."""
    return "" if x is None else f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.5g}"
