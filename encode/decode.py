"""The decode stage: an encoded dataset -> a curated one that can be looked at: latents back to pictures, token ids back to text.

In: stored latents, or latents that a model sampled and wrote as an ordinary encoded dataset. Out: the same records (ids, roles, atoms,
fields) with images in a WebDataset tar and text in the index, and a contact sheet of some of the pictures. Encoders that can be inverted (raw pixels,
a VAE) turn their own latents back; those of a vision tower need a decoder that was trained for them (docs/decoders.md).

Latents go in as they are stored, in the encoder's own units: no statistics are applied on the way out, because none were on the way in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from encode.chain import threads as torch_threads
from encode.decoder import Decoder, Decoding
from encode.encoder import ImageEncoder, LoadedTokenizer, TextEncoder, opened
from encode.encoders.text_tokens import JsonTokenizer
from encode.recipe import Resources
from encode.reconstruction import sheet
from pipelines.build import Build, build
from pipelines.format import storage
from pipelines.format.dataset import Dataset, open_cached
from pipelines.format.document import Document, PartOf, Size, dump, fingerprint
from pipelines.format.errors import InputError
from pipelines.format.estimate import Estimate
from pipelines.format.forgotten import REASON, forgotten_rows
from pipelines.format.manifest import file_entry, parent, read_card
from pipelines.format.part import FORMAT, SHARD_BYTES, PartWriter
from pipelines.format.record import Record, Segment
from pipelines.media import images
from pipelines.stage import Job, Step

VERSION = 2
BATCH = 64  # images turned back at a time
COLUMNS = 8  # pictures in a row of the sheet


class DecodeRecipe(Document):
    """`decoder`: left out, the encoder turns its own latents back. `records`: only the first so many. JPEG is smaller, PNG keeps every value.
    `sheet`: so many pictures, from all over the dataset, on one contact sheet (0: none)."""

    name: str = ""
    dataset: str
    decoder: Annotated[Any, PartOf("encode.decoders")] | None = None
    pictures: Literal["png", "jpeg"] = "png"
    quality: int = Field(92, ge=1, le=100)
    records: Size | None = None
    sheet: int = Field(64, ge=0, le=1024)
    shard_bytes: Size = SHARD_BYTES
    output: str
    engine: Literal["ray", "local"] = "ray"
    resources: Resources = Resources()


class DecodeStage:
    """`pipelines run decode -c RECIPE.yaml`."""

    config = DecodeRecipe
    summary = "latents back to pictures and ids back to text: an encoded dataset -> a curated one"

    def plan(self, config: DecodeRecipe) -> Estimate:
        """Records, images and pixels to decode."""
        dataset = encoded(config)
        parts = decode_parts(config, dataset)
        facts: dict[str, Any] = {"dataset": dataset.path, "parts": len(parts), "records": sum(p["rows"] for p in parts)}
        encoder = image_encoder(dataset)
        if encoder is not None:
            height, width = picture_size(config.decoder, encoder)
            facts |= {"image_references": round(dataset.card["tokens"]["visual"] / encoder.grid().tokens), "pixels": f"{height} x {width}"}
        return Estimate(f"decode {config.name or dataset.card['name']}", {**facts, "output": config.output})

    def run(self, config: DecodeRecipe, job: Job) -> str:
        """Make the curated dataset; returns its path."""
        dataset, output = encoded(config), storage.absolute(config.output)
        settings = {"pictures": config.pictures, "quality": config.quality, "shard_bytes": config.shard_bytes}
        # No path stands in the fingerprint: the decoder is known by the hash of its weights.
        made = {"format": FORMAT, "stage": "decode", "version": VERSION, **settings, "decoder": config.decoder and config.decoder.identity()}
        asked = {**made, "records": config.records, "sheet": config.sheet, "parent": dataset.card.get("recipe_fingerprint")}
        above = [parent(dataset.path, output, dataset.fingerprint), *_fitted(config, output)]
        return build(
            job,
            Build(
                output=output,
                name=config.name or f"{dataset.card['name']}-decoded",
                data=dataset.data,
                recipe=dump(config),
                fingerprint=fingerprint(asked),
                parts=[{**p, "fingerprint": fingerprint({**made, **p, "parent": dataset.fingerprint})} for p in decode_parts(config, dataset)],
                chain=[decode_step(config, dataset, output, settings, job)],
                parents=above,
                versions={"decode": VERSION},
                extras=lambda commits: contact_sheet(config, output, commits),
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
        picture_size(config.decoder, encoder)
    return dataset


def picture_size(decoder: Decoder | None, encoder: ImageEncoder) -> tuple[int, int]:
    """Pixels of a decoded picture. InputError where these latents cannot be turned back, said before any weight is read."""
    grid = encoder.grid()
    if decoder is not None:
        return decoder.size(grid)
    if type(encoder).pictures is ImageEncoder.pictures:
        encoder.pictures(np.empty((0, grid.tokens, grid.channels), np.float32))
    return grid.height, grid.width


def decode_step(config: DecodeRecipe, dataset: Dataset, output: str, settings: dict[str, Any], job: Job) -> Step:
    """One step does it all: reading latents and writing pictures cost little beside a network, and nothing beside none."""
    encoder = image_encoder(dataset)
    gpus = config.resources.gpus
    if gpus is None:
        runs = config.decoder or encoder
        gpus = 1.0 if runs is not None and runs.machine().device == "cuda" else 0.0
    given = {"dataset": (dataset.path, dataset.fingerprint), "root": output, **settings}
    given |= {"decoder": config.decoder, "device": None if gpus else "cpu", "threads": config.resources.cpus}
    cpus = min(config.resources.cpus, max(1, job.cpus))
    return Step(DecodePart, given, cpus=cpus, gpus=gpus, actors=config.resources.actors, name="decode")


def _fitted(config: DecodeRecipe, output: str) -> list[dict[str, str]]:
    """The decoder as a parent, where it is an artifact of ours and not a published folder."""
    weights = getattr(config.decoder, "weights", None)
    if not isinstance(weights, str) or not storage.exists(storage.join(weights, "manifest.json")):
        return []
    return [parent(weights, output, read_card(weights)["fingerprint"])]


def contact_sheet(config: DecodeRecipe, output: str, commits: Callable[[], Iterator[dict[str, Any]]]) -> dict[str, Any]:
    """The card's `files`: a PNG of pictures from all over the dataset, in reading order."""
    places = [(s, commit["part"]) for commit in commits() for s in commit["shards"]]
    shown = sheet.spread(output, [s for s, _ in places], config.sheet)
    if not shown:
        return {}
    return {"files": [file_entry(output, "sheet.png", images.encode_png(sheet.tiled([shown], COLUMNS)))]}


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
    forgotten = forgotten_rows(dataset)
    for i, shard in enumerate(dataset.shards):
        rows = min(shard.records, left)
        left -= rows
        if rows:
            gone = [row for row in forgotten.get(i, ()) if row < rows]
            parts.append({"part": len(parts), "shard": i, "rows": rows, **({"gone": gone} if gone else {})})
    return parts


