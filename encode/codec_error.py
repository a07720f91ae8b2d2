"""How far what is stored lies from what the encoder said: sums over latent vectors that add up over batches, parts and machines.

In: exact and stored latents. Out: sums in a part's commit record, and from all of them the figures of a card: relative L2 (the norm of the
difference over the norm of the exact latents), mean and worst cosine of a token. A codec that stores what the encoder gave bit for bit loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from encode.stats import Moments
from pipelines.format import codec

RUN = 64  # tokens looked at together: the float64 copies of 64 x 1152 stay in the L2 cache, which halves the time


@dataclass(frozen=True)
class CodecError:
    """Sums over `n` latent vectors: squared error, squared norm of the exact ones, cosine of exact and stored; and the `worst` cosine of all."""

    n: int = 0
    error: float = 0.0
    norm: float = 0.0
    cosine: float = 0.0
    worst: float = 1.0

    @classmethod
    def of(cls, exact: np.ndarray, stored: np.ndarray) -> CodecError:
        """float [n, channels] each."""
        sums, worst = np.zeros(3), 1.0
        for first in range(0, len(exact), RUN):
            a, b = (x[first : first + RUN].astype(np.float64) for x in (exact, stored))
            aa, bb, ab = (np.einsum("nc,nc->n", x, y) for x, y in ((a, a), (b, b), (a, b)))
            a -= b
            cosine = np.divide(ab, np.sqrt(aa * bb), out=np.ones_like(ab), where=aa * bb > 0)
            sums += np.einsum("nc,nc->", a, a), aa.sum(), cosine.sum()
            worst = min(worst, float(cosine.min()))
        return cls(len(exact), float(sums[0]), float(sums[1]), float(sums[2]), worst)

    @classmethod
    def nothing(cls, moments: Moments) -> CodecError:
        """Of latents stored bit for bit, given their moments [tokens, channels]."""
        n = moments.n * len(moments.mean)
        return cls(n, 0.0, float(moments.m2.sum() + moments.n * np.square(moments.mean).sum()), float(n))

    @classmethod
    def total(cls, several: Iterable[CodecError]) -> CodecError:
        """All together: sums rounded once, so the same whatever the order."""
        every = list(several)
        error, norm, cosine = (math.fsum(getattr(e, name) for e in every) for name in ("error", "norm", "cosine"))
        return cls(sum(e.n for e in every), error, norm, cosine, min((e.worst for e in every), default=1.0))

    def merged(self, other: CodecError) -> CodecError:
        return CodecError.total((self, other))

    @property
    def relative_l2(self) -> float:
        return math.sqrt(self.error / self.norm) if self.norm else 0.0

    @property
    def mean_cosine(self) -> float:
        return self.cosine / self.n if self.n else 1.0

    def as_json(self) -> dict[str, Any]:
        """For a commit record; a float64 in decimal text comes back with every bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CodecError:
        return cls(**value)

    def figures(self, name: str, tokens: int, channels: int) -> dict[str, Any]:
        """What a card says of a codec for images of `tokens` x `channels`: its cost, and what it loses."""
        each = codec.nbytes(name, tokens, channels) / tokens
        lost = {"relative_l2": self.relative_l2, "mean_cosine": self.mean_cosine, "worst_cosine": self.worst}
        return {"bytes_per_token": each, **lost, "tokens": self.n}
