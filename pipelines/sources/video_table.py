"""Videos that a table names, by URL or by path: whole, or the piece between two times, as Panda-70M, HowTo100M and WebVid publish them.

    url, start, end, caption       one row, one piece: its clips are films.parquet#17@0-16000, …, cut up from the piece's own beginning

Neighbouring rows about one video fetch and open it once. A URL is fetched to scratch space by the fetch room, the next ones while this one is
decoded; what could not be had is one reject a row, with the room's reason, and `--retry transient` asks for it again. What is no URL lies
below `prefix`, or below the table's folder. Captions are kept in `fields.captions`: raw video is frames alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from typing import IO, Any

from pydantic import Field

from pipelines.clips import About, ClipSource
from pipelines.fetch import Ask, Fetcher
from pipelines.fetch.download import Download
from pipelines.fetch.policy import PACE, FilePolicy
from pipelines.fetch.scratch import scratch
from pipelines.fetch.urls import parse_url
from pipelines.file_list import Entry, entry_of
from pipelines.format import storage
from pipelines.format.errors import HeadwaterError, Reject
from pipelines.format.record import Record
from pipelines.listing import place
from pipelines.pictures import captions
from pipelines.row_groups import plain
from pipelines.stage import Rejected, SourcePart
from pipelines.url_rows import url_parts, url_rows
from pipelines.video_files import digest, video_at

ROWS = 200  # a part: of films of 20 MB that is 4 GB on the wire
AHEAD = 2  # films on their way, or waiting on disk, while one is decoded
MAX_HOURS = 1_000


class VideoTable(ClipSource):
    """`path` is a table (Parquet, CSV, TSV, JSON Lines, a JSON list under `key`) or a folder of them. `video` is the column of URLs or paths, `start`
    and `end` those of the piece, in seconds or as `1:02:03.5`. `digest_field` holds md5, sha256 or sha512 in hex, which a fetched file must have.
    `caption_fields` maps captions' names to columns. `scratch` is a folder with room for three of the largest files, times the workers of a
    machine. `fetch` is the policy (pipelines/fetch/policy.py). A table of paths says nothing of when its files were written: a part that is
    finished does not look at them again. The other keys are those of `clips.py`."""

    path: str
    key: str | None = None
    video: str = "url"
    prefix: str | None = None
    start: str | None = None
    end: str | None = None
    caption_fields: dict[str, str] = {}
    digest_field: str | None = None
    licence_field: str | None = None
    keep: tuple[str, ...] = ()
    rows_per_part: int = Field(ROWS, ge=1, le=10_000)
    scratch: str | None = None
    fetch: FilePolicy = FilePolicy()

    def hashed(self, fields: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in fields.items() if k != "scratch"}
        return {**kept, "fetch": {k: v for k, v in fields["fetch"].items() if k not in PACE}}

    def _columns(self) -> list[str]:
        named = [self.video, self.start, self.end, *self.caption_fields.values(), self.digest_field, self.licence_field, *self.keep]
        return list(dict.fromkeys(c for c in named if c))

    def parts(self) -> list[SourcePart]:
        return url_parts(self.path, self._columns(), self.key, rows=self.rows_per_part)

    def again(self, spec: dict[str, Any], origins: list[str]) -> dict[str, Any]:
        return {**spec, "only": sorted(int(o.rpartition("#")[2]) for o in origins)}

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        only = set(spec["only"]) if "only" in spec else None
        table = url_rows(self.path, spec, self._columns())
        where = place(self.path, spec["file"])
        rows = [self._row(number, row, where) for number, row in table if only is None or number in only]
        with Films(self.fetch, self.scratch) as films:
            for film, same in films.in_turn(rows):
                yield from self._pieces(film, same, spec["file"], source)

    def _row(self, number: int, row: dict[str, Any] | Reject, table: str) -> Row:
        """What is asked for a row, or why it is not: a row that could not become a record costs no request."""
        try:
            if isinstance(row, Reject):
                raise row
            entry = entry_of(row.get(self.video), row.get(self.digest_field or ""), table, self.prefix)
            if entry.problem is not None:
                raise entry.problem
            return Row(number, entry, self._about(row))
        except Reject as reject:
            return Row(number, None, reject)

    def _about(self, row: dict[str, Any]) -> About:
        start, end = (seconds(row.get(c)) if c else None for c in (self.start, self.end))
        if start is not None or end is not None:
            start = start or Fraction(0)
            if end is not None and end <= start:
                raise Reject("unreadable", f"a piece from {float(start):g} to {float(end):g} s")
        texts = captions({name: row.get(column) for name, column in self.caption_fields.items()})
        fields = {key: plain(row.get(key)) for key in self.keep} | ({"captions": dict(texts)} if texts else {})
        licence = row.get(self.licence_field or "")
        return About(licence=str(licence) if licence else None, fields=fields, within=None if start is None else (start, end))

    def _pieces(self, film: Film | Reject, rows: list[Row], table: str, source: str) -> Iterator[Record | Rejected]:
        for row in rows:
            origin = f"{table}#{row.number}"
            wrong = row.about if isinstance(row.about, Reject) else film if isinstance(film, Reject) else None
            if wrong is not None or isinstance(film, Reject) or isinstance(row.about, Reject):
                assert wrong is not None
                yield Rejected(origin, wrong.reason, wrong.detail)
                continue
            about = row.about
            told = {**about.fields, "video": film.name, **({"fetch": film.evidence} if film.evidence else {})}
            yield from self.clips_of(film.file, origin, source, {}, replace(about, group=film.group, url=film.url, fields=told))


@dataclass(frozen=True, slots=True)
class Row:
    """A row: which film (None where the row itself is wrong) and what it says of it."""

    number: int
    entry: Entry | None
    about: About | Reject


@dataclass(frozen=True, slots=True)
class Film:
    """A film at hand. `group` is the sha256 of its bytes."""

    file: IO[bytes]
    group: str
    name: str
    url: str | None = None
    evidence: dict[str, Any] | None = None


class Films:
    """The films of a part's rows, each open while its rows are read; those on the web are fetched ahead."""

    def __init__(self, policy: FilePolicy, folder: str | None) -> None:
        self._policy, self._folder, self._open = policy, folder, ExitStack()

    def __enter__(self) -> Films:
        self._fetcher = self._open.enter_context(Fetcher(self._policy))
        self._pool = self._open.enter_context(ThreadPoolExecutor(AHEAD))
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._open.close()

    def in_turn(self, rows: list[Row]) -> Iterator[tuple[Film | Reject, list[Row]]]:
        """(film or why there is none, its rows) in the order of rows."""
        runs = [list(same) for _, same in groupby(rows, key=lambda r: r.entry)]
        started: deque[Future[Got] | None] = deque()
        try:
            for i, run in enumerate(runs):
                while len(started) <= min(AHEAD, len(runs) - 1 - i):
                    entry = runs[i + len(started)][0].entry
                    started.append(self._pool.submit(self._get, entry) if entry is not None and entry.fetched else None)
                future = started.popleft()
                with self._film(run[0].entry, future) as film:
                    yield film, run
        finally:
            for future in filter(None, started):
                future.cancel()
                if not future.cancelled():
                    future.result()[0].close()

    @contextmanager
    def _film(self, entry: Entry | None, future: Future[Got] | None) -> Iterator[Film | Reject]:
        if entry is None:
            yield Reject("unreadable", "no row")  # its rows say what is wrong
            return
        with ExitStack() as held:
            film: Film | Reject
            if future is not None:
                stack, film = future.result()
                held.enter_context(stack)
            else:
                try:
                    if not storage.exists(entry.where):
                        raise Reject("unreadable", f"no such file: {entry.name[:200]}")
                    file = held.enter_context(video_at(entry.where, self._folder))
                    film = Film(file, digest(file), entry.name)
                except Reject as reject:
                    film = reject
                except HeadwaterError as error:
                    film = Reject("unreadable", error.what)
            yield film

    def _get(self, entry: Entry) -> Got:
        """Fetch one film, in a thread of the pool."""
        with ExitStack() as stack:
            try:
                file, own = stack.enter_context(scratch(self._folder))
                into = Download(file, str(own), parse_url(entry.where).path, self._policy, entry.digest)
                found = self._fetcher.download(Ask(entry.where, entry.digest), into)
                if found.status != "ok":
                    raise Reject(found.status, found.detail)
                opened = stack.enter_context(open(own, "rb"))
            except Reject as reject:
                return ExitStack(), reject
            return stack.pop_all(), Film(opened, into.sha256, entry.name, entry.name, found.evidence)


Got = tuple[ExitStack, Film | Reject]


def seconds(value: Any) -> Fraction | None:
    """A time of a table: seconds, or `[h:]m:s`. None where the cell is empty; `Reject` for what is no time."""
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        *before, last = str(value).strip().split(":")
        if len(before) > 2 or not all(b.isdigit() for b in before):
            raise ValueError
        total = sum((int(b) * Fraction(60) ** (len(before) - i) for i, b in enumerate(before)), Fraction(str(float(last))))
    except (ValueError, OverflowError, ZeroDivisionError):
        raise Reject("unreadable", f"not a time: {str(value)[:40]!r}") from None
    if not 0 <= total < 3600 * MAX_HOURS:
        raise Reject("unreadable", f"not a time of a video: {str(value)[:40]!r}")
    return total
