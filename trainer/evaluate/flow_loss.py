"""Held-out flow loss at fixed (t, noise) per image, so that arms and seeds differ by the model alone.

t comes from the run's own distribution by its quantiles: images, in order of a draw on their record, go round the `bins` equal-probability
bins, with a place inside the bin drawn too; the noise is drawn with seed 0. Both depend on the held-out records alone. The error is the run's
loss, by source and by bin (bin 1 is mostly noise).

Items, a held-out image each (`record#segment`): `flow_loss`, split held_out:<source>, and `flow_loss.bin`, split held_out:<k>/<bins>; weights are
latents.

Comparable between arms whose errors are of the same thing: never rank encoders by it, nor arms that differ in normalisation, in the space of the
loss or in the distribution of t. A row cannot say so, since its columns are fixed; `measured_in(plan card, run recipe)` names all of that, and two
runs' rows may be set side by side where it is equal."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from pipelines.format import chance
from pipelines.format.document import Part, Size
from trainer.document import copies

if TYPE_CHECKING:
    from trainer.batch import Document
    from trainer.evaluate._subject import Subject


class FlowLoss(Part):
    """The flow loss of every source with held-out images that take loss, each source up to `max_tokens` payload tokens."""

    bins: int = Field(4, ge=1, le=64)
    max_tokens: Size | None = None
    weights: Literal["last", "ema"] = "last"

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Rows flow_loss for held_out and held_out:<source>, and flow_loss.bin for held_out:<k>/<bins>."""
        from trainer.flow import noised
        from trainer.losses import errors

        sources = list(subject.plan.sources)
        trained = [s for s in sources if _trains_images(subject.plan, s)]
        read = [(span, subject.reader.document(span)) for span in subject.spans(trained, self.max_tokens)]
        read = [(span, d) for span, d in read if d.image_loss.any()]
        documents = [d for _, d in read]
        quantiles = fixed_quantiles(documents, self.bins)
        sums, counts = np.zeros((len(sources), self.bins)), np.zeros((len(sources), self.bins), np.int64)
        images: list[Image] = []
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
            lost = found.flow.double().cpu().numpy()
            np.add.at(sums, where, lost[counted])
            np.add.at(counts, where, 1)
            owners = [(p, int(s)) for p in places for s in documents[p].image_segment]
            total = np.bincount(of_latent, weights=lost, minlength=len(u))
            n = np.bincount(of_latent, minlength=len(u))
            for k in np.flatnonzero(batch.image_loss.numpy() & (n > 0)):
                p, segment = owners[k]
                item = f"{subject.plan.record(read[p][0]).id}#{segment}"
                images.append(Image(item, sources[documents[p].source], min(int(u[k] * self.bins), self.bins - 1), total[k] / n[k], int(n[k])))
        _keep(out, images, self.bins)
        return _rows(sources, sums, counts, self.bins)


def measured_in(plan_card: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """What a run's flow loss is an error of: latents of which encoder, normalised by which statistics, in which space, at which times. From plan.json
    and the recipe in run.json; losses of runs in which this differs say nothing about which of them is better."""
    encoding = plan_card.get("encoding") or {}
    flow = recipe.get("flow") or {}
    facts = {"encoder": (encoding.get("image") or {}).get("fingerprint"), "statistics": (encoding.get("stats") or {}).get("sha256")}
    return facts | {key: flow.get(key) for key in ("loss_space", "time", "shift")}


class Image(NamedTuple):
    """What was measured on one image: the mean error of its `n` latents."""

    item: str
    source: str
    bin: int
    value: float
    n: int


def _keep(out: str, images: list[Image], bins: int) -> None:
    from trainer.evaluate._items import write_items

    names, values, weights = [i.item for i in images], [i.value for i in images], [float(i.n) for i in images]
    write_items(out, "flow_loss", names, values, weights, [f"held_out:{i.source}" for i in images])
    write_items(out, "flow_loss.bin", names, values, weights, [f"held_out:{i.bin + 1}/{bins}" for i in images])


def _trains_images(plan: Any, source: str) -> bool:
    """Whether spans of a source can hold images with loss: reading those that cannot would cost more than the measurement."""
    from trainer.evaluate._tokenizers import source_dataset

    dataset = source_dataset(plan, source)
    return dataset is not None and (dataset.data in ("image-text", "video", "action-video") or plan.rules(source).loss == "all")


def fixed_quantiles(documents: list[Document], bins: int) -> list[np.ndarray]:
    """u in [0, 1) for each image of each document: a pure function of the records, spread evenly over the bins. A clean copy is of its twin's segment
    and takes no loss: it has no place in the order, where it would stand beside its twin and put all twins into every other bin."""
    again = [copies(d.image_hidden) for d in documents]
    own = [(k, j, d.h, int(d.image_segment[j])) for k, d in enumerate(documents) for j in np.flatnonzero(~again[k])]
    keys = [(chance.draw(h, 0, "flow_loss", segment), k, j) for k, j, h, segment in own]
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
