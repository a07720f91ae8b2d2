"""Pictures that a run makes of captions, for evaluations that score them: painted once by the generator, kept beside the run, turned into pixels.

    captions(subject, source, n)  held-out pairs, in an order that depends on the records alone
    painted(subject, out, …)      latents of each, in order, from <run>/painted/<what made them>.bf16 where they lie there already
    pixels(data, latents, …)      uint8 pictures, by the service `pictures`: the trainer knows no encoder

The noise is a draw on the record (trainer/generate/draws.py), so two arms paint the same captions from the same noise. Work is done and kept CHUNK
captions at a time: a stopped evaluation goes on where it was, and two evaluations that ask for the same pictures share them. What was painted is
kept in bfloat16, as the dataset of `samples` is, and judged so whether it was painted now or read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from pipelines.format import chance, codec, storage
from pipelines.format.document import Part, fingerprint
from pipelines.format.errors import InputError
from trainer.evaluate._tokenizers import source_dataset, tokenizer_at
from trainer.two_encoders import made_in, shown_by

if TYPE_CHECKING:
    from trainer.evaluate._subject import Subject
    from trainer.generate.prompt import Prompt

VERSION = 1  # raise it when the same model paints something else of the same prompt
CHUNK = 64  # prompts painted, kept and decoded together: 75 MB of 256 x 1152 latents


class Painting(Part):
    """What evaluations of painted pictures have in common: the paper's 25 steps of euler and guidance 3.0 by default.

    `decoder` turns latents into pictures, named as in a decode recipe; none: the encoder does, where it can. `batch` is how many are painted side by
    side."""

    steps: int = Field(25, ge=1)
    guidance: float = Field(3.0, ge=0)
    sampler: Literal["euler", "heun"] = "euler"
    decoder: dict[str, Any] | None = None
    batch: int = Field(32, ge=1)


class OfCaptions(Painting):
    """`images` held-out captions of an image-text `source`; `caption` names which of a record's captions (original, recaption; none: the one that
    the plan chose). `required: false` lets arms pass whose plan takes nothing of the source."""

    source: str = "image_text"
    images: int = Field(256, ge=2)
    caption: str | None = None
    required: bool = True

    def passes(self, subject: Subject) -> bool:
        """Whether this arm is let pass."""
        return not self.required and not subject.plan.card["sources"].get(self.source, {}).get("taken")


@dataclass(frozen=True, slots=True)
class Pair:
    """A held-out picture and the caption to paint: where its latents lie, and the caption's ids."""

    id: str
    data: Any
    shard: int
    record: Any
    ids: np.ndarray

    def truth(self) -> np.ndarray:
        """float32 [n, C] of the picture that the caption is of."""
        return np.asarray(self.data.array(self.shard, next(s for s in self.record.segments if s.kind == "latents")), np.float32)


def captions(subject: Subject, asked: OfCaptions) -> list[Pair]:
    """The pairs to paint, each record once. InputError where there are none, or fewer than two."""
    plan = subject.plan
    rows = plan.held_out(asked.source) if asked.source in plan.sources else []
    spans = [s for i in rows for s in plan.row(i, "heldout").spans if s.caption >= 0]
    spans.sort(key=lambda s: chance.draw(plan.record(s).h, 0, "sample"))
    found: dict[str, Pair] = {}
    for span in spans:
        if len(found) == asked.images:
            break
        span = replace(span, image_first=False, loss=(True,) * len(span.loss))
        record, data = plan.record(span), plan.datasets[span.dataset]
        words = record.segments[span.caption]
        if asked.caption is not None:
            words = next((s for s in record.segments if s.kind == "tokens" and s.member == asked.caption), None)
            if words is None:
                names = sorted({str(s.member) for s in record.segments if s.kind == "tokens"})
                raise InputError("a record has no caption of this name", where=record.id, found=asked.caption, allowed=", ".join(names))
        if record.id not in found:
            found[record.id] = Pair(record.id, made_in(plan, span), span.shard, record, np.asarray(data.array(span.shard, words), np.int32))
    if len(found) < 2:
        raise InputError("no held-out captions to paint", found=asked.source, next="name an image-text source, or raise held_out.fraction")
    return list(found.values())


