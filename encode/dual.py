"""A dual encode: one job, two encoded datasets of the same ids, parts, shards and rows, so that a place in the one is a place in the other.

    load (decode once, prepare twice) ──▶ both networks, one after the other ──▶ write <output>/context and <output>/target

Parts are as small as both together ask for. Shards are cut where the dataset with the larger latents is full, in both. A record with an
unreadable image is rejected from both, since both are made of what was loaded once. A part is done when both datasets have its commit record:
killed in between, the next run makes that part again, and the dataset that had it keeps the record it had. Each dataset has a card,
statistics and a tokenizer of its own, and can be verified, audited, compacted and decoded by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

from encode.chain import Encode, write
from encode.encoders.dual import SIDES, Dual
from encode.estimate import estimate
from encode.parts import encode_parts
from encode.recipe import EncodeRecipe
from pipelines.build import Build, build, commit_parts, seal
from pipelines.format import codec, storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import fingerprint
from pipelines.format.estimate import Estimate
from pipelines.format.manifest import parent
from pipelines.stage import Job

Extras = Callable[[EncodeRecipe, str, Any], dict[str, Any]]  # of one recipe, its output, and the commit records


def side(config: EncodeRecipe, name: str) -> EncodeRecipe:
    """The recipe as it would be for one of the two alone."""
    assert isinstance(config.images, Dual)
    return config.model_copy(update={"images": config.images.sides()[name], "output": storage.join(config.output, name)})


class EncodeBoth:
    """The step that holds both networks. Set up once per worker."""

    def __init__(self, encoder: Dual, codec_name: str, **settings: Any) -> None:
        self.encoder, self.codec_name = encoder, codec_name
        self.each = {name: Encode(one, codec_name, **settings) for name, one in encoder.sides().items()}

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        flat = item["pictures"]
        pictures = dict.fromkeys(SIDES) if flat is None else self.encoder.apart(flat)
        made = {name: encode({**item, "pictures": pictures[name]}) for name, encode in self.each.items()}
        coded = {name: out["coded"] for name, out in made.items()}
        payloads = {f"payloads {name}": out["payloads"] for name, out in made.items()}
        grids = {name: one.grid() for name, one in self.encoder.sides().items()}
        return {**item, "pictures": None, **payloads, "coded": coded, "shapes": {name: (g.tokens, g.channels) for name, g in grids.items()}}


def write_both(item: dict[str, Any], root: str, codec_name: str, shard_bytes: int, shape: Any = None, **settings: Any) -> dict[str, Any]:
    """Publish the part in both datasets, the one with the larger latents first: its shards say where those of the other end."""
    coded, shapes = item.get("coded") or {}, item.get("shapes") or {}
    sizes = {name: codec.nbytes(codec_name, *shapes[name]) if shapes else 0 for name in SIDES}
    commit: dict[str, Any] | None = None
    for name in sorted(SIDES, key=lambda name: -sizes[name]):
        ends = None if commit is None else list(accumulate(s["records"] for s in commit["shards"]))
        mine = {**item, "coded": coded.get(name), "payloads": item.get(f"payloads {name}"), "ends": ends}
        commit = write(mine, storage.join(root, name), codec_name, shard_bytes, shape=shapes.get(name), **settings)
    assert commit is not None
    return commit


def build_as_asked(config: EncodeRecipe, dataset: Dataset, extras: Extras, job: Job, b: Build) -> str:
    """Make the dataset that `b` says, or the two of a dual encoder; returns its path, or that of the one for context images."""
    if not isinstance(config.images, Dual):
        return build(job, b)
    context, target = (_side_build(config, dataset, extras, b, name) for name in SIDES)
    changed = commit_parts(job, replace(context, beside=(target,)))
    seal(target, changed=changed)
    return seal(context, changed=changed)


def _side_build(config: EncodeRecipe, dataset: Dataset, extras: Extras, b: Build, name: str) -> Build:
    """One of the two. Parts keep their fingerprints, which are those of both encoders together: where one changes, both are made anew."""
    output = storage.join(b.output, name)
    return replace(
        b,
        output=output,
        name=f"{b.name}-{name}",
        fingerprint=fingerprint([b.fingerprint, name]),
        parents=[parent(dataset.path, output, dataset.fingerprint)],
        extras=lambda commits: extras(side(config, name), output, commits),
    )


def estimate_both(config: EncodeRecipe, dataset: Dataset) -> Estimate:
    """Of both datasets together: text stands in each, images are decoded once."""
    each = {name: estimate(side(config, name), dataset) for name in SIDES}
    facts = dict(each["context"].facts)
    for key in ("tokens_per_image", "width", "bytes_per_token", "visual_tokens"):
        facts.pop(key, None)
        facts |= {f"{name}_{key}": e.facts[key] for name, e in each.items() if key in e.facts}
    for key in ("text_bytes_estimated", "latent_bytes", "bytes"):
        if key in facts:
            facts[key] = sum(e.facts[key] for e in each.values())
    facts |= {"parts": len(encode_parts(config, dataset)), "output": config.output}
    table = [{**row, "what": f"{name} {row['what']}"} for name, e in each.items() for row in e.table]
    return replace(each["context"], facts=facts, table=table)
