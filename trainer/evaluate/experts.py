"""Who chooses which expert: text against images, early against late times, the same images looked at and made.

    held-out records, noised as in training      rates by modality, score S, classes, load, rates by bin of t
    the same images, clean and then noised       r of rates over experts, beside a split-half ceiling

A picture with a caption is laid out twice: image first and clean, as what is understood, and behind its caption and noised, as what is made. Frames
of a video keep their places and are once clean and once noised. An untrained router (same shape, same seed, no step) is asked all of it as well:
what it does, no training is needed for. Structure tokens count for load alone; times are fixed as in flow_loss. Dense runs have no rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from pipelines.format import chance, storage
from pipelines.format.document import Part, Percent, Size
from pipelines.format.errors import InputError
from trainer.document import STRUCTURE, copies
from trainer.evaluate import _routing as routing
from trainer.evaluate.flow_loss import fixed_quantiles, times

if TYPE_CHECKING:
    from mixtures.span import Span
    from trainer.batch import Document
    from trainer.evaluate._subject import Subject

FILE = "experts.parquet"
Facts = dict[str, tuple[np.ndarray, int]]  # fact → its values by layer, and of how many tokens or images


@dataclass(slots=True)
class Looked:
    """What routers did with some documents: `by_kind` [3, L, E] of text, latents and structure, and of each image with an ordinal counts [I, L, E],
    tokens [I], quantile of time [I], document [I], whether it was noised [I]."""

    by_kind: np.ndarray
    images: np.ndarray
    tokens: np.ndarray
    u: np.ndarray
    document: np.ndarray
    noised: np.ndarray


class Experts(Part):
    """Routing on the held-out records of `sources` (default: all), each up to `max_tokens` payload tokens: whole records, the same ones for arms that
    pack them otherwise.

    threshold: |S| from which an expert belongs to one modality; 0.5 is three choices of the one for one of the other. sensitivity: other thresholds,
    whose shares stand beside. idle_below: under this share of an even router's rate in both modalities an expert has no class. bins: of time, equally
    probable. images: the most of which counts are kept one by one (for times, and for looking against making). required: whether a dense run is an
    error."""

    sources: list[str] | None = None
    max_tokens: Size | None = None
    threshold: float = Field(0.5, gt=0, lt=1)
    sensitivity: list[Annotated[float, Field(gt=0, lt=1)]] = [0.33, 0.8]
    idle_below: Percent = Field(0.01, ge=0, lt=1)
    bins: int = Field(10, ge=2, le=64)
    images: Size = Field(2048, ge=2)
    required: bool = False

    @property
    def version(self) -> int:
        """2: r is resampled by record, with r inside its interval; clean copies are structure. 3: also, a limit takes records by a draw on each."""
        return 2 if self.max_tokens is None else 3

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Rows experts.<fact> for layer:<l>, from 0, and layer:all, their mean; <out>/experts.parquet, a row an expert."""
        from trainer.models.experts import layers_of

        if not layers_of(subject.model):
            if self.required:
                raise InputError("this model has no routed experts", where=out, allowed="ffn: moe", next="leave `required` out")
            return []
        spans = list(subject.spans(self.sources if self.sources is not None else subject.plan.sources, self.max_tokens))
        if not spans:
            return []
        facts, table = self._facts(subject, spans)
        with _untrained(subject):
            untrained, _ = self._facts(subject, spans, null=True)
        _write(out, table, {"threshold": f"{self.threshold:g}", "idle_below": f"{self.idle_below:g}"})
        facts |= {f"{name}.untrained": untrained[name] for name in ("specialisation", *routing.CLASSES[:3], "correlation") if name in untrained}
        rows = [row for name, (values, n) in facts.items() for row in _rows(name, values, n)]
        for threshold in self.sensitivity if "specialisation" in facts else ():
            n = facts["specialisation"][1]
            shares = _shares(routing.classes(table["rate_text"], table["rate_image"], threshold, self.idle_below))
            rows += [_row(name, f"threshold:{threshold:g}", float(values.mean()), n) for name, values in shares.items()]
        return rows

    def _facts(self, subject: Subject, spans: list[Span], null: bool = False) -> tuple[Facts, dict[str, np.ndarray]]:
        """Facts by layer, and columns [L, E] or [L, E, bins]. A `null` has those facts alone that are a control of something."""
        documents = [subject.reader.document(s) for s in spans]
        of_images = set(_some([d.h if d.image_loss.any() else None for d in documents], [len(d.image_loss) for d in documents], self.images))
        looked = look(subject, [d for i, d in enumerate(documents) if i in of_images], self.bins)
        others = look(subject, [d for i, d in enumerate(documents) if i not in of_images], self.bins, one_by_one=False)
        by_kind = looked.by_kind + others.by_kind
        text, image = routing.rates(by_kind[0]), routing.rates(by_kind[1])
        score, named = routing.scores(text, image), routing.classes(text, image, self.threshold, self.idle_below)
        table = {"rate": routing.rates(by_kind.sum(axis=0)), "rate_text": text, "rate_image": image, "score": score, "class": named}
        by_layer = {}
        if by_kind[0].any() and by_kind[1].any():  # where one modality is missing, no expert is of the other
            live = named != routing.IDLE
            strength = np.where(live, np.abs(np.nan_to_num(score)), 0).sum(axis=-1) / np.maximum(live.sum(axis=-1), 1)
            by_layer = _shares(named) | {"specialisation": strength}
        if not null:
            by_layer |= routing.load(by_kind.sum(axis=0))
        tokens = int(by_kind[:, 0].sum()) // _k(subject)
        facts: Facts = {name: (values, tokens) for name, values in by_layer.items()}
        if not null:
            facts |= self._time(looked, _k(subject), table)
        return facts | self._same_images(subject, spans, table), table

    def _time(self, looked: Looked, k: int, table: dict[str, np.ndarray]) -> Facts:
        """The variation over bins of time of images that are made, against what it is by chance. Adds rates by bin to the table."""
        made = looked.noised
        if made.sum() < 2 * self.bins:
            return {}
        counts, tokens = looked.images[made].astype(float), looked.tokens[made]
        bins = np.minimum((looked.u[made] * self.bins).astype(int), self.bins - 1)
        rate = routing.by_time(counts, tokens, bins, self.bins, k)
        table["rate_by_time"] = rate.transpose(1, 2, 0)
        null = routing.variation_by_chance(counts, tokens, bins, self.bins, k)
        facts = {"time_cv": routing.variation(rate), "time_cv.null": null.mean(axis=0), "time_cv.null_95": np.quantile(null, 0.95, axis=0)}
        return {name: (values, len(bins)) for name, values in facts.items()}

    def _same_images(self, subject: Subject, spans: list[Span], table: dict[str, np.ndarray]) -> Facts:
        """Rates of the same images looked at and made, over experts: r with its interval and ceiling. Records are what is resampled."""
        pairs = [p for s in spans if (p := both_ways(subject.plan, s)) is not None]
        chosen = _some([subject.plan.record(made).h for _, made in pairs], [sum(made.loss) for _, made in pairs], self.images)
        if len(chosen) < 4:
            return {}
        before, after = ([subject.reader.document(pairs[i][side]) for i in chosen] for side in (0, 1))
        seen, made = look(subject, before, self.bins), look(subject, after, self.bins)
        # Images that are never made (context frames) belong to neither.
        number = {record: i for i, record in enumerate(dict.fromkeys(_record(pairs[i][1]) for i in chosen))}
        of = np.array([number[_record(pairs[i][1])] for i in chosen])  # a long video is several spans
        same = np.concatenate([np.isin(d.image_segment, m.image_segment[m.image_loss]) for d, m in zip(before, after, strict=True)])
        one, two = (_by_record(x.images[which], of[x.document[which]], len(number)) for x, which in ((seen, same), (made, made.noised)))
        table |= {"rate_understanding": routing.rates(one.sum(axis=0)), "rate_generation": routing.rates(two.sum(axis=0))}
        found = routing.alike(one, two)
        facts = {"correlation": found.r, "correlation.low": found.low, "correlation.high": found.high, "correlation.ceiling": found.ceiling}
        return {name: (values, int(made.noised.sum())) for name, values in facts.items()}


