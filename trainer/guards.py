"""What stops a run by itself: a loss or gradient that is no number, and one far above where it has been.

In: a step's summed errors, targets and gradient norm over all ranks, before the optimizer moves. Out: nothing, a warning, or Diverged, which names
the step, the sources, the sequences and the command that shows them. All ranks decide from the same all-reduced figures, so they stop together.

A spike is a figure above median + factor x max(1.4826 MAD, 2 % of the median) of the last `window` steps' figures, for three of them: mean text
loss, mean flow loss, gradient norm. 1.4826 MAD is the standard deviation where figures are normal, and unlike it is not widened by the spikes
themselves; the 2 % keep a quiet run from stopping at nothing. Spikes enter the history too: a change that lasts (a stage of the mixture) is
the new normal after half a window. The history is metrics.jsonl itself, so a run that goes on has that of one that was never stopped.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from pipelines.format.errors import HeadwaterError
from trainer import losses
from trainer.batch import Batch
from trainer.flow import Noised
from trainer.metrics import lines_before
from trainer.parallel import World
from trainer.run import Flow, Guards

WATCHED = ("text", "flow", "grad_norm")
FEWEST = 32  # figures that a median is taken of; before that nothing is a spike (a shorter window: its own length)
QUIET = 0.02
NAMED = 16  # sequences that an error lists


class Diverged(HeadwaterError):
    """A run that its guards stopped. Exit 1: neither the input nor the budget is at fault for certain."""

    exit = 1


class Trouble(NamedTuple):
    """What a guard saw, the same on all ranks: `nan` or `spike`, of which figure, what it was, what it may be, and whether the run ends."""

    kind: str
    figure: str
    found: float
    allowed: float
    stop: bool


class Guard:
    """Looks at every step's figures, in order."""

    def __init__(self, config: Guards) -> None:
        self.config = config
        self.past: dict[str, deque[float]] = {name: deque(maxlen=config.window) for name in WATCHED}
        self.in_a_row = 0

    def replay(self, lines: Sequence[dict[str, Any]]) -> None:
        """Come to where a run stands that has written these lines."""
        settled = max(len(lines) - self.config.patience, 0)  # spikes in a row matter up to `patience`
        for line in lines[:settled]:
            self._remember({name: float(line[name]) for name in WATCHED if name in line})
        for line in lines[settled:]:
            self.look({name: float(line[name]) for name in WATCHED if name in line})

    def look(self, figures: dict[str, float]) -> Trouble | None:
        """The first figure of a step that is out of bounds, and one more step of history. Figures a step does not have are left out."""
        for name, x in figures.items():
            if not math.isfinite(x):
                return Trouble("nan", name, x, math.inf, True) if self.config.nan == "stop" else None
        spikes = [(name, x, limit) for name, x in figures.items() if (limit := self.limit(name)) is not None and x > limit]
        self._remember(figures)
        self.in_a_row = min(self.in_a_row + 1, self.config.patience) if spikes else 0
        if not spikes or self.config.spike == "off":
            return None
        name, x, limit = spikes[0]
        return Trouble("spike", name, x, limit, self.config.spike == "stop" and self.in_a_row >= self.config.patience)

    def _remember(self, figures: dict[str, float]) -> None:
        for name, x in figures.items():
            self.past[name].append(x)

    def limit(self, name: str) -> float | None:
        """Above this the figure is a spike; None while there is too little history."""
        past = self.past[name]
        if len(past) < min(FEWEST, self.config.window):
            return None
        middle = median(past)
        spread = 1.4826 * median(abs(x - middle) for x in past)
        return middle + self.config.factor * max(spread, QUIET * abs(middle))


def figures(counts: np.ndarray, sums: np.ndarray, norm: float) -> dict[str, float]:
    """What is watched of a step: mean losses by modality (only those with targets) and the gradient norm before clipping."""
    targets = counts[:, -2:].sum(axis=0)
    totals = sums[:, :2].sum(axis=0)
    means = {name: float(totals[i] / targets[i]) for i, name in enumerate(("text", "flow")) if targets[i]}
    return {**means, "grad_norm": float(norm)}


def resumed(config: Guards, root: str, first: int, where: World) -> Guard:
    """The guard of a run that goes on at step `first`, by what rank 0 reads of its metrics. Collective."""
    guard = Guard(config)
    if first:
        if where.rank == 0:
            guard.replay(lines_before(root, first))
        guard.past, guard.in_a_row = where.gather((guard.past, guard.in_a_row))[0]
    return guard


