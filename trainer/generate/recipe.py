"""The generate document: which run, which prompts, how text and images are drawn, where it goes. Its keys are the YAML's; no torch here.

    run: out/runs/base                         # pipelines run generate -c FILE
    source: image_text                         # held-out records of a source; or prompts: FILE.jsonl (docs/generation.md)
    count: 16
    sampling: {seed: 0, temperature: 0.8, top_p: 0.95, steps: 50, guidance: 3.0}
    output: out/generated/base
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from mixtures.layout import ACTION, CAPTION, CONTEXT
from pipelines.format import storage
from pipelines.format.document import Document, Size, dump
from trainer.run import Flow

KINDS = {"caption": CAPTION, "action": ACTION, "context": CONTEXT}
# Keys that change where or how fast, not what comes out beyond rounding.
PLACES = frozenset({"name", "run", "output", "batch", "device", "threads", "engine", "resources", "prompts"})


class Sampling(Document):
    """How text and images are drawn.

    temperature 0 is greedy; top_k and top_p are applied after it, in this order (Fan et al., arXiv 1805.04833; Holtzman et al., arXiv 1904.09751).
    Images: `steps` of `sampler` from noise to data, times shifted as in training or by `shift`; guidance g: v = v_without + g (v_with - v_without)
    (Ho and Salimans, arXiv 2207.12598), `without` being the context without the conditions that `drop` names (default: those that fell in training,
    or all when none did). guidance null is 3 where training dropped any, else 1, which asks one context only.
    """

    seed: int = 0
    temperature: float = Field(1.0, ge=0)
    top_k: Size | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    steps: int = Field(25, ge=1)
    sampler: Literal["euler", "heun"] = "euler"
    guidance: float | None = Field(None, ge=0)
    drop: list[Literal["caption", "action", "context"]] | None = None
    shift: float | None = Field(None, gt=0)

    def dropped(self, flow: Flow) -> frozenset[int]:
        """Kinds of conditions that the context without conditions leaves out."""
        fell = [name for name, share in flow.cfg_drop.items() if share]
        return frozenset(KINDS[name] for name in (self.drop if self.drop is not None else fell or KINDS))

    def weight(self, flow: Flow) -> float:
        """The guidance that is used."""
        if self.guidance is not None:
            return self.guidance
        return 3.0 if any(flow.cfg_drop.values()) else 1.0


class Generate(Document):
    """Generation from a finished run.

    prompts: a file of JSON lines; or source: a source of the run's plan, of whose held-out records `count` are asked: text goes on after `given` ids,
    captions are painted (image_first: pictures are captioned), questions are answered, videos go on after `frames` frames, actions are carried out.
    tokens, images: budgets of text and of images the model begins by itself (a line may say its own). samples: outputs for each prompt.
    weights: the last ones, or their moving average where the run kept one (`ema`).
    form: PNGs, latents, or both; auto is PNGs where latents can be turned back: by `decoder` (as a decode recipe names it), or by the encoder itself.
    """

    name: str | None = None
    run: str
    weights: Literal["last", "ema"] = "last"
    prompts: str | None = None
    source: str | None = None
    count: Size = Field(16, ge=1)
    given: int = Field(32, ge=0)
    frames: int = Field(1, ge=0)
    image_first: bool = False
    tokens: Size = Field(128, ge=0)
    images: int = Field(0, ge=0)
    samples: int = Field(1, ge=1)
    sampling: Sampling = Sampling()
    decoder: dict[str, Any] | None = None
    form: Literal["auto", "png", "latents", "both"] = "auto"
    batch: int = Field(16, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int | None = Field(None, ge=1)
    output: str
    engine: Literal["ray", "local"] = "local"
    resources: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _asks_once(self) -> Generate:
        if (self.prompts is None) == (self.source is None):
            raise ValueError("exactly one of `prompts` (a file) and `source` (held-out records of the run's plan) says what is asked")
        return self

    def recipe(self) -> dict[str, Any]:
        """The resolved document, as saved with the output."""
        return dump(self)


def named_files(prompts: str, kinds: Sequence[str] = ("latents", "image")) -> list[str]:
    """Files of latents and pictures that a file of prompts names, in order, each once; a line that cannot be read names none."""
    folder, found = storage.absolute(prompts.rpartition("/")[0] or "."), dict[str, None]()
    for line in storage.read(prompts).splitlines():
        try:
            pieces = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            continue
        for piece in pieces if isinstance(pieces, list) else [pieces]:
            for name in (piece.get(kind) for kind in kinds) if isinstance(piece, dict) else ():
                if isinstance(name, str):
                    found[storage.resolve(name, folder)] = None
    return [f for f in found if storage.exists(f)]
