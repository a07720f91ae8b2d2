"""One optimiser step: from a batch to changed weights and a line of metrics.

In: the state of a run and a batch as the stream gives it. Out: the line, and whether any rank was asked to stop. Denominators are counted over all
ranks and micro-batches before the first backward pass; what the step measured (losses by source, loads of experts) is summed once, after the last.
So a step is the same however its rows are cut into ranks and micro-batches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from trainer import guards, losses, metrics, parallel
from trainer.batch import Batch
from trainer.ema import Ema
from trainer.flow import Noised, noised
from trainer.models import experts
from trainer.models.transfusion import TransfusionModel
from trainer.optim import set_rate
from trainer.parallel import World
from trainer.run import Run
from trainer.stream import Stream


class State(NamedTuple):
    """What a step reads and changes."""

    run: Run
    where: World
    stream: Stream
    model: TransfusionModel
    optimizer: torch.optim.Optimizer
    account: metrics.Account
    guard: guards.Guard
    weighing: losses.Weighing
    ema: Ema | None


class Prepared(NamedTuple):
    """A step's input: the batch's counts by source, its micro-batches with what is seen of their images, and its sequence numbers."""

    counts: np.ndarray
    parts: list[tuple[Batch, Noised]]
    batch: Batch


def prepare(state: State, batch: Batch) -> Prepared:
    """Count and noise a batch on the host, cut into micro-batches."""
    size = state.run.micro_batch or len(batch.seq)
    parts = [batch] if size >= len(batch.seq) else [batch.rows(i, i + size) for i in range(0, len(batch.seq), size)]
    seen = [(part, noised(state.run.flow, part, state.run.seed)) for part in parts]
    return Prepared(losses.counts(batch, len(state.account.sources)), seen, batch)


def advance(state: State, step: int, prepared: Prepared, stop: bool) -> tuple[dict[str, Any], bool]:
    """One optimizer step. Returns its metrics line, and whether any rank was asked to stop."""
    run, where, model, sources = state.run, state.where, state.model, state.account.sources
    shared = where.sum(np.append(prepared.counts.reshape(-1), float(stop)))
    counts = shared[:-1].reshape(prepared.counts.shape)
    text_targets, flow_targets = counts[:, -2].sum(), counts[:, -1].sum()
    weights = state.weighing.weights(text_targets, flow_targets)
    sums: torch.Tensor | float = 0.0
    chosen: torch.Tensor | float = 0.0
    for i, (host, host_seen) in enumerate(prepared.parts):
        batch, seen = host.to(where.device), host_seen.to(where.device)
        parallel.last_micro_batch(model, i + 1 == len(prepared.parts))
        out = model(batch, seen.z, seen.t, seen.dropped)
        found = losses.errors(out, batch, seen, run.flow)
        objective = losses.objective(weights, found, text_targets, flow_targets)
        if out.routed is not None:
            objective = objective + experts.balance_loss(model, out.routed, counts[:, :3].sum())
            chosen = chosen + out.routed.counts.double()
        objective.backward()
        sums = sums + losses.sums(found, len(sources))
    assert isinstance(sums, torch.Tensor)
    local = sums.cpu().numpy()
    load = chosen.cpu().numpy() if isinstance(chosen, torch.Tensor) else np.zeros((0, 0))
    together = where.sum(np.append(local, load))
    total, load = together[: local.size].reshape(local.shape), together[local.size :].reshape(load.shape)
    norm = parallel.clip(model, run.optim.clip)
    trouble = state.guard.look(guards.figures(counts, total, norm))
    if trouble is not None and trouble.stop:
        blamed = guards.blame(prepared.parts, model, lambda rows: noised(run.flow, rows, run.seed), run.flow, len(sources), where)
        raise guards.error(trouble, step, blamed, sources, run.plan)
    rate = run.optim.rate(step, state.stream.steps)
    set_rate(state.optimizer, rate)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update(step + 1)
    state.account.add(counts)
    line = metrics.step_line(step, sources, counts, total, weights)
    state.weighing.update(line.get("text"), line.get("flow"))
    if run.loss.scheme != "fixed":
        line |= {"weight/text": weights.text, "weight/flow": weights.flow}
    if load.size:
        experts.after_step(model, torch.from_numpy(load))
        line |= {**experts.load_line(load), **metrics.routing_line(load)}
    extra = {"tokens": state.account.payload, "step_tokens": int(counts[:, :2].sum()), "lr": rate, "grad_norm": norm}
    extra |= {"flops": metrics.flops(model, counts), **metrics.consumed_line(state.account), **guards.noted(trouble)}
    return {**line, **extra}, bool(shared[-1])