def noted(trouble: Trouble | None) -> dict[str, Any]:
    """What a step's line says of a spike that the run goes on over: which figure, and what it should not have exceeded."""
    return {} if trouble is None else {"spike": trouble.figure, "spike_above": trouble.allowed}


class Blame(NamedTuple):
    """Sums and targets of text and flow error [sequences, sources, 2] of a step's sequences, over all ranks."""

    seq: list[int]
    sums: np.ndarray
    targets: np.ndarray

    def worst(self, figure: str) -> tuple[list[int], list[int]]:
        """Sources and sequences at fault: those that are no numbers; else, for a loss, those whose share of it is largest."""
        broken = ~np.isfinite(self.sums)
        if broken.any():
            return np.flatnonzero(broken.any(axis=(0, 2))).tolist(), [self.seq[i] for i in np.flatnonzero(broken.any(axis=(1, 2)))]
        if figure not in ("text", "flow"):
            return [], []
        i = ("text", "flow").index(figure)
        share = self.sums[:, :, i] / max(self.sums[:, :, i].sum(), 1e-30)
        # A sequence is at fault where its share of the error is twice what its share of the targets would explain, else the largest.
        due = 2 * self.targets[:, :, i] / max(self.targets[:, :, i].sum(), 1)
        guilty = share > due
        if not guilty.any():
            guilty = share == share.max()
        order = np.argsort(-share.max(axis=1), kind="stable")
        return np.flatnonzero(guilty.any(axis=0)).tolist(), [self.seq[k] for k in order if guilty[k].any()]


@torch.no_grad()
def blame(
    parts: Sequence[tuple[Batch, Noised]], model: torch.nn.Module, draw: Callable[[Batch], Noised], flow: Flow, sources: int, where: World
) -> Blame:
    """Each sequence of the step through the model by itself, once more: weights have not moved, and draws are keyed, so errors are those of the
    step. Collective; every rank has as many rows."""
    seq: list[int] = []
    sums, targets = [], []
    for part, _ in parts:
        for i in range(len(part.seq)):
            row = part.rows(i, i + 1)
            targets.append(losses.counts(row, sources)[:, -2:])
            seen, batch = draw(row).to(where.device), row.to(where.device)
            found = losses.errors(model(batch, seen.z, seen.t, seen.dropped), batch, seen, flow)
            sums.append(losses.sums(found, sources)[:, :2].cpu().numpy())
            seq.append(int(row.seq[0]))
    everywhere = where.gather((seq, np.stack(sums), np.stack(targets)))
    numbers = [n for s, _, _ in everywhere for n in s]
    real = [i for i in np.argsort(numbers, kind="stable") if numbers[i] >= 0]  # an empty row of a short step is -1
    joined = [np.concatenate([e[k] for e in everywhere])[real] for k in (1, 2)]
    return Blame([numbers[i] for i in real], joined[0], joined[1])


def error(trouble: Trouble, step: int, found: Blame, sources: Sequence[str], plan: str) -> Diverged:
    """What is raised. `found` and `trouble` are those of all ranks, so that each raises the same."""
    guilty, seqs = found.worst(trouble.figure)
    what = "gradient" if trouble.figure == "grad_norm" else "loss"
    names = f"sources {', '.join(sources[i] for i in guilty)}" if guilty else None
    value = f"{trouble.figure} {trouble.found:.6g}"
    if trouble.kind == "nan":
        said, cure = f"the {what} is not a number", "lower optim.lr or optim.clip"
        if trouble.figure == "grad_norm" and guilty:  # a loss that is no number makes the gradient one too
            what, said = "loss", "the loss is not a number"
        value = names or f"gradient norm {trouble.found}, all losses finite"
    else:
        said = f"{trouble.figure} is far above where it has been"
        cure = "guards.spike=warn goes on over it from the newest checkpoint; else lower optim.lr"
        value += f", most of it from {names}" if names else ""
    return Diverged(
        f"step {step}: {said}",
        where=f"sequences {_listed(seqs)} of the step's {_listed(found.seq)}" if seqs else f"sequences {_listed(found.seq)}",
        found=value,
        allowed=None if trouble.kind == "nan" else f"up to {trouble.allowed:.6g}",
        next=f"look at them: pipelines inspect {plan} --seq {[*seqs, *found.seq, 0][0]}; {cure}",
    )


def _listed(seq: list[int]) -> str:
    if len(seq) <= NAMED:
        return str(seq)
    return f"{seq[0]} to {seq[-1]}" if seq == list(range(seq[0], seq[-1] + 1)) else f"{str(seq[:NAMED])[:-1]}, … {len(seq) - NAMED} more]"
