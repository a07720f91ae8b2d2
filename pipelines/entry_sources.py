"""Lists that others made, as entries for `build-entries`: plain lists, WordNet's own files, and lists with a number beside each line.

In: a path. Out: distinct entries, underscores of lemmas and titles turned to spaces, without those that hold no letter and no digit.

    include   a JSON list, or a text file with an entry a line                               as `metaclip` reads them
    wordnet   data.noun … (lemmas as they are written) or index.noun … (in lower case)       the layout of WordNet's manual, wndb(5WN)
    counted   a line is an entry, a tab or spaces, and a whole number: views of a title, occurrences of a word

Published lists took titles with 70 views or more (Xu et al. 2024), the second version the top 76 % of titles by views: `min_count` and `top`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pydantic import Field

from pipelines.bounded import lines, opened
from pipelines.entries import read_entries
from pipelines.format.document import Document, Percent, Size
from pipelines.format.errors import InputError, Reject

_DATA = re.compile(r"\d{8} \d\d [nvasr] ([0-9a-f]{2}) ")
_INDEX = re.compile(r"(\S+) [nvasr] \d+ \d+ ")
_SYNTACTIC = re.compile(r"\((a|p|ip)\)$")  # where an adjective may stand: no part of it
_COUNTED = re.compile(r"(.*\S)[ \t]+(\d+)")
_LONGEST = 1 << 20  # bytes of a line


class Counted(Document):
    """A list with counts: lines with `min_count` or more, and of these the `top` share by count."""

    path: str
    min_count: Size = 1
    top: Percent = Field(1.0, gt=0, le=1)


def sayable(entry: str) -> bool:
    """Whether an entry holds a letter or a digit: pure punctuation names nothing."""
    return any(c.isalnum() for c in entry)


def included(path: str) -> list[str]:
    """The entries of a plain list."""
    return _distinct(read_entries(path))


def wordnet(path: str) -> list[str]:
    """The lemmas of one of WordNet's files, in its order."""
    out: list[str] = []
    for number, line in _lines(path):
        if line.startswith("  ") or not line:  # the licence stands before the data
            continue
        if found := _DATA.match(line):
            words = line[found.end() :].split(" ")[: 2 * int(found[1], 16) : 2]
            out += [_SYNTACTIC.sub("", w).replace("_", " ") for w in words]
        elif found := _INDEX.match(line):
            out.append(found[1].replace("_", " "))
        else:
            allowed = "data.noun, index.noun and their like"
            raise InputError("this is no line of WordNet's", where=f"{path}:{number}", found=line[:80], allowed=allowed)
    return _some(_distinct(out), path)


def counted(source: Counted) -> list[str]:
    """The entries of a list with counts, highest first, as far down as asked for; the counts of a line said twice are added."""
    counts: dict[str, int] = {}
    for number, line in _lines(source.path):
        if not line:
            continue
        found = _COUNTED.fullmatch(line)
        if found is None:
            allowed = "an entry, a tab or spaces, a whole number"
            raise InputError("no count on this line", where=f"{source.path}:{number}", found=line[:80], allowed=allowed)
        entry = found[1].replace("_", " ")
        counts[entry] = counts.get(entry, 0) + int(found[2])
    often = sorted((e for e in counts if counts[e] >= source.min_count and e.isprintable()), key=lambda e: (-counts[e], e))
    return _some(_distinct(often[: int(len(often) * source.top)]), source.path)


def _lines(path: str) -> Iterator[tuple[int, str]]:
    try:
        with opened(path) as stream:
            for number, (_, line) in enumerate(lines(stream, max_line=_LONGEST), 1):
                if line is None:
                    raise InputError("a line is too long", where=f"{path}:{number}", allowed=f"{_LONGEST:,} bytes")
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except Reject as e:
        raise InputError("the list cannot be read", where=path, found=e.detail or e.reason) from e
    except UnicodeDecodeError as e:
        raise InputError("the list is not UTF-8", where=path, found=e) from e


def _distinct(entries: Iterable[str]) -> list[str]:
    return [e for e in dict.fromkeys(entries) if sayable(e)]


def _some(entries: list[str], path: str) -> list[str]:
    if not entries:
        raise InputError("this list gives no entry", where=path, next="lower min_count, or leave it out")
    return entries
