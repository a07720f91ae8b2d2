"""Lists of files, as crawls and hubs publish them: one file a line, or a column of a table.

What comes in: the list (`warc.paths.gz`, `SHA256SUMS`, Parquet, CSV, JSON Lines …). What goes out: its entries in order, each a URL for the fetch
room or a path for storage. Nothing is opened but the list.

A line is `file`, `file<TAB>hash` or `hash  file` (sha256sum); empty lines and those that begin with # are none. What is no URL is taken to be below
`prefix`, or below the list's own folder where there is no prefix. A list comes from strangers: it may name any public URL, since the fetch room
vets them all, but what storage would open with our own rights must lie below the place that the recipe names.

Names stand for files in origins and ids: a path relative to its place, or the URL without its query. Queries hold secrets and signatures that
are new each time, so of what is left without these only a hash is part of the name.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pipelines.bounded import COMPRESSIONS, lines, opened
from pipelines.fetch.digests import is_digest
from pipelines.fetch.urls import parse_url, redact
from pipelines.format import storage
from pipelines.format.errors import InputError, Reject
from pipelines.listing import list_files, place
from pipelines.row_groups import group_runs, numbered_rows
from pipelines.table import scan

MAX_ENTRIES = 1_000_000  # parts have numbers below a million (`retry.ROUND`)
MAX_LINE = 64 << 10
_TABLES = (".jsonl", ".json", ".csv", ".tsv")
_URL = ("http://", "https://")
_SIGNED = re.compile(r"(?i)x-(?:amz|goog|oss)-.*|sig|signature|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid|(?:access_?)?token")
_SAS = ("sv", "ss", "srt", "sp", "se", "st", "spr", "sr", "skoid", "sktid", "skt", "ske", "sks", "skv")  # a signed URL of Azure's


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a list. `name` is what origins say, `where` its URL or path, `problem` why it can be neither fetched nor opened."""

    name: str
    where: str
    digest: str | None = None
    problem: Reject | None = None

    @property
    def fetched(self) -> bool:
        """Whether it is the fetch room's."""
        return self.where.lower().startswith(_URL)


def entries(path: str, prefix: str | None = None, url_field: str = "url", digest_field: str | None = None) -> list[Entry]:
    """The entries of the list at `path`, in its order. One that stands there twice is refused the second time: its records would share their ids."""
    found = list_files(path)
    if len(found) != 1 or place(path, found[0].path) != path:
        raise InputError("a list of files is one file", where=path, found=f"a folder of {len(found)}")
    base = prefix if prefix is not None else path.rpartition("/")[0] or "."
    out, seen = list[Entry](), dict[str, int]()
    for text, digest in _rows(path, url_field, digest_field):
        entry = _entry(text, digest, base, path)
        if entry.problem is None and entry.name in seen:
            entry = Entry(entry.name, "", None, Reject("not_allowed", f"a file that entry {seen[entry.name]} of the list names already"))
        seen.setdefault(entry.name, len(out))
        out.append(entry)
        if len(out) > MAX_ENTRIES:
            raise InputError("too many files in one list", where=path, found=f"more than {MAX_ENTRIES}", next="cut the list into several recipes")
    if not out:
        raise InputError("the list names no file", where=path)
    return out


def entry_of(text: Any, digest: Any, path: str, prefix: str | None = None) -> Entry:
    """One cell of a table at `path` as an entry; `problem` says what is wrong with it."""
    return _entry(text, digest or None, prefix if prefix is not None else path.rpartition("/")[0] or ".", path)


