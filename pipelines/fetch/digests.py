"""The hashes that lists give for their files: md5, sha256 or sha512 in hex, told apart by their length."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from hashlib import md5, sha256, sha512
from typing import Any

_KINDS: dict[int, Callable[[], Any]] = {32: partial(md5, usedforsecurity=False), 64: sha256, 128: sha512}
_HEX = re.compile(r"[0-9a-f]+")


def hasher(wanted: str) -> Any:
    """A fresh hash of the kind that `wanted` is; sha256 for what is none, which then agrees with nothing."""
    return _KINDS.get(len(_plain(wanted)), sha256)()


def same(wanted: str, found: Any) -> bool:
    """Whether a hash that `hasher` gave came out as wanted."""
    return bool(found.hexdigest() == _plain(wanted))


def agrees(wanted: str, body: bytes) -> bool:
    """Whether a body has the hash that it should have."""
    found = hasher(wanted)
    found.update(body)
    return same(wanted, found)


def is_digest(text: str) -> bool:
    """Whether this is a hash of a kind we know."""
    text = _plain(text)
    return len(text) in _KINDS and _HEX.fullmatch(text) is not None


def _plain(wanted: str) -> str:
    return wanted.strip().lower()
