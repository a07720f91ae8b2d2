"""Malicious tar archives, made on the spot: bytes by name, each holding one good member `good.jpg` as well."""

from __future__ import annotations

import io
import struct
import tarfile

GOOD = b"good words"


def block(
    name: bytes,
    size: int = 0,
    kind: bytes = b"0",
    link: bytes = b"",
    raw_size: bytes | None = None,
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
) -> bytes:
    """A header with a true checksum and whatever else is said."""
    head = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + (raw_size or b"%011o\0" % size) + b"00000000000\0" + b" " * 8
    head += kind + link.ljust(100, b"\0") + magic + bytes(32 + 32) + b"0000000\0" * 2 + prefix.ljust(155, b"\0")
    head = head.ljust(512, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def member(name: bytes, data: bytes = b"evil words", **more: bytes) -> bytes:
    return block(name, len(data), **more) + data.ljust(-(-len(data) // 512) * 512, b"\0")


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    out = b""
    for key, value in records:
        line = b" " + key + b"=" + value + b"\n"
        n = len(line) + len(str(len(line)))
        n = len(line) + len(str(n))
        out += str(n).encode() + line
    return member(b"PaxHeaders/x", out, kind=kind)


def _good(first: bytes, end: bool = True) -> bytes:
    return first + member(b"good.jpg", GOOD) + bytes(1024 if end else 0)


def tars() -> dict[str, bytes]:
    """Archives by what is wrong with them."""
    gnu = b"ustar  \0"
    return {
        "outward": _good(member(b"../../evil.jpg")),
        "outward in the middle": _good(member(b"a/../../evil.jpg")),
        "outward by prefix": _good(member(b"evil.jpg", prefix=b"../..")),
        "outward by a PAX path": _good(pax((b"path", b"../../evil.jpg")) + member(b"x.jpg")),
        "outward by a GNU long name": _good(member(b"././@LongLink", b"../../evil.jpg\0", kind=b"L", magic=gnu) + member(b"x.jpg", magic=gnu)),
        "absolute": _good(member(b"/etc/evil.jpg")),
        "absolute after ./": _good(member(b".//etc/evil.jpg")),
        "backslashes": _good(member(b"..\\evil.jpg")),
        "an overlong name": _good(pax((b"path", b"e" * 5000 + b".jpg")) + member(b"x.jpg")),
        "symbolic link": _good(block(b"evil.jpg", kind=b"2", link=b"/etc/passwd")),
        "hard link": _good(block(b"evil.jpg", kind=b"1", link=b"../../etc/passwd")),
        "link, then a file through it": _good(block(b"d", kind=b"2", link=b"/tmp") + member(b"d/../evil.jpg")),
        "link by PAX": _good(pax((b"linkpath", b"/etc/passwd")) + block(b"evil.jpg", kind=b"2")),
        "character device": _good(block(b"evil.jpg", kind=b"3")),
        "block device": _good(block(b"evil.jpg", kind=b"4")),
        "fifo": _good(block(b"evil.jpg", kind=b"6")),
        "sparse by GNU": _good(member(b"evil.jpg", kind=b"S", magic=gnu)),
        "sparse by PAX 1.0": _good(
            pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"99999999999"), (b"path", b"evil.jpg")) + member(b"GNUSparseFile.0/evil.jpg")
        ),
        "sparse in one PAX header, a path in the next": _good(pax((b"GNU.sparse.map", b"0,1")) + pax((b"path", b"evil.jpg")) + member(b"evil.jpg")),
        "the same name twice": _good(member(b"good.jpg", GOOD)),
        "the same name by PAX": _good(member(b"good.jpg", GOOD) + pax((b"path", b"good.jpg")) + member(b"evil.jpg")),
        "a size past the end": member(b"good.jpg", GOOD) + block(b"evil.jpg", 1 << 20) + b"x" * 512,
        "a size of 8 GiB": member(b"good.jpg", GOOD) + block(b"evil.jpg", 8**11 - 1),
        "a size in base 256 of 2^80": member(b"good.jpg", GOOD) + block(b"evil.jpg", raw_size=b"\x80\0" + b"\xff" * 10),
        "a negative size": member(b"good.jpg", GOOD) + block(b"evil.jpg", raw_size=b"-0000000001\0"),
        "a size by PAX past the end": member(b"good.jpg", GOOD) + pax((b"size", b"9" * 18)) + member(b"evil.jpg"),
        "a size by PAX that is none": member(b"good.jpg", GOOD) + pax((b"size", b"1e9")) + member(b"evil.jpg"),
        "a PAX header of 8 GiB": member(b"good.jpg", GOOD) + block(b"x", 8**11 - 1, kind=b"x"),
        "a PAX record longer than its header": member(b"good.jpg", GOOD) + member(b"x", b"99999 path=evil.jpg\n", kind=b"x"),
        "a PAX record of length 0": member(b"good.jpg", GOOD) + member(b"x", b"0 path=evil.jpg\n", kind=b"x"),
        "ten thousand PAX headers": _good(pax((b"comment", b"x" * 60_000)) * 20 + pax((b"comment", b"a")) * 10_000),
        "a global PAX path": _good(pax((b"path", b"../../evil.jpg"), kind=b"g")),
        "a wrong checksum": member(b"good.jpg", GOOD) + member(b"evil.jpg")[:511] + b"\1" + bytes(1024),
        "noise": member(b"good.jpg", GOOD) + struct.pack(">128I", *range(128)) * 4,
        "no end": _good(b"", end=False),
    }


def by_tarfile(n: int = 3) -> bytes:
    """What Python's own writer makes, for comparison."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i in range(n):
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size = len(GOOD)
            tar.addfile(info, io.BytesIO(GOOD))
    return out.getvalue()
