"""What a stage says before it runs: the answer to `--dry-run`, as rows for a person and as an object for a machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Estimate:
    """`facts` are the figures (records, tokens, bytes, seconds …), `table` is an optional list of rows with one set of keys."""

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    table: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def rows(self) -> list[list[str]]:
        """The table with its header row, every cell as text; empty when there is none."""
        if not self.table:
            return []
        keys = list(self.table[0])
        return [keys, *([_cell(row.get(k)) for k in keys] for row in self.table)]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"estimate": self.title, **self.facts, "table": self.table, "warnings": self.warnings}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
