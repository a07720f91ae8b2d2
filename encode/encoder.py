"""What an encoder is, and the core that every user of one shares: bytes -> picture -> fixed batch -> latents.

A text encoder turns strings into token ids; an image encoder turns image bytes into latents [tokens, width] per image. Each states what it
makes (`Grid`), how a picture is prepared, and what its weights are, so that a fingerprint says "these latents came from exactly this".
The work is cut where the hardware is: `picture` (decode and resize, uint8) belongs to CPU workers, `network` to the device.

    class Mine(ImageEncoder):            encode/encoders/mine.py, named `mine: {...}` in a recipe
        def grid(self): ...              pixels in, tokens x channels out
        def picture(self, pixels): ...   uint8 [h, w, 3] -> uint8 [H, W, 3], on a CPU worker
        def network(self, machine): ...  -> a function that starts uint8 [B, H, W, 3] and returns one that waits for the latents

Nothing here imports Ray, and torch only inside functions: the same core runs in a pipeline's actor, in the trainer and in a bare loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from pipelines.format.codec import CODECS
from pipelines.format.document import Part, PartOf, fingerprint, part_name
from pipelines.format.errors import InputError
from pipelines.media import images

AHEAD = 2  # batches started and not yet waited for, beside the one in use
RUN = 1 << 18  # values looked at together: they stay in the cache
SPECIALS = ("bos", "eos", "boi", "eoi", "pad")
Pending = Callable[[], np.ndarray]  # waits for a batch that was started: float32 [B, tokens, channels], or `bf16` bit patterns in uint16
Network = Callable[[np.ndarray], Pending]
Codec = Literal["bf16", "f32", "int8", "f8e4m3", "none"]
assert set(CODECS) < set(Codec.__args__)  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Grid:
    """One image: height x width pixels in, `tokens` rows of `channels` values out."""

    height: int
    width: int
    tokens: int
    channels: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a network runs. Latents are byte-identical within one `kind` (which names the arithmetic, not the host) and dtype."""

    device: str  # cpu, cuda
    dtype: str  # f32, bf16
    kind: str


def machine_for(dtype: str, device: str | None = None) -> Machine:
    """The device to use (`cuda` when there is one) and its arithmetic: `auto` is bf16 on a GPU; f32 on a CPU, where bf16 is 8 times slower."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype if dtype != "auto" else ("bf16" if device == "cuda" else "f32")
    kind = torch.cuda.get_device_name() if device == "cuda" else f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return Machine(device, dtype, kind)


def in_batches(network: Network, rows: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """Rows of any kind through a network, in order and in batches of one size: results [<= batch, ...]; the next computes while one is used.

    The last batch is filled up with zeros (black pictures), whose results are dropped."""
    started = deque[tuple[int, Pending]]()
    for first in range(0, len(rows), batch):
        some = rows[first : first + batch]
        if len(some) < batch:
            some = np.concatenate([some, np.zeros((batch - len(some), *some.shape[1:]), some.dtype)])
        started.append((min(batch, len(rows) - first), network(some)))
        if len(started) > AHEAD:
            count, pending = started.popleft()
            yield pending()[:count]
    for count, pending in started:
        yield pending()[:count]


class LoadedTokenizer:
    """A tokenizer ready for work: `encode` texts -> ids in `dtype`, `decode` ids -> text, and what the card says about it."""

    vocab: int  # ids there are, the five specials included: the rows an embedding needs
    specials: dict[str, int]
    sha256: str
    file: bytes

    @property
    def dtype(self) -> str:
        return "uint16" if self.vocab <= 65_536 else "uint32"

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        raise NotImplementedError

    def decode(self, ids: np.ndarray) -> str:
        raise NotImplementedError

    def card(self) -> dict[str, Any]:
        return {"tokenizer_sha256": self.sha256, "vocab": self.vocab, "specials": self.specials}


class TextEncoder(Part):
    """Texts to token ids. Never adds a structure token: BOS and its like belong to the planner's layout."""

    version: ClassVar[int] = 1

    def load(self) -> LoadedTokenizer:
        raise NotImplementedError


