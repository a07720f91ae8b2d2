"""Perceptual hashes and sketches of image files, taken in the guarded child.

What comes in: bytes. What goes out: `images.phash` of the whole picture as it is displayed, a uint64 as an int; or sketches (`pipelines/sketches.py`)
of it as it is and as our own `resize_image` would crop or frame it, and the sha256 of its pixels. Decoding a 640 × 480 photo for
the hash costs 5 ms, a 256-pixel one 1.5 ms; a hash that a transform has put on the record costs nothing, so ask here only where there is none.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from pipelines.media import images, resizing
from pipelines.media.child import ask
from pipelines.sketches import CELLS, CHANNELS, GRID, Sketch

_HERE = "pipelines.media.hashing"
AS_IS = "as_is"
_SIDE = 224  # of crops and frames: sketches of other sizes agree, apart from how the edge of a frame is rounded


def phash(data: bytes, max_pixels: int = images.MAX_PIXELS) -> int:
    """The perceptual hash of an image file. Raises `Reject` where it cannot be decoded."""
    return int(ask(f"{_HERE}:phash_op", {"max_pixels": max_pixels}, data).meta["phash"])


def sketches(data: bytes, hows: Sequence[str] = (AS_IS,), max_pixels: int = images.MAX_PIXELS) -> tuple[bytes, list[Sketch]]:
    """(sha256 of the pixels, a sketch for each geometry: `as_is` or a mode of `resize_image`) of an image file. A square picture is the same in all
    geometries and gets one sketch where `as_is` is among them. Raises `Reject`."""
    answer = ask(f"{_HERE}:sketch_op", {"max_pixels": max_pixels, "hows": list(hows)}, data)
    hashes, side, hows = answer.meta["phash"], answer.meta["side"], answer.meta["hows"]
    cells = np.frombuffer(bytes(answer.blob), np.uint8).reshape(len(hows), GRID, GRID, CHANNELS)
    return bytes.fromhex(answer.meta["pixels"]), [Sketch(h, side, c, how) for h, c, how in zip(hashes, cells, hows, strict=True)]


def phash_op(args: dict[str, Any], file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Runs in the child: decode and hash."""
    return {"phash": images.phash(images.decode(file.read(), args["max_pixels"]))}, b""


def sketch_op(args: dict[str, Any], file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Runs in the child: decode once, sketch in each geometry."""
    pixels = images.decode(file.read(), args["max_pixels"])
    square = pixels.shape[0] == pixels.shape[1] and AS_IS in args["hows"]
    hows: list[Any] = [AS_IS] if square else args["hows"]
    made = [sketched(pixels if how == AS_IS else resizing.resize(pixels, _SIDE, how)) for how in hows]
    digest = sha256(str(pixels.shape).encode() + pixels.data).hexdigest()
    cells = b"".join(c for _, c in made)
    assert len(cells) == CELLS * len(made)
    return {"pixels": digest, "side": min(pixels.shape[:2]), "hows": hows, "phash": [h for h, _ in made]}, cells


def sketched(pixels: np.ndarray) -> tuple[int, bytes]:
    """(perceptual hash, cells) of `uint8 [H, W, 3]`: means of the area of each cell, in JPEG's luma and chroma."""
    image = images.as_image(pixels)
    kernel = Image.Resampling.BOX if min(image.size) >= GRID else Image.Resampling.BICUBIC
    cells = image.resize((GRID, GRID), kernel).convert("YCbCr")
    return images.phash_of(image), cells.tobytes()
