"""What a step is asked to make smaller, and what each source paid.

    loss = w_text * sum(CE over targets) / targets of the whole step + w_flow * sum(MSE over trained latents) / trained latents of the whole step

Who says w_text and w_flow is the run's `loss.scheme` (`Weighing`). Both denominators are counted over all ranks and micro-batches of the step
before the first backward pass, so that the gradient is that of the global mean however rows are packed and sharded. The same per-token errors,
summed by the source each token came from, are the losses by source: exact under packing, because every position carries its source. The flow
error is summed by time as well, in ten bins of equal width in t as it reaches the model, after the shift: [0, .1) is nearly noise, [.9, 1] nearly
data. Which bin an image falls in is a draw like its t, so bins are as exact as the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.batch import IGNORED, LATENT, PADDING, STRUCTURE, TEXT, Batch
from trainer.document import copies, owners
from trainer.flow import Noised, squared_error
from trainer.models.transfusion import Output
from trainer.run import Flow, Loss

# Columns of a step's account, a row per source. Sums add over micro-batches and ranks; counts are whole numbers, exact in float64 to 2^53.
# `pairs` are the query-key pairs that the mask lets through, but for conditions that fell; `copied` the latents among the structure: clean copies.
COUNTS = ("text", "visual", "structure", "pairs", "copied", "text_targets", "flow_targets")
T_BINS = 10
SUMS = ("text_sum", "flow_sum", *(f"flow_sum_t{k}" for k in range(T_BINS)), *(f"flow_count_t{k}" for k in range(T_BINS)))
SMALLEST = 1e-6  # a mean loss counts as no smaller where a weight divides by it


class Weights(NamedTuple):
    """What a step's two means are multiplied by."""

    text: float
    flow: float


class Weighing:
    """The weights of each step, by the run's scheme; docs/flow.md has the formulas. The same on every rank, since it reads global numbers only.

    Only `centering` remembers anything: its target and the means of the last step that had any, in float64, kept in checkpoints to the bit.
    It weighs a step by the means of the step before: a step's own means are known only when its gradients are.
    """

    def __init__(self, loss: Loss, state: dict[str, str] | None = None) -> None:
        self.loss = loss
        self._known: dict[str, float] = {}  # target, text, flow
        self.restore(state or {})

    def weights(self, text_targets: float, flow_targets: float) -> Weights:
        """Weights of the coming step, whose targets these are, over all ranks."""
        fixed = Weights(self.loss.text, self.loss.flow)
        if self.loss.scheme == "token_share":
            every = max(text_targets + flow_targets, 1)
            return Weights(fixed.text * text_targets / every, fixed.flow * flow_targets / every)
        if self.loss.scheme == "centering" and "target" in self._known:
            return Weights(*(self._known["target"] / max(self._known[name], SMALLEST) for name in ("text", "flow")))
        return fixed  # also of centering, until both losses were seen once

    def update(self, text_mean: float | None, flow_mean: float | None) -> None:
        """The global means of the step that was done; None where it had no target of that kind, whose mean stays what it was."""
        if self.loss.scheme != "centering":
            return
        self._known |= {name: float(mean) for name, mean in (("text", text_mean), ("flow", flow_mean)) if mean is not None}
        if {"text", "flow"} <= self._known.keys():
            now = self.loss.alpha * self._known["flow"] + (1 - self.loss.alpha) * self._known["text"]
            before = self._known.get("target", now)
            self._known["target"] = self.loss.mu * before + (1 - self.loss.mu) * now

    def state(self) -> dict[str, str]:
        """What a checkpoint keeps, numbers as hexadecimal floats; empty for schemes without memory."""
        return {name: value.hex() for name, value in sorted(self._known.items())}

    def restore(self, state: dict[str, str]) -> None:
        """Go on from `state`."""
        self._known = {name: float.fromhex(value) for name, value in state.items()}


@dataclass(slots=True)
class Errors:
    """Per-token errors of a batch: cross-entropy [A] of the text targets, in nats, and flow error [N] (0 where a latent takes no loss).

    flow_bin [N]: the bin of the image's t, -1 where a latent takes no loss.
    """

    text: Tensor
    text_source: Tensor
    flow: Tensor
    flow_source: Tensor
    flow_bin: Tensor


