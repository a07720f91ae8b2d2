"""Steps for child processes, which find functions by their module."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np

from pipelines.format.errors import InputError
from pipelines.stage import Step


def grow(item: int) -> dict[str, Any]:
    """An item with an array: large for even ones."""
    time.sleep(0.02 * (item % 3))  # later ones may be done first
    return {"at": item, "array": np.full((1 << 21) if item % 2 == 0 else 7, item % 251, np.uint8), "loaded by": os.getpid()}


class Invert:
    """Changes the array in place, as a network's padding may."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        array = item["array"]
        if array.flags.writeable:
            array ^= 255
        return {**item, "array": array, "worked by": os.getpid()}


def count(item: dict[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in item.items() if k != "array"}, "sum": int(item["array"].sum(dtype=np.int64)), "ended by": os.getpid()}


def fail(item: int, kind: str, at: int) -> int:
    if item == at and kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == at:
        raise InputError("not this one") if kind == "headwater" else ZeroDivisionError("not this one")
    return item


class Same:
    def __call__(self, item: Any) -> Any:
        return item


def slow(item: int, seconds: float) -> int:
    time.sleep(seconds)
    return item


def hang(out: str) -> None:
    """A job whose children say who they are and then work for ever; called in a process that a test kills."""
    from pipelines.engine import open_job

    with open_job("local") as job:
        list(job.map([Step(said, {"out": out}, processes=2), Step(Same)], [1, 2]))


def said(item: int, out: str) -> int:
    with open(f"{out}/{os.getpid()}", "w"):
        pass
    time.sleep(600)
    return item
