"""`listed:` in a source of files: its `path` is a list, and the files are wherever the list says.

    source:
      warc:
        path: warc.paths.gz
        listed: {prefix: https://data.commoncrawl.org/, fetch: {contact: https://example.org/bot}}

A file on the web is fetched whole to scratch space when its part begins and is gone when its part ends; one in a store is read where it lies. What
comes in: the list and a part. What goes out: a path to read from, or the contract's reason why there is none. Parts are made from the list alone,
without a request.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from pydantic import field_validator

from pipelines.bounded import COMPRESSIONS
from pipelines.fetch import Ask, Fetcher
from pipelines.fetch.download import Download
from pipelines.fetch.kept import Kept
from pipelines.fetch.policy import PACE, FilePolicy
from pipelines.fetch.scratch import renamed, scratch
from pipelines.fetch.urls import parse_url
from pipelines.file_list import Entry, entries
from pipelines.format import storage
from pipelines.format.document import Document
from pipelines.format.errors import InputError, Reject
from pipelines.listing import Input

_KIND = re.compile(r"\.[a-z][a-z0-9]{0,7}\Z")
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}


class Listed(Document):
    """`prefix` is what entries that are no URLs lie below: a URL, a folder, `s3://…`; without it, the folder of the list. `url_field` and
    `digest_field` are columns, when the list is a table. `scratch` is a folder with room for the largest file, times the workers of a machine
    (default: below TMPDIR). `cache` is a folder in which fetched files stay, verified by hash whenever they are used again. `fetch` is the policy
    (pipelines/fetch/policy.py)."""

    prefix: str | None = None
    url_field: str = "url"
    digest_field: str | None = None
    scratch: str | None = None
    cache: str | None = None
    fetch: FilePolicy = FilePolicy()

    @field_validator("prefix")
    @classmethod
    def _no_secrets(cls, prefix: str | None) -> str | None:
        if prefix and "://" in prefix and ("?" in prefix or "#" in prefix or "@" in prefix):
            raise ValueError("a prefix is kept in the dataset's card: it has no query and no user")
        return prefix

    def unhashed(self) -> dict[str, set[str] | bool]:
        """What says how files are got, not which."""
        return {"scratch": True, "cache": True, "fetch": set(PACE)}

    def entries(self, path: str) -> list[Entry]:
        """The files of the list."""
        return entries(path, self.prefix, self.url_field, self.digest_field)

    @contextmanager
    def held(self, path: str, number: int, name: str) -> Iterator[str]:
        """Where the entry of this number can be read, for as long as the block lasts. Raises `Reject`."""
        known = _known(path, str(storage.listing(path)), self.prefix, self.url_field, self.digest_field)
        entry = known[number] if number < len(known) else None
        if entry is None or entry.name != name:
            raise Reject("unreadable", "the list has changed since its parts were made")
        if entry.problem is not None:
            raise entry.problem
        if not entry.fetched:
            if stored(entry) is None:
                raise Reject("unreadable", "no such file")
            yield entry.where
            return
        kept = Kept(self.cache) if self.cache else None
        found = kept.find(entry.where, entry.digest) if kept else None
        if found is not None:
            yield str(found)
            return
        with scratch(self.cache or self.scratch) as (file, own):
            digest = self._fetch(entry, file, own)
            end = _ending(own, name)
            yield str(kept.keep(own, entry.where, entry.digest, digest, end) if kept else renamed(own, end))

    def _fetch(self, entry: Entry, file: IO[bytes], own: Path) -> str:
        """The file of an entry, written to `file` at `own`; returns its sha256. Raises `Reject`."""
        into = Download(file, str(own), parse_url(entry.where).path, self.fetch, entry.digest)
        with Fetcher(self.fetch) as fetcher:
            found = fetcher.download(Ask(entry.where, entry.digest), into)
        if found.status != "ok":
            raise Reject(found.status, found.detail)
        return into.sha256


def hashed(fields: dict[str, Any], listed: Listed | None) -> dict[str, Any]:
    """A source's fields as they enter fingerprints: how listed files are got is left out."""
    rest = {k: v for k, v in fields.items() if k != "listed"}
    return rest if listed is None else {**rest, "listed": listed.model_dump(mode="json", exclude=listed.unhashed())}


def stored(entry: Entry) -> Input | None:
    """Size and tag of an entry that lies in storage; None for one that is fetched, or is not there."""
    if entry.fetched or entry.problem is not None:
        return None
    try:
        found = storage.listing(entry.where)
    except InputError:
        return None
    return Input(entry.name, *found[0][1:]) if len(found) == 1 and entry.where.endswith(f"/{found[0][0]}") else None


def _ending(path: Path, name: str) -> str:
    """What a file is and how it is packed, as the end of a file name: what its URL says; of packing, where that is silent, its first bytes."""
    name = name.partition("?")[0].lower()
    packed = next((e for e in COMPRESSIONS if name.endswith(e)), "")
    kind = _KIND.search(name.removesuffix(packed))
    if not packed:
        with open(path, "rb") as f:
            head = f.read(4)
        packed = next((e for e, k in COMPRESSIONS.items() if head.startswith(_MAGIC[k])), "")
    return (kind[0] if kind else "") + packed


@lru_cache(maxsize=2)
def _known(path: str, stamp: str, prefix: str | None, url_field: str, digest_field: str | None) -> list[Entry]:
    """A list as it was when it had this stamp: a worker reads it once, not once a part."""
    return entries(path, prefix, url_field, digest_field)
