"""Rows of a table with their images, where these are inside the table or somewhere on the web.

What comes in: numbered rows, and which images each names. What goes out: items (images as bytes, rows about them) in the order in which images first
appear, or what could not be read. Merging tells images apart by their bytes, or by their URLs.
"""

from __future__ import annotations

import binascii
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pipelines.fetch import Ask, Fetched, Fetcher, Policy
from pipelines.fetch.urls import redact
from pipelines.format.document import sha256_hex
from pipelines.format.errors import Reject
from pipelines.image_rows import Item
from pipelines.pictures import sound
from pipelines.stage import Rejected

Numbered = Callable[[], Iterable[tuple[int, Any]]]
Images = Callable[[Any], list[Any]]
MAX_BASE64 = 64 << 20  # characters


def path_of(ref: Any) -> str:
    """The path in a cell: a text, or the `path` of {bytes, path}."""
    if isinstance(ref, dict):
        ref = ref.get("path")
    return sound(ref)


def image_of(ref: Any, base64: bool = False) -> bytes:
    """The bytes in a cell. `Reject` when it holds none."""
    if isinstance(ref, dict):
        ref = ref.get("bytes")
    if base64:
        text = sound(ref, MAX_BASE64)
        head, comma, body = text.partition(",")
        try:
            return binascii.a2b_base64(body if comma and head.startswith("data:") else text)
        except (binascii.Error, ValueError) as error:
            raise Reject("unreadable", f"base64: {error}") from None
    if not isinstance(ref, bytes):
        raise Reject("unreadable", f"no image bytes in the cell: {type(ref).__name__}")
    return ref


def inside_items(numbered: Numbered, images: Images, merge: bool, base64: bool, file: str) -> Iterator[Item | Rejected]:
    """Items of rows that hold their images."""
    groups = _by_bytes(numbered, images, base64) if merge else {}
    for number, row in numbered():
        origin = f"{file}#{number}"
        about = groups.get(number, []) if merge else [(number, row, None)]
        if merge and not about and not isinstance(row, Reject):
            continue  # told with the first row about these images
        try:
            found = _held(row, images, base64)
        except Reject as reject:
            yield Rejected(origin, reject.reason, reject.detail)
            continue
        yield Item(origin, [(origin, data) for data in found], about or [(number, row, None)])


def _by_bytes(numbered: Numbered, images: Images, base64: bool) -> dict[int, list[tuple[int, Any, Any]]]:
    """For the first row about each image, all rows about it, without the images: cells of bytes and long texts are not kept twice."""
    first: dict[tuple[str, ...], int] = {}
    groups: dict[int, list[tuple[int, Any, Any]]] = {}
    for number, row in numbered():
        try:
            key = tuple(sha256_hex(data) for data in _held(row, images, base64))
        except Reject:
            groups[number] = [(number, None, None)]  # said by the second reading
            continue
        leader = first.setdefault(key, number) if key else number
        groups.setdefault(leader, []).append((number, _light(row), None))
    return groups


def _light(row: Any) -> Any:
    if isinstance(row, dict):
        return {k: v for k, v in row.items() if not _heavy(v)}
    return row


def _heavy(value: Any) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes)
    if isinstance(value, list):
        return any(map(_heavy, value))
    return isinstance(value, bytes) or (isinstance(value, str) and len(value) > 1 << 20)


def _held(row: Any, images: Images, base64: bool) -> list[bytes]:
    if isinstance(row, Reject):
        raise row
    return [image_of(ref, base64) for ref in images(row)]


def fetched_items(
    numbered: Numbered, images: Images, merge: bool, policy: Policy, file: str, only: list[int] | None = None
) -> Iterator[Item | Rejected]:
    """Items of rows that name URLs. Each URL of a part is asked for once, and rows about the same images follow one another, so that few bodies are
    held. `only` takes up the items that begin with these rows. A row without usable URLs costs no request."""
    groups: list[_Group] = []
    of: dict[Any, _Group] = {}
    for number, row in numbered():
        try:
            if isinstance(row, Reject):
                raise row
            urls = [_url(ref) for ref in images(row)]
        except Reject as reject:
            groups.append(([], [(number, row, None)], reject))
            continue
        key = tuple(urls) or number
        if key not in of:
            groups.append(of.setdefault(key, (urls, [], None)))
        of[key][1].append((number, row, None))
    if only is not None:
        wanted = set(only)
        groups = [_some(g, wanted, merge) for g in groups]
    left = Counter(url for urls, rows, _ in groups if rows for url in urls)
    with Fetcher(policy) as fetcher:
        answers = zip(left, fetcher.ordered([Ask(url) for url in left]), strict=True)
        known: dict[str, Fetched] = {}
        for urls, rows, problem in groups:
            if not rows:
                continue
            while any(url not in known for url in urls):
                known.__setitem__(*next(answers))
            got = [known[url] for url in urls]
            for rest in [rows] if merge and urls else [[row] for row in rows]:
                origin = f"{file}#{rest[0][0]}"
                yield Rejected(origin, problem.reason, problem.detail) if problem else _item(origin, urls, got, rest)
            left.subtract(urls)
            for url in urls:
                if not left[url]:
                    known.pop(url, None)


_Group = tuple[list[str], list[tuple[int, Any, Any]], Reject | None]


def _some(group: _Group, wanted: set[int], merge: bool) -> _Group:
    """What of a group is taken up again: all of it by its first row, or each row for itself."""
    urls, rows, problem = group
    if merge and urls:
        return urls, rows if rows[0][0] in wanted else [], problem
    return urls, [row for row in rows if row[0] in wanted], problem


def _item(origin: str, urls: list[str], got: list[Fetched], rows: list[tuple[int, Any, Any]]) -> Item | Rejected:
    for url, one in zip(urls, got, strict=True):
        if one.status != "ok":
            shown = redact(url)
            return Rejected(origin, one.status, one.detail if shown in one.detail else f"{one.detail} [{shown}]")
    evidence = [one.evidence for one in got]
    fields = {"fetch": evidence[0] if len(evidence) == 1 else evidence} if evidence else {}
    return Item(origin, list(zip(urls, [one.body for one in got], strict=True)), rows, fields, urls[0] if len(urls) == 1 else None)


def _url(ref: Any) -> str:
    text = sound(ref).strip()
    if not text:
        raise Reject("no_image", "an empty URL")
    return text
