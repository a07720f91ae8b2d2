"""The text of a page: trafilatura, in the guarded child, since HTML parsers are C code that reads what strangers wrote.

What comes in: HTML as text. What goes out: its main text without menus, comments and boilerplate, or a `Reject`. The same call as
datatrove's Trafilatura extractor makes, so the text is the same (tested), with two differences. `deduplicate` there drops passages that
*any* page before had, out of a memory of the process, so its result depends on what was read before; here that memory is emptied for every
page. And the limit is processor time (20 s) in a process of its own that loses network and files, where datatrove gives a second of wall
clock: on a busy machine another second, another corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from pipelines.extra import need
from pipelines.format.errors import Reject
from pipelines.media.child import ask


def page_text(html: str, favour_precision: bool = True, deduplicate: bool = True) -> str:
    """The main text of a page. `Reject("empty")` when it has none, `timeout` and `unreadable` as the child ends."""
    answer = ask("pipelines.html_text:extract_op", {"precision": favour_precision, "deduplicate": deduplicate}, html.encode("utf-8", "surrogatepass"))
    return bytes(answer.blob).decode()


def extract_op(args: dict[str, Any], file: BinaryIO) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Runs in the child: the text of the page as UTF-8."""
    trafilatura = need("trafilatura", "HTML")
    need("trafilatura.deduplication", "HTML").LRU_TEST.clear()
    html = file.read().decode("utf-8", "replace")
    text = trafilatura.extract(html, favor_precision=args["precision"], include_comments=False, deduplicate=args["deduplicate"])
    if not text or not text.strip():
        raise Reject("empty", "no main text")
    yield {}, text.encode("utf-8", "replace")
