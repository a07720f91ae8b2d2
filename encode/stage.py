"""The encode stage: a curated dataset -> an encoded one, so that every ablation reads latents and token ids for nothing.

    parent shards -> parts -> load (CPU) -> encode (device) -> write (CPU) -> shards -> card with encoding and statistics

Text becomes tokens and images become latents; a record keeps its id, group, roles, atoms, turns, caption names, times, fields, scores and
licence. Each distinct image of a part is encoded once, and the records that show it share its bytes. The card's `encoding` says all that
a planner or a trainer needs: vocabulary, structure tokens, latent shape, codec, statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from encode.codec_error import CodecError
from encode.dual import build_as_asked, estimate_both
from encode.encoder import ImageEncoder, as_written
from encode.encoders.dual import Dual
from encode.encoders.reuse import Reuse
from encode.estimate import estimate
from encode.parts import VERSION, encode_parts, encoding_identity
from encode.recipe import EncodeRecipe
from encode.sampled_stats import sampled_statistics
from encode.stats import Statistics, carried, merge_parts
from pipelines.build import Build
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import dump, fingerprint, part_name
from pipelines.format.errors import InputError, RecipeError
from pipelines.format.estimate import Estimate
from pipelines.format.manifest import file_entry, parent
from pipelines.format.part import FORMAT
from pipelines.stage import Job, Step, together

Commits = Callable[[], Iterator[dict[str, Any]]]


class EncodeStage:
    """`pipelines run encode -c RECIPE.yaml`. A dual encoder makes two datasets; the path that is given is that of the one for context images."""

    config = EncodeRecipe
    summary = "texts to token ids and images to latents: a curated dataset -> an encoded one"

    def plan(self, config: EncodeRecipe) -> Estimate:
        """Images, tokens and disk, without encoding anything."""
        dataset = opened(config)
        return estimate_both(config, dataset) if isinstance(config.images, Dual) else estimate(config, dataset)

    def run(self, config: EncodeRecipe, job: Job) -> str:
        """Make the encoded dataset; returns its path."""
        dataset = opened(config)
        output = storage.absolute(config.output)
        # No path stands in the fingerprint: the parent is known by how it was made, weights and tokenizer by their hashes.
        made = {"parent": dataset.card.get("recipe_fingerprint"), **encoding_identity(config), "seed": config.seed}
        return build_as_asked(
            config,
            dataset,
            lambda one, output, commits: extras(one, dataset, output, commits, job),
            job,
            Build(
                output=output,
                name=config.name or dataset.card["name"],
                data=dataset.data,
                recipe=dump(config),
                fingerprint=fingerprint({"format": FORMAT, "stage": "encode", "version": VERSION, **made}),
                parts=encode_parts(config, dataset),
                chain=lambda: chain(config, dataset, output, job),
                parents=[parent(dataset.path, output, dataset.fingerprint)],
                versions={"encode": VERSION},
                extras=lambda commits: extras(config, dataset, output, commits, job),
            ),
        )


STAGE = EncodeStage()


def opened(config: EncodeRecipe) -> Dataset:
    """The curated dataset, with what cannot be encoded refused before anything runs."""
    dataset = Dataset.open(storage.absolute(config.dataset))
    if dataset.encoding is not None:
        raise InputError("this dataset is already encoded", where=config.dataset, next="name the curated dataset that it was made from")
    if config.images is None and has_images(dataset):
        raise RecipeError(
            "the dataset has images, and the recipe says nothing about them",
            where=f"{config.dataset} ({dataset.data})",
            next="add `images: {pixels: {}}`, another encoder of encode/encoders, or `images: {reuse: DATASET}`",
        )
    return dataset


def chain(config: EncodeRecipe, dataset: Dataset, output: str, job: Job) -> list[Step]:
    """load -> encode -> write; without images of our own to encode, load -> write.

    With GPUs these are three kinds of worker: processors decode and write for the GPUs. On processors alone they are one, as many times as it
    fits: then no processor is set aside for work that takes a hundredth of the time, and no picture travels.
    """
    from encode.chain import Encode, load, write

    encoder = config.images if isinstance(config.images, ImageEncoder) and has_images(dataset) else None
    reuse = Dataset.open(storage.absolute(config.images.dataset)) if isinstance(config.images, Reuse) else None
    other = None if reuse is None else (reuse.path, reuse.fingerprint)
    if isinstance(config.images, Dual):
        from encode.dual import EncodeBoth as Encode  # type: ignore[assignment]
        from encode.dual import write_both as write
    later = config.storage == "none"
    read = {"dataset": (dataset.path, dataset.fingerprint), "text": config.text, "encoder": encoder, "encode_later": later, "other": other}
    save = {"root": output, "codec_name": config.storage, "shard_bytes": config.shard_bytes, "shape": None}
    if encoder is None or later:
        return [Step(load, read, name="load"), Step(write, save, name="write")]
    grid, gpus = encoder.grid(), gpus_each(config, encoder, job)
    save["shape"] = (grid.tokens, grid.channels)
    settings = {"encoder": encoder, "codec_name": config.storage, "device": None if gpus else "cpu", "threads": config.resources.cpus}
    encode = Step(Encode, settings, cpus=config.resources.cpus, gpus=gpus, actors=config.resources.actors, name="encode")
    if job.where == "ray" and not gpus:
        return [together([Step(load, read), encode, Step(write, save)], "encode")]
    if not gpus:
        return [Step(load, read, name="load"), encode, Step(write, save, name="write")]
    # Decoding takes twice the processor time of hashing and writing; one processor drives the GPU.
    writers = max(1, (job.cpus - 1) // 3)
    loaders = max(1, job.cpus - 1 - writers)
    return [Step(load, read, name="load", processes=loaders), replace(encode, at_once=2), Step(write, save, name="write", processes=writers)]


def gpus_each(config: EncodeRecipe, encoder: ImageEncoder, job: Job) -> float:
    """GPUs of one encoding worker: as asked, else one where there are any and the encoder can use it. Of a running cluster its GPUs count, of
    this machine what the driver's torch sees."""
    if config.resources.gpus is not None:
        return config.resources.gpus
    if encoder.machine("cpu").kind == "any":
        return 0.0
    return float(encoder.machine().device == "cuda" if job.gpus is None else job.gpus > 0)


