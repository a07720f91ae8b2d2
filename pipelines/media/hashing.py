"""Perceptual hashes of image files, taken in the guarded child.

What comes in: bytes. What goes out: `images.phash` of the whole picture as it is displayed, a uint64 as an int. Decoding a 640 × 480 photo for
it costs 5 ms, a 256-pixel one 1.5 ms; a hash that a transform has put on the record costs nothing, so ask here only where there is none.
"""

from typing import Any, BinaryIO

from pipelines.media import images
from pipelines.media.child import ask

_HERE = "pipelines.media.hashing"


def phash(data: bytes, max_pixels: int = images.MAX_PIXELS) -> int:
    """The perceptual hash of an image file. Raises `Reject` where it cannot be decoded."""
    return int(ask(f"{_HERE}:phash_op", {"max_pixels": max_pixels}, data).meta["phash"])


def phash_op(args: dict[str, Any], file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Runs in the child: decode and hash."""
    return {"phash": images.phash(images.decode(file.read(), args["max_pixels"]))}, b""