@contextmanager
def _untrained(subject: Subject) -> Iterator[None]:
    """Within, the model has the weights that its seed draws, which is what its first step found unless the run says `init:`. Its own wait on the
    host: a device need not hold both."""
    from trainer.parallel import assign, initialise, tensors

    weights = {name: t.detach().to("cpu", copy=True) for name, t in tensors(subject.model).items()}
    try:
        initialise(subject.model, int(subject.run.seed))
        yield
    finally:
        for name, t in tensors(subject.model).items():
            assign(t, weights[name])


def both_ways(plan: Any, span: Span) -> tuple[Span, Span] | None:
    """A record's images looked at, and made, as spans; None where it has none that are made."""
    from mixtures.layout import atom_ranges, span_segments

    record = plan.record(span)
    segments = span_segments(span, record.segments, atom_ranges(record.segments))
    pictured = [record.segments[i].kind in ("latents", "image") for i in segments]
    if record.data == "image-text" and span.caption >= 0:
        looked_at = replace(span, image_first=True, loss=tuple(not p for p in pictured))
        made = replace(span, image_first=False, loss=tuple(pictured))
    else:
        looked_at, made = replace(span, loss=tuple(loss and not p for loss, p in zip(span.loss, pictured, strict=True))), span
    if looked_at.loss == made.loss:
        return None

    def whole(span: Span) -> Span:  # of two encoders an image has other tokens when its loss bit changes
        return replace(span, stop=span.start + sum(plan.record(span).segments[i].tokens for i in segments))

    return whole(looked_at), whole(made)


