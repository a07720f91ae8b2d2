"""One prompt on its way through a generator: what it reads next, what is to be drawn after that, or where its image stands.

    _go_on    reads the prompt up to where something must be made
    feeds     what goes into the next pass: what is to be read (kept), or the image as it is (not kept), for both contexts where there are two
    read      after reading: the drawn token, or the noise an image begins with
    denoised  after a step of the image: the next step, or the clean image to be read
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mixtures.layout import CONTEXT, NONE
from trainer.document import STRUCTURE
from trainer.generate.draws import Path, noise, path, times, velocity
from trainer.generate.prompt import TEXT_AS, Fed, Generated, Prompt, block, kinds, needed, tensor, together, words
from trainer.models.cached import Cache

if TYPE_CHECKING:
    from trainer.generate.generator import Generator


class Row:
    """See above. ValueError for a prompt that cannot be read."""

    def __init__(self, maker: Generator, prompt: Prompt) -> None:
        self.maker, self.prompt, self.out = maker, prompt, Generated(prompt)
        self.frames = maker.looked is None or prompt.images_as == "frame"  # whether images of the prompt are such as are made
        allowed = maker.channels if maker.looked is None or self.frames else maker.looked[0]
        wide = {p.shape[1] for p in prompt.pieces if isinstance(p, np.ndarray) and p.ndim == 2} - {allowed}
        if wide:
            raise ValueError(f"prompt {prompt.id}: latents of width {min(wide)}, the model's are {allowed} wide")
        texts = {i: self._ids_of(i) for i, kind in enumerate(kinds(prompt)) if kind == "text"}
        self.script = deque((kind, texts.get(i, prompt.pieces[i])) for i, kind in enumerate(kinds(prompt)))
        self.needed = needed(prompt, [len(x) for x in texts.values()], maker.patches)
        self.cache: Cache | None = None
        self.slots: tuple[int, ...] = ()
        self.pending: list[Fed] = []  # to be read next; `blind`: by the context without conditions, when an image is to come
        self.blind: list[Fed] = []
        self.place = 0  # the next position
        self.drawn, self.images_left = 0, prompt.images
        self.draws = self.paints = self.done = self.fell = False
        self.path: Path | None = None
        self.at: tuple[Tensor, float] | None = None

    def _ids_of(self, i: int) -> np.ndarray:
        piece, tokenizer = self.prompt.pieces[i], self.maker.tokenizer
        if isinstance(piece, str):
            if tokenizer is None:
                raise ValueError(f"prompt {self.prompt.id}: a string needs a tokenizer; ids do not")
            return np.asarray(tokenizer.encode(piece, add_special_tokens=False).ids, np.int32)
        ids = np.asarray(piece)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.maker.model.vocab:
            raise ValueError(f"prompt {self.prompt.id}: ids from {ids.min()} to {ids.max()}, the model has {self.maker.model.vocab}")
        return ids

    def begin(self, cache: Cache, slot: int, size: int) -> None:
        """Take place `slot` of `size`; its second context stands `size` further, where there are any."""
        self.cache, self.slots = cache, (slot, slot + size)[: cache.rows // size]
        cache.clear(self.slots)
        self._reads(words([self.maker.specials.bos], 0, NONE, STRUCTURE))
        self._go_on()

    def moves_to(self, slot: int, size: int) -> None:
        """Go on in another place, with what was read."""
        assert self.cache is not None
        target = (slot, slot + size)[: len(self.slots)]
        for a, b in zip(self.slots, target, strict=True):
            self.cache.move(a, b)
        self.slots = target

    def _reads(self, fed: Fed) -> None:
        """Put a piece, of one condition, behind what is to be read."""
        self.pending.append(fed)
        if int(fed.document.condition[0]) in self.maker.dropped:
            self.fell = True
        else:
            self.blind.append(fed)
        self.place += len(fed.document)

    def _reads_image(self, z: Tensor, condition: int) -> None:
        """BOI, latents, EOI."""
        self._reads(words([self.maker.specials.boi], self.place, condition, STRUCTURE))
        self._reads_made(z, condition, self.frames)

    def _block(self, z: Tensor, t: float, condition: int = NONE, made: bool = True) -> Fed:
        """An image's latents; of two encoders as wide as the wider, and with the loss bit by which the model knows whose they are."""
        if self.maker.looked is None:
            return block(z, t, self.place, self.maker.specials.pad, condition)
        fed = block(F.pad(z, (0, self.maker.width - z.shape[1])), t, self.place, self.maker.specials.pad, condition)
        fed.document.image_loss = np.full(1, made)
        return fed

    def _reads_made(self, z: Tensor, condition: int, made: bool = True) -> None:
        self._reads(self._block(z, 1.0, condition, made))
        self._reads(words([self.maker.specials.eoi], self.place, condition, STRUCTURE))

    def _go_on(self) -> None:
        """Read the prompt up to where something must be made, and say what."""
        self.draws = self.paints = False
        while self.script:
            kind, piece = self.script.popleft()
            if kind == "paint":
                self._begin_image()
                return
            if kind == "image":
                latents = np.asarray(piece, np.float32)
                normaliser = self.maker.normaliser if self.frames else self.maker.looking
                normal = latents if normaliser is None else normaliser.apply(latents)
                named = self.kept_as if self.prompt.images_as == "frame" else CONTEXT
                self._reads_image(tensor(normal, self.maker.device), named)
            elif len(piece):  # type: ignore[arg-type]
                self._reads(words(piece, self.place, TEXT_AS[self.prompt.text_as]))  # type: ignore[arg-type]
        self.draws = self.drawn < self.prompt.tokens
        if not self.draws:
            self._end("tokens" if self.drawn else "pieces")

    def _begin_image(self) -> None:
        self._reads(words([self.maker.specials.boi], self.place, NONE, STRUCTURE))
        self.draws, self.paints = False, True

    @property
    def kept_as(self) -> int:
        """What a frame that was made conditions later ones as: itself noise in training, or the clean copy of it."""
        return CONTEXT if self.prompt.history == "clean_copy" else NONE

    @property
    def guided(self) -> bool:
        """Whether there is a context without conditions to ask, other than this one."""
        return self.maker.weight != 1 and self.fell

    def feeds(self) -> list[tuple[int, Fed, bool]]:
        """(row of the cache, piece, whether it stays) of the next pass."""
        if self.at is not None:
            z, t = self.at
            piece = self._block(z, t)
            return [(slot, piece, False) for slot in (self.slots if self.guided else self.slots[:1])]
        out = [(self.slots[0], together(self.pending), True)]
        self.pending = []
        if self.paints and self.guided:
            out.append((self.slots[1], together(self.blind), True))
            self.blind = []
        return out

    def read(self, id: int | None) -> None:
        """After a piece was read: begin the image, or take the token that was drawn."""
        maker, s = self.maker, self.maker.specials
        if self.paints:
            shape = (maker.patches, maker.channels)
            start = noise(self.prompt.id, self.prompt.sample, self.place - 1, maker.sampling.seed, shape)
            self.path = path(tensor(start, maker.device), times(maker.sampling, maker.flow, *shape), maker.sampling.sampler)
            self.at = next(self.path)
            return
        assert id is not None
        if id == s.eos:
            self._end("eos")
            return
        self.drawn += 1
        if id == s.boi:
            self.images_left -= 1
            self._begin_image()
            return
        if self.out.pieces and self.out.pieces[-1].ndim == 1 and self.drawn > 1:
            self.out.pieces[-1] = np.append(self.out.pieces[-1], np.int32(id))
        else:
            self.out.pieces.append(np.array([id], np.int32))
        self._reads(words([id], self.place, TEXT_AS[self.prompt.text_as]))
        self._go_on()

    def denoised(self, said: Tensor, blind: Tensor | None = None) -> None:
        """One step of the image, by what the model said with and without its conditions."""
        assert self.at is not None and self.path is not None
        z, t = self.at
        v = velocity(said, z, t, self.maker.flow.predict)
        if blind is not None:
            without = velocity(blind, z, t, self.maker.flow.predict)
            v = without + self.maker.weight * (v - without)
        try:
            self.at = self.path.send(v)
        except StopIteration as end:
            self.at = self.path = None
            made = end.value.cpu().numpy()
            self.out.pieces.append(made if self.maker.normaliser is None else self.maker.normaliser.undo(made))
            if self.kept_as in self.maker.dropped:  # the context without conditions never had this frame, nor its BOI
                if self.blind:
                    self.blind.pop()
                elif self.cache is not None and len(self.slots) > 1:
                    self.cache.forget(self.slots[1], 1)
            self._reads_made(end.value, self.kept_as)
            self._go_on()

    def _end(self, why: Any) -> None:
        self.out.stop, self.done = why, True
