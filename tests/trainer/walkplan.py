"""The little world's walks, curated, encoded as pixels and planned in process, half of them held out: for evaluations of world models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from encode.fit_tokenizer import STAGE as FIT
from encode.fit_tokenizer import FitTokenizer
from encode.recipe import EncodeRecipe
from encode.stage import STAGE as ENCODE
from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from tests.trainer.pixelplan import carry_out
from trainer.evaluate._subject import Subject
from trainer.models.transfusion import Transfusion
from trainer.run import Flow
from trainer.stream import Reader


def make(root: Path, curated: str, size: int = 32) -> Plan:
    """A plan of one source, `action`, over a curated action-video dataset."""
    tokenizer = carry_out(FIT, FitTokenizer, datasets=[curated], vocab=300, output=str(root / "tokenizer"))
    given: dict[str, Any] = {"dataset": curated, "text": {"text_tokens": {"tokenizer": tokenizer}}, "images": {"pixels": {"size": size, "patch": 8}}}
    encoded = carry_out(ENCODE, EncodeRecipe, **given, output=str(root / "encoded"))
    said = {"sequence_length": 256, "held_out": {"fraction": 0.5, "seed": 0}, "sources": {"action": {"dataset": encoded, "epochs": 1}}}
    return Plan.open(make_plan(Mixture.model_validate(said), str(root / "plan")))


def world(root: Path, scenes: int = 24, **keys: Any) -> Plan:
    """The same over walks of the world, `steps` 12."""
    from pipelines.curate import ACTION_VIDEO
    from pipelines.recipe import Recipe

    source = {"world": {"kind": "action-video", "scenes": scenes, "seed": 5, "goals": 1, **keys}}
    return make(root, carry_out(ACTION_VIDEO, Recipe, name="walks", source=source, output=str(root / "curated")))


def subject(plan: Plan) -> Subject:
    """An untrained model of that plan."""
    torch.manual_seed(0)
    reader = Reader(plan)
    image = plan.card["encoding"]["image"]
    model = Transfusion(layers=1, width=32, heads=2).build(int(plan.card["encoding"]["text"]["vocab"]), image["width"], image["tokens"])
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    run = type("R", (), {"flow": Flow(predict="x")})()
    return Subject(model.eval(), run, reader)


def pixels(latents: np.ndarray) -> np.ndarray:
    """uint8 [n, 32, 32, 3] of latents of the pixels encoder."""
    from encode.encoders.pixels import Pixels

    return Pixels(size=32, patch=8).pictures(latents)


class Oracle:
    """Stands in for `_imagined.imagined`: does to the letter what an action's text says, by the true simulator. `deaf` hears no move at all."""

    def __init__(self, plan: Plan, deaf: bool = False) -> None:
        from trainer.evaluate._questions import held_out_records
        from trainer.evaluate._simulated import Seen
        from trainer.evaluate._tokenizers import tokenizer_of

        self.seen, self.deaf = Seen(plan.datasets[0]), deaf
        self.tokenizer = tokenizer_of(plan, "action")
        self.records = {r.id: r for _, _, r in held_out_records(plan, "action")}
        self.asked = 0

    def __call__(self, maker: Any, asked: Any) -> list[list[np.ndarray]]:
        from pipelines.world.service_walker import walker

        out = []
        for a in asked:
            self.asked += 1
            record = self.records[a.id.split("/")[1]]
            world = walker(record.origin, record.fields, 32)
            assert world is not None
            poses = [np.array(record.fields["poses"])[3:4]]
            for ids in a.actions:
                poses.append(world.moved(poses[-1], self.move(self.tokenizer.decode(ids.tolist()))[None]))
            out.append(list(self.seen.latents(world.seen(np.concatenate(poses[1:])))))
        return out

    def move(self, text: str) -> np.ndarray:
        from trainer.evaluate._moves import MOVE, Wording

        if self.deaf or "dx=" not in text:
            return np.zeros(3)
        told = Wording(text, self.tokenizer).numbers()
        return np.array([told[n] for n in MOVE])


def values(rows: list[dict[str, Any]], metric: str) -> dict[str, float]:
    """A metric's values by split."""
    return {r["split"]: r["value"] for r in rows if r["metric"] == metric}
