"""The `latents` service: pictures of a curated dataset -> latents while a trainer waits, by the functions that the encode stage uses.

    opened(card, asked)  -> Live        the encoder that a dataset's card names, or the one that a run asks for; refused where it is another
    live.read(bytes)     -> uint8 [height, width, 3]                a processor's half: no torch, in as many worker processes as there are
    live.load(device)    -> pictures uint8 [n, ...] -> float32 [n, tokens, channels]      the device's half, in padded batches of one size

The trainer never imports this: it finds the service by its entry point, so other packages may offer another. What decides the values of latents
(encoder, version, weights, settings, preprocessing) must be what the card says; the batch and the arithmetic may differ, which changes last bits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from encode.encoder import Grid, ImageEncoder, ImageEncoding, opened
from encode.memory import loaded, out_of_memory
from pipelines.format.codec import decode_latents, encode_latents
from pipelines.format.document import PartOf, canon, fingerprint, part_name
from pipelines.format.errors import InputError

DECIDES = ("encoder", "version", "weights", "config", "preprocessing")  # keys of an identity without which latents would be others


@dataclass(frozen=True)
class Live:
    """An encoder ready to stand beside a trainer. `made` is the fingerprint that the card gives for its latents."""

    encoder: ImageEncoder
    made: str
    grid: Grid = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", self.encoder.grid())

    @property
    def name(self) -> str:
        """The encoder's file."""
        return part_name(self.encoder)

    def read(self, data: bytes) -> np.ndarray:
        """An image file as the network takes it, uint8 [height, width, 3]. Raises `Reject` for bytes that are not an image."""
        return self.encoder.read(data)

    def load(self, device: str | None = None) -> Loaded:
        """With the network on `device` (`cpu`, `cuda:1`; None: as the encode stage would choose)."""
        return Loaded(self, device)


class Loaded:
    """Holds the network. On CUDA its work goes to a stream of its own, beside a step that computes."""

    def __init__(self, live: Live, device: str | None) -> None:
        kind, _, number = (device or "").partition(":")
        self.number = int(number) if number else None
        with self._there():
            self.encoding: ImageEncoding = loaded(live.encoder, kind or None)
        self.fingerprint = self.encoding.fingerprint
        self.exact = self.fingerprint == live.made  # then latents are those that are stored, to the last bit
        self._stream: Any = None

    def __call__(self, pictures: np.ndarray, codec: str | None = None) -> np.ndarray:
        """uint8 [n, height, width, 3] -> float32 [n, tokens, channels]; with a codec, as they would be after being stored by it."""
        try:
            with self._there(), self._beside():
                latents = self.encoding.encode(pictures)
        except Exception as e:
            if not out_of_memory(e):
                raise
            raise InputError(
                "the encoder does not fit in memory beside the model", where=part_name(self.encoding.encoder), found=str(e).splitlines()[0],
                next="a smaller `batch` of the encoder, a smaller `micro_batch`, or stored latents",
            ) from None  # fmt: skip
        if codec not in (None, "f32"):
            for k, image in enumerate(latents):
                latents[k] = decode_latents(encode_latents(image, codec), codec, *image.shape)
        return latents

    def _there(self) -> AbstractContextManager[Any]:
        """A thread of its own begins on the first device, whatever the others are on."""
        if self.number is None:
            return nullcontext()
        import torch

        return torch.cuda.device(self.number)

    def _beside(self) -> AbstractContextManager[Any]:
        if self.encoding.machine.device != "cuda":
            return nullcontext()
        import torch

        if self._stream is None:
            self._stream = torch.cuda.Stream()
            self._stream.wait_stream(torch.cuda.current_stream())  # where the weights were put on the device
        return torch.cuda.stream(self._stream)


def latents(card: dict[str, Any], asked: dict[str, Any] | None = None) -> Live:
    """The service. `card` is that of an encoded dataset; `asked` names an encoder as an encode recipe does (None: the one that the card names).

    InputError where the card names no encoder, or where the one asked for does not make the latents that the card is of."""
    image = (card.get("encoding") or {}).get("image")
    if image is None:
        raise InputError("this dataset has no images to encode", where=card["path"])
    written = asked or (card.get("encoders") or {}).get("image")
    if written is None:
        raise InputError("the card does not say which encoder made these latents", where=card["path"], next="latents: {encode: {ENCODER: {…}}}")
    encoder = _named(written) if asked else opened(written)
    if not isinstance(encoder, ImageEncoder):
        raise InputError("this is no image encoder", where="latents.encode", found=part_name(encoder))
    _refuse_another(card, encoder, image)
    return Live(encoder, str(image["fingerprint"]))


def _named(asked: dict[str, Any]) -> Any:
    if len(asked) != 1:
        raise InputError("an encoder is one key with its fields", where="latents.encode", found=", ".join(asked))
    ((name, fields),) = asked.items()
    try:
        return PartOf("encode.encoders").find(name).model_validate(fields or {})
    except ValueError as e:
        raise InputError("this encoder cannot be set up", where=f"latents.encode.{name}", found=e) from e


def _refuse_another(card: dict[str, Any], encoder: ImageEncoder, image: dict[str, Any]) -> None:
    """InputError unless this encoder makes the latents that the card is of."""
    now, was = encoder.identity(), (card.get("identity") or {}).get("image")
    if was is None:  # a card that says no more than a fingerprint: then all of it must agree
        found = {fingerprint(now), encoder.fingerprint(encoder.machine())}
        differing = [] if image["fingerprint"] in found else ["fingerprint"]
        now, was = {"fingerprint": sorted(found)}, {"fingerprint": image["fingerprint"]}
    else:
        differing = [key for key in DECIDES if canon(was.get(key)) != canon(now.get(key))]
    if differing:
        said = lambda of: ", ".join(f"{key}: {canon(of.get(key)).decode()[:200]}" for key in differing)
        raise InputError(
            "the encoder of this run does not make the latents that the plan is of",
            where=card["path"],
            found=said(now),
            allowed=said(was),
            next="name the encoder as the dataset's card does (`latents: encode` takes it from there), or encode and plan anew with the other",
        )
