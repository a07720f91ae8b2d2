"""Pictures that the model makes of held-out captions, written as an ordinary encoded dataset under <run>/samples.

The prompt is BOS · caption · BOI; the image's latents are sampled step by step with guidance from noise that is a draw on the record, so two arms
paint the same captions from the same noise. What is written has the encoding of the data trained on: `pipelines run decode` turns it into
pictures, and any scorer or view reads it like a dataset. With `pictures` a few are shown in the report too, each below the held-out picture of its
caption: the service of that name makes them, since the trainer knows no encoder. No number is claimed here: rows come from scorers.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_serializer

from pipelines.format import chance, codec, storage
from pipelines.format.document import Part, dump, fingerprint
from pipelines.format.errors import InputError
from pipelines.format.manifest import card, dataset_fingerprint, file_entry, parent, publish_card, read_card
from pipelines.format.part import PartWriter, commit_path
from pipelines.format.record import Record, Segment
from pipelines.format.shard import Shard, shard_table
from trainer.two_encoders import made_in

if TYPE_CHECKING:
    from trainer.evaluate._subject import Subject

VERSION = 1
SHOWN = "pictures.parquet"  # caption, held_out, sampled: JPEGs for the report


class Samples(Part):
    """`images` held-out captions of an image-text `source`, sampled in `steps` steps of `sampler` (the paper: 25 of euler; heun runs the model twice
    a step) with guidance `guidance` (the paper: 3.0).

    `required: false` lets arms pass that were not trained on the source. `pictures` of them are kept as JPEGs for the report, made by `decoder`
    (as a decode recipe names it), or by the encoder where it can be inverted."""

    source: str = "image_text"
    images: int = Field(16, ge=1)
    steps: int = Field(25, ge=1)
    guidance: float = Field(3.0, ge=0)
    required: bool = True
    pictures: int = Field(0, ge=0, le=64)
    decoder: dict[str, Any] | None = None
    sampler: Literal["euler", "heun"] = "euler"

    @model_serializer(mode="wrap")
    def _as_before(self, dump_: Any) -> dict[str, Any]:
        """Without a `sampler` that changes nothing: samples made before the key existed keep their fingerprint."""
        return {k: v for k, v in dump_(self).items() if (k, v) != ("sampler", "euler")}

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Writes the dataset <out>/samples (made anew by the same model and settings: left as it is). No rows."""
        if not self.required and not subject.plan.card["sources"].get(self.source, {}).get("taken"):
            return []
        spans = self._captions(subject)
        if not spans:
            raise InputError("no held-out captions to paint", found=self.source, next="name an image-text source, or raise held_out.fraction")
        root = storage.join(out, "samples")
        parents = [(out, str(read_card(out)["fingerprint"]))] if storage.exists(storage.join(out, "run.json")) else []
        mark = fingerprint({"stage": "samples", "version": VERSION, "run": [p for _, p in parents], "recipe": dump(self)})
        if not storage.exists(commit_path(root, 0)):
            records = self._painted(subject, spans)
            if self.pictures:
                storage.publish(storage.join(root, SHOWN), self._shown(subject, spans, records), scratch=root)
            with PartWriter(root, 0, fingerprint=mark, encoded=True) as writer:
                for record in records:
                    writer.emit()
                    writer.add(record)
                writer.commit()
        _seal(root, made_in(subject.plan, spans[0]), mark, dump(self), [parent(p, root, print_) for p, print_ in parents])
        return []

    def _captions(self, subject: Subject) -> list[Any]:
        """Spans of the chosen pairs, caption first; which ones depends on the records alone."""
        plan = subject.plan
        if self.source not in plan.sources:
            return []
        spans = [s for i in plan.held_out(self.source) for s in plan.row(i, "heldout").spans if s.caption >= 0]
        spans.sort(key=lambda s: chance.draw(plan.record(s).h, 0, "sample"))
        return [replace(s, image_first=False, loss=(True,) * len(s.loss)) for s in spans[: self.images]]

    def _painted(self, subject: Subject, spans: list[Any]) -> list[Record]:
        """The records to write, in the order of the spans."""
        import torch

        from trainer.sampling import sample

        reader, documents = subject.reader, [subject.reader.document(s) for s in spans]
        made: list[Record | None] = [None] * len(spans)
        for places, batch in subject.batches(documents):
            width = batch.latents.shape[1]
            noise = np.concatenate([_noise(documents[p], width) for p in places])
            with torch.inference_mode():
                moved, start = batch.to(subject.device), torch.from_numpy(noise).to(subject.device)
                z = sample(subject.model, moved, subject.run.flow, start, None, self.steps, self.guidance, self.sampler)
            latents = z.float().cpu().numpy()
            if reader.normaliser is not None:
                latents = reader.normaliser.undo(latents)
            owner = np.repeat(np.arange(len(places)), [len(documents[p].latents) for p in places])
            for row, p in enumerate(places):
                made[p] = _record(subject.plan, spans[p], np.ascontiguousarray(latents[owner == row], np.float32))
        return [r for r in made if r is not None]


    def _shown(self, subject: Subject, spans: list[Any], records: list[Record]) -> bytes:
        """pictures.parquet: the first few captions with their held-out picture and the sampled one."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from trainer.evaluate._tokenizers import dataset_tokenizer

        data = made_in(subject.plan, spans[0])
        words = dataset_tokenizer(data)
        some = list(zip(spans, records, strict=True))[: self.pictures]
        painted, captions = zip(*(r.segments for _, r in some), strict=True)
        made = np.stack([codec.decode_latents(s.payload or b"", "bf16", *s.shape) for s in painted])
        ids = [np.frombuffer(s.payload or b"", np.dtype(s.dtype)).tolist() for s in captions]
        columns: dict[str, Any] = {"caption": [words.decode(i) for i in ids], "sampled": self._pictures(data, made)}
        columns["held_out"] = self._pictures(data, np.stack([_truth(subject.plan, s) for s, _ in some]))
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        return bytes(sink.getvalue().to_pybytes())

    def _pictures(self, data: Any, latents: np.ndarray) -> list[bytes]:
        found = [e for e in entry_points(group="pipelines.services") if e.name == "pictures"]
        if not found:
            raise InputError("no installed package offers the service `pictures`", next="install the encode package, or leave `pictures` out")
        return list(found[0].load()(latents, data.card["encoders"], self.decoder))


def _truth(plan: Any, span: Any) -> np.ndarray:
    """The latents of the picture that a span's caption is of."""
    data, record = made_in(plan, span), plan.record(span)
    return np.asarray(data.array(span.shard, next(s for s in record.segments if s.kind == "latents")))


