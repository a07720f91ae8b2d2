"""The convert-decoder stage: a published decoder that is a pickled .pt -> the folder that `decode` loads.

In: a state_dict of RAE's decoder, bare or inside a training checkpoint, as `torch.save` wrote it. Out: model.safetensors, config.json and a card.
This is the one place that opens a pickled file, and it opens it with `weights_only=True`, which builds tensors and plain containers and runs
nothing that the file names; whatever else is in it is an error. It happens once, in a command that says so, on a file that a person chose: nothing
that runs on a dataset's or a hub's word ever unpickles.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field, model_validator

from encode.weights import file_sha256
from pipelines.format import storage
from pipelines.format.document import Document, dump, fingerprint
from pipelines.format.errors import InputError
from pipelines.format.estimate import Estimate
from pipelines.format.manifest import card, file_entry, publish_card, refuse_other_recipe
from pipelines.format.part import FORMAT
from pipelines.stage import Job

VERSION = 1
WRAPPERS = ("module.", "_orig_mod.", "decoder.")  # of data parallelism, of compilation, of the whole autoencoder
Triple = tuple[float, float, float]


class ConvertDecoder(Document):
    """`source`: the .pt file. `average`: of a training checkpoint, its moving average rather than its weights. `heads` is needed only for sizes
    other than the published ones; `image_mean` and `image_std` where the encoder's own image processor is not what pixels were normalised by."""

    name: str = ""
    source: str
    average: bool = True
    heads: int | None = Field(None, ge=1)
    image_mean: Triple | None = None
    image_std: Triple | None = None
    output: str
    engine: Literal["ray", "local"] = "local"

    @model_validator(mode="after")
    def _both(self) -> ConvertDecoder:
        if (self.image_mean is None) != (self.image_std is None):
            raise ValueError("image_mean and image_std come together")
        return self


class ConvertDecoderStage:
    """`pipelines run convert-decoder -c convert_decoder source=model.pt output=DIR`."""

    config = ConvertDecoder
    summary = "a published RAE decoder (.pt) to safetensors, once, without running what a pickle says"

    def plan(self, config: ConvertDecoder) -> Estimate:
        """The file's size; it is not opened."""
        return Estimate(f"convert-decoder {config.name}", {"source": config.source, "bytes": storage.size(config.source), "output": config.output})

    def run(self, config: ConvertDecoder, job: Job) -> str:
        """Convert, unless the output already holds this very decoder. Returns the folder."""
        place, output = storage.local(storage.absolute(config.source)), storage.absolute(config.output)
        if not place.is_file():
            raise InputError("no such file", where=config.source, allowed="a local .pt file")
        source = file_sha256(place, place.stat().st_size, place.stat().st_mtime_ns)
        settings = {k: v for k, v in dump(config).items() if k not in ("name", "source", "output", "engine")}
        recipe = fingerprint({"format": FORMAT, "stage": "convert-decoder", "version": VERSION, **settings, "source": source})
        refuse_other_recipe(output, "manifest.json", recipe)
        if storage.exists(storage.join(output, "manifest.json")):
            return output
        from encode.reconstruction import layout

        given = {"decoder_num_attention_heads": config.heads, "image_mean": config.image_mean, "image_std": config.image_std}
        model = layout.built(tensors(str(place), config.average), given, config.source).model
        said = layout.config_json(model.shape, config.image_mean, config.image_std)
        files = [
            file_entry(output, "config.json", json.dumps(said, indent=1).encode()),
            file_entry(output, "model.safetensors", layout.written(model)),
        ]
        facts = {"files": files, "bytes": sum(f["bytes"] for f in files), "recipe_fingerprint": recipe, "shape": asdict(model.shape)}
        facts["source_sha256"] = source
        made, name = fingerprint([recipe, files[1]["sha256"]]), config.name or "decoder"
        publish_card(output, "manifest.json", card("decoder", name, made, dump(config), stages={"convert-decoder": VERSION}, **facts), recipe)
        storage.sweep(output)
        return output


STAGE = ConvertDecoderStage()


def tensors(path: str, average: bool) -> dict[str, Any]:
    """The decoder's tensors of a pickled file, under their published names."""
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # pickles fail in as many ways as there are programs
        why = f"{type(e).__name__}: {str(e).splitlines()[0]}"[:300] if str(e) else type(e).__name__
        raise InputError("this file is more than tensors, or damaged: it is not opened", where=path, found=why, allowed="a state_dict") from None
    for key in ("ema", "model") if average else ("model", "ema"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    kept = {unwrapped(name): value for name, value in found.items() if isinstance(value, torch.Tensor)} if isinstance(found, dict) else {}
    kept = {name: value for name, value in kept.items() if name.startswith("decoder_") or name == "trainable_cls_token"}
    if not kept:
        raise InputError("there is no RAE decoder in this file", where=path, found=type(found).__name__, allowed="decoder_embed.weight and its like")
    return kept


def unwrapped(name: str) -> str:
    """The name without what training wrapped around it."""
    while any(name.startswith(w) for w in WRAPPERS):
        name = next(name.removeprefix(w) for w in WRAPPERS if name.startswith(w))
    return name
