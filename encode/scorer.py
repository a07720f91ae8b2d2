"""What a scorer is: a frozen network looks at each picture once, and a rule makes a number of what it saw, alone or beside a caption.

The two halves are cut where work can be shared. A `Sight` is the network: pictures in, one vector each (an embedding, or a classifier's
probabilities), and for two-tower models texts in, vectors of the same space out. A `Scorer` is the rule; it runs on a CPU in float64. Scorers that
name the same weights share one sight: it is loaded once and sees each picture once, however many scores come of it.

    class Mine(Scorer):                  encode/scorers/mine.py, named `mine: {...}` under `scores` of a recipe
        def sight(self): ...             the network, as a value: equal ones are shared
        def values(self, seen, said): ... float32 [n, width] -> float64 [n]; `said` are the captions' vectors where `reads` is true
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, nan
from statistics import fmean
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from encode.encoder import Machine, Network
from encode.processor import Processor, published
from encode.weights import read_json, tensors_sha256
from pipelines.format.document import Part, fingerprint, part_name

Fold = Literal["max", "mean", "min", "first"]
Values = NDArray[np.float64]


def folded(values: list[float], how: Fold) -> float:
    """Several values of one record as one; none of them may be no number."""
    if not all(map(isfinite, values)):
        return nan
    if how == "mean":
        return fmean(values)
    return values[0] if how == "first" else max(values) if how == "max" else min(values)


@dataclass(frozen=True)
class Sight:
    """A network that looks at pictures. `weights` is a local folder or a hub id; `batch` is fixed and padded, as for encoders."""

    weights: str
    batch: int
    dtype: str

    version: ClassVar[int] = 1
    reads: ClassVar[bool] = False

    def processor(self) -> Processor:
        """How a picture is prepared, exactly as the model's own settings say. InputError for a processor whose steps are not known."""
        return _processor(self.weights)

    def look(self, machine: Machine) -> tuple[Network, Network | None]:
        """The loaded networks: uint8 [B, height, width, 3] -> float32 [B, width], and for texts what `written` gives -> float32 [B, width]."""
        raise NotImplementedError

    def written(self, texts: list[str]) -> NDArray[np.int64]:
        """Texts as the text tower takes them: int64 [n, 1 or 2, length], ids and, where the tokenizer gives one, the attention mask."""
        raise NotImplementedError

    def text_identity(self) -> Any:
        """What else the vectors of texts depend on."""
        return None

    def identity(self) -> dict[str, Any]:
        """What its vectors depend on, apart from the machine."""
        said = {"sight": type(self).__name__, "version": self.version, "weights": tensors_sha256(self.weights), "texts": self.text_identity()}
        return {**said, "preprocessing": self.processor().describe(), "dtype": self.dtype, "batch": self.batch}


class Scorer(Part):
    """One score of a record. `images` says how the values of several images become the record's."""

    version: ClassVar[int] = 1
    reads: ClassVar[bool] = False  # whether a caption stands beside the picture: then a value is of a picture and a caption
    batch: int = Field(32, ge=1)
    dtype: Literal["auto", "f32", "bf16"] = "auto"
    images: Fold = "max"

    def sight(self) -> Sight:
        raise NotImplementedError

    def values(self, seen: NDArray[np.float32], said: NDArray[np.float32] | None) -> Values:
        """Vectors of pictures and, where it reads, of the caption that each stands beside: [n, width] -> [n]."""
        raise NotImplementedError

    def own(self, values: list[float]) -> float:
        """The record's value, of those of its captions; asked only of a scorer that reads."""
        raise NotImplementedError

    def check(self) -> None:
        """InputError for what cannot be scored, before anything runs; reads settings and headers, no weights."""
        self.sight().processor()

    def rule(self) -> dict[str, Any]:
        """What the value depends on beside the sight: the settings, and hashes of files that hold more of it."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in ("weights", "tower", "batch", "dtype")}

    def identity(self) -> dict[str, Any]:
        """What the score depends on, apart from the machine: known before any weight is loaded onto a device."""
        return {"scorer": part_name(self), "version": self.version, "rule": self.rule(), "sight": self.sight().identity()}

    def fingerprint(self, machine: Machine) -> str:
        """Scores with one fingerprint are equal for the same bytes and captions."""
        return fingerprint({**self.identity(), "dtype": machine.dtype, "device": machine.kind})


@lru_cache(maxsize=16)
def _processor(weights: str) -> Processor:
    return published(read_json(weights, "preprocessor_config.json", "processor_config.json"), weights)
