"""HTML that cannot be injected: every string is escaped on its way in, and only what was made here or by `pipelines.format.page` passes.

    tag("td", answer, title=question)      answer and question may hold anything: they become text, never elements, handlers or URLs

Reports show strings that came out of datasets (questions, answers, types, source names), which are hostile by assumption. So there is no
template to forget an escape in: a `Markup` is made by `tag` and `joined` only, everything else is text. Attribute names come from our own
code, so a handler attribute would be our bug (asserted). Control characters are replaced: they mean nothing on a page and much to a terminal.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

from pipelines.format.page import POLICY, Html

__all__ = ["POLICY", "Markup", "clean", "joined", "link", "table", "tag", "text"]
Markup = Html  # text that is already HTML: one type for all pages of the project
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
_VOID = {"meta", "br", "hr", "img", "col"}


def text(value: Any) -> Markup:
    """Any value as HTML text: markup as it is, everything else escaped."""
    return value if isinstance(value, Markup) else Markup(html.escape(clean(str(value)), quote=True))


def clean(value: str) -> str:
    """The string without control and direction-override characters (each becomes U+FFFD)."""
    return _CONTROL.sub("\ufffd", value)


def joined(parts: Iterable[Any], between: str = "") -> Markup:
    """Several values in a row, each escaped unless it is markup; nothing for None."""
    return Markup(html.escape(between).join(text(p) for p in parts if p is not None))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """One element. `class_` and `aria_label` lose or turn their underscores; an attribute that is None is left out."""
    assert _NAME.fullmatch(name) and name not in {"script", "iframe", "object", "embed"}, name
    written = ""
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        assert _NAME.fullmatch(attribute) and not attribute.startswith("on") and attribute not in {"href", "src"}, attribute
        if value is not None:
            written += f' {attribute}="{text(value)}"'
    inner = joined(children)
    return Markup(f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{inner}</{name}>")


def link(anchor: str, *children: Any) -> Markup:
    """A link inside the page: the only kind a report has."""
    return Markup(f'<a href="#{text(anchor)}">{joined(children)}</a>')


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]], caption: Any = None, numeric_from: int = 1) -> Markup:
    """A table in a box that scrolls sideways on a narrow screen, its caption above it; columns from `numeric_from` on are set as figures."""

    def cells(kind: str, values: Iterable[Any]) -> Markup:
        return tag("tr", *(_cell(kind if i or kind == "th" else "row", v, i >= numeric_from) for i, v in enumerate(values)))

    head = tag("thead", cells("th", header))
    body = tag("tbody", *(cells("td", row) for row in rows))
    box = tag("div", tag("table", head, body, aria_label=caption), class_="scroll", tabindex="0")
    return box if caption is None else joined([tag("p", caption, class_="caption"), box])


def _cell(kind: str, value: Any, numeric: bool) -> Markup:
    name, scope = ("th", "row") if kind == "row" else (kind, "col" if kind == "th" else None)
    return tag(name, "–" if value is None else value, class_="n" if numeric else None, scope=scope)