class ImageEncoder(Part):
    """Images to latents, frozen. `batch` is fixed and padded, since another batch size may change the last bits of a matmul."""

    version: ClassVar[int] = 1
    batch: int = 32
    dtype: Literal["auto", "f32", "bf16"] = "auto"

    def grid(self) -> Grid:
        raise NotImplementedError

    def picture(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] of any size -> uint8 [height, width, 3] of the grid."""
        raise NotImplementedError

    def network(self, machine: Machine) -> Network:
        """The loaded network: takes uint8 [B, height, width, 3], gives float32 [B, tokens, channels] when waited for. Data statistics
        are not applied: that is the reader's part."""
        raise NotImplementedError

    def preprocessing(self) -> dict[str, Any]:
        """All that changes a picture before the network, as plain values."""
        raise NotImplementedError

    def weights_sha256(self) -> str | None:
        """Hash of the weights; None when there are none."""
        return None

    def machine(self, device: str | None = None) -> Machine:
        """Where the network runs: see `machine_for`."""
        return machine_for(self.dtype, device)

    def pictures(self, latents: np.ndarray) -> np.ndarray:
        """float32 [n, tokens, channels] -> uint8 [n, height, width, 3], for encoders that can be inverted."""
        raise InputError(
            f"{part_name(self)} latents cannot be turned back into pictures by the encoder alone",
            allowed="encoders with a decoder: pixels",
            next="a decoder trained for these latents is needed; encode with `pixels` to look at pictures without one",
        )

    def identity(self) -> dict[str, Any]:
        """What the values of the latents depend on, apart from the machine: known before any weight is loaded onto a device."""
        settings = {k: v for k, v in self.model_dump(mode="json").items() if k not in ("weights", "batch", "dtype")}
        return {
            "encoder": part_name(self),
            "version": self.version,
            "weights": self.weights_sha256(),
            "config": settings,
            "preprocessing": self.preprocessing(),
            "dtype": self.dtype,
            "batch": self.batch,
        }

    def fingerprint(self, machine: Machine) -> str:
        """C6: latents with one fingerprint are byte-identical for the same bytes in."""
        return fingerprint({**self.identity(), "dtype": machine.dtype, "device": machine.kind})


def values(latents: np.ndarray) -> np.ndarray:
    """Float32, from float32 or from bit patterns of bf16 (exact)."""
    return latents if latents.dtype != np.uint16 else (latents.astype(np.uint32) << 16).view(np.float32)


def finite(latents: np.ndarray) -> bool:
    """No NaN, no infinity: in bf16 those are the patterns whose exponent is all ones."""
    if latents.dtype != np.uint16:
        return bool(np.isfinite(latents).all())
    flat = np.ascontiguousarray(latents).reshape(-1)
    return all((flat[k : k + RUN] & 0x7F80).max() != 0x7F80 for k in range(0, len(flat), RUN))


class ImageEncoding:
    """An image encoder with its network loaded: pictures or bytes in, latents out, in padded batches of one fixed size, which `fingerprint` names."""

    def __init__(self, encoder: ImageEncoder, device: str | None = None) -> None:
        self.encoder, self.asked = encoder, encoder.batch
        self.grid = encoder.grid()
        self.machine = encoder.machine(device)
        self.network = encoder.network(self.machine)
        self.fingerprint = encoder.fingerprint(self.machine)

    @property
    def batch(self) -> int:
        """Pictures in a batch: as `asked`, or fewer after they did not fit."""
        return self.encoder.batch

    def resize(self, batch: int) -> None:
        """Go on in batches of another size. What is made from now on has another fingerprint."""
        self.encoder = self.encoder.model_copy(update={"batch": batch})
        self.fingerprint = self.encoder.fingerprint(self.machine)

    def batches(self, pictures: np.ndarray) -> Iterator[np.ndarray]:
        """uint8 [n, height, width, 3] -> float32 [<= batch, tokens, channels], in order."""
        return (values(latents) for latents in self.raw(pictures))

    def raw(self, pictures: np.ndarray) -> Iterator[np.ndarray]:
        """Batches as the network gives them. Values that are not finite are an InputError: they would poison every statistic downstream."""
        for latents in in_batches(self.network, pictures, self.encoder.batch):
            if not finite(latents):
                raise InputError(f"{part_name(self.encoder)} gave latents that are not finite", next="try `dtype: f32`, and check the weights")
            yield latents

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [n, height, width, 3] -> float32 [n, tokens, channels]."""
        done = list(self.batches(pictures))
        return np.concatenate(done) if done else np.empty((0, self.grid.tokens, self.grid.channels), np.float32)

    def encode_bytes(self, payloads: Sequence[bytes]) -> np.ndarray:
        """JPEG, PNG … bytes -> float32 [n, tokens, channels]. Raises `Reject` for bytes that are not an image."""
        pictures = [self.encoder.picture(images.decode(payload)) for payload in payloads]
        shape = (0, self.grid.height, self.grid.width, 3)
        return self.encode(np.stack(pictures) if pictures else np.empty(shape, np.uint8))


def as_written(part: Part) -> dict[str, Any]:
    """An encoder as a recipe names it: one key and its fields."""
    return {part_name(part): part.model_dump(mode="json")}


def opened(written: dict[str, Any]) -> Part:
    """The inverse of `as_written`, for cards: {"pixels": {"size": 32}} -> Pixels(size=32)."""
    ((name, fields),) = written.items()
    return PartOf("encode.encoders").find(name).model_validate(fields)
