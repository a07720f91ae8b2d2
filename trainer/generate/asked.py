"""What is asked of a run: lines of a file, or held-out records of a source cut where the model is to go on. Out: prompts, with the truth where known.

Which held-out records are asked depends on the records alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixtures.layout import atom_ranges, span_segments
from pipelines.format import chance
from pipelines.format.errors import InputError
from trainer.generate.prompt import PAINT, Piece, Prompt
from trainer.generate.recipe import Generate


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, the source it belongs to (or ""), and what stands there in truth (ids, latents as stored; empty where nobody knows)."""

    prompt: Prompt
    source: str
    truth: tuple[np.ndarray, ...] = ()

    def resolved(self, ids: Callable[[str, str], list[int]]) -> Asked:
        """Strings as ids, by `ids(text, source)`."""
        pieces = tuple(np.array(ids(p, self.source), np.int32) if isinstance(p, str) else p for p in self.prompt.pieces)
        return replace(self, prompt=replace(self.prompt, pieces=pieces))


def asked(config: Generate, reader: Any, looks: bool = True) -> list[Asked]:
    """All prompts, each `samples` times, in order. looks=False: pictures are not encoded, zeros stand for them."""
    from trainer.generate.lines import from_file

    found = from_file(config, reader.plan, looks) if config.prompts is not None else held_out(config, reader)
    of_images = [a for a in found if a.prompt.images or any(p is PAINT or getattr(p, "ndim", 1) == 2 for p in a.prompt.pieces)]
    if of_images and "image" not in reader.plan.card["encoding"]:
        raise InputError("the run's plan has no images, so its model reads and makes none", found=f"prompt {of_images[0].prompt.id}")
    return [replace(a, prompt=replace(a.prompt, sample=k)) for a in found for k in range(config.samples)]


def held_out(config: Generate, reader: Any) -> list[Asked]:
    """Held-out records of a source. InputError where there are none of its kind to ask."""
    plan, source = reader.plan, str(config.source)
    if source not in plan.sources:
        raise InputError("the plan has no such source", where="source", found=source, allowed=", ".join(plan.sources))
    spans = [s for i in plan.held_out(source) for s in plan.row(i, "heldout").spans if not reader.shard(s.dataset, s.shard).gone[s.row]]
    kinds = {plan.datasets[s.dataset].data for s in spans}
    found = (_questions(config, plan, source) if kinds == {"vqa"} else []) or _of_spans(config, plan, source, spans)
    if not found:
        raise InputError("no held-out records to ask", found=source, next="raise held_out.fraction of the mixture, or name another source")
    return found


def _questions(config: Generate, plan: Any, source: str) -> list[Asked]:
    from trainer.evaluate._questions import held_out_questions

    out = []
    for q in held_out_questions(plan, source, config.count):
        pieces: list[Piece] = []
        done = 0
        for image, place in zip(q.images, q.places or [0] * len(q.images), strict=True):
            pieces += [q.ids[done:place], image]
            done = max(done, place)
        pieces = [p for p in (*pieces, q.ids[done:]) if len(p)]  # type: ignore[arg-type]
        out.append(Asked(Prompt(f"{q.id}/{q.turn}", tuple(pieces), config.tokens), source, (q.answer_ids,)))
    return out


def _of_spans(config: Generate, plan: Any, source: str, spans: list[Any]) -> list[Asked]:
    out, seen = list[Asked](), set[str]()
    ordered = sorted(((chance.draw(plan.record(s).h, 0, "generate"), i) for i, s in enumerate(spans)))
    for _, i in ordered:
        record = plan.record(spans[i])
        if record.id not in seen and len(out) < config.count and (made := _of_span(config, plan, source, spans[i], record)) is not None:
            seen.add(record.id)
            out.append(made)
    return out


def _of_span(config: Generate, plan: Any, source: str, span: Any, record: Any) -> Asked | None:
    """The record cut where its kind of data is to be gone on with; None where nothing would be left to make."""
    data, history = plan.datasets[span.dataset], plan.rules(source).history
    read = lambda i: np.asarray(data.array(span.shard, record.segments[i]))
    chosen = span_segments(span, record.segments, atom_ranges(record.segments))
    images, texts = ([i for i in chosen if (record.segments[i].kind == "latents") == wanted] for wanted in (True, False))
    if record.data == "text":
        ids = np.concatenate([read(i) for i in texts])[span.start : span.stop].astype(np.int32)
        cut = min(config.given, len(ids) // 2)
        prompt, rest = Prompt(record.id, (ids[:cut],), config.tokens, config.images), ids[cut : cut + config.tokens]
        return Asked(prompt, source, (rest,)) if len(rest) and span.start == 0 else None
    if record.data == "image-text" and span.caption >= 0:
        if config.image_first:
            return Asked(Prompt(record.id, tuple(read(i) for i in images), config.tokens), source, (read(span.caption).astype(np.int32),))
        return Asked(Prompt(record.id, (read(span.caption).astype(np.int32), PAINT)), source, (read(images[0]),))
    if record.data == "video" and len(images) > config.frames and span.first == 0:  # a later piece of a long clip has no BOS in training
        begun = tuple(read(i) for i in images[: config.frames])
        prompt = Prompt(record.id, (*begun, *[PAINT] * (len(images) - config.frames)), images_as="frame", history=history)
        return Asked(prompt, source, tuple(read(i) for i in images[config.frames :]))
    if record.data == "vqa" and texts:  # its index tells no questions: the first thing that is said in it
        answer = next((i for i in texts if record.segments[i].role == "target"), texts[-1])
        return Asked(Prompt(record.id, tuple(map(read, chosen[: chosen.index(answer)])), config.tokens), source, (read(answer).astype(np.int32),))
    if record.data == "action-video" and images:
        context, action = tuple(read(i) for i in images[:-1]), tuple(read(i).astype(np.int32) for i in texts)
        return Asked(Prompt(record.id, (*context, *action, PAINT), text_as="action"), source, (read(images[-1]),))
    return None