def errors(output: Output, batch: Batch, seen: Noised, flow: Flow) -> Errors:
    """Cross-entropy at each of output.at and squared flow error at each latent, with the source of each."""
    target = batch.text_target.reshape(-1)[output.at].long()
    source = batch.source.reshape(-1).long()
    text = F.cross_entropy(output.logits.float(), target, ignore_index=IGNORED, reduction="none")
    error = squared_error(flow, output.flow, batch, seen)
    image = batch.latent_image.long()
    by_time = (seen.t * T_BINS).long().clamp(0, T_BINS - 1)
    bins = torch.where(batch.image_loss, by_time, -1)[image]
    return Errors(text, source[output.at], error * batch.image_loss[image], source[batch.latent_slot], bins)


def objective(weights: Loss | Weights, found: Errors, text_targets: float, flow_targets: float) -> Tensor:
    """The scalar to differentiate: this rank's share of the global means. The counts are those of the whole step."""
    # max(., 1): a step without images (or text) has sum 0, which still ties every parameter to the graph.
    return weights.text * found.text.sum() / max(text_targets, 1) + weights.flow * found.flow.sum() / max(flow_targets, 1)


def counts(batch: Batch, sources: int) -> np.ndarray:
    """[sources, len(COUNTS)] of this batch: payload ids, latent rows, structure, attended pairs, latents copied, CE targets, trained latents.

    The clean copy of a frame, which follows its hidden twin, is structure, as in plans: budgets and epochs count a frame once.
    """
    source, kind = batch.source.numpy().reshape(-1), batch.kind.numpy().reshape(-1)
    slot, image = batch.latent_slot.numpy(), batch.latent_image.numpy()
    of = lambda chosen, weights=None: np.bincount(source[chosen], weights, minlength=sources)
    rows, length = batch.shape
    real = np.flatnonzero(kind != PADDING)
    document = (np.arange(rows)[:, None] * (length + 1) + batch.doc.numpy()).reshape(-1)[real]
    start = np.flatnonzero(np.r_[True, document[1:] != document[:-1]]) if len(real) else real
    size = np.diff(np.r_[start, len(real)])
    patches = np.bincount(image) if len(image) else image
    begin = np.cumsum(patches) - patches
    pairs = of(real[start], size * (size + 1) / 2) + (of(slot[begin], patches * (patches - 1) / 2) if len(slot) else 0)
    pairs -= of(real, _unseen(batch, real, np.repeat(start + size, size)))
    target = batch.text_target.numpy().reshape(-1) != IGNORED
    again = of(slot[copies(batch.image_hidden.numpy())[image]])
    visual, structure = of(kind == LATENT) - again, of(kind == STRUCTURE) + again
    columns = (of(kind == TEXT), visual, structure, pairs, again, of(target), of(slot[batch.image_loss.numpy()[image]]))
    return np.stack(columns, axis=1).astype(np.int64)


def _unseen(batch: Batch, real: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Of each position [T] that is no padding: how many later ones of its document do not see it, since it is of another turn than theirs or of a
    hidden image. end [T]: where its document ends among them. See `visible` of trainer/models/attention.py."""
    turn, hidden = batch.turn.numpy().reshape(-1)[real].astype(np.int64), batch.image_hidden.numpy()
    image = owners(batch.image.numpy(), batch.kind.numpy()).reshape(-1)[real]
    alone = (image >= 0) & hidden[image.clip(0)] if len(hidden) else np.zeros(len(real), bool)
    apart = alone | (turn >= 0)
    out = np.zeros(len(real), np.int64)
    if not apart.any():
        return out
    out[apart] = end[apart] - 1 - np.flatnonzero(apart)
    for some, group, own in ((alone, image, alone), (turn >= 0, end * (1 << 16) + turn, ~alone)):
        here = np.flatnonzero(some)
        order = here[np.argsort(group[here], kind="stable")]  # by group, in order of place
        last = np.flatnonzero(np.r_[group[order][1:] != group[order][:-1], True]) if len(order) else order
        after = np.repeat(last, np.diff(np.r_[-1, last])) - np.arange(len(order))  # those of its group that come later see it
        out[order] -= np.where(own[order], after, 0)
    return out


def sums(found: Errors, sources: int) -> Tensor:
    """[sources, len(SUMS)] float64: summed errors by source, the flow error also by time, and trained latents by time. Without gradient."""
    new = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=found.text.device)
    flow = found.flow.detach().double()
    out = new(2, sources)
    out[0].index_add_(0, found.text_source, found.text.detach().double())
    out[1].index_add_(0, found.flow_source, flow)
    cell = found.flow_source * T_BINS + found.flow_bin.clamp(min=0)  # latents without loss add zero to bin 0
    binned = new(2, sources * T_BINS).index_add_(1, cell, torch.stack([flow, (found.flow_bin >= 0).double()]))
    return torch.cat([out.T, binned.view(2, sources, T_BINS).transpose(0, 1).reshape(sources, -1)], dim=1)
