"""Steps that send arrays of many sizes."""

from __future__ import annotations

from typing import Any

import numpy as np


def make(item: Any) -> Any:
    if isinstance(item, int):
        return {"at": item, "array": (np.arange(item) % 256).astype(np.uint8) if item else None}
    return item


class Look:
    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        array = item["array"]
        if array is None:
            return {**item, "bytes": 0, "sum": 0, "zero_copy": False}
        return {**item, "bytes": array.nbytes, "sum": int(array.sum(dtype=np.int64)), "zero_copy": not array.flags.writeable}