def _rows(path: str, url_field: str, digest_field: str | None) -> Iterator[tuple[Any, Any]]:
    """(file, hash) as the list says them."""
    name = path.lower()
    for end in COMPRESSIONS:
        name = name.removesuffix(end)
    try:
        if not name.endswith((*_TABLES, ".parquet")):
            yield from _lines(path)
            return
        for value in _parquet(path, [c for c in (url_field, digest_field) if c]) if name.endswith(".parquet") else _table(path):
            if isinstance(value, Reject):
                raise value
            if not isinstance(value, dict) or url_field not in value:
                known = ", ".join(value)[:200] if isinstance(value, dict) else type(value).__name__
                raise InputError("the list has no such column", where=path, found=known, allowed=f"{url_field} (url_field)")
            yield value[url_field], value.get(digest_field or "")
    except Reject as reject:  # a list that is damaged is no list: nobody can say what is missing
        raise InputError("the list cannot be read", where=path, found=f"{reject.reason}: {reject.detail}") from None


def _lines(path: str) -> Iterator[tuple[str, str | None]]:
    with opened(path) as stream:
        for _, raw in lines(stream, max_line=MAX_LINE):
            if raw is None:
                raise Reject("too_large", f"a line of more than {MAX_LINE} bytes")
            text = raw.decode("utf-8", errors="replace").removeprefix("\ufeff").strip()
            if not text or text.startswith("#"):
                continue
            head, _, tail = text.partition("\t")
            first, _, rest = text.partition(" ")
            if is_digest(tail):
                yield head.strip(), tail.strip()
            elif is_digest(first) and rest:
                yield rest.lstrip(" *"), first
            else:
                yield text, None


def _table(path: str) -> Iterator[Any]:
    for row in scan(path):
        yield row.problem or row.value


def _parquet(path: str, columns: list[str]) -> Iterator[Any]:
    (item,) = list_files(path)
    for part in group_runs(path, item, columns):
        for _, row in numbered_rows(path, part.spec, columns):
            yield row


def _entry(text: Any, digest: Any, base: str, path: str) -> Entry:
    if not isinstance(text, str) or not text.strip():
        return Entry("", "", None, Reject("unreadable", "an entry without a file"))
    text = text.strip()
    shown = redact(text)[:300]
    if digest is not None and not is_digest(str(digest)):
        return Entry(shown, "", None, Reject("unreadable", f"not a hash: {str(digest)[:140]!r}; known: md5, sha256, sha512 in hex"))
    digest = str(digest).strip().lower() if digest is not None else None
    try:
        if text.lower().startswith(_URL):
            return Entry(url_name(text), text, digest)
        if base.lower().startswith(_URL) and not _absolute(text):
            url = f"{base.rstrip('/')}/{text.lstrip('/')}"
            return Entry(url_name(url), url, digest)
        below = base if not base.lower().startswith(_URL) else path.rpartition("/")[0] or "."
        rel = _below(text, below)
        return Entry(rel, storage.join(below, rel), digest)
    except Reject as problem:
        return Entry(shown, "", None, problem)


def _absolute(text: str) -> bool:
    return "://" in text or "::" in text


def _below(text: str, base: str) -> str:
    """A path relative to its place. `Reject` for one that leads out of it."""
    inside = text
    if _absolute(text) or text.startswith("/"):
        root = storage.absolute(base).rstrip("/") + "/"
        if not text.startswith(root):
            raise Reject("not_allowed", f"what is no URL must lie below {base}: name its place with `prefix`")
        inside = text[len(root) :]
    rel = posixpath.normpath(inside)
    if rel.split("/")[0] in ("..", ".", "") or "\0" in rel or "\\" in rel or _absolute(inside):
        raise Reject("not_allowed", f"a path that leads out of {base}")
    return rel


def url_name(url: str) -> str:
    """What stands for a URL wherever it is written. Two URLs that differ in more than a signature have two names. `Reject` for what is no URL."""
    target = parse_url(url)
    path, _, query = target.path.partition("?")
    plain = f"{target.origin}{path}"
    words = [w for w in query.split("&") if w]
    keys = [w.partition("=")[0].lower() for w in words]
    left = [w for w, k in zip(words, keys, strict=True) if not _SIGNED.fullmatch(k) and not ("sig" in keys and k in _SAS)]
    name = redact(plain)
    if left or name != plain:
        name += "?" + sha256("&".join([plain, *sorted(left)]).encode()).hexdigest()[:16]
    return name
