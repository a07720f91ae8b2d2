"""Bodies that a server packed although it was asked not to: undone piece by piece, within limits.

What comes in: pieces as they come off the wire. What goes out: what they hold. At most `limit` bytes in all and 100 for each byte that came in, once
1 MiB is out; bombs are told while they grow, not when they have grown. gzip and deflate only: nobody was told that we read anything else.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from pipelines.fetch.faults import Fault

MAX_RATIO, FREE = 100, 1 << 20  # bytes out for each byte in, once FREE bytes are out
_PIECE = 256 << 10


def packing(encoding: str | None) -> str | None:
    """gzip, deflate, or None for a body that came as it is. Raises `Fault` for encodings that nobody should need."""
    kind = (encoding or "identity").strip().lower()
    if kind in ("identity", ""):
        return None
    if kind not in ("gzip", "x-gzip", "deflate"):
        raise Fault("fetch_permanent", f"content encoding {kind[:40]!r}, though none was accepted")
    return "deflate" if kind == "deflate" else "gzip"


class Unpacking:
    """One packed body on its way. `unpack` every piece, then `end`."""

    def __init__(self, kind: str, limit: int) -> None:
        self._kind, self._limit = kind, limit
        self._machine: zlib._Decompress | None = None
        self._in = self._out = 0

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """What this piece holds, at most 256 KiB at a time. Raises `Fault` for damage, bombs and what follows the end."""
        self._in += len(data)
        if self._machine is None and data:
            wrap = zlib.MAX_WBITS if self._kind == "deflate" else zlib.MAX_WBITS | 16
            if self._kind == "deflate" and data[0] & 0x0F != 8:
                wrap = -zlib.MAX_WBITS  # raw deflate, as some servers mean it
            self._machine = zlib.decompressobj(wrap)
        while data and self._machine is not None:
            try:
                out = self._machine.decompress(data, _PIECE)
            except zlib.error as error:
                raise Fault("fetch_permanent", f"damaged {self._kind}: {error}") from None
            if self._machine.unused_data:
                raise Fault("fetch_permanent", f"something follows the {self._kind} body")
            self._out += len(out)
            cap = min(self._limit, max(FREE, MAX_RATIO * self._in))
            if self._out > cap:
                raise Fault("too_large", f"{self._in:,} bytes of {self._kind} became more than {cap:,}")
            data = self._machine.unconsumed_tail
            if out:
                yield out
            elif data:
                raise Fault("fetch_permanent", f"damaged {self._kind}: no end")

    def end(self) -> None:
        """Nothing more comes. Raises `Fault` when something should have."""
        if self._machine is None or not self._machine.eof:
            raise Fault("fetch_transient", f"the {self._kind} body ended early")


def unpacked(data: bytes, encoding: str | None, limit: int) -> bytes:
    """A whole body, unpacked if its head says that it is packed."""
    kind = packing(encoding)
    if kind is None:
        return data
    unpacking = Unpacking(kind, limit)
    out = b"".join(unpacking.unpack(data))
    unpacking.end()
    return out
