"""Whether an image file reaches its end, seen without decoding it: microseconds instead of milliseconds a file.

What comes in: a format's name and the file's bytes. What goes out: True where the format's end mark stands where only the real end can
be. A cut download is the commonest damage there is, and decoders that fill what is missing with grey hide it.
"""


def has_end(name: str, data: bytes) -> bool:
    """Whether the bytes hold their format's end mark; False also where the format has none."""
    if name == "jpeg":
        start = _jpeg_scan(data)
        return start > 0 and data.rfind(b"\xff\xd9", start) >= 0  # inside a scan 0xFF is always stuffed, so this is the end mark
    if name == "png":
        return data.rfind(b"IEND\xaeB`\x82") >= 0
    if name == "webp":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False  # GIF, BMP, TIFF, AVIF: no mark that a cut could not leave standing


def _jpeg_scan(data: bytes) -> int:
    """Where the first scan begins; 0 when the markers cannot be followed."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return at
        at += 1 if marker == 0xFF else 2 if 0xD0 <= marker <= 0xD8 else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0
