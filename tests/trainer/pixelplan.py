"""Curated pictures, the datasets that the encode stage makes of them, stored or to be encoded while training, and plans over either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from encode.fit_tokenizer import STAGE as FIT
from encode.fit_tokenizer import FitTokenizer
from encode.recipe import EncodeRecipe
from encode.stage import STAGE
from mixtures.mixture import Mixture
from mixtures.plan import make_plan
from pipelines.engine import open_job
from pipelines.format.document import parse
from tests import toys
from tests.trainer import toyplan
from trainer.run import Run

KINDS = ("image-text", "video", "action-video", "vqa")
PIXELS: dict[str, Any] = {"pixels": {"size": 32, "patch": 8}}


def carry_out(stage: Any, config: Any, **keys: Any) -> str:
    with open_job("local") as job:
        return str(stage.run(parse(config, keys), job))


def curated(root: Path, n: int = 24) -> Path:
    """A curated dataset of each kind, in `root`, and a tokenizer."""
    paths = {kind: toys.curated(str(root / kind), kind, n=n) for kind in KINDS}
    carry_out(FIT, FitTokenizer, datasets=[paths[k] for k in KINDS if k != "video"], vocab=300, output=str(root / "tokenizer"))
    return root


def encoded(root: Path, name: str, kind: str, **keys: Any) -> str:
    given = {"dataset": str(root / kind), "text": {"text_tokens": {"tokenizer": str(root / "tokenizer")}}, "images": PIXELS}
    return carry_out(STAGE, EncodeRecipe, **{**given, "output": str(root / name / kind), **keys})


def plan(root: Path, name: str, tokens: int = 1500, kinds: tuple[str, ...] = KINDS, mixture: dict[str, Any] | None = None, **keys: Any) -> str:
    """A plan in rows of 128 over datasets encoded as `keys` say, in `root/name`."""
    more = {"video": {"history": "clean_copy"}, "vqa": {"turns": "isolated"}, "image-text": {"image_first": 0.5}}
    sources = {k: {"dataset": encoded(root, name, k, **keys), "tokens": tokens, "max_epochs": 50, **more.get(k, {})} for k in kinds}
    said = {"sequence_length": 128, "held_out": {"fraction": 0.1, "seed": 0}, "sources": sources, **(mixture or {})}
    return make_plan(Mixture.model_validate(said), str(root / name / "plan"))


def run(of: str, output: Path, **changes: Any) -> Run:
    return toyplan.run(of, output, **{"batch": 3, "flow": {"predict": "x", "cfg_drop": {"caption": 0.1}}, **changes})
