"""Numbers as people write them: 20B, 1.5M, 2%. Sizes are whole, shares are floats, and `exact` gives back the decimal that was meant."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator

_POWERS = {"": 0, "K": 3, "M": 6, "B": 9, "T": 12}


def read_size(value: Any) -> Any:
    """A whole number from how people write it; anything else that is not one is a ValueError."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", value.strip())
        if not match:
            raise ValueError("a size is a number with K, M, B or T (powers of 1,000), such as 20B or 1.5M")
        value = Decimal(match[1]) * Decimal(10) ** _POWERS[match[2]]
    if isinstance(value, float | Decimal) and value == int(value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError("a size is a whole number ≥ 0")


def _percent(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return float(Decimal(value.removesuffix("%").strip()) / (100 if value.endswith("%") else 1))
        except InvalidOperation:
            raise ValueError("a share is a number, or a percentage such as 2%") from None
    return value


Size = Annotated[int, BeforeValidator(read_size)]
Percent = Annotated[float, BeforeValidator(_percent)]


def exact(x: float | int) -> Fraction:
    """The decimal number that the person wrote, without binary rounding: exact(0.1) == 1/10."""
    return Fraction(repr(x)) if isinstance(x, float) else Fraction(x)