def look(subject: Subject, documents: Sequence[Document], bins: int, one_by_one: bool = True) -> Looked:
    """Count every choice that documents make; images in their order, whatever the batches."""
    import torch

    from trainer.flow import noised
    from trainer.models.attention import order
    from trainer.models.experts import layers_of, watched

    layers = layers_of(subject.model)
    shape = (len(layers), layers[0].config.routed)
    size = shape[0] * shape[1]
    quantiles = fixed_quantiles(list(documents), bins)
    first = np.cumsum([0, *(len(d.image_loss) for d in documents)])
    total = int(first[-1]) if one_by_one else 0
    by_kind, images, tokens = np.zeros((3, size)), np.zeros((total, size), np.uint16), np.zeros(total)
    for places, batch in subject.batches(documents):
        of_latent = batch.latent_image.numpy()
        u = np.concatenate([quantiles[p] for p in places])
        count = np.bincount(of_latent, minlength=len(u))
        seen = noised(subject.run.flow, batch, seed=0, t=times(subject.run.flow, u, count, batch.widths), drop=False)
        with watched(subject.model) as picked:
            subject.forward(batch, seen, at=np.zeros(0, np.int64))
        chosen = torch.stack(picked).cpu() + torch.arange(shape[0])[:, None, None] * shape[1]
        kind = batch.kind.reshape(-1)[order(batch).slots].clone()
        kind[len(kind) - len(of_latent) :][torch.from_numpy(copies(batch.image_hidden.numpy())[of_latent])] = STRUCTURE
        for k in range(3):
            by_kind[k] += torch.bincount(chosen[:, kind == k].reshape(-1), minlength=size).numpy()
        if one_by_one and len(u):
            cell = chosen[:, len(kind) - len(of_latent) :] + torch.from_numpy(of_latent).long()[None, :, None] * size
            at = np.concatenate([np.arange(first[p], first[p + 1]) for p in places])
            images[at] = torch.bincount(cell.reshape(-1), minlength=len(u) * size).view(len(u), size).numpy()
            tokens[at] = count
    join = lambda parts, kind: np.concatenate(parts).astype(kind) if len(parts) else np.zeros(0, kind)
    of = np.repeat(np.arange(len(documents)), np.diff(first))
    return Looked(by_kind.reshape(3, *shape), images.reshape(total, *shape), tokens, join(quantiles, float), of,
                  join([d.image_loss for d in documents], bool))  # fmt: skip


def _some(h: Sequence[int | None], images: Sequence[int], limit: int) -> list[int]:
    """Places of the first records in the order of a draw that have so many images together, in their own order; None is never chosen."""
    keyed = sorted((int(chance.draw(x, 0, "experts")), i) for i, x in enumerate(h) if x is not None)
    out, taken = [], 0
    for _, i in keyed:
        if taken + images[i] > limit:  # no later and smaller one instead: that would lean towards records of few images
            break
        taken += images[i]
        out.append(i)
    return sorted(out)


def _record(span: Span) -> tuple[int, int, int]:
    return span.dataset, span.shard, span.row


def _by_record(images: np.ndarray, record: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros((n, *images.shape[1:]))
    np.add.at(out, record, images)
    return out


def _k(subject: Subject) -> int:
    from trainer.models.experts import layers_of

    return layers_of(subject.model)[0].k


def _shares(named: np.ndarray) -> dict[str, np.ndarray]:
    """Class → the share of a layer's experts [L]."""
    return {name: (named == name).mean(axis=-1) for name in routing.CLASSES}


def _row(fact: str, split: str, value: float, n: int) -> dict[str, Any]:
    return {"metric": f"experts.{fact}", "split": split, "value": value, "n": n, "chance": None}


def _rows(fact: str, values: np.ndarray, n: int) -> list[dict[str, Any]]:
    rows = [_row(fact, f"layer:{layer}", float(v), n) for layer, v in enumerate(values) if np.isfinite(v)]
    return [*rows, _row(fact, "layer:all", float(np.nanmean(values)), n)] if rows else []


def _write(out: str, table: dict[str, np.ndarray], said: dict[str, str]) -> None:
    """<out>/experts.parquet: layer, expert, class, score, rates; `rate_by_time` is a list, a rate a bin. `said`: where the lines were drawn."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    layers, experts = table["rate"].shape
    columns: dict[str, Any] = {"layer": np.repeat(np.arange(layers), experts), "expert": np.tile(np.arange(experts), layers)}
    for name in sorted(table):
        flat = table[name].reshape(layers * experts, *table[name].shape[2:])
        columns[name] = pa.array(flat.tolist()) if flat.ndim > 1 else pa.array(flat, from_pandas=True)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns).replace_schema_metadata(said), sink, compression="zstd")
    storage.replace(storage.join(out, FILE), sink.getvalue().to_pybytes(), scratch=out)
