"""Shares of lines and characters, each with a limit of your own: what the packaged rules do not say about your corpus.

No rule is on by default. Empty lines do not count; a share of no lines, or of no characters, is 0. Nothing here knows a language: letters,
digits and capitals are Unicode's.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from pipelines.format.document import Percent
from pipelines.format.record import Record
from pipelines.stage import Filter
from pipelines.words import text_of

_ENDS = (".", "!", "?", '"', "'", "”", "’", "。", "！", "？", "…", "।", "؟", "۔")


class LineRatios(Filter):
    """Of lines: `max_short` with fewer than `short_length` characters, `min_ended` that end in a stop mark, `max_bullets`, `max_ellipses`
    at their end, `max_capitals` whose letters are all capitals. Of characters other than white space: `max_digits`, `min_letters`,
    `max_repeated` in lines seen before."""

    version: ClassVar[int] = 2  # 2: letters without case are no capitals
    max_short: Percent | None = None
    short_length: int = 30
    min_ended: Percent | None = None
    max_bullets: Percent | None = None
    max_ellipses: Percent | None = None
    max_capitals: Percent | None = None
    max_digits: Percent | None = None
    min_letters: Percent | None = None
    max_repeated: Percent | None = None

    @model_validator(mode="after")
    def _says_something(self) -> LineRatios:
        if all(getattr(self, name) is None for name in type(self).model_fields if name != "short_length"):
            raise ValueError("give at least one limit")
        return self

    def reason(self, record: Record) -> str | None:
        lines = [line.strip() for line in text_of(record).splitlines()]
        lines = [line for line in lines if line]
        for name, limit in ((n, getattr(self, n)) for n in type(self).model_fields if n != "short_length"):
            if limit is None:
                continue
            share = self._share(name.partition("_")[2], lines)
            if share > limit if name.startswith("max") else share < limit:
                return f"line_ratios.{name}"
        return None

    def _share(self, what: str, lines: list[str]) -> float:
        if what in ("digits", "letters", "repeated"):
            signs = ["".join(line.split()) for line in lines]
            return _characters(what, signs) / max(1, sum(map(len, signs)))
        if what == "short":
            n = sum(len(line) < self.short_length for line in lines)
        elif what == "ended":
            n = sum(line.endswith(_ENDS) for line in lines)
        elif what == "bullets":
            n = sum(line.startswith(("•", "-", "*", "·", "▪")) for line in lines)
        elif what == "ellipses":
            n = sum(line.endswith(("...", "…")) for line in lines)
        else:
            assert what == "capitals", what
            n = sum(_capitals(line) for line in lines)
        return n / max(1, len(lines))


def _capitals(line: str) -> bool:
    """Whether all letters are capitals; letters of scripts without case are none, or a Japanese line with "A4" in it would be shouting."""
    return line.isupper() and (line.isascii() or all(map(str.isupper, filter(str.isalpha, line))))


def _characters(what: str, lines: list[str]) -> int:
    if what == "repeated":
        seen: set[str] = set()
        total = 0
        for line in lines:
            total += len(line) if line in seen else 0
            seen.add(line)
        return total
    wanted = str.isdigit if what == "digits" else str.isalpha
    return sum(sum(map(wanted, line)) for line in lines)
