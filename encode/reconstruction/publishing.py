"""What a finished fit leaves behind: weights, how near they come on frames that were never trained on, a sheet to look at, and the card.

In: a fit after its last step. Out: the files of the artifact, the card last. Held-out frames are decoded by the very network that `decode` runs, from
latents as they are stored and without noise.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encode.decoders.rae import Rae, picture_network, rows_columns
from encode.encoder import Machine, as_written, in_batches
from encode.reconstruction import fidelity, layout, sheet
from encode.reconstruction.fitting import COLUMNS as HISTORY
from encode.reconstruction.fitting import Fit
from encode.reconstruction.frames import Frames
from encode.reconstruction.recipe import FitDecoder
from pipelines.format.document import dump, fingerprint
from pipelines.format.manifest import card, file_entry, parent, publish_card
from pipelines.media import images

SHOWN, COLUMNS = 32, 8  # held-out frames on the sheet, and how many in a row
RUN = 256  # held-out frames in memory as latents at a time


def publish(config: FitDecoder, fit: Fit, held: np.ndarray, output: str, recipe: str, version: int) -> None:
    """Every file, then the card."""
    frames, model = fit.frames, fit.finished()
    mean, std = (tuple(v.flatten().tolist()) for v in (fit.mean.cpu(), fit.std.cpu()))
    made_for = {"name": next(iter(as_written(frames.encoder))), "identity": fingerprint(frames.encoder.identity())}
    said = layout.config_json(model.shape, mean, std, made_for)  # type: ignore[arg-type]
    files = [file_entry(output, "config.json", json.dumps(said, indent=1).encode()), file_entry(output, "model.safetensors", layout.written(model))]
    pictures, rebuilt = frames.pictures(held), seen_again(model, (mean, std), frames, held, fit.machine)
    rows = np.asarray([(fidelity.psnr(a, b), fidelity.ssim(a, b)) for a, b in zip(pictures, rebuilt, strict=True)])
    table, figures = measured(frames, held, rows)
    losses = {name: [row[i] for row in fit.history] for i, name in enumerate(HISTORY)}
    files += [file_entry(output, "frames.parquet", table), file_entry(output, "losses.parquet", parquet(losses))]
    shown = np.linspace(0, len(held) - 1, min(SHOWN, len(held))).round().astype(int)
    sheets = sheet.tiled([list(pictures[shown]), list(rebuilt[shown])], COLUMNS)
    files.append(file_entry(output, "sheet.png", images.encode_png(sheets)))
    seen = {"frames": len(fit.train), "steps": fit.steps, "images_seen": fit.steps * config.batch, "l1_at_the_end": round(fit.history[-1][1], 5)}
    facts = {"records": len(held), "bytes": sum(f["bytes"] for f in files), "files": files, "recipe_fingerprint": recipe}
    facts |= {"figures": {**figures, "fit": seen}, "encoder": as_written(frames.encoder), "shape": asdict(model.shape), "picture": list(frames.size)}
    of = [*([frames.encoded] if frames.encoded is not None else []), frames.curated]
    above, made = [parent(d.path, output, d.fingerprint) for d in of], fingerprint([recipe, files[1]["sha256"]])
    whole = card("decoder", config.name or "decoder", made, dump(config), parents=above, stages={"fit-decoder": version}, **facts)
    publish_card(output, "manifest.json", whole, recipe)


def seen_again(model: Any, numbers: tuple[Any, Any], frames: Frames, held: np.ndarray, machine: Machine) -> np.ndarray:
    """uint8 pictures of the held-out frames."""
    network = picture_network(copy.deepcopy(model), *numbers, rows_columns(frames.grid), machine)
    batch = Rae.model_fields["batch"].default
    runs = np.array_split(held, -(-len(held) // RUN))
    return np.concatenate([picture for some in runs for picture in in_batches(network, frames.latents(some), batch)])


def measured(frames: Frames, held: np.ndarray, rows: np.ndarray) -> tuple[bytes, dict[str, Any]]:
    """(frames.parquet: a row a held-out frame; the card's figures). A group's frames are like one another, so their mean counts once in `by
    group`."""
    record = frames.pixels.record[held]
    groups = np.asarray([frames.groups[r] for r in record])
    columns = {"id": [frames.ids[r] for r in record], "group": groups.tolist(), "psnr": rows[:, 0], "ssim": rows[:, 1]}
    names, of = np.unique(groups, return_inverse=True)
    by_group = {k: np.bincount(of, v) / np.bincount(of) for k, v in (("psnr", rows[:, 0]), ("ssim", rows[:, 1]))}
    figures: dict[str, Any] = {"held_out": {"frames": len(held), "groups": len(names)}}
    for k, name in enumerate(("psnr", "ssim")):
        figures[name] = {"frames": fidelity.summary(rows[:, k]), "groups": fidelity.summary(by_group[name])}
    return parquet(columns), figures


def parquet(columns: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())
