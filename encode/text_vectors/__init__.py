"""How a text becomes a direction that can be compared with another's: one file a way. The contract is `TextVectors`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.format.document import Part


class TextVectors(Part):
    """A way to turn texts into vectors of one width. `sums` adds up the unit vectors of all pieces of texts: what a mean direction needs."""

    def sums(self, texts: list[str]) -> tuple[NDArray[np.float64], int]:
        """(Σ of unit vectors [width], number of pieces). The same texts in any order and grouping add up to the same, to rounding."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What the vectors depend on beside the fields, such as the hash of weights."""
        return {}
