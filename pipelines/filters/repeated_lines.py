"""Pages that say the same line again and again: menus, cookie notices, broken scrapes.

The share of lines, and of characters, that stand in a line already seen in the same document. The limits are those of MassiveText
(Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", 2021, table A1): 30 % of lines, 20 % of characters.
"""

from __future__ import annotations

from pipelines.format.document import Percent
from pipelines.format.record import Record
from pipelines.stage import Filter


class RepeatedLines(Filter):
    """`max_lines` and `max_chars` are shares, 0 to 1 or a percentage. Empty lines do not count."""

    max_lines: Percent = 0.30
    max_chars: Percent = 0.20

    def reason(self, record: Record) -> str | None:
        lines = [line.strip() for s in record.segments if s.kind == "text" for line in (s.text or "").splitlines()]
        lines = [line for line in lines if line]
        seen: set[str] = set()
        repeated = chars = 0
        for line in lines:
            if line in seen:
                repeated += 1
                chars += len(line)
            seen.add(line)
        if repeated > self.max_lines * len(lines):
            return "repeated_lines.max_lines"
        if chars > self.max_chars * sum(map(len, lines)):
            return "repeated_lines.max_chars"
        return None
