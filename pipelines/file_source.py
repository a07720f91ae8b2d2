"""Sources that read one file after another: a folder of them, one, or a list of them (`listed`).

What such a source has to say is how a file that lies in storage is cut into parts and how a part is read, given where the file is. Where files
come from, when they are fetched and what becomes of one that cannot be had is said here, once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar

from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.listed import Listed, hashed, stored
from pipelines.listing import Input, list_files, place
from pipelines.stage import Rejected, Source, SourcePart

_AT_ONCE = 32  # questions to a store: latency, not bandwidth, is what a list of thousands costs


class FileSource(Source):
    """`path` is a folder, a file, or, with `listed`, a list. A file of a list that cannot be had is one reject under its name, with the fetch room's
    reason; `--retry` asks for it again."""

    suffixes: ClassVar[tuple[str, ...]]
    path: str
    listed: Listed | None = None

    def cut(self, item: Input, where: str) -> list[SourcePart]:
        """The parts of one file that lies in storage, at `where`."""
        raise NotImplementedError

    def read_file(self, where: str, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        """The records of a part, its file lying at `where`. Origins begin with `spec["file"]`. A part that holds nothing but the file and its entry
        is the whole of it."""
        raise NotImplementedError

    def expect(self, places: list[tuple[str, str]]) -> None:
        """Look at the files that lie in storage, (name, where), before anything runs: raise `InputError` for what none of them can be."""

    def hashed(self, fields: dict[str, Any]) -> dict[str, Any]:
        return hashed(fields, self.listed)

    def parts(self) -> list[SourcePart]:
        if self.listed is None:
            files = list_files(self.path, self.suffixes)
            self.expect([(item.path, place(self.path, item.path)) for item in files])
            return [part for item in files for part in self.cut(item, place(self.path, item.path))]
        entries = self.listed.entries(self.path)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            there = list(pool.map(stored, entries))
        self.expect([(e.name, e.where) for e, item in zip(entries, there, strict=True) if item])
        out = []
        for n, (entry, item) in enumerate(zip(entries, there, strict=True)):
            if item is None:  # what it holds is not known before it is fetched, and nothing is fetched here: a file is a part
                out.append(SourcePart({"file": entry.name, "entry": n}, [[entry.name, None, entry.digest or ""]]))
            else:
                out += [SourcePart({**part.spec, "entry": n}, part.inputs) for part in self.cut(item, entry.where)]
        return out

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        try:
            with self._held(spec) as where:
                yield from self.read_file(where, spec, source)
        except Reject as reject:
            yield Rejected(spec["file"], reject.reason, reject.detail)

    @contextmanager
    def _held(self, spec: dict[str, Any]) -> Iterator[str]:
        if self.listed is None:
            yield place(self.path, spec["file"])
            return
        with self.listed.held(self.path, spec["entry"], spec["file"]) as where:
            yield where

    def again(self, spec: dict[str, Any], origins: list[str]) -> dict[str, Any] | None:
        """Only a file that was not had at all can be asked for again: what is wrong inside one stays wrong."""
        return spec if self.listed is not None and set(origins) == {spec["file"]} else None
