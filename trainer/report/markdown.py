"""report.md: the page's words and tables as Markdown, for issues, chats and papers' appendices. No figures, no pictures.

    markdown(evidence) → str

It is read off the same sections as the page, so the two cannot disagree, and a section that anybody adds is in both. Strings out of datasets are
hostile in Markdown too (HTML and links in a cell): whatever Markdown gives a meaning is escaped.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

from trainer.report.evidence import Evidence
from trainer.report.page import opening, sections

SKIPPED = {"svg", "figure", "style", "nav", "img"}
_SPECIAL = re.compile(r"([\\`*_\[\]|#~])")


def markdown(evidence: Evidence) -> str:
    """The whole report as text."""
    written = [_written(m) for m in [*opening(evidence), *(section for _, _, section in sections(evidence))]]
    return "\n\n".join(w for w in written if w) + "\n"


def _written(section: str) -> str:
    reader = _Reader()
    reader.feed(section)
    reader.close()
    return "\n\n".join(reader.blocks)


def escaped(text: str) -> str:
    """Text whose characters mean themselves in Markdown."""
    plain = _SPECIAL.sub(r"\\\1", re.sub(r"\s+", " ", text))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class _Reader(HTMLParser):
    """Blocks of Markdown from the few elements that reports are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.skipped = 0
        self.bullets: list[str] = []
        self.numeric: list[bool] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SKIPPED and tag != "img":
            self.skipped += 1
        elif self.skipped:
            return
        elif tag in ("p", "h1", "h2", "h3", "li", "summary", "th", "td"):
            self.words = []
        elif tag == "tr":
            self.rows.append([])
        elif tag == "table":
            self.rows, self.numeric = [], []
        if not self.skipped and tag == "th" and len(self.rows) == 1:
            self.numeric.append(("class", "n") in attrs)
        if not self.skipped and (tag == "strong" or ("class", "bad") in attrs):
            self.words.append("**")

    def handle_data(self, data: str) -> None:
        if not self.skipped:
            self.words.append(escaped(data))

    def handle_endtag(self, tag: str) -> None:
        if tag in SKIPPED and tag != "img":
            self.skipped -= 1
            return
        if self.skipped:
            return
        if tag == "strong":
            self.words.append("**")
        said = "".join(self.words).strip()
        if said.count("**") % 2:  # a class that marks the whole of an element
            said += "**"
        if tag in ("th", "td") and self.rows:
            self.rows[-1].append(said)
        elif tag in ("h1", "h2", "h3"):
            self.blocks.append(f"{'#' * int(tag[1])} {said}")
        elif tag in ("p", "summary") and said:
            self.blocks.append(said)
        elif tag == "li":
            self.bullets.append(f"- {said}")
        elif tag == "ul":
            self.blocks.append("\n".join(self.bullets))
            self.bullets = []
        elif tag == "table" and self.rows:
            head, *body = self.rows
            rule = ["---:" if n else "---" for n in self.numeric] or ["---"] * len(head)
            self.blocks.append("\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body)))
            self.rows = []
        if tag in ("p", "h1", "h2", "h3", "li", "summary", "th", "td"):
            self.words = []
