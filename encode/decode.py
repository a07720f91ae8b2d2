"""The decode stage: an encoded dataset -> a curated one that can be looked at: latents back to pictures, token ids back to text.

In: stored latents, or latents that a model sampled and wrote as an ordinary encoded dataset. Out: the same records (ids, roles, atoms,
fields) with images in a WebDataset tar and text in the index. Pixels latents are inverted exactly; latents of a vision tower need a decoder
that was trained for them, and are refused with what is missing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from encode.encoder import ImageEncoder, LoadedTokenizer, TextEncoder, opened
from encode.encoders.text_tokens import JsonTokenizer
from encode.recipe import Resources
from pipelines.build import Build, build
from pipelines.format import storage
from pipelines.format.dataset import Dataset, open_cached
from pipelines.format.document import Document, Size, dump, fingerprint
from pipelines.format.errors import InputError
from pipelines.format.estimate import Estimate
from pipelines.format.manifest import parent
from pipelines.format.part import FORMAT, SHARD_BYTES, PartWriter
from pipelines.format.record import Record, Segment
from pipelines.media import images
from pipelines.stage import Job, Step

VERSION = 1
BATCH = 64  # images turned back at a time


class DecodeRecipe(Document):
    """`records`: only the first so many. JPEG is smaller, PNG keeps every value."""

    name: str = ""
    dataset: str
    pictures: Literal["png", "jpeg"] = "png"
    quality: int = Field(92, ge=1, le=100)
    records: Size | None = None
    shard_bytes: Size = SHARD_BYTES
    output: str
    engine: Literal["ray", "local"] = "ray"
    resources: Resources = Resources()


class DecodeStage:
    """`pipelines run decode -c RECIPE.yaml`."""

    config = DecodeRecipe
    summary = "latents back to pictures and ids back to text: an encoded dataset -> a curated one"

    def plan(self, config: DecodeRecipe) -> Estimate:
        """Records and images to decode."""
        dataset = encoded(config)
        parts = decode_parts(config, dataset)
        facts = {"dataset": dataset.path, "parts": len(parts), "records": sum(p["rows"] for p in parts), "output": config.output}
        return Estimate(f"decode {config.name or dataset.card['name']}", facts)

    def run(self, config: DecodeRecipe, job: Job) -> str:
        """Make the curated dataset; returns its path."""
        dataset, output = encoded(config), storage.absolute(config.output)
        settings = {"pictures": config.pictures, "quality": config.quality, "shard_bytes": config.shard_bytes}
        made = {"format": FORMAT, "stage": "decode", "version": VERSION, **settings}
        chain = [Step(DecodePart, {"dataset": (dataset.path, dataset.fingerprint), "root": output, **settings}, name="decode")]
        return build(
            job,
            Build(
                output=output,
                name=config.name or f"{dataset.card['name']}-decoded",
                data=dataset.data,
                recipe=dump(config),
                fingerprint=fingerprint({**made, "records": config.records, "parent": dataset.card.get("recipe_fingerprint")}),
                parts=[{**p, "fingerprint": fingerprint({**made, **p, "parent": dataset.fingerprint})} for p in decode_parts(config, dataset)],
                chain=chain,
                parents=[parent(dataset.path, output, dataset.fingerprint)],
                versions={"decode": VERSION},
            ),
        )


STAGE = DecodeStage()


def encoded(config: DecodeRecipe) -> Dataset:
    """The encoded dataset, with what cannot be turned back refused before anything runs."""
    dataset = Dataset.open(storage.absolute(config.dataset))
    if dataset.encoding is None:
        raise InputError("this dataset is not encoded: its pictures and texts can be looked at as they are", where=config.dataset)
    if dataset.encoding.get("image", {}).get("codec") == "none":
        raise InputError("this dataset stores no latents (`storage: none`)", where=config.dataset, next="look at the dataset it was made from")
    encoder = image_encoder(dataset)
    if encoder is not None:
        grid = encoder.grid()
        encoder.pictures(np.zeros((0, grid.tokens, grid.channels), np.float32))  # none: loads no decoder here
    return dataset


def image_encoder(dataset: Dataset) -> ImageEncoder | None:
    """The encoder that made the latents, as the card's `encoders` names it; None for a dataset without images."""
    if "image" not in (dataset.encoding or {}):
        return None
    written = dataset.card.get("encoders", {}).get("image")
    if written is None:
        raise InputError("the card does not say which encoder made these latents", where=dataset.path, next='it needs `encoders: {"image": …}`')
    found = opened(written)
    assert isinstance(found, ImageEncoder)
    return found


