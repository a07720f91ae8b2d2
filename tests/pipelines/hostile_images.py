"""Hostile pictures, made on the spot: bytes by name."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

HUGE = 60_000


def _saved(form: str, mode: str = "RGB", size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    array = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(array).convert(mode).save(out, form, **options)
    return out.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png(*before: bytes, width: int = 64, height: int = 48, bits: int = 8, kind: int = 2) -> bytes:
    """A PNG of these chunks before its pixels; the pixels are 64 by 48 whatever the header says."""
    pixels = zlib.compress((b"\0" + bytes(64 * 3)) * 48)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _animated(form: str, frames: int) -> bytes:
    pictures = [Image.fromarray(np.full((16, 16, 3), i % 251, np.uint8)) for i in range(frames)]
    out = io.BytesIO()
    pictures[0].save(out, form, save_all=True, append_images=pictures[1:], duration=10)
    return out.getvalue()


def headers() -> dict[str, bytes]:
    """Headers that say huge: not one pixel of these may be made."""
    jpeg, gif, bmp, tiff = _saved("JPEG"), bytearray(_saved("GIF")), bytearray(_saved("BMP")), bytearray(_saved("TIFF"))
    at = jpeg.index(b"\xff\xc0") + 5
    gif[6:10] = struct.pack("<HH", HUGE, HUGE)
    screen = gif.index(b"\x2c", 13 + 3 * 256)
    gif[screen + 5 : screen + 9] = struct.pack("<HH", HUGE, HUGE)
    bmp[18:26] = struct.pack("<ii", HUGE, HUGE)
    for tag in (256, 257):
        where = tiff.index(struct.pack("<HHI", tag, 4, 1))
        tiff[where + 8 : where + 12] = struct.pack("<I", HUGE)
    webp = bytearray(_saved("WEBP", "RGBA", lossless=True))
    riff = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_383).to_bytes(3, "little") + (16_383).to_bytes(3, "little")
    webp = bytearray(b"RIFF" + struct.pack("<I", len(webp) - 8 + len(riff)) + b"WEBP" + riff + bytes(webp[12:]))
    return {
        "png": _png(width=HUGE, height=HUGE),
        "png of 2^31": _png(width=0x7FFFFFFF, height=0x7FFFFFFF),
        "jpeg": jpeg[:at] + struct.pack(">HH", HUGE, HUGE) + jpeg[at + 4 :],
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "tiff": bytes(tiff),
        "webp": bytes(webp),
    }


def bombs() -> dict[str, bytes]:
    """Small files that unpack to much beside their pixels, or never end."""
    profile = zlib.compress(bytes(200 << 20))
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20)))
    jpeg = _saved("JPEG", progressive=True)
    scan = jpeg[jpeg.index(b"\xff\xda") : -2]
    return {
        "iccp of 200 MB": _png(chunk(b"iCCP", b"x\0\0" + profile)),
        "ztxt of 200 MB": _png(chunk(b"zTXt", b"Comment\0\0" + profile)),
        "itxt of 200 MB": _png(chunk(b"iTXt", b"Comment\0\1\0\0\0" + profile)),
        "a hundred ztxt": _png(*[text] * 100),
        "exif of nothing": _png(chunk(b"eXIf", b"II*\0" + b"\xff" * 4000)),
        "pixels beyond the picture": _png().replace(chunk(b"IEND", b""), chunk(b"IDAT", profile) + chunk(b"IEND", b"")),
        "ten thousand chunks": _png(*[chunk(b"teXt", b"a\0b")] * 10_000),
        "a chunk of 2^31": _png(struct.pack(">I", 0x7FFFFFFF) + b"tEXt" + bytes(64)),
        "two thousand scans": jpeg[:-2] + scan * 2000 + jpeg[-2:],
        "gif of 3,000 frames": _animated("GIF", 3000),
        "apng of 1,000 frames": _animated("PNG", 1000),
        "apng that says 2^31 frames": _animated("PNG", 2).replace(
            chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"acTL", struct.pack(">II", 0x7FFFFFFF, 0))
        ),
        "webp of 300 frames": _animated("WEBP", 300),
        "tiff whose pages go in a circle": _circle(),
    }


def _circle() -> bytes:
    data = bytearray(_saved("TIFF"))
    first = struct.unpack_from("<I", data, 4)[0]
    n = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * n, first)
    return bytes(data)


def plain() -> dict[str, bytes]:
    """Unusual, and good."""
    deep = io.BytesIO()
    Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21).save(deep, "PNG")
    return {
        "cmyk": _saved("JPEG", "CMYK"),
        "16 bits": deep.getvalue(),
        "palette": _saved("PNG", "P"),
        "palette with transparency": _saved("PNG", "P", transparency=3),
        "one bit": _saved("PNG", "1"),
        "grey with alpha": _saved("PNG", "LA"),
        "cmyk tiff": _saved("TIFF", "CMYK"),
        "packed tiff": _saved("TIFF", compression="tiff_lzw"),
    }