class DecodePart:
    """One shard back to pictures and text. A class, so that a decoder with weights is loaded once per worker."""

    def __init__(
        self,
        dataset: tuple[str, str],
        root: str,
        pictures: str,
        quality: int,
        shard_bytes: int,
        decoder: Decoder | None = None,
        device: str | None = None,
        threads: int = 1,
    ) -> None:
        self.dataset, self.root = open_cached(*dataset), root
        self.format, self.quality, self.shard_bytes, self.threads = pictures, quality, shard_bytes, threads
        self.encoder, self.tokenizer = image_encoder(self.dataset), dataset_tokenizer(self.dataset)
        self.machine = (decoder or self.encoder).machine(device) if self.encoder is not None else None  # type: ignore[union-attr]
        self.decoding = Decoding(decoder, self.encoder, device) if decoder is not None and self.encoder is not None else None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        every = [r for r, _ in zip(self.dataset.records(item["shard"]), range(item["rows"]), strict=False)]
        gone = frozenset(item.get("gone", ()))
        records = [r for n, r in enumerate(every) if n not in gone]
        shown = self.payloads(item["shard"], records)
        with PartWriter(self.root, item["part"], fingerprint=item["fingerprint"], shard_bytes=self.shard_bytes) as writer:
            writer.emit(len(every))
            for n in sorted(gone):
                writer.drop(every[n], "decode", REASON)
            for record in records:
                segments = tuple(self.segment(item["shard"], s, shown) for s in record.segments)
                writer.add(replace(record, segments=segments))
            return writer.commit()

    def payloads(self, i: int, records: list[Record]) -> dict[int, bytes]:
        """Image bytes of each distinct latent payload of the records, by its offset."""
        distinct = {s.offset: s for r in records for s in r.segments if s.kind == "latents" and s.offset is not None}
        todo, out = list(distinct.items()), {}
        for first in range(0, len(todo), BATCH):
            some = todo[first : first + BATCH]
            pixels = self.pixels(np.stack([self.dataset.array(i, s) for _, s in some]))
            for (offset, _), picture in zip(some, pixels, strict=True):
                out[offset] = images.encode_png(picture) if self.format == "png" else images.encode_jpeg(picture, self.quality)
        return out

    def pixels(self, latents: np.ndarray) -> np.ndarray:
        """float32 [n, tokens, channels] -> uint8 [n, height, width, 3], by the decoder, or by the encoder where none was named."""
        assert self.encoder is not None and self.machine is not None, "latents imply an image encoder"
        with torch_threads(self.machine, self.threads):
            return self.decoding.pictures(latents) if self.decoding is not None else self.encoder.pictures(latents)

    def segment(self, i: int, s: Segment, shown: dict[int, bytes]) -> Segment:
        """A curated segment again."""
        plain = {"tokens": 0, "offset": None, "nbytes": None}
        if s.kind == "tokens":
            text = self.tokenizer.decode(self.dataset.array(i, s))
            return replace(s, kind="text", text=text, dtype=None, shape=(), **plain)  # type: ignore[arg-type]
        assert s.offset is not None and self.encoder is not None
        grid = self.encoder.grid()
        shape = (*(self.decoding.size if self.decoding is not None else (grid.height, grid.width)), 3)
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
