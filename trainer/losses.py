"""What a step is asked to make smaller, and what each source paid.

    loss = w_text * sum(CE over targets) / targets of the whole step + w_flow * sum(MSE over trained latents) / trained latents of the whole step

Both denominators are counted over all ranks and micro-batches of the step before the first backward pass, so that the gradient is that of the
global mean however rows are packed and sharded. The same per-token errors, summed by the source each token came from, are the losses by
source: exact under packing, because every position carries its source.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.batch import IGNORED, LATENT, PADDING, STRUCTURE, TEXT, Batch
from trainer.flow import Noised, squared_error
from trainer.models.transfusion import Output
from trainer.run import Flow, Loss

# Columns of a step's account, a row per source. Sums add over micro-batches and ranks; counts are whole numbers, exact in float64 to 2^53.
# `pairs` are query-key pairs: causal within a document plus the rest of each image block; turns and hidden images would take some away.
COUNTS = ("text", "visual", "structure", "pairs", "text_targets", "flow_targets")
SUMS = ("text_sum", "flow_sum")


@dataclass(slots=True)
class Errors:
    """Per-token errors of a batch: cross-entropy [A] of the text targets, in nats, and flow error [N] (0 where a latent takes no loss)."""

    text: Tensor
    text_source: Tensor
    flow: Tensor
    flow_source: Tensor


def errors(output: Output, batch: Batch, seen: Noised, flow: Flow) -> Errors:
    """Cross-entropy at each of output.at and squared flow error at each latent, with the source of each."""
    target = batch.text_target.reshape(-1)[output.at].long()
    source = batch.source.reshape(-1).long()
    text = F.cross_entropy(output.logits.float(), target, ignore_index=IGNORED, reduction="none")
    error = squared_error(flow, output.flow, batch, seen)
    return Errors(text, source[output.at], error * batch.image_loss[batch.latent_image.long()], source[batch.latent_slot])


def objective(weights: Loss, found: Errors, text_targets: float, flow_targets: float) -> Tensor:
    """The scalar to differentiate: this rank's share of the global means. The counts are those of the whole step."""
    # max(., 1): a step without images (or text) has sum 0, which still ties every parameter to the graph.
    return weights.text * found.text.sum() / max(text_targets, 1) + weights.flow * found.flow.sum() / max(flow_targets, 1)


def counts(batch: Batch, sources: int) -> np.ndarray:
    """[sources, len(COUNTS)] of this batch: payload ids, latent rows, structure tokens, attended pairs, CE targets, trained latents."""
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
    target = batch.text_target.numpy().reshape(-1) != IGNORED
    columns = (of(kind == TEXT), of(kind == LATENT), of(kind == STRUCTURE), pairs, of(target), of(slot[batch.image_loss.numpy()[image]]))
    return np.stack(columns, axis=1).astype(np.int64)


def sums(found: Errors, sources: int) -> Tensor:
    """[sources, len(SUMS)] float64: summed errors by source, without gradient."""
    out = torch.zeros(len(SUMS), sources, dtype=torch.float64, device=found.text.device)
    out[0].index_add_(0, found.text_source, found.text.detach().double())
    out[1].index_add_(0, found.flow_source, found.flow.detach().double())
    return out.T
