"""Documents too short to be prose or too long to be one document: judged by characters and words of all their text together."""

from __future__ import annotations

from pipelines.format.document import Size
from pipelines.format.record import Record
from pipelines.stage import Filter


class TextLength(Filter):
    """Limits, ends included. Characters are Unicode code points without leading and trailing white space; words stand between white space."""

    min_chars: Size = 1
    max_chars: Size | None = None
    min_words: Size = 0

    def reason(self, record: Record) -> str | None:
        texts = [(s.text or "").strip() for s in record.segments if s.kind == "text"]
        chars = sum(map(len, texts))
        if chars < self.min_chars:
            return "text_length.min_chars"
        if self.max_chars is not None and chars > self.max_chars:
            return "text_length.max_chars"
        if self.min_words and sum(len(t.split()) for t in texts) < self.min_words:
            return "text_length.min_words"
        return None
