"""One JSON list too long to hold, cut into its elements as it streams by.

What comes in: a binary stream. What goes out: (offset, size, value) of each element. LLaVA's conversations are one list of a gigabyte; the
standard parser wants it whole, this keeps one element and one chunk. An element whose own text is broken ends the list, since nothing says
where the next one begins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from pipelines.bounded import MAX_LINE
from pipelines.format.errors import Reject

_CHUNK = 1 << 20
_SPACE = " \t\r\n"
_PLAIN = json.JSONDecoder(parse_constant=lambda _: None)  # made once: json.loads with options makes one a call, half the time of a line


def parse(data: bytes) -> Any:
    """One JSON value; a `Reject` (returned, not raised) when it is none. NaN and infinities, which Python writes and JSON forbids, are null."""
    try:
        return _PLAIN.decode(data.decode().removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        return Reject("unreadable", f"{type(error).__name__}: {error}"[:200])


def json_list(stream: IO[bytes], key: str | None) -> Iterator[tuple[int, int, Any]]:
    """The elements of a list, or of the list under `key` when the text is an object. With the key `*` the object's own members are the elements, each
    with its name under `key` (GQA's and ScienceQA's questions by their ids)."""
    cursor = _Cursor(stream)
    if key == "*" and cursor.peek() == "{":
        yield from _members(cursor)
        return
    if cursor.peek() == "{" and key is not None:
        cursor.enter(key)
    if cursor.take() != "[":
        if not cursor.text:
            raise Reject("truncated", "an empty file")
        hint = f" under the key {key!r}" if key else ""
        raise Reject("unreadable", f"not a JSON list{hint}; one object a line is called .jsonl")
    if cursor.peek() == "]":
        return
    while True:
        at, text = cursor.value()
        yield at, len(text), parse(text.encode("latin-1"))
        mark = cursor.take()
        if mark == "]":
            return
        if mark != ",":
            raise Reject("truncated" if not mark else "unreadable", f"the JSON list is broken at byte {cursor.at}")


def member(data: bytes) -> Any:
    """The text `"name": {…}` of a member as one mapping, its name under `key`."""
    found = parse(b"{" + data + b"}")
    if isinstance(found, Reject):
        return found
    (name, value), *_ = found.items()
    return {"key": name, **value} if isinstance(value, dict) else Reject("unreadable", f"not a mapping under {name[:80]!r}")


def _members(cursor: _Cursor) -> Iterator[tuple[int, int, Any]]:
    mark = cursor.take()
    if cursor.peek() == "}":
        return
    while mark in ("{", ","):
        at, name = cursor.value()
        if cursor.take() != ":" or name[:1] != '"':
            raise Reject("unreadable", f"the JSON object is broken at byte {cursor.at}")
        start, text = cursor.value()
        data = (name + ":" + text).encode("latin-1")
        yield at, start + len(text) - at, member(data)
        mark = cursor.take()
    if mark != "}":
        raise Reject("truncated" if not mark else "unreadable", f"the JSON object is broken at byte {cursor.at}")


class _Cursor:
    """A JSON text as it streams by. Latin-1, so that one character is one byte; values are parsed again from their bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.text, self.base, self.pos, self.ended = stream, "", 0, 0, False
        self.decoder = json.JSONDecoder()
        self.more(_CHUNK)
        self.pos = 3 if self.text.startswith("\xef\xbb\xbf") else 0  # a byte order mark

    @property
    def at(self) -> int:
        return self.base + self.pos

    def more(self, size: int) -> None:
        data = self.stream.read(size)
        self.ended = not data
        self.text, self.base, self.pos = self.text[self.pos :] + data.decode("latin-1"), self.base + self.pos, 0

    def peek(self) -> str:
        while True:
            while self.pos < len(self.text) and self.text[self.pos] in _SPACE:
                self.pos += 1
            if self.pos < len(self.text) or self.ended:
                return self.text[self.pos : self.pos + 1]
            self.more(_CHUNK)

    def take(self) -> str:
        mark = self.peek()
        self.pos += len(mark)
        return mark

    def value(self) -> tuple[int, str]:
        """The next value's place and text; the buffer doubles until the value is whole."""
        self.peek()
        while True:
            try:
                _, end = self.decoder.raw_decode(self.text, self.pos)
                if end < len(self.text) or self.ended:
                    at, text, self.pos = self.at, self.text[self.pos : end], end
                    return at, text
            except (ValueError, RecursionError) as error:
                if self.ended or isinstance(error, RecursionError):
                    reason = "truncated" if self.ended else "unreadable"
                    raise Reject(reason, f"the JSON list is broken after byte {self.at}: {error}"[:200]) from None
            if len(self.text) - self.pos > MAX_LINE:
                raise Reject("unreadable", f"no whole JSON value in {MAX_LINE} bytes after byte {self.at}")
            self.more(max(_CHUNK, len(self.text) - self.pos))

    def enter(self, key: str) -> None:
        """Into an object, past its other members, to the value of `key`."""
        self.take()
        while True:
            name = json.loads(self.value()[1])
            if self.take() != ":":
                raise Reject("unreadable", f"not a JSON object before byte {self.at}")
            if name == key:
                return
            self.value()
            if self.take() != ",":
                raise Reject("unreadable", f"no key {key!r} in the JSON object")
