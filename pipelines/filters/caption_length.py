"""Captions that say too little ("IMG_0231") or are a page of keywords: judged by their number of words.

A word is a run of characters between white space; in scripts that write none between words (Chinese, Japanese, Thai) use the limits
on characters. Every caption of the record must fit, so that the data set holds none that does not; `require: any` keeps a record for
the sake of one good caption, with its bad ones.
"""

from __future__ import annotations

from typing import Literal

from pipelines.format.record import Record
from pipelines.stage import Filter


class CaptionLength(Filter):
    """Limits on words and characters, ends included; `require` says whether `every` caption or `any` one must fit."""

    min_words: int = 1
    max_words: int | None = None
    min_chars: int = 1
    max_chars: int | None = None
    require: Literal["every", "any"] = "every"

    def reason(self, record: Record) -> str | None:
        problems = [self._problem(s.text or "") for s in record.segments if s.kind == "text"]
        bad = [p for p in problems if p]
        if not problems:
            return "caption_length.min_words"
        if bad and (self.require == "every" or len(bad) == len(problems)):
            return f"caption_length.{bad[0]}"
        return None

    def _problem(self, text: str) -> str | None:
        text = text.strip()
        words = len(text.split())
        if words < self.min_words:
            return "min_words"
        if self.max_words is not None and words > self.max_words:
            return "max_words"
        if len(text) < self.min_chars:
            return "min_chars"
        if self.max_chars is not None and len(text) > self.max_chars:
            return "max_chars"
        return None
