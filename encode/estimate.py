"""What an encode will take, before it runs: images, tokens, bytes on disk. Images are counted exactly; text is counted on a sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from encode.encoder import ImageEncoder
from encode.encoders.reuse import Reuse
from encode.parts import encode_parts
from encode.recipe import EncodeRecipe
from pipelines.format import codec
from pipelines.format.dataset import Dataset
from pipelines.format.document import part_name
from pipelines.format.estimate import Estimate
from pipelines.format.index import record_of

SAMPLE = 256  # records tokenised per shard that is looked at
SHARDS = 4


def estimate(config: EncodeRecipe, dataset: Dataset) -> Estimate:
    """Counts and disk of the encoded dataset."""
    parts = encode_parts(config, dataset)
    distinct, references = (sum(p[k] for p in parts) for k in ("images", "references"))
    text = text_tokens(config, dataset)
    size = np.dtype(text["dtype"]).itemsize
    facts: dict[str, Any] = {"dataset": dataset.path, "records": dataset.card["records"], "parts": len(parts), "vocab": text["vocab"]}
    facts |= {"text_tokens_estimated": text["tokens"], "text_bytes_estimated": text["tokens"] * size}
    table: list[dict[str, Any]] = [{"what": "text", "encoder": part_name(config.text), "tokens": text["tokens"], "bytes": text["tokens"] * size}]
    if isinstance(config.images, ImageEncoder) and distinct:
        grid = config.images.grid()
        each = 0 if config.storage == "none" else codec.nbytes(config.storage, grid.tokens, grid.channels)
        facts |= {"images": distinct, "image_references": references, "visual_tokens": references * grid.tokens}
        facts |= {"tokens_per_image": grid.tokens, "width": grid.channels, "bytes_per_token": each / grid.tokens, "latent_bytes": distinct * each}
        table.append({"what": "images", "encoder": part_name(config.images), "tokens": references * grid.tokens, "bytes": distinct * each})
    elif isinstance(config.images, Reuse):
        other = Dataset.open(config.images.dataset)
        facts |= {"visual_tokens": other.card["tokens"]["visual"], "latent_bytes": 0, "reuses": other.path}
        table.append({"what": "images", "encoder": f"reuse {other.path}", "tokens": other.card["tokens"]["visual"], "bytes": 0})
    facts["bytes"] = sum(row["bytes"] for row in table)
    return Estimate(f"encode {config.name or dataset.card['name']}", {**facts, "output": config.output}, table)


def text_tokens(config: EncodeRecipe, dataset: Dataset) -> dict[str, Any]:
    """Tokens of all texts, from tokens per record of a sample spread over the shards."""
    tokenizer = config.text.load()
    seen = tokens = 0
    for i in sorted({round(x) for x in np.linspace(0, len(dataset.shards) - 1, SHARDS)} if dataset.shards else ()):
        records = [record_of(row) for row in dataset.index(i).slice(0, SAMPLE).to_pylist()]
        seen += len(records)
        tokens += sum(len(ids) for ids in tokenizer.encode([s.text or "" for r in records for s in r.segments if s.kind == "text"]))
    return {"tokens": round(tokens / max(seen, 1) * dataset.card["records"]), "vocab": tokenizer.vocab, "dtype": tokenizer.dtype}