def _noise(document: Any, width: int) -> np.ndarray:
    key = int(chance.draw(document.h, 0, "sample", "noise"))
    return chance.noise(key, (len(document.latents), width))


def _record(plan: Any, span: Any, latents: np.ndarray) -> Record:
    """A pair whose picture is the sample: same caption, an origin that names the record it was prompted by."""
    record = plan.record(span)
    caption = record.segments[span.caption]
    data = plan.datasets[span.dataset]
    words = replace(caption, atom=1, payload=bytes(data.payload(span.shard, caption)), offset=None, nbytes=None)
    image = Segment("latents", atom=0, payload=codec.encode_latents(latents, "bf16"), dtype="bf16", shape=latents.shape, tokens=len(latents))
    return Record.make("samples", record.id, "image-text", [image, words], group=record.group, fields={"prompt_of": record.id})


def _seal(root: str, like: Any, mark: str, recipe: dict[str, Any], parents: list[dict[str, str]]) -> None:
    """Shard table, tokenizer and card: the last of what makes it a dataset."""
    commit = storage.read_json(commit_path(root, 0))
    shards = [Shard(**s) for s in commit["shards"]]
    table = shard_table(shards)
    shown = file_entry(root, f"shards-{fingerprint(commit['shards'])[:16]}.parquet", table)
    files = [shown, file_entry(root, "tokenizer.json", storage.read(storage.join(like.path, "tokenizer.json")))]
    if storage.exists(storage.join(root, SHOWN)):
        files.append(file_entry(root, SHOWN, storage.read(storage.join(root, SHOWN))))
    encoding = {k: v for k, v in like.card["encoding"].items() if k != "stats"}
    if encoding["image"]["codec"] == "none":  # sampled latents are stored, whatever those were that they imitate
        encoding["image"] = {**encoding["image"], "codec": "bf16"}
    counts = {k: commit[k] for k in ("in", "written", "filtered", "rejected", "tokens")}
    held = {"samples": {"records": commit["written"], "tokens": commit["tokens"]}}
    facts = {**counts, "records": commit["written"], "bytes": sum(f["bytes"] for f in commit["files"]), "sources": held}
    facts |= {"shards": {"file": shown["path"], "sha256": shown["sha256"], "n": len(shards)}, "files": files, "encoding": encoding}
    if "encoders" in like.card:
        facts["encoders"] = like.card["encoders"]
    parts = {"n": 1, "fingerprint": fingerprint([commit["fingerprint"]])}
    facts |= {"data": "image-text", "recipe_fingerprint": mark, "parts": parts}
    made = card("dataset", "samples", dataset_fingerprint(encoding, shards), recipe, parents=parents, stages={"samples": VERSION}, **facts)
    publish_card(root, "manifest.json", made, mark)
