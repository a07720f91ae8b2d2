"""metrics.jsonl: one line a step, and the account of what was consumed.

    {"step": 12, "loss": 3.1, "text": 2.2, "flow": .31, "text/vqa": 2.0, "flow/clips": .3, "flow/t0.2-0.3": .28, "tokens": 5880, "tokens/vqa": 900, …}

Losses are sums over all ranks divided by counts over all ranks: the same numbers under any packing and sharding. `tokens` counts payload so
far. Lines of steps that a resumed run does again are cut before it goes on, so the file reads as if nothing had happened; only what
`trainer.meter.CLOCK` names knows the clock. docs/training.md has every key.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipelines.format import storage
from trainer.losses import COUNTS, T_BINS, Weights
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
        """{source: {text, visual, structure, pairs, copied, text_targets, flow_targets}}."""
        return {name: dict(zip(COUNTS, row.tolist(), strict=True)) for name, row in zip(self.sources, self.table, strict=True)}


def bin_name(k: int) -> str:
    """`t0.2-0.3`: the k-th of the times that flow error is told by, t as the model meets it (1 is data)."""
    return f"t{k / T_BINS:.1f}-{(k + 1) / T_BINS:.1f}"


def step_line(step: int, sources: Sequence[str], counts: np.ndarray, sums: np.ndarray, weights: Loss | Weights) -> dict[str, Any]:
    """Losses of a step: total, by modality, by source, and flow by time. Sources and times without targets in this step are absent.

    counts [sources, len(COUNTS)] and sums [sources, len(SUMS)] over all ranks and micro-batches.
    """
    targets = counts[:, -2:]
    totals, numbers = sums.sum(axis=0), targets.sum(axis=0)
    means = {name: float(totals[i] / numbers[i]) for i, name in enumerate(("text", "flow")) if numbers[i]}
    line: dict[str, Any] = {"step": step, "loss": weights.text * means.get("text", 0.0) + weights.flow * means.get("flow", 0.0), **means}
    for i, kind in enumerate(("text", "flow")):
        line |= {f"{kind}/{name}": float(sums[j, i] / targets[j, i]) for j, name in enumerate(sources) if targets[j, i]}
    by_time, latents = totals[2 : 2 + T_BINS], totals[2 + T_BINS : 2 + 2 * T_BINS]
    return line | {f"flow/{bin_name(k)}": float(by_time[k] / n) for k, n in enumerate(latents) if n}


def flops(model: Any, counts: np.ndarray) -> int:
    """FLOPs of forward and backward over what `counts` [sources, len(COUNTS)] says, by the model's own formula."""
    of = dict(zip(COUNTS, counts.sum(axis=0).tolist(), strict=False))
    made = {"made": int(of["flow_targets"])} if getattr(model, "looked", None) else {}
    text, latents = of["text"] + of["structure"] - of["copied"], of["visual"] + of["copied"]
    return int(model.training_flops(int(text), int(latents), int(of["text_targets"]), int(of["pairs"]), **made))


def consumed_line(account: Account) -> dict[str, int]:
    """Payload tokens so far by source, as `tokens/<source>`. Where a run's plan says so they end at what the plan took."""
    return {f"tokens/{name}": int(row[:2].sum()) for name, row in zip(account.sources, account.table, strict=True)}


def routing_line(counts: np.ndarray) -> dict[str, float]:
    """`experts/load/<layer>`: tokens of the most loaded expert over the mean expert's (1 is even), of the whole step's choices [layers, experts];
    layers that route nothing are left out."""
    return {f"experts/load/{layer}": float(of.max() / of.mean()) for layer, of in enumerate(counts) if of.any()}


def lines_before(root: str, step: int) -> list[dict[str, Any]]:
    """The lines of a run's metrics up to, and without, `step`; none when it has no such file. A torn last line is passed over."""
    path = storage.join(root, FILE)
    return [json.loads(line) for line in storage.read(path).splitlines() if _step(line) < step] if storage.exists(path) else []


class Writer:
    """Adds lines to <run>/metrics.jsonl, local or remote: at most every FLUSH_SECONDS, at `flush`, and for at most 2 % of the time.

    The file is replaced whole, since an object store has no append; a flush of a million steps' 300 MB waits its turn accordingly. `others` are
    given each line once it is whole: after the step's save, whose time it tells.
    """

    def __init__(self, root: str, resume_at: int, others: Sequence[Callable[[dict[str, Any]], None]] = ()) -> None:
        self.path = storage.join(root, FILE)
        self.root = root
        kept: list[bytes] = []
        if storage.exists(self.path):
            kept = [line for line in storage.read(self.path).splitlines() if _step(line) < resume_at]
        self._text = bytearray(b"".join(line + b"\n" for line in kept))
        self._last: dict[str, Any] | None = None
        self._others = others
        self._fresh = True
        self._next = time.monotonic() + FLUSH_SECONDS

    def add(self, line: dict[str, Any]) -> None:
        """One step's line."""
        self._settle()
        self._last, self._fresh = line, True
        if time.monotonic() >= self._next:
            self.flush()

    def note(self, **more: Any) -> None:
        """Add to the last line what is known only after it: how long its save blocked."""
        if self._last is not None:
            self._last, self._fresh = {**self._last, **more}, True

    def flush(self) -> None:
        """Make every line so far visible in the file."""
        start = time.monotonic()
        if self._fresh:
            storage.replace(self.path, bytes(self._text) + (_bytes(self._last) if self._last else b""), scratch=self.root)
        now = time.monotonic()
        self._fresh, self._next = False, now + max(FLUSH_SECONDS, 50 * (now - start))

    def close(self) -> None:
        """The last line, to everyone."""
        self._settle()
        self.flush()

    def _settle(self) -> None:
        if self._last is not None:
            self._text += _bytes(self._last)
            for other in self._others:
                other(self._last)
        self._last = None


def _bytes(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _step(line: bytes) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 1 << 62  # a torn last line
