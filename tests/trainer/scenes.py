"""Captioned pictures of the world as an encoded dataset that is held out whole, and painters that stand in for the generator: what paints the true
picture, another caption's, or the true one with something done to it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from encode.encoders.pixels import Pixels
from mixtures import latent_stats
from mixtures.span import Row, SourceRules, Span
from pipelines.format import codec
from pipelines.format.dataset import Dataset
from pipelines.format.document import fingerprint
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment
from pipelines.world import language, render
from pipelines.world.scene import make_scene
from tests import toys
from tests.trainer.asked import SPECIALS, ids, tokenizer
from trainer.evaluate._subject import Subject
from trainer.flow import Flow
from trainer.generate.generator import Generator
from trainer.generate.prompt import Generated
from trainer.models.transfusion import Transfusion
from trainer.stream import Reader

ENCODER = Pixels(size=32, patch=8)
TOKENS, WIDTH = 16, 192
SEED = 5


def latents(pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, 32, 32, 3] → float32 [n, 16, 192]."""
    p = pixels.reshape(-1, 4, 8, 4, 8, 3).swapaxes(2, 3).reshape(len(pixels), TOKENS, WIDTH)
    return p / np.float32(127.5) - np.float32(1)


def pixels_of(x: np.ndarray) -> np.ndarray:
    """The other way, one picture."""
    return ENCODER.pictures(x[None])[0]


def pair(number: int) -> Record:
    scene = make_scene(SEED, number)
    x = latents(render.picture(scene)[None])[0]
    image = Segment("latents", "target", 0, payload=codec.encode_latents(x, "f32"), dtype="f32", shape=x.shape, tokens=TOKENS)
    named = {"original": language.original(scene), "recaption": language.recaption(scene)}
    words = [dataclasses.replace(ids(text, "target", -1, 1 + k), member=name) for k, (name, text) in enumerate(named.items())]
    return Record.make("world", f"scene-{number}", "image-text", [image, *words], scene.group)


class Pairs:
    """A plan whose held-out split is `n` scenes of one source; the plan chose the full captions of even scenes and the short ones of odd ones."""

    def __init__(self, path: str, n: int = 40) -> None:
        self.sources, self.sequence_length, self.specials, self.path = ["image_text"], 512, SPECIALS, path
        made = [pair(i) for i in range(n)]
        with PartWriter(path, 0, fingerprint=fingerprint("pairs"), encoded=True) as w:
            for r in made:
                w.emit()
                w.add(r)
            commits = [w.commit()]
        encoding: dict[str, Any] = {"text": {"tokenizer_sha256": "0" * 64, "vocab": 261, "specials": SPECIALS._asdict()}}
        encoding["image"] = {"encoder": "pixels", "fingerprint": "0" * 64, "tokens": TOKENS, "width": WIDTH, "codec": "f32"}
        encoding["stats"], _ = latent_stats.publish(path, (n, np.zeros(WIDTH), np.full(WIDTH, 0.4 * n)))
        toys.seal(path, "pairs", "image-text", commits, {}, encoding)
        tokenizer().save(f"{path}/tokenizer.json")
        data = Dataset.open(path)
        data.card["encoders"] = {"image": {"pixels": {"size": 32, "patch": 8}}}
        self.datasets, self.records = [data], list(data.records(0))
        self.card: dict[str, Any] = {"encoding": encoding, "sources": {"image_text": {"taken": n}}}
        self.spans = [Span(0, 0, 0, i, 0, 3, 1 + (i % 2 == 0), 0, 0, True, (True, True, True), 0) for i in range(n)]

    def rules(self, source: str) -> SourceRules:
        return SourceRules()

    def held_out(self, source: str) -> range:
        return range(len(self.spans))

    def row(self, i: int, split: str = "train") -> Row:
        return Row(i, 0, 0, 1, 1.0, (self.spans[i],))

    def record(self, span: Span) -> Record:
        return self.records[span.row]

    def latent_stats(self):
        return 1, np.zeros(WIDTH), np.ones(WIDTH) - 1e-5


class Ran:
    flow = Flow(cfg_drop={"caption": 0.1})


def subject(plan: Pairs) -> Subject:
    """A tiny model, deterministic, that has learnt nothing."""
    torch.manual_seed(3)
    model = Transfusion(layers=1, width=32, heads=2, qk_norm=False).build(261, WIDTH, TOKENS)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return Subject(model.eval(), Ran(), Reader(plan))


def paints(monkeypatch: Any, plan: Pairs, done: Any = lambda x, rng: x, of: Any = lambda i, n: i) -> list[int]:
    """The generator paints the picture of record of(i, n) where record i is asked, with `done` done to its pixels. Returns how many, call by call."""
    calls: list[int] = []
    names = {r.id: i for i, r in enumerate(plan.records)}

    def generate(self: Generator, prompts: Any) -> list[Generated]:
        calls.append(len(prompts))
        out = []
        for p in prompts:
            i = names.get(p.id, len(p.id))
            truth = pixels_of(np.asarray(plan.datasets[0].array(0, plan.records[of(i, len(names)) % len(names)].segments[0])))
            out.append(Generated(p, [latents(done(truth, np.random.default_rng([i, p.sample]))[None])[0]]))
        return out

    monkeypatch.setattr(Generator, "generate", generate)
    return calls


def noisy(amount: float) -> Any:
    """Pixels with noise of so many units of 255."""
    return lambda x, rng: np.clip(x + amount * rng.standard_normal(x.shape), 0, 255).astype(np.uint8)