def extras(config: EncodeRecipe, dataset: Dataset, output: str, commits: Commits, job: Job) -> dict[str, Any]:
    """What the card says beside counts: the encoding, with the tokenizer and the merged statistics as files of the dataset."""
    tokenizer = config.text.load()
    files = [file_entry(output, "tokenizer.json", tokenizer.file)]
    # `encoding` enters the dataset's fingerprint, so it holds no path; how to open the encoders again stands beside it.
    encoding: dict[str, Any] = {"text": tokenizer.card()}
    encoders: dict[str, Any] = {"text": as_written(config.text)}
    identity: dict[str, Any] = {}  # what the latents depend on, key by key: an audit says by it what is another now
    stats: Statistics | None = None
    seen: list[str] = []
    figures: dict[str, Any] = {}
    if isinstance(config.images, Reuse):
        other = Dataset.open(storage.absolute(config.images.dataset))
        assert other.encoding is not None
        figures = {k: v for k, v in (other.card.get("figures") or {}).items() if k == "codec"}
        encoding["image"], encoders["image"] = other.encoding["image"], other.card["encoders"]["image"]
        identity = other.card.get("identity") or {}
        stats = carried(other)
    elif config.images is not None and has_images(dataset):
        if config.storage == "none":
            # The fingerprint stays that of the identity: no byte of this dataset depends on where a sample was encoded.
            assert isinstance(config.images, ImageEncoder)
            stats, _ = sampled_statistics(config, dataset, job, gpus_each(config, config.images, job))
        else:
            stats, seen = merge_parts(output, commits, job)
        error, grid = codec_error(commits), config.images.grid()
        figures = {"codec": {config.storage: error.figures(config.storage, grid.tokens, grid.channels)}} if error.n else {}
        encoding["image"], encoders["image"] = image_card(config.images, config.storage, seen), as_written(config.images)
        identity = {"image": config.images.identity()}
    if stats is not None:
        encoding["stats"], entries = stats.publish(output)
        files += entries
    # What a codec lost is no part of `encoding`: it says nothing that the bytes do not, and the last bits of a sum may differ between devices.
    said = {"identity": identity, "figures": figures}
    return {"encoding": encoding, "encoders": encoders, "files": files, **{key: value for key, value in said.items() if value}}


def codec_error(commits: Commits) -> CodecError:
    """What the codec lost in all parts together, in part order."""
    return CodecError.total([CodecError.from_json(c["stats"]["error"]) for c in commits() if "error" in (c["stats"] or {})])


def image_card(encoder: ImageEncoder, codec_name: str, seen: list[str]) -> dict[str, Any]:
    """How the images were encoded. A job that ran on several kinds of device has a fingerprint of its own."""
    grid = encoder.grid()
    one = seen[0] if len(seen) == 1 else fingerprint(seen or encoder.identity())
    shape = {"tokens": grid.tokens, "width": grid.channels, "codec": codec_name, "pixels": [grid.height, grid.width]}
    return {"encoder": part_name(encoder), "fingerprint": one, **shape}


def has_images(dataset: Dataset) -> bool:
    """A shard with a data file holds images; text lies in the index."""
    return any(shard.data for shard in dataset.shards)
