"""Whether an image file reaches its end, seen without decoding it: microseconds instead of milliseconds a file.

What comes in: a format's name and the file's bytes. What goes out: True where the format's end mark stands where only the real end can
be. A cut download is the commonest damage there is, and decoders that fill what is missing with grey hide it.
"""

from pipelines.media import jpeg


def has_end(name: str, data: bytes) -> bool:
    """Whether the bytes hold their format's end mark; False also where the format has none."""
    if name == "jpeg":
        start = jpeg.scan(data)
        return start > 0 and data.rfind(b"\xff\xd9", start) >= 0  # inside a scan 0xFF is always stuffed, so this is the end mark
    if name == "png":
        return data.rfind(b"IEND\xaeB`\x82") >= 0
    if name == "webp":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False  # GIF, BMP, TIFF, AVIF: no mark that a cut could not leave standing
