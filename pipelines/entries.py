"""Lists of entries: what texts are matched to when they are balanced (`metaclip`). Read from where the user has them; none is shipped.

In: a JSON list of strings, a text file with an entry a line (gzip and zstd too), or the folder that `build-entries` made. Out: distinct strings in
the order of the file. The published list is under a licence that forbids commercial use; `build_entries` makes one from any text.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.bounded import opened
from pipelines.format import storage
from pipelines.format.chance import keys
from pipelines.format.errors import InputError, Reject
from pipelines.format.record import Record
from pipelines.matching import Boundaries, Matcher, reachable

I64 = NDArray[np.int64]
FILE = "entries.json"


def entry_file(path: str) -> str:
    """The file behind a path that may be the folder of a built list."""
    inside = storage.join(path, FILE)
    return inside if storage.exists(inside) else path


def read_entries(path: str) -> list[str]:
    """The distinct entries of a list, empty ones and those with control characters passed over. InputError when it is no such list."""
    file = entry_file(path)
    try:
        with opened(file) as stream:
            data = stream.read()
    except Reject as e:
        raise InputError("the entry list cannot be read", where=file, found=e.detail or e.reason) from e
    allowed = "a JSON list of strings, or a text file with one entry a line"
    try:
        text = data.decode("utf-8-sig")
        found = json.loads(text) if text.lstrip()[:1] in ("[", "{") else text.split("\n")
    except ValueError as e:
        raise InputError("the entry list cannot be read", where=file, found=e, allowed=allowed) from e
    if not isinstance(found, list) or not all(isinstance(e, str) for e in found):
        raise InputError("this is not an entry list", where=file, found=type(found).__name__, allowed=allowed)
    entries = list(dict.fromkeys(line for e in found if (line := e.rstrip("\r\n")) and line.isprintable()))
    if not entries:
        raise InputError("the entry list is empty", where=file, allowed=allowed)
    return entries


@dataclass(frozen=True)
class Matches:
    """What records hold: pair i says that text[i] holds entry[i]; `owner` gives each text's record, `h` each record's hash."""

    records: list[Record]
    h: NDArray[np.uint64]
    owner: I64
    text: I64
    entry: I64


@dataclass
class EntryLists:
    """Lists laid end to end, one for each language ("" when there is but one), each with its matcher. `places` gives [first, last) of each."""

    entries: list[str]
    places: dict[str, tuple[int, int]]
    matchers: dict[str, Matcher]
    unreachable: int  # entries that no text can match, such as "U.S.": spacing sets its marks apart
    _keys: dict[int, NDArray[np.uint64]] = field(default_factory=dict)
    _known: dict[int, NDArray[np.bool_]] = field(default_factory=dict)

    def keys(self, entries: I64, seed: int) -> NDArray[np.uint64]:
        """K of draw(…, seed, "balance", entry) for these entries, each made once."""
        table = self._keys.setdefault(seed, np.zeros(len(self.entries), np.uint64))
        known = self._known.setdefault(seed, np.zeros(len(self.entries), bool))
        new = np.unique(entries[~known[entries]])
        table[new], known[new] = keys(seed, "balance", (self.entries[i] for i in new.tolist())), True
        return table[entries]

    def match(self, records: list[Record], texts: Sequence[Sequence[str]], languages: Sequence[str]) -> Matches:
        """The entries in each record's texts; with several lists, those of the record's language."""
        owner = np.repeat(np.arange(len(records)), [len(t) for t in texts])
        flat = [t for ts in texts for t in ts]
        h = np.array([r.h for r in records], np.uint64)
        if list(self.places) == [""]:
            return Matches(records, h, owner, *self.matchers[""].match(flat))
        found: list[tuple[I64, I64]] = []
        spoken = [languages[i] for i in owner.tolist()]
        for language, matcher in self.matchers.items():
            mine = [i for i, said in enumerate(spoken) if said == language]
            text, entry = matcher.match([flat[i] for i in mine])
            found.append((np.array(mine, np.int64)[text], entry + self.places[language][0]))
        return Matches(records, h, owner, *(np.concatenate(column) for column in zip(*found, strict=True)))


@functools.lru_cache(maxsize=2)
def entry_lists(names: tuple[str, ...], files: tuple[str, ...], tags: tuple[str, ...], boundaries: Boundaries) -> EntryLists:
    """The lists of these files, read and indexed once in a process; `tags` must change when a file does."""
    entries: list[str] = []
    places, matchers = {}, {}
    for name, file in zip(names, files, strict=True):
        found = read_entries(file)
        places[name] = (len(entries), len(entries) + len(found))
        matchers[name] = Matcher(found, boundaries)
        entries += found
    return EntryLists(entries, places, matchers, sum(not reachable(e, boundaries) for e in entries))
