"""Evaluations on an accelerator: do they say what a CPU says, and how long do they take at the paper's size?

    evaluate.same.*     a small model on pictures, and on walks of the little world: the rows of `text_perplexity`, `flow_loss` and `rollout`
    evaluate.<size>.*   a model of the paper's shape with random weights: text read, pictures painted, frames imagined, in bf16 as runs on a GPU are
                        judged, against the same in float32

Weights are random because speed and rounding do not depend on what was learned. A plan's pictures are painted in 25 steps with guidance 3, frames are
imagined from four others; the released settings of planning imagine 120 candidates x 3 repeats x 8 frames for a goal.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_rows import Row, Sizes, row, sync, timed

GOAL = 120 * 3 * 8  # frames imagined for one goal of planning


def sections(root: Path, device: str, s: Sizes) -> list[tuple[str, Callable[[], Iterator[Row]]]]:
    """Whether it is right, and what it costs."""
    name, shape = s.models[0]
    return [
        ("evaluate.same", lambda: same(root / "same", device)),
        (f"evaluate.{name}", lambda: speed(name, shape, device, s)),
    ]


def same(root: Path, device: str) -> Iterator[Row]:
    """Rows of the same weights on the CPU and here, in float32 and in bf16."""
    from mixtures.plan import Plan
    from tests.trainer import pixelplan, walkplan
    from trainer.evaluate.flow_loss import FlowLoss
    from trainer.evaluate.rollout import Rollout
    from trainer.evaluate.text_perplexity import TextPerplexity
    from trainer.generate.recipe import Sampling
    from trainer.models.load import rounded
    from trainer.parallel import initialise

    pictures = pixelplan.plan(pixelplan.curated(root / "pictures"), "encoded", mixture={"held_out": {"fraction": 0.5, "seed": 0}})
    asked = [
        (Plan.open(pictures), [TextPerplexity(sources=["image-text", "vqa"]), FlowLoss()]),
        (walkplan.world(root / "walks", scenes=16), [Rollout(records=8, pixels=False, simulator=None, sampling=Sampling(steps=6))]),
    ]
    found: dict[str, list[dict[str, Any]]] = {}
    for way, place, half in (("cpu", "cpu", False), ("fp32", device, False), ("bf16", device, True)):
        found[way] = []
        for plan, parts in asked:
            subject = walkplan.subject(plan)
            initialise(subject.model, 0)
            torch.nn.init.normal_(subject.model.latent_out.weight, std=32**-0.5)  # as large as what it should say
            if half:
                rounded(subject.model)
            subject.model.to(place)
            subject.device = place
            found[way] += [r for part in parts for r in part.run(subject, str(root / way))]
    for way, bar in (("fp32", 1e-3), ("bf16", 3e-2)):
        for part in ("text_perplexity", "flow_loss", "rollout.latent"):
            pairs = [(a["value"], b["value"]) for a, b in zip(found["cpu"], found[way], strict=True) if a["metric"] == part]
            worst = max(abs(a - b) / abs(a) for a, b in pairs)
            yield row(f"evaluate.same.{part}.{way}", worst, f"worst relative difference of {len(pairs)} rows from the CPU's in f32", None, "",
                      f"<= {bar:g}", worst <= bar)  # fmt: skip


def speed(name: str, shape: dict[str, Any], device: str, s: Sizes) -> Iterator[Row]:
    """Text read, pictures painted and frames imagined a second."""
    from mixtures.span import Specials
    from trainer.batch import collate
    from trainer.evaluate._imagined import Imagine, imagined
    from trainer.evaluate._subject import Subject
    from trainer.generate.generator import Generator
    from trainer.generate.prompt import PAINT, Prompt
    from trainer.generate.recipe import Sampling
    from trainer.models.load import rounded
    from trainer.models.transfusion import Transfusion
    from trainer.parallel import initialise
    from trainer.run import Flow

    specials = Specials(*(s.vocab - 5 + i for i in range(5)))
    with torch.device("meta"):
        model = Transfusion.model_validate(shape).build(s.vocab, s.channels, s.patches)
    model = model.to_empty(device=device)
    initialise(model, 0)
    model.eval()
    run = type("Run", (), {"flow": Flow(predict="x", cfg_drop={"caption": 0.1})})()
    reader: Any = type("Reader", (), {"normaliser": None, "plan": type("Plan", (), {"specials": specials})})()
    rng = np.random.default_rng(0)
    words = lambda n: rng.integers(0, s.vocab - 8, n).astype(np.int32)
    latents = lambda: rng.standard_normal((s.patches, s.channels), dtype=np.float32)
    many = 120 if device == "cuda" else 4
    prompts = [Prompt(f"p{i}", (words(30), PAINT)) for i in range(32 if device == "cuda" else 2)]
    context = [latents() for _ in range(4)]
    asked = [Imagine(f"i{i}", context, [words(20)]) for i in range(many)]
    windows = [_window(words(s.sequence - 1), specials) for _ in range(8)]
    reading = [collate([[w]], range(1), len(w), specials.pad, s.channels) for w in windows]
    steps = 25 if device == "cuda" else 2
    took: dict[str, dict[str, float]] = {}
    for way in ("fp32", "bf16"):
        judged = copy.deepcopy(model) if way == "fp32" else model
        if way == "bf16":
            rounded(judged)
        subject = Subject(judged, run, reader, device, way)
        painter = Generator.of(subject, Sampling(steps=steps, guidance=3.0), batch=many)
        dreamer = Generator.of(subject, Sampling(steps=steps, guidance=1.0), batch=many)
        took[way] = {
            "text": timed(partial(_read, subject, reading), 2),
            "paint": once(painter.generate, prompts),
            "imagine": once(partial(imagined, dreamer), asked),
        }
        del judged, subject, painter, dreamer
        if device == "cuda":
            torch.cuda.empty_cache()
    work = {"text": sum(len(w) for w in windows), "paint": len(prompts), "imagine": len(asked)}
    units = {
        "text": f"positions/s read for perplexity in windows of {s.sequence}, bf16",
        "paint": f"pictures/s, {steps} steps, guidance 3, {len(prompts)} side by side, bf16",
        "imagine": f"frames/s, {steps} steps, no guidance, {many} candidates side by side, bf16",
    }
    for what, n in work.items():
        ours, peer = n / took["bf16"][what], n / took["fp32"][what]
        yield row(f"evaluate.{name}.{what}", ours, units[what], peer, "float32", "> 1", ours > peer)
    yield row(f"evaluate.{name}.goal", GOAL * took["bf16"]["imagine"] / work["imagine"], f"s for a goal of planning, {GOAL:,} frames, bf16",
              GOAL * took["fp32"]["imagine"] / work["imagine"], "float32")  # fmt: skip


def once(run: Callable[[list[Any]], Any], asked: list[Any]) -> float:
    """Seconds of one call, after one for the first two alone."""
    run(asked[:2])
    sync()
    began = time.perf_counter()
    run(asked)
    sync()
    return time.perf_counter() - began


def _read(subject: Any, batches: list[Any]) -> None:
    """What `text_perplexity` does with batches."""
    from trainer.evaluate.text_perplexity import nats_of, payload_targets

    for batch in batches:
        nats_of(subject, batch, payload_targets(batch, subject.specials)[1])


def _window(ids: np.ndarray, specials: Any) -> Any:
    from trainer.evaluate._windows import text_pieces

    tokens = np.concatenate([[specials.bos], ids]).astype(np.int32)
    counted = np.ones(len(tokens), np.bool_)
    counted[0] = False
    return text_pieces("w", tokens, counted, True, len(tokens), len(tokens) // 2)[0].document

