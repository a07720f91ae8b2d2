"""The fit-decoder stage: frames and a frozen encoder -> a decoder for its latents, as an artifact that `decode` loads.

In: an encoded dataset whose frames are still there, or a curated one and an encoder. Out: a folder with config.json and model.safetensors in the
published layout, frames.parquet (PSNR and SSIM of every held-out frame), losses.parquet, sheet.png (held-out frames, each above its reconstruction)
and the card. A fit that was stopped or killed goes on from its newest checkpoint when the same command is given again, and ends in the same bytes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from encode.chain import threads
from encode.decoders.rae import rows_columns
from encode.encoder import Machine, machine_for
from encode.reconstruction import checkpoint
from encode.reconstruction import frames as frame_room
from encode.reconstruction.frames import Frames, open_frames
from encode.reconstruction.recipe import FitDecoder
from encode.weights import file_sha256, tensors_sha256
from pipelines.format import storage
from pipelines.format.document import dump, fingerprint
from pipelines.format.errors import InputError, Stopped
from pipelines.format.estimate import Estimate
from pipelines.format.forgotten import known_as
from pipelines.format.manifest import refuse_other_recipe
from pipelines.format.part import FORMAT
from pipelines.stage import Job

VERSION = 1
HALVES = (0.5, 0.5, 0.5)
# What may change without the decoder changing; weights are known by their hashes instead.
UNHASHED = ("name", "dataset", "encoder", "output", "engine", "resources", "checkpoint_every", "perceptual", "adversarial", "steps", "tokens")


class FitDecoderStage:
    """`pipelines run fit-decoder -c RECIPE.yaml`."""

    config = FitDecoder
    summary = "a decoder from the latents of a frozen encoder back to pixels, fitted to your own frames"

    def plan(self, config: FitDecoder) -> Estimate:
        """Frames, steps, parameters and floating-point operations; nothing is loaded and nothing trained."""
        frames = opened(config)
        train, held = frames.split(config.held_out.fraction, config.held_out.seed, config.held_out.frames)
        grid, size, steps = frames.grid, config.measures(), config.total(frames.grid.tokens)
        patch = patch_of(config, frames)
        block = 4 * size.width**2 + 2 * size.width * size.mlp + 9 * size.width + size.mlp
        ends = (grid.channels + 1) * size.width + (size.width + 1) * patch**2 * 3 + 3 * size.width
        pairs = 2 * size.depth * (grid.tokens + 1) * size.width  # of scores and of weighted values, for each token
        parameters = size.depth * block + ends
        seen = steps * config.batch
        facts: dict[str, Any] = {"frames": len(train), "held_out_frames": len(held), "groups": len(set(frames.groups)), "steps": steps}
        facts |= {"images_seen": seen, "epochs": round(seen / len(train), 2), "latent_tokens_seen": seen * grid.tokens, "parameters": parameters}
        facts |= {"flops": 6.0 * (parameters + pairs) * seen * (grid.tokens + 1), "picture": " x ".join(map(str, frames.size))}
        facts |= {"latents": frame_room.facts(frames)["latents"], "checkpoint_bytes": 16 * parameters, "output": config.output}
        warnings = [] if frames.encoded is not None else ["latents are made on the way, once for each image seen: encode first to make them once"]
        warnings += [] if config.perceptual else ["without `perceptual` the loss is L1 alone: fine detail will be smooth"]
        return Estimate(f"fit-decoder {config.name}", facts, [], warnings)

    def run(self, config: FitDecoder, job: Job) -> str:
        """Fit, unless the output already holds this very decoder. Returns the folder."""
        frames, output = opened(config), storage.absolute(config.output)
        recipe = identity(config, frames)
        refuse_other_recipe(output, "manifest.json", recipe)
        if storage.exists(storage.join(output, "manifest.json")):
            return output
        from encode.reconstruction.publishing import publish

        machine = machine_for(config.dtype, "cpu" if config.resources.gpus == 0 else None)
        with threads(machine, config.resources.cpus):
            train, held = frames.split(config.held_out.fraction, config.held_out.seed, config.held_out.frames)
            fit = started(config, frames, train, machine)
            carried_out(fit, config, output, recipe, job)
            publish(config, fit, held, output, recipe, VERSION)
        checkpoint.clear(output)
        storage.sweep(output)
        return output


STAGE = FitDecoderStage()


def opened(config: FitDecoder) -> Frames:
    """The frames, with the size that the decoder will make of them."""
    frames = open_frames(config.dataset, config.encoder)
    rows, columns = rows_columns(frames.grid)
    patch = patch_of(config, frames)
    frames.reach((rows * patch, columns * patch))
    return frames


def patch_of(config: FitDecoder, frames: Frames) -> int:
    """Pixels a side of each token: as asked, or the encoder's own where its picture divides evenly."""
    rows, columns = rows_columns(frames.grid)
    grid = frames.grid
    if config.patch is not None:
        return config.patch
    if grid.height % rows or grid.width % columns or grid.height // rows != grid.width // columns:
        found = f"{grid.height} x {grid.width} px, {rows} x {columns} tokens"
        raise InputError("the encoder's patches are not square", found=found, next="give `patch`")
    return grid.height // rows


