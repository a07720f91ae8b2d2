"""C4's rules: keep the lines that are sentences, drop the pages that are code, placeholder text, or hardly any sentence.

From Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (2020, section 2.2), as datatrove's
C4QualityFilter reads them: same documents, same reasons, same text left. It is a filter that rewrites: what follows it sees the document
without the lines that went, which is what FineWeb's rules expect. The bad-word list of the paper is not part of it.
"""

from __future__ import annotations

import re
from dataclasses import replace

from pydantic import PrivateAttr

from pipelines.extra import need
from pipelines.format.record import Record, Text
from pipelines.stage import Filter
from pipelines.words import lexicon, text_of

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_END = (".", "?", "!", '"', "'")
_POLICY = re.compile("|".join(("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")))


class C4(Filter):
    """`min_num_sentences`, `min_words_per_line` and `max_word_length` are switched off by -1. `split_paragraph: false` judges sentences
    instead of lines. `filter_…` and `remove_citations` switch the other rules."""

    split_paragraph: bool = True
    remove_citations: bool = True
    filter_no_terminal_punct: bool = True
    min_num_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1000
    filter_lorem_ipsum: bool = True
    filter_javascript: bool = True
    filter_curly_bracket: bool = True
    filter_policy: bool = True
    language: str = "eng"
    _left: tuple[str, str] = PrivateAttr(("", ""))

    def reason(self, record: Record) -> str | None:
        text = text_of(record)
        detail, left = self._judged(text)
        self._left = (text, left)
        return f"c4.{detail}" if detail else None

    def kept(self, record: Record) -> Record:
        """The record with the lines that stay. Its text becomes one segment."""
        text = text_of(record)
        before, left = self._left
        if before is not text:
            left = self._judged(text)[1]
        return record if left == text else replace(record, segments=(Text(left),))

    def _judged(self, text: str) -> tuple[str | None, str]:
        """(why the document goes, "") or (None, the text that stays)."""
        sentences, kept = 0, []
        for line in self._lines(text):
            line = line.strip()
            words = line.split()
            if self.max_word_length != -1 and len(line) > self.max_word_length and any(len(w) > self.max_word_length for w in words):
                continue
            if self.remove_citations and "[" in line:
                line = _CITATION.sub("", line)
            if self.filter_no_terminal_punct and (not line.endswith(_END) or line.endswith("...")):
                continue
            if len(words) < self.min_words_per_line:
                continue
            lower = line.lower()
            if self.filter_lorem_ipsum and "lorem ipsum" in lower:
                return "lorem_ipsum", ""
            if self.filter_javascript and "javascript" in lower:
                continue
            if self.filter_curly_bracket and "{" in line:
                return "curly_bracket", ""
            if self.filter_policy and _POLICY.search(lower):
                continue
            kept.append(line)
            if self.min_num_sentences != -1:
                sentences += lexicon(self.language).sentences(line) if self.split_paragraph else 1
        if sentences < self.min_num_sentences:
            return "too_few_sentences", ""
        return None, ("\n" if self.split_paragraph else " ").join(kept).strip()

    def _lines(self, text: str) -> list[str]:
        if self.split_paragraph:
            return text.splitlines()
        return list(need("datatrove.utils.text", "c4").split_into_sentences(text, self.language))