def words_of(subject: Subject, source: str | None = None) -> Any:
    """The tokenizer of a source; of the first dataset that carries one, when none is named."""
    datasets = subject.plan.datasets if source is None else [source_dataset(subject.plan, source)]
    place = next((p for d in datasets if storage.exists(p := storage.join(d.path, "tokenizer.json"))), None)
    if place is None:
        raise InputError("no dataset of the plan carries a tokenizer.json", where=subject.plan.path)
    return tokenizer_at(place)


def pictured(subject: Subject) -> Any:
    """The dataset whose card says which encoder made the plan's latents. InputError where it has none: then a model paints nothing."""
    data = shown_by(subject.plan)
    if data is None:
        raise InputError("the run's plan has no images, so its model makes none", where=getattr(subject.plan, "path", None))
    return data


def of_captions(pairs: Sequence[Pair]) -> list[Prompt]:
    """A prompt a pair: its caption, then the picture to be made."""
    from trainer.generate.prompt import PAINT, Prompt

    return [Prompt(p.id, (p.ids, PAINT)) for p in pairs]


def painted(subject: Subject, out: str, how: Painting, prompts: Sequence[Prompt]) -> Iterator[tuple[int, np.ndarray]]:
    """(place of the first, latents float32 [≤ CHUNK, n, C] in the units of stored ones), in order."""
    made_by = {"version": VERSION, "model": weights_fingerprint(subject), "steps": how.steps, "guidance": how.guidance, "sampler": how.sampler}
    for first in range(0, len(prompts), CHUNK):
        some = prompts[first : first + CHUNK]
        asked = [[p.id, p.sample, *(x.tolist() for x in p.pieces if isinstance(x, np.ndarray))] for p in some]
        place = storage.join(out, "painted", f"{fingerprint([made_by, asked])[:24]}.bf16")
        shape = (subject.model.patches, subject.model.channels)
        if not storage.exists(place):
            made = paint(subject, how, some)
            storage.replace(place, b"".join(bytes(codec.encode_latents(x, "bf16")) for x in made), scratch=out)
        data, size = storage.read(place), 2 * shape[0] * shape[1]
        yield first, np.stack([codec.decode_latents(data[i * size : (i + 1) * size], "bf16", *shape) for i in range(len(some))])


def paint(subject: Subject, how: Painting, prompts: Sequence[Prompt]) -> list[np.ndarray]:
    """Latents [n, C] of the picture that each prompt asks for. InputError where the model makes something that is no number."""
    from trainer.generate.generator import Generator
    from trainer.generate.recipe import Sampling

    sampling = Sampling(steps=how.steps, guidance=how.guidance, sampler=how.sampler)
    made = [np.ascontiguousarray(g.images[0], np.float32) for g in Generator.of(subject, sampling, batch=how.batch).generate(prompts)]
    bad = [p.id for p, x in zip(prompts, made, strict=True) if not np.isfinite(x).all()]
    if bad:
        said = "the model paints pictures that are not numbers"
        raise InputError(said, where=bad[0], found=f"{len(bad)} of {len(made)}", next="a run that diverged is not judged")
    return made


def weights_fingerprint(subject: Subject) -> str:
    """sha256 of the weights as they are judged (last ones or their average, finished or not), by name."""
    whole = hashlib.sha256()
    for name, tensor in sorted(subject.model.state_dict().items()):
        whole.update(name.encode())
        whole.update(memoryview(tensor.detach().float().cpu().contiguous().numpy()).cast("B"))
    return whole.hexdigest()


def service(name: str, without: str) -> Any:
    """What an installed package offers under this name. InputError that says what can be done `without` it."""
    found = [e for e in entry_points(group="pipelines.services") if e.name == name]
    if not found:
        raise InputError(f"no installed package offers the service `{name}`", next=without)
    return found[0].load()


def pixels(data: Any, latents: np.ndarray, decoder: dict[str, Any] | None) -> list[np.ndarray]:
    """float32 [n, tokens, C] → pictures uint8 [H, W, 3]."""
    if "encoders" not in data.card:
        raise InputError("the card does not say which encoder made these latents, so nothing turns them into pictures", where=data.path)
    return list(service("pictures", "install the encode package")(latents, data.card["encoders"], decoder, "pixels"))
