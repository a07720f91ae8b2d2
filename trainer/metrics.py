"""metrics.jsonl: one line a step, and the account of what was consumed.

    {"step": 12, "loss": 3.1, "text": 2.2, "flow": .31, "text/vqa": 2.0, "flow/video": .3, "tokens": 5880, "lr": .002, "grad_norm": .8, …}

Losses are sums over all ranks divided by counts over all ranks: the same numbers under any packing and sharding. `tokens` counts payload so
far. Lines of steps that a resumed run does again are cut before it goes on, so the file reads as if nothing had happened; only `tokens_per_s`
knows the clock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.format import storage
from trainer.losses import COUNTS, Weights
from trainer.run import Loss

FILE = "metrics.jsonl"
FLUSH_SECONDS = 5.0


class Account:
    """What has been consumed, by source, as whole numbers. Its rows travel in checkpoint markers."""

    def __init__(self, sources: Sequence[str], consumed: dict[str, dict[str, int]] | None = None) -> None:
        self.sources = list(sources)
        self.table = np.zeros((len(self.sources), len(COUNTS)), np.int64)
        for i, name in enumerate(self.sources):
            self.table[i] = [(consumed or {}).get(name, {}).get(c, 0) for c in COUNTS]

    def add(self, counts: np.ndarray) -> None:
        """Counts of one step, all ranks, [sources, len(COUNTS)]."""
        self.table += counts.astype(np.int64)

    @property
    def payload(self) -> int:
        """Payload tokens so far: stored ids and latent rows."""
        return int(self.table[:, :2].sum())

    def as_dict(self) -> dict[str, dict[str, int]]:
        """{source: {text, visual, structure, text_targets, flow_targets}}."""
        return {name: dict(zip(COUNTS, row.tolist(), strict=True)) for name, row in zip(self.sources, self.table, strict=True)}


def step_line(step: int, sources: Sequence[str], counts: np.ndarray, sums: np.ndarray, weights: Loss | Weights) -> dict[str, Any]:
    """Losses of a step: total, by modality and by source. Sources without targets in this step are absent."""
    targets = counts[:, -2:]
    totals, numbers = sums.sum(axis=0), targets.sum(axis=0)
    means = {name: float(totals[i] / numbers[i]) for i, name in enumerate(("text", "flow")) if numbers[i]}
    line: dict[str, Any] = {"step": step, "loss": weights.text * means.get("text", 0.0) + weights.flow * means.get("flow", 0.0), **means}
    for i, kind in enumerate(("text", "flow")):
        line |= {f"{kind}/{name}": float(sums[j, i] / targets[j, i]) for j, name in enumerate(sources) if targets[j, i]}
    return line


class Writer:
    """Adds lines to <run>/metrics.jsonl, local or remote: at most every FLUSH_SECONDS, at `flush`, and for at most 2 % of the time.

    The file is replaced whole, since an object store has no append; a flush of a million steps' 300 MB waits its turn accordingly.
    """

    def __init__(self, root: str, resume_at: int) -> None:
        self.path = storage.join(root, FILE)
        self.root = root
        kept: list[bytes] = []
        if storage.exists(self.path):
            kept = [line for line in storage.read(self.path).splitlines() if _step(line) < resume_at]
        self._text = bytearray(b"".join(line + b"\n" for line in kept))
        self._fresh = True
        self._next = time.monotonic() + FLUSH_SECONDS

    def add(self, line: dict[str, Any]) -> None:
        """One step's line."""
        self._text += json.dumps(line, separators=(",", ":")).encode() + b"\n"
        self._fresh = True
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Make every line so far visible."""
        start = time.monotonic()
        if self._fresh:
            storage.replace(self.path, bytes(self._text), scratch=self.root)
        now = time.monotonic()
        self._fresh, self._next = False, now + max(FLUSH_SECONDS, 50 * (now - start))


def _step(line: bytes) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 1 << 62  # a torn last line
