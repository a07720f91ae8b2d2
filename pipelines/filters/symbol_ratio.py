"""Text that is mostly signs: tables of numbers, code dumps, rows of dots.

Two of MassiveText's rules (Rae et al., 2021, appendix A1.1) that need no language: `#` and ellipses to words at most 0.1; at least 80 % of
words hold a letter. Letters are Unicode's, so scripts are alike.
"""

from __future__ import annotations

from pipelines.format.document import Percent
from pipelines.format.record import Record
from pipelines.stage import Filter


class SymbolRatio(Filter):
    """`max_symbols`: (hashes + ellipses) ÷ words. `min_letters`: the least share of words with a letter. Text without words is dropped."""

    max_symbols: Percent = 0.10
    min_letters: Percent = 0.80

    def reason(self, record: Record) -> str | None:
        text = "\n".join(s.text or "" for s in record.segments if s.kind == "text")
        words = text.split()
        if text.count("#") + text.count("...") + text.count("…") > self.max_symbols * len(words):
            return "symbol_ratio.max_symbols"
        if not words or sum(w.isalpha() or any(map(str.isalpha, w)) for w in words) < self.min_letters * len(words):
            return "symbol_ratio.min_letters"
        return None
