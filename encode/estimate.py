"""What an encode will take, before it runs: images, tokens, bytes on disk by codec, what each codec loses, hours, and when storing pays.

Images are counted exactly; text is counted on a sample. A few images go through the real network (`estimate.sample`, 0 for none), which gives the
rate and what each codec loses; without it the rows say only what is counted. Nothing is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from encode import costs
from encode.encoder import ImageEncoder
from encode.encoders.reuse import Reuse
from encode.parts import encode_parts
from encode.recipe import EncodeRecipe
from encode.sample import losses, sampled
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
        more, rows = images(config, config.images, dataset, distinct, references)
        facts |= more
        table += rows
    elif isinstance(config.images, Reuse):
        other = Dataset.open(config.images.dataset)
        facts |= {"visual_tokens": other.card["tokens"]["visual"], "latent_bytes": 0, "reuses": other.path}
        table.append({"what": "images", "encoder": f"reuse {other.path}", "tokens": other.card["tokens"]["visual"], "bytes": 0})
    facts["bytes"] = text["tokens"] * size + facts.get("latent_bytes", 0)
    return Estimate(f"encode {config.name or dataset.card['name']}", {**facts, "output": config.output}, table)


def images(
    config: EncodeRecipe, encoder: ImageEncoder, dataset: Dataset, distinct: int, references: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Facts of the images, and a row per codec."""
    grid = encoder.grid()
    sizes = {name: distinct * codec.nbytes(name, grid.tokens, grid.channels) for name in codec.CODECS}
    chosen = sizes.get(config.storage, 0)
    facts: dict[str, Any] = {"images": distinct, "image_references": references, "visual_tokens": references * grid.tokens}
    facts |= {"tokens_per_image": grid.tokens, "width": grid.channels, "bytes_per_token": chosen / distinct / grid.tokens, "latent_bytes": chosen}
    rows: dict[str, dict[str, Any]] = {name: {"bytes_per_token": size / distinct / grid.tokens} for name, size in sizes.items()}
    found = sampled(config, dataset) if config.estimate.sample else None
    if found is not None:
        once = costs.encoding(distinct, found.rate, found.prepared, found.workers, config.estimate)
        facts |= {"sampled_images": len(found.latents), "machine": found.machine, "batch": found.batch}
        facts |= {"images_per_second_and_worker": found.rate, "prepared_per_second_and_cpu": found.prepared, **once}
        facts["assumed"] = costs.assumed(found.workers, config.estimate)
        spent = costs.compared(distinct, references, sizes, once["encode_cost"], config.estimate)
        rows = {name: {**row, **spent[name]} for name, row in losses(found.latents).items()}
    facts["codecs"] = {name: {"bytes": sizes[name], **row} for name, row in rows.items()}
    what = lambda name: f"images, {name}{' (chosen)' if name == config.storage else ''}"
    same = {"encoder": part_name(encoder), "tokens": references * grid.tokens}
    return facts, [{"what": what(name), **same, **shown(sizes[name], row)} for name, row in rows.items()]


def shown(size: int, row: dict[str, Any]) -> dict[str, Any]:
    """A codec for a person; `facts["codecs"]` has all its figures."""
    out: dict[str, Any] = {"bytes": size, "a token": row["bytes_per_token"]}
    if "relative_l2" not in row:
        return out
    change = row["flow_loss_change"]
    out |= {"relative L2": row["relative_l2"], "cosine": row["mean_cosine"], "flow loss": None if change is None else f"{change:+.4%}"}
    return {**out, "to keep": row["storage_cost"], "pays from epoch": row["pays_from_epochs"]}


def text_tokens(config: EncodeRecipe, dataset: Dataset) -> dict[str, Any]:
    """Tokens of all texts, from tokens per record of a sample spread over the shards."""
    tokenizer = config.text.load()
    seen = tokens = 0
    for i in sorted({round(x) for x in np.linspace(0, len(dataset.shards) - 1, SHARDS)} if dataset.shards else ()):
        records = [record_of(row) for row in dataset.index(i).slice(0, SAMPLE).to_pylist()]
        seen += len(records)
        tokens += sum(len(ids) for ids in tokenizer.encode([s.text or "" for r in records for s in r.segments if s.kind == "text"]))
    return {"tokens": round(tokens / max(seen, 1) * dataset.card["records"]), "vocab": tokenizer.vocab, "dtype": tokenizer.dtype}
