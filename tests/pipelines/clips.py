"""Tiny videos with the number of every frame painted into it, and the reading of that number."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import av
import numpy as np

BITS, BLOCK = 12, 16
WIDTH, HEIGHT = 4 * BLOCK, 3 * BLOCK


def painted(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """uint8 [H, W, 3]: twelve blocks, black or white, the highest bit first, row by row."""
    bits = np.array([number >> (BITS - 1 - i) & 1 for i in range(BITS)], np.uint8).reshape(3, 4)
    grey = np.kron(bits * 255, np.ones((height // 3, width // 4), np.uint8))
    return np.repeat(grey[:, :, None], 3, axis=2)


def number(pixels: np.ndarray) -> int:
    """The painted number, by the middle of each block."""
    height, width = pixels.shape[:2]
    out = 0
    for row in range(3):
        for column in range(4):
            y, x = int((row + 0.5) * height / 3), int((column + 0.5) * width / 4)
            out = out << 1 | int(pixels[y - 2 : y + 3, x - 2 : x + 3].mean() > 127)
    return out


def clip(
    frames: int = 90,
    fps: int = 30,
    codec: str = "libx264",
    container: str = "mp4",
    ticks: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    rotation: int = 0,
    first: int = 0,
) -> bytes:
    """A video whose i-th frame shows the number `first + i`. `ticks` are presentation times in milliseconds (default: even, 1/fps)."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as box:
        stream = box.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000) if ticks is not None else Fraction(1, fps)
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(painted(first + i), format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = i if ticks is None else ticks[i]
            box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
    return out.getvalue()


def film(
    pictures: Iterable[np.ndarray],
    fps: int = 30,
    codec: str = "libx264",
    container: str = "mp4",
    ticks: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """A video of these pictures, uint8 [H, W, 3] of one even size. `ticks` as in `clip`."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as box:
        stream = box.add_stream(codec, rate=fps, options=options or {})
        stream.codec_context.time_base = Fraction(1, 1000) if ticks is not None else Fraction(1, fps)
        for i, picture in enumerate(pictures):
            if i == 0:
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = i if ticks is None else ticks[i]
            box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
    return out.getvalue()


def scene(seed: int, frames: int, width: int = 128, height: int = 96, speed: int = 1) -> Iterator[np.ndarray]:
    """One shot: smooth coloured blotches of the seed's colours, moved sideways by `speed` pixels a frame. Neighbouring seeds look quite different."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 90, (6, 8, 3)) + np.array([(160, 0, 0), (0, 160, 0), (0, 0, 160), (150, 150, 0), (0, 150, 150)][seed % 5])
    whole = np.kron(coarse, np.ones((height // 6, width // 8, 1))).astype(np.uint8)
    for i in range(frames):
        yield np.roll(whole, i * speed, axis=1)
