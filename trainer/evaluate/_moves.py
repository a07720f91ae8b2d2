"""Moves as numbers and as the text that a record's action is written in: what world-model evaluations say to a model.

In: a held-out record's own action text, such as "action: dx=+1.338, dy=-0.659, dyaw=+0.012, rel_t=+0.031". Out: the same text with other numbers, so
whatever template, digits and tokenizer a data set was made with, a model is told new moves in the words it was trained on. Poses are x, y, yaw
(radians, to the left); a move is a pose seen from another: dx ahead and dy to the left in the text's units, dyaw in (-pi, pi].
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.format.errors import InputError

NUMBER = r"[+-]\d+(?:\.(\d+))?"
MOVE = ("dx", "dy", "dyaw")


def wrap(angle: Any) -> Any:
    """In (-pi, pi]."""
    return np.pi - (np.pi - angle) % (2 * np.pi)


def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Moves [n, 3] that lead from poses a to poses b, in the poses' own units."""
    east, north = b[..., 0] - a[..., 0], b[..., 1] - a[..., 1]
    cos, sin = np.cos(a[..., 2]), np.sin(a[..., 2])
    return np.stack([cos * east + sin * north, cos * north - sin * east, wrap(b[..., 2] - a[..., 2])], axis=-1)


def after(poses: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Poses [n, 3] that moves lead to: the inverse of `between`."""
    cos, sin = np.cos(poses[..., 2]), np.sin(poses[..., 2])
    dx, dy = moves[..., 0], moves[..., 1]
    x, y = poses[..., 0] + cos * dx - sin * dy, poses[..., 1] + sin * dx + cos * dy
    return np.stack([x, y, wrap(poses[..., 2] + moves[..., 2])], axis=-1)


@dataclass(frozen=True)
class Wording:
    """How one data set says a move. `text` is one of its actions, `horizon` the offset in frames at which rel_t is 1."""

    text: str
    tokenizer: Any
    horizon: float = 128.0

    def __post_init__(self) -> None:
        missing = [name for name in MOVE if not self._slot(name).search(self.text)]
        if missing:
            raise InputError("this action names no move that poses follow from", found=self.text[:200], allowed="dx=…, dy=…, dyaw=… in the template",
                             next="roll-outs of other actions: pipelines run generate")  # fmt: skip

    def numbers(self) -> dict[str, float]:
        """What the text says, by name."""
        names = (*MOVE, "rel_t")
        found = {name: self._slot(name).search(self.text) for name in names}
        return {name: float(m[0].split("=")[1]) for name, m in found.items() if m}

    def say(self, move: np.ndarray, frames: int = 1) -> str:
        """The text for a move (dx, dy, dyaw in the text's units) over so many frames."""
        values = {**dict(zip(MOVE, map(float, move), strict=True)), "rel_t": frames / self.horizon}
        text = self.text
        for name, value in values.items():
            match = self._slot(name).search(text)
            if match is not None:
                text = f"{text[: match.start()]}{name}={_signed(value, len(match[1] or ''))}{text[match.end() :]}"
        return text

    def ids(self, text: str) -> np.ndarray:
        """Token ids int32 [n] of a text."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def told(self, moves: np.ndarray, frames: int = 1) -> list[np.ndarray]:
        """Token ids of each of some moves [n, 3]."""
        return [self.ids(self.say(m, frames)) for m in moves]

    @staticmethod
    def _slot(name: str) -> re.Pattern[str]:
        return re.compile(rf"(?<!\w){name}={NUMBER}")


def _signed(value: float, digits: int) -> str:
    """As the data write numbers: always signed, and what rounds to zero is plus zero."""
    text = f"{value:+.{digits}f}"
    return "+" + text[1:] if float(text) == 0 else text
