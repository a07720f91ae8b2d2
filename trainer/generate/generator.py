"""Interleaved generation: text until <BOI>, then a block of latents denoised, then <EOI> and text again, until EOS or a budget.

In: prompts (see prompt.py) and a model. Out: what the model adds to each. Prompts of different lengths and in different states go through
the model side by side, one pass a step: one reads its prompt while a second draws a token and a third is half way to an image.

    read ──▶ draw a token ──▶ read it ──▶ …
     ▲          │ BOI, or PAINT in the prompt
     └── clean image, EOI ◀── denoise: the block sees its context through the cache and itself both ways

An image is denoised in place and not kept; then it is written clean (t = 1), as later text saw images in training. Guidance reads a second context
of its own, in which the named conditions never stood: what fell is seen by its own kind alone, so leaving it out is hiding it, at no cost.
A prompt that ends makes room for the next at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixtures.span import Specials
from pipelines.format.errors import InputError
from trainer.batch import collate
from trainer.generate.draws import chosen, uniform
from trainer.generate.prompt import PAINT, Fed, Generated, Prompt
from trainer.generate.recipe import Sampling
from trainer.generate.rollout import rolled
from trainer.generate.row import Row
from trainer.models.cached import Cache
from trainer.normalise import Normaliser
from trainer.run import Flow


class Generator:
    """A model and what it must know to go on: the ids of structure tokens, how images were trained, how latents are normalised.

    tokenizer: for prompts that are strings. batch: prompts at a time; it changes the speed and the memory, not what is drawn. looked: of two encoders
    how images of a prompt that are no frames are normalised; what is made is read back as it was made, as later frames saw it in training.
    """

    def __init__(
        self, model: Any, specials: Specials, flow: Flow, sampling: Sampling | None = None, normaliser: Normaliser | None = None,
        tokenizer: Any = None, batch: int = 16, looked: Normaliser | None = None,
    ) -> None:  # fmt: skip
        self.model, self.specials, self.flow, self.sampling = model, specials, flow, sampling or Sampling()
        self.normaliser, self.tokenizer, self.batch = normaliser, tokenizer, batch
        self.device, self.patches, self.channels = model.embed.device, model.patches, model.channels
        self.looked, self.looking = getattr(model, "looked", None), looked
        self.width = max(self.channels, *(self.looked or (0,))[:1])  # of the array that holds latents of both
        self.dropped, self.weight = self.sampling.dropped(flow), self.sampling.weight(flow)
        self.passes = 0

    @classmethod
    def of(cls, subject: Any, sampling: Sampling | None = None, tokenizer: Any = None, batch: int = 16) -> Generator:
        """Of a finished run, as evaluations load it."""
        sides = getattr(subject.reader, "sides", None)
        looked = sides.looked.normaliser if sides is not None else None
        return cls(subject.model, subject.specials, subject.run.flow, sampling, subject.reader.normaliser, tokenizer, batch, looked)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt]) -> list[Generated]:
        """What the model adds to each prompt, in their order. ValueError for a prompt that cannot be read."""
        if any(p.window is not None for p in prompts):
            if self.looked is not None:
                raise InputError("a roll-out looks at what it made, and this model looks at images by another encoder than it makes them by",
                                 where="generate", allowed="a run of one encoder")  # fmt: skip
            return rolled(self, prompts)
        rows = [Row(self, p) for p in prompts]
        size = min(self.batch, len(rows))
        if not size:
            return []
        cache = Cache(self.model, size * (1 if self.weight == 1 else 2), max(r.needed for r in rows))
        waiting, free, active = deque(rows), list(range(size)), list[Row]()
        while waiting or active:
            while waiting and free:
                row = waiting.popleft()
                row.begin(cache, free.pop(0), size)
                active.append(row)
            self._pass(cache, [r for r in active if not r.done])
            free = sorted([*free, *(r.slots[0] for r in active if r.done)])
            active = sorted((r for r in active if not r.done), key=lambda r: r.slots)
            while active and not waiting and free and free[0] < active[-1].slots[0]:
                active[-1].moves_to(free[0], size)
                active.sort(key=lambda r: r.slots)
                free = sorted(set(range(size)) - {r.slots[0] for r in active})
        return [r.out for r in rows]

    def _pass(self, cache: Cache, rows: list[Row]) -> None:
        """Everybody's next piece through the model at once."""
        fed: list[tuple[int, Fed, bool]] = []
        for row in rows:
            fed += row.feeds()
        fed.sort(key=lambda f: f[0])
        if not fed:
            return
        documents = [f.document for _, f, _ in fed]
        length = max(map(len, documents))
        batch = collate([[d] for d in documents], range(len(fed)), length, self.specials.pad, self.width)
        attend = cache.attend(batch, [slot for slot, _, _ in fed], keep=[keep for _, _, keep in fed])
        latents = [x for _, f, _ in fed for x in f.latents]
        z = torch.cat(latents) if latents else torch.zeros(0, self.width, device=self.device)
        t = torch.tensor([t for _, f, _ in fed for t in f.t], dtype=torch.float32, device=self.device)
        place = {slot: i for i, (slot, _, _) in enumerate(fed)}
        asking = [r for r in rows if r.draws]
        at = torch.tensor([place[r.slots[0]] * length + len(documents[place[r.slots[0]]]) - 1 for r in asking], dtype=torch.long, device=self.device)
        out = self.model(batch.to(self.device), z, t, None, at, attend=attend)
        self.passes += 1
        flows = dict(zip([s for s, _, _ in fed], out.flow.split([sum(map(len, f.latents)) for _, f, _ in fed]), strict=True))
        ids = self._ids(out.logits, asking) if asking else []
        drawn = dict(zip([r.slots[0] for r in asking], ids, strict=True))
        for row in rows:
            if row.path is not None:
                row.denoised(*(flows[s] for s in row.slots if s in flows))
            else:
                row.read(drawn.get(row.slots[0]))

    def _ids(self, logits: Tensor, asking: list[Row]) -> list[int]:
        s = self.specials
        allowed = torch.ones(len(asking), logits.shape[1], dtype=torch.bool, device=logits.device)
        allowed[:, [s.bos, s.eoi, s.pad]] = False  # never predicted in training: what is said of them is noise
        allowed[:, s.boi] = torch.tensor([r.images_left > 0 for r in asking], device=logits.device)
        u = [uniform(r.prompt.id, r.prompt.sample, r.place, self.sampling.seed) for r in asking]
        return [int(i) for i in chosen(logits, allowed, u, self.sampling)]


__all__ = ["PAINT", "Generated", "Generator", "Prompt", "Sampling"]