def identity(config: FitDecoder, frames: Frames) -> str:
    """What is being fitted, to what: hashes and settings, and no path."""
    settings = {k: v for k, v in dump(config).items() if k not in UNHASHED}
    asked: dict[str, Any] = {"format": FORMAT, "stage": "fit-decoder", "version": VERSION, **settings}
    asked |= {"frames": known_as(frames.curated), "encoder": frames.encoder.identity(), "steps": config.total(frames.grid.tokens)}
    asked["latents"] = frames.encoded.fingerprint if frames.encoded is not None else None
    if (p := config.perceptual) is not None:
        asked["perceptual"] = [file_hash(p.features), file_hash(p.linear), p.weight]
    if (a := config.adversarial) is not None:
        said = dump(a)
        if a.features is not None:
            said["features"] = {"weights": tensors_sha256(a.features.weights), "layers": list(a.features.layers)}
        asked["adversarial"] = said
    return fingerprint(asked)


def file_hash(path: str) -> str:
    """sha256 of a local file of weights."""
    place = storage.local(storage.absolute(path))
    if not place.is_file():
        raise InputError("no weights there", where=path, allowed="a local safetensors file")
    return file_sha256(place, place.stat().st_size, place.stat().st_mtime_ns)


def started(config: FitDecoder, frames: Frames, train: np.ndarray, machine: Machine) -> Any:
    """The fit before its first step."""
    from encode.reconstruction.fitting import Fit
    from encode.reconstruction.vit import Shape

    size, grid, (rows, columns) = config.measures(), frames.grid, rows_columns(frames.grid)
    shape = Shape(grid.channels, patch_of(config, frames), rows, columns, size.depth, size.width, size.heads, size.mlp)
    prepared = frames.encoder.preprocessing()
    numbers = tuple(prepared.get("mean") or HALVES), tuple(prepared.get("std") or HALVES)
    return Fit(config, frames, train, shape, numbers, machine)


def carried_out(fit: Any, config: FitDecoder, output: str, recipe: str, job: Job) -> None:
    """All steps that are left, with checkpoints. The pixels of the next step are read while one computes."""
    step, state, damaged = checkpoint.newest(output, recipe)
    for path in damaged:
        job.log("damaged checkpoint passed over", path=path)
    if step:
        fit.resume(step, state)
        job.log("resumed", step=step)
    with ThreadPoolExecutor(config.resources.cpus) as readers, ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(fit.frames.pictures, fit.numbers(fit.done), readers)
        while fit.done < fit.steps:
            numbers, pictures = fit.numbers(fit.done), coming.result()
            if fit.done + 1 < fit.steps:
                coming = ahead.submit(fit.frames.pictures, fit.numbers(fit.done + 1), readers)
            fit.step(pictures, fit.frames.latents(numbers))
            stopping, last = job.stop.is_set(), fit.done == fit.steps
            if stopping or last or fit.done % config.checkpoint_every == 0:
                checkpoint.save(output, fit.done, fit.state(), recipe)
            if stopping and not last:
                raise Stopped(f"stopped after step {fit.done} of {fit.steps}; a checkpoint is kept", where=output, next="the same command goes on")
            if fit.done % max(1, fit.steps // 20) == 0:
                job.log("step", step=fit.done, of=fit.steps, l1=round(fit.history[-1][1], 5) if fit.history else None)
