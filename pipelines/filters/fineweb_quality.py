"""FineWeb's own rules: lists, menus and pages of short or repeated lines that Gopher's and C4's rules let through.

From Penedo et al., "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale" (2024, section 3.6), as datatrove's
FineWebQualityFilter reads them: the same documents, the same first reasons. In that paper it comes after C4's rules and sees the lines
these left.
"""

from __future__ import annotations

from functools import cached_property

from pipelines.extra import need
from pipelines.filters.gopher_repetition import repeats
from pipelines.format.document import Percent
from pipelines.format.record import Record
from pipelines.stage import Filter
from pipelines.words import text_of, words_of


class FinewebQuality(Filter):
    """At least `line_punct_thr` of the lines end in a stop mark (`stop_chars`; by default those of all scripts that datatrove lists); at
    most `short_line_thr` have up to `short_line_length` characters; at most `char_duplicates_ratio` of the characters stand in lines seen
    before; at most `new_line_ratio` line ends a word."""

    line_punct_thr: Percent = 0.12
    line_punct_exclude_zero: bool = False
    stop_chars: tuple[str, ...] | None = None
    short_line_thr: Percent = 0.67
    short_line_length: int = 30
    char_duplicates_ratio: Percent = 0.01
    new_line_ratio: Percent = 0.3
    language: str = "eng"

    def reason(self, record: Record) -> str | None:
        detail = self._detail(text_of(record))
        return f"fineweb_quality.{detail}" if detail else None

    def _detail(self, text: str) -> str | None:
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            return "empty"
        ended = sum(line.endswith(self._stops) for line in lines) / len(lines)
        if ended < self.line_punct_thr and not (ended == 0 and self.line_punct_exclude_zero):
            return "line_punct_ratio"
        if sum(len(line) <= self.short_line_length for line in lines) / len(lines) > self.short_line_thr:
            return "short_line_ratio"
        breaks = text.count("\n")
        if repeats(lines)[1] / (len(text) - breaks) > self.char_duplicates_ratio:
            return "char_dup_ratio"
        if breaks and breaks / max(len(words_of(text, self.language)), 1) > self.new_line_ratio:
            return "list_ratio"
        return None

    @cached_property
    def _stops(self) -> tuple[str, ...]:
        if self.stop_chars is not None:
            return self.stop_chars
        return tuple(need("datatrove.utils.text", "fineweb_quality").TERMINAL_PUNCTUATION)
