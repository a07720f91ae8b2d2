"""Held-out flow loss at fixed (t, noise) per image, so that arms and seeds differ by the model alone.

t comes from the run's own distribution by its quantiles: images, in order of a draw on their record, go round the `bins` equal-probability
bins, with a place inside the bin drawn too; the noise is drawn with seed 0. Both depend on the held-out records alone. The error is the run's
loss, by source and by bin (bin 1 is mostly noise). Comparable between arms of one encoder; never rank encoders by it.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from pipelines.format import chance
from pipelines.format.document import Part, Size

if TYPE_CHECKING:
    from trainer.batch import Document
    from trainer.evaluate._subject import Subject


class FlowLoss(Part):
    """The flow loss of every source with held-out images that take loss, each source up to `max_tokens` payload tokens."""

    bins: int = Field(4, ge=1, le=64)
    max_tokens: Size | None = None

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Rows flow_loss for held_out and held_out:<source>, and flow_loss.bin for held_out:<k>/<bins>."""
        from trainer.flow import noised
        from trainer.losses import errors

        sources = list(subject.plan.sources)
        trained = [s for s in sources if _trains_images(subject.plan, s)]
        documents = [d for d in subject.held_out(trained, self.max_tokens) if d.image_loss.any()]
        quantiles = fixed_quantiles(documents, self.bins)
        sums, counts = np.zeros((len(sources), self.bins)), np.zeros((len(sources), self.bins), np.int64)
        for places, batch in subject.batches(documents):
            u = np.concatenate([quantiles[p] for p in places])
            of_latent = batch.latent_image.numpy()
            t = times(subject.run.flow, u, np.bincount(of_latent, minlength=len(u)), batch.widths)
            seen = noised(subject.run.flow, batch, seed=0, t=t, drop=False)
            output = subject.forward(batch, seen, at=np.zeros(0, np.int64))
            found = errors(output, batch.to(subject.device), seen.to(subject.device), subject.run.flow)
            counted = batch.image_loss.numpy()[of_latent]
            bins = np.minimum((u * self.bins).astype(int), self.bins - 1)[of_latent]
            where = found.flow_source.cpu().numpy()[counted], bins[counted]
            np.add.at(sums, where, found.flow.double().cpu().numpy()[counted])
            np.add.at(counts, where, 1)
        return _rows(sources, sums, counts, self.bins)


def _trains_images(plan: Any, source: str) -> bool:
    """Whether spans of a source can hold images with loss: reading those that cannot would cost more than the measurement."""
    from trainer.evaluate._tokenizers import source_dataset

    dataset = source_dataset(plan, source)
    return dataset is not None and (dataset.data in ("image-text", "video", "action-video") or plan.rules(source).loss == "all")


def fixed_quantiles(documents: list[Document], bins: int) -> list[np.ndarray]:
    """u in [0, 1) for each image of each document: a pure function of the records, spread evenly over the bins."""
    keys = [(chance.draw(d.h, 0, "flow_loss", int(s)), k, j) for k, d in enumerate(documents) for j, s in enumerate(d.image_segment)]
    out = [np.zeros(len(d.image_segment)) for d in documents]
    for rank, (key, k, j) in enumerate(sorted(keys)):
        out[k][j] = (rank % bins + float(chance.uniform(chance.draw(key, 0, "t")))) / bins
    return out


def times(flow: Any, u: np.ndarray, tokens: np.ndarray, channels: int | np.ndarray) -> np.ndarray:
    """The run's t at quantile u of its distribution, shift included; images of `tokens` latents of `channels`."""
    from trainer.flow import shift_of, shifted

    if flow.time == "logit_normal":
        normal = NormalDist()
        u = np.array([1 / (1 + np.exp(-normal.inv_cdf(min(max(x, 1e-12), 1 - 1e-12)))) for x in u])
    return shifted(u, shift_of(tokens, channels) if flow.shift == "auto" else np.full(len(u), float(flow.shift)))


def _rows(sources: list[str], sums: np.ndarray, counts: np.ndarray, bins: int) -> list[dict[str, Any]]:
    rows = []

    def row(metric: str, split: str, total: Any, n: Any) -> None:
        if n:
            rows.append({"metric": metric, "split": split, "value": float(total / n), "n": int(n), "chance": None})

    row("flow_loss", "held_out", sums.sum(), counts.sum())
    for i, name in enumerate(sources):
        row("flow_loss", f"held_out:{name}", sums[i].sum(), counts[i].sum())
    for k in range(bins):
        row("flow_loss.bin", f"held_out:{k + 1}/{bins}", sums[:, k].sum(), counts[:, k].sum())
    return rows