def decode_parts(config: DecodeRecipe, dataset: Dataset) -> list[dict[str, Any]]:
    """One part per shard, up to the wanted number of records."""
    left = dataset.card["records"] if config.records is None else config.records
    parts: list[dict[str, Any]] = []
    for i, shard in enumerate(dataset.shards):
        rows = min(shard.records, left)
        left -= rows
        if rows:
            parts.append({"part": len(parts), "shard": i, "rows": rows})
    return parts


class DecodePart:
    """One shard back to pictures and text. A class, so that a decoder with weights is loaded once per worker."""

    def __init__(self, dataset: tuple[str, str], root: str, pictures: str, quality: int, shard_bytes: int) -> None:
        self.dataset, self.root = open_cached(*dataset), root
        self.format, self.quality, self.shard_bytes = pictures, quality, shard_bytes
        self.encoder, self.tokenizer = image_encoder(self.dataset), dataset_tokenizer(self.dataset)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        records = [r for r, _ in zip(self.dataset.records(item["shard"]), range(item["rows"]), strict=False)]
        shown = self.payloads(item["shard"], records)
        with PartWriter(self.root, item["part"], fingerprint=item["fingerprint"], shard_bytes=self.shard_bytes) as writer:
            for record in records:
                writer.emit()
                segments = tuple(self.segment(item["shard"], s, shown) for s in record.segments)
                writer.add(replace(record, segments=segments))
            return writer.commit()

    def payloads(self, i: int, records: list[Record]) -> dict[int, bytes]:
        """Image bytes of each distinct latent payload of the records, by its offset."""
        distinct = {s.offset: s for r in records for s in r.segments if s.kind == "latents" and s.offset is not None}
        todo, out = list(distinct.items()), {}
        for first in range(0, len(todo), BATCH):
            some = todo[first : first + BATCH]
            assert self.encoder is not None, "latents imply an image encoder"
            pixels = self.encoder.pictures(np.stack([self.dataset.array(i, s) for _, s in some]))
            for (offset, _), picture in zip(some, pixels, strict=True):
                out[offset] = images.encode_png(picture) if self.format == "png" else images.encode_jpeg(picture, self.quality)
        return out

    def segment(self, i: int, s: Segment, shown: dict[int, bytes]) -> Segment:
        """A curated segment again."""
        plain = {"tokens": 0, "offset": None, "nbytes": None}
        if s.kind == "tokens":
            text = self.tokenizer.decode(self.dataset.array(i, s))
            return replace(s, kind="text", text=text, dtype=None, shape=(), **plain)  # type: ignore[arg-type]
        assert s.offset is not None and self.encoder is not None
        grid = self.encoder.grid()
        shape = (grid.height, grid.width, 3)
        return replace(s, kind="image", payload=shown[s.offset], dtype=self.format, shape=shape, **plain)  # type: ignore[arg-type]


def dataset_tokenizer(dataset: Dataset) -> LoadedTokenizer:
    """The tokenizer that travels with an encoded dataset, or the one that its card names."""
    path = storage.join(dataset.path, "tokenizer.json")
    if storage.exists(path):
        return JsonTokenizer(storage.read(path), {}, path)
    written = dataset.card.get("encoders", {}).get("text")
    if written is None:
        raise InputError("the dataset has no tokenizer.json and its card names none", where=dataset.path)
    found = opened(written)
    assert isinstance(found, TextEncoder)
    return found.load()
