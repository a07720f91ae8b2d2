"""Two sides in turn, on one machine, in one process: the seconds of each, and the ratio of the medians of the pairs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def alternate(
    ours: Callable[[int], object], peer: Callable[[int], object], runs: int, cpu_s: Callable[[], float] = time.process_time, warm: bool = True
) -> list[dict[str, float]]:
    """Each side `runs` times, first one then the other, after one run of each that does not count; the side that goes first changes."""
    if warm:
        ours(0), peer(0)
    out = []
    for k in range(1, runs + 1):
        took: dict[str, float] = {}
        for name, side in (("ours", ours), ("peer", peer))[:: 1 if k % 2 else -1]:
            wall, cpu = time.perf_counter(), cpu_s()
            side(k)
            took[f"{name}_s"], took[f"{name}_cpu_s"] = round(time.perf_counter() - wall, 3), round(cpu_s() - cpu, 3)
        out.append(took)
    return out


def compared(name: str, n: int, unit: str, bar: float, runs: list[dict[str, float]], **more: Any) -> dict[str, Any]:
    """What machines read. Rates are per second of processor time, since other work may share the machine; wall time is in `runs`."""
    ratio = statistics.median(r["peer_cpu_s"] / r["ours_cpu_s"] for r in runs)
    wall = statistics.median(r["peer_s"] / r["ours_s"] for r in runs)
    rates = {side: round(n / statistics.median(r[f"{side}_cpu_s"] for r in runs), 1) for side in ("ours", "peer")}
    return {
        "name": name,
        **rates,
        "unit": unit,
        "ratio": round(ratio, 3),
        "wall_ratio": round(wall, 3),
        "bar": bar,
        "ok": ratio >= bar,
        "runs": runs,
        **more,
    }
