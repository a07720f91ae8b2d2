"""What becomes of a part's pictures: stored bytes of latents, and what was measured on the way, in one pass over each batch.

In: uint8 pictures of a part and an encoder with its network loaded. Out: `CodedPart`: the payload of each picture as the codec stores it, the
moments of the latents *as stored* per position and channel, and how far what is stored lies from what the encoder said. It is all the encode
step gives, so that the step after it writes and never looks inside a latent: on a GPU the values are on the device just once, and this is when.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from encode.encoder import ImageEncoding, values
from encode.stats import Moments
from pipelines.format.codec import decode_latents, encode_latents


@dataclass(frozen=True)
class CodecError:
    """Sums over tokens: `n` tokens, squared error, squared norm of the exact latents, cosine of exact and stored."""

    n: int = 0
    error: float = 0.0
    norm: float = 0.0
    cosine: float = 0.0

    @classmethod
    def of(cls, exact: np.ndarray, stored: np.ndarray) -> CodecError:
        """float [n, channels] each."""
        a, b = exact.astype(np.float64), stored.astype(np.float64)
        aa, bb, ab = (np.einsum("nc,nc->n", x, y) for x, y in ((a, a), (b, b), (a, b)))
        cosine = np.divide(ab, np.sqrt(aa * bb), out=np.ones_like(ab), where=aa * bb > 0)
        return cls(len(a), float(np.square(a - b).sum()), float(aa.sum()), float(cosine.sum()))

    def merged(self, other: CodecError) -> CodecError:
        return CodecError(self.n + other.n, self.error + other.error, self.norm + other.norm, self.cosine + other.cosine)

    @property
    def relative_l2(self) -> float:
        return (self.error / self.norm) ** 0.5 if self.norm else 0.0


@dataclass(frozen=True)
class CodedPart:
    """A part's pictures as stored. `moments` are of [tokens, channels]; `fingerprint` names the arithmetic; `notes` say what went another way
    than planned (a smaller batch after running out of memory)."""

    payloads: list[bytes]
    moments: Moments
    error: CodecError
    fingerprint: str
    notes: tuple[str, ...] = ()


def coded(encoding: ImageEncoding, pictures: np.ndarray, codec: str) -> CodedPart:
    """uint8 [n, height, width, 3] -> the part. InputError for latents that are not finite."""
    grid = encoding.grid
    shape = (grid.tokens, grid.channels)
    payloads: list[bytes] = []
    moments, error = Moments.none(shape), CodecError()
    for batch in encoding.raw(pictures):
        if batch.dtype == np.uint16 and codec == "bf16":
            stored = values(batch)
            payloads += [image.tobytes() for image in batch]
        else:
            exact = values(batch)
            some = [encode_latents(image, codec) for image in exact]
            stored = np.stack([decode_latents(payload, codec, *shape) for payload in some])
            payloads += some
            error = error.merged(CodecError.of(exact.reshape(-1, shape[1]), stored.reshape(-1, shape[1])))
        moments = moments.merged(Moments.of(stored))
    return CodedPart(payloads, moments, error, encoding.fingerprint)
