"""What the clock says of each step: tokens a second, MFU, the share of time that waited for data, the device's memory, what a save blocked.

In: when a step's input arrived, when the step was done, what it cost. Out: the keys CLOCK of its line in metrics.jsonl; everything else there
follows from the run alone. MFU is the step's `flops` (the model's own formula: active parameters, true mask) over seconds x devices x the peak of
one device: work recomputed or spent on padding earns nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trainer.parallel import World

CLOCK = ("tokens_per_s", "data_wait", "step_s", "mfu", "memory_gib", "save_s")

# Dense bf16 TFLOP/s (without sparsity, f32 accumulation) by the start of the name that torch gives, the longer start first. NVIDIA's data sheets:
# H200 and H100 SXM 989.4, NVL variants 835.5, H100 PCIe 756, B200 2,250 (4,500 sparse), A100 312, L40S 362, A10 125, L4 121.
PEAKS = {
    "NVIDIA H200 NVL": 835.5, "NVIDIA H200": 989.4, "NVIDIA H100 NVL": 835.5, "NVIDIA H100 PCIe": 756.0, "NVIDIA H100": 989.4,
    "NVIDIA B200": 2250.0, "NVIDIA A100": 312.0, "NVIDIA L40S": 362.0, "NVIDIA L4": 121.0,
}  # fmt: skip


def peak_of(card: str) -> float | None:
    """TFLOP/s of a card by the name torch gives it; None for one that the table does not know, and for a name that only begins like one (L40)."""
    known = next((name for name in sorted(PEAKS, key=len, reverse=True) if card == name or card.startswith((name + " ", name + "-"))), None)
    return PEAKS[known] if known else None


def peak(given: float | None, where: World, bf16: bool) -> float | None:
    """TFLOP/s of one device: as the run says, else the table's for bf16 on a known card. None means no MFU."""
    if given is not None or where.device.type != "cuda" or not bf16:
        return given
    return peak_of(torch.cuda.get_device_name(where.device))


class Meter:
    """A stopwatch of steps. `arrived`, then `stepped`, once a step; `saving` around what blocks between steps."""

    def __init__(self, where: World, peak_tflops: float | None) -> None:
        self._where, self._peak = where, peak_tflops
        self._begun = self._came = time.monotonic()

    def arrived(self) -> None:
        """The step's input is at hand."""
        self._came = time.monotonic()

    def stepped(self, line: dict[str, Any]) -> dict[str, float]:
        """The clock's keys of a step with these `step_tokens` and `flops`."""
        now = time.monotonic()
        spent = max(now - self._begun, 1e-9)
        waited = self._came - self._begun
        out = {"tokens_per_s": round(line["step_tokens"] / spent, 1), "data_wait": round(waited / spent, 4), "step_s": round(spent, 4)}
        if self._peak:
            out["mfu"] = round(line["flops"] / (spent * self._where.size * self._peak * 1e12), 4)
        if self._where.device.type == "cuda":
            out["memory_gib"] = round(torch.cuda.max_memory_allocated(self._where.device) / 2**30, 3)
            torch.cuda.reset_peak_memory_stats(self._where.device)
        self._begun = now
        return out

    @contextmanager
    def saving(self) -> Iterator[dict[str, float]]:
        """Gives a dict that holds `save_s` afterwards; the next step's time begins after it."""
        began, took = time.monotonic(), {}  # type: float, dict[str, float]
        yield took
        self._begun = time.monotonic()
        took["save_s"] = round(self._begun - began, 3)
