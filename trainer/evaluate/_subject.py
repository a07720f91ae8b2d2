"""What is judged: a trained model with the run and the plan it came from, and the few things every evaluation asks of them.

In: a run directory. Out: forward passes without gradient, on held-out spans of the plan or on documents that an evaluation lays out itself,
latents normalised as in training. An evaluation never draws from a global generator: the same model gives the same rows, whatever the batch
size or machine order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from mixtures.span import Span, Specials
from pipelines.format import chance
from trainer.batch import Batch, Document
from trainer.evaluate._encoded import Encoded
from trainer.evaluate._trained import Trained
from trainer.flow import Noised, clean
from trainer.pictures import encoding_of
from trainer.stream import Reader, Reading

BATCH_POSITIONS = 6144  # positions a forward pass: large enough to fill one core, small enough to stay in its cache


@dataclass(slots=True)
class Subject:
    """A model in evaluation mode, its run, and a reader of its plan; where it was fine-tuned since, what on."""

    model: Any
    run: Any
    reader: Reader
    device: str = "cpu"
    precision: str = "fp32"
    tuned: Trained | None = None

    @classmethod
    def load(cls, run_dir: str, device: str = "cpu", ema: bool = False, precision: Literal["auto", "bf16", "fp32"] = "auto") -> Subject:
        """A run, or while it has not finished its newest complete checkpoint; its weights, or with `ema` their moving average. precision: by
        default fp32 on a CPU, and on a GPU what the run was trained in."""
        from trainer.models.load import load_model
        from trainer.parallel import in_bf16

        model, run, plan = load_model(run_dir, ema=ema)
        if precision == "auto":
            precision = "bf16" if device != "cpu" and in_bf16(run, device) else "fp32"
        reader = Reader(plan, Reading(encode=encoding_of(run, plan, device)))
        if reader.pictures is not None:
            plan.__dict__["datasets"] = [Encoded(d, reader.pictures) for d in plan.datasets]
        return cls(model, run, reader, device, precision).judging(model)

    def judging(self, model: Any) -> Subject:
        """The same with another model (what a run became by fine-tuning), on this device and in this precision."""
        from trainer.models.load import rounded

        if self.precision == "bf16":
            rounded(model)
        return replace(self, model=model.to(self.device).eval())

    @property
    def plan(self) -> Any:
        """The plan the run was trained on: its held-out split is what evaluations read."""
        return self.reader.plan

    @property
    def specials(self) -> Specials:
        """Ids of the structure tokens."""
        return self.reader.plan.specials

    def held_out(self, sources: Sequence[str], max_tokens: int | None = None) -> list[Document]:
        """The held-out spans of some sources as documents, each source up to about `max_tokens` payload tokens."""
        return [self.reader.document(span) for span in self.spans(sources, max_tokens)]

    def spans(self, sources: Sequence[str], max_tokens: int | None = None) -> Iterator[Span]:
        """The spans behind `held_out`. Of a source with more than `max_tokens`, whole records are taken by a draw on each: so arms whose rows were
        packed otherwise (other encoders, other sources beside) are judged on the same records."""
        for source in sources:
            found = [s for i in self.plan.held_out(source) for s in self.plan.row(i, "heldout").spans]
            if max_tokens is None or sum(s.payload for s in found) <= max_tokens:
                yield from found
                continue
            by_record: dict[tuple[int, str], list[Span]] = {}
            for span in found:
                record = self.plan.record(span)
                by_record.setdefault((chance.draw(record.h, 0, "held out"), record.id), []).append(span)
            taken = 0
            for key in sorted(by_record):
                if taken < max_tokens:
                    taken += sum(s.payload for s in by_record[key])
                    yield from by_record[key]

    def batches(self, documents: Sequence[Document]) -> Iterator[tuple[list[int], Batch]]:
        """All documents, one a row, like lengths together, about BATCH_POSITIONS at a time: (their places in the input, the batch)."""
        chosen: list[int] = []
        for i in sorted(range(len(documents)), key=lambda i: len(documents[i])):
            if chosen and (len(chosen) + 1) * len(documents[i]) > BATCH_POSITIONS:
                yield chosen, self._batch([documents[j] for j in chosen])
                chosen = []
            chosen.append(i)
        if chosen:
            yield chosen, self._batch([documents[j] for j in chosen])

    def _batch(self, documents: Sequence[Document]) -> Batch:
        return self.reader.batch([[d] for d in documents], length=max(map(len, documents)))

    @torch.inference_mode()
    def forward(self, batch: Batch, seen: Noised | None = None, at: np.ndarray | None = None) -> Any:
        """The model's Output for images as `seen` (default: all clean), logits at the flat positions `at` (default: those with a target)."""
        seen = (clean(batch) if seen is None else seen).to(self.device)
        where = None if at is None else torch.from_numpy(at).to(self.device)
        return self.model(batch.to(self.device), seen.z, seen.t, seen.dropped, where)

    def logits(self, batch: Batch, at: np.ndarray) -> torch.Tensor:
        """Next-token logits [A, vocab], float32, at the flat positions `at`, images clean. On the device: a batch of them is 3 GB at 128,256 ids, so
        what is made of them is brought to the host, not they."""
        return self.forward(batch, at=at).logits.float()


def document(
    question: np.ndarray, images: Sequence[np.ndarray], branches: Sequence[np.ndarray], specials: Specials, places: Sequence[int] = ()
) -> Document:
    """BOS · (BOI latents EOI)* · question · branch 0 | branch 1 | …: all branches follow the question and none sees another.

    question and branches are token ids, images are latents [n, C] as stored. The prefix is a turn that all see, each branch a turn of its own
    whose positions go on after the question: what `turns: isolated` means, so several endings cost one reading of the picture. `places` says
    before which id of the question each image stands, in order; without one for each image, all stand in front.
    """
    ids, kinds, image = [specials.bos], [2], [-1]
    where = list(places) if len(places) == len(images) else [0] * len(images)
    done = 0
    for ordinal, (latents, place) in enumerate(zip(images, where, strict=True)):
        before, n = question[done:place].tolist(), len(latents)
        ids += [*before, specials.boi, *[specials.pad] * n, specials.eoi]
        kinds += [*[0] * len(before), 2, *[1] * n, 2]
        image += [*[-1] * len(before), -1, *[ordinal] * n, -1]
        done = max(done, place)
    ids += question[done:].tolist()
    prefix = len(ids)
    position = list(range(prefix))
    turn = [-1] * prefix
    for i, branch in enumerate(branches):
        ids += branch.tolist()
        position += range(prefix, prefix + len(branch))
        turn += [i] * len(branch)
    kinds += [0] * (len(ids) - len(kinds))
    image += [-1] * (len(ids) - len(image))
    flags = np.zeros(len(images), bool)
    width = images[0].shape[1] if len(images) else 0
    return Document(
        tokens=np.array(ids, np.int32), kind=np.array(kinds, np.uint8), turn=np.array(turn, np.int16), position=np.array(position, np.int32),
        condition=np.zeros(len(ids), np.uint8), text_target=np.full(len(ids), -100, np.int32), image=np.array(image, np.int16),
        image_loss=flags, image_hidden=flags, image_segment=np.arange(len(images), dtype=np.int16),
        latents=np.concatenate(images) if len(images) else np.zeros((0, width), np.float32),
    )  # fmt: skip
