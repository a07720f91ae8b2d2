"""Gopher's quality rules: is this a document of running prose at all?

The rules of MassiveText (Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", 2021, appendix A1.1) as
datatrove reads them: the same documents are dropped for the same first reason as by its GopherQualityFilter. Here each rule is a sum over
the word ids that `words.py` found once; there it is a loop over words. A text without a word, where datatrove stops with a division by
zero, is dropped as `empty`.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from pipelines.format.document import Percent, Size
from pipelines.format.record import Record
from pipelines.stage import Filter
from pipelines.words import Words, text_of, words_of

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Rae et al., appendix A1.1


class GopherQuality(Filter):
    """Limits, ends included; null switches a rule off. Shares are 0 to 1 or percentages. `language` (ISO 639-3) picks the word tokenizer; a
    text in another language than English needs `stop_words` of its own. `min_alpha_words` is datatrove's `max_non_alpha_words_ratio`."""

    min_doc_words: Size | None = 50
    max_doc_words: Size | None = 100_000
    min_avg_word_length: float | None = 3
    max_avg_word_length: float | None = 10
    max_symbol_word_ratio: Percent | None = 0.1
    max_bullet_lines_ratio: Percent | None = 0.9
    max_ellipsis_lines_ratio: Percent | None = 0.3
    min_alpha_words: Percent | None = 0.8
    min_stop_words: int | None = 2
    stop_words: tuple[str, ...] = STOP_WORDS
    language: str = "eng"

    def reason(self, record: Record) -> str | None:
        text = text_of(record)
        words = words_of(text, self.language)
        detail = self._words(words) or self._signs(text, len(words)) or self._lines(text) or self._prose(words)
        return f"gopher_quality.{detail}" if detail else None

    def _words(self, words: Words) -> str | None:
        proper = words.ids[~words.lexicon.symbol[words.ids]]
        n = len(proper)
        if self.min_doc_words and n < self.min_doc_words:
            return "gopher_short_doc"
        if self.max_doc_words and n > self.max_doc_words:
            return "gopher_long_doc"
        if not len(words):
            return "empty"
        mean = float(words.lexicon.length[proper].sum()) / n if n else float("nan")
        if self.min_avg_word_length and mean < self.min_avg_word_length:
            return "gopher_below_avg_threshold"
        if self.max_avg_word_length and mean > self.max_avg_word_length:
            return "gopher_above_avg_threshold"
        return None

    def _signs(self, text: str, n: int) -> str | None:
        if self.max_symbol_word_ratio and text.count("#") / n > self.max_symbol_word_ratio:
            return "gopher_too_many_hashes"
        if self.max_symbol_word_ratio and (text.count("...") + text.count("…")) / n > self.max_symbol_word_ratio:
            return "gopher_too_many_ellipsis"
        return None

    def _lines(self, text: str) -> str | None:
        lines = text.splitlines()
        bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines) if "•" in text or "-" in text else 0
        if self.max_bullet_lines_ratio and bullets / len(lines) > self.max_bullet_lines_ratio:
            return "gopher_too_many_bullets"
        cut = sum(line.rstrip().endswith(("...", "…")) for line in lines) if "..." in text or "…" in text else 0
        if self.max_ellipsis_lines_ratio and cut / len(lines) > self.max_ellipsis_lines_ratio:
            return "gopher_too_many_end_ellipsis"
        return None

    def _prose(self, words: Words) -> str | None:
        if self.min_alpha_words and int(np.count_nonzero(words.lexicon.letter[words.ids])) / len(words) < self.min_alpha_words:
            return "gopher_below_alpha_threshold"
        if self.min_stop_words and not self._has_stop_words(words):
            return "gopher_enough_stop_words"
        return None

    def _has_stop_words(self, words: Words) -> bool:
        wanted = {words.lexicon.id(word) for word in self._stop_words}
        most = self.min_stop_words or 0  # the first 64 words of prose hold as many
        return any(len(wanted.intersection(words.ids[:end].tolist())) >= most for end in (64, None))

    @cached_property
    def _stop_words(self) -> frozenset[str]:
        return frozenset(self.stop_words)
