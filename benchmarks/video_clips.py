"""Films for benchmarks: they cost what real ones cost to decode, and every frame carries its number.

What comes in: a size, a length and how far key frames lie apart. What goes out: an mp4 of h264 with three B-frames, a camera that pans over a
textured scene with grain; ten seconds are encoded and then repeated packet by packet, so that an hour takes seconds to make. Bitrates as
on the web: about 2 Mb/s at 480p, 8 Mb/s at 1080p.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS, LOOP_S, BITS = 30, 10, 12
SIZES = {"480p": (854, 480), "1080p": (1920, 1080)}
BITS_PER_S = {480: 2_000_000, 1080: 8_000_000}
_CODEC = {"preset": "veryfast", "bf": "3", "x264-params": "b-pyramid=normal:ref=3:scenecut=0:log-level=none"}


def film(path: Path, size: str, seconds: int, group_s: int, still: bool = False) -> Path:
    """The film, made when missing. `still`: nothing moves but the number, for films of hours."""
    if not path.exists():
        loop = _loop(*SIZES[size], group_s, still)
        part = path.with_suffix(".part")
        with av.open(str(part), "w", format="mp4") as out:
            target = None
            for k in range(seconds // LOOP_S):
                with av.open(io.BytesIO(loop)) as box:
                    source = box.streams.video[0]
                    target = target or out.add_stream_from_template(source, opaque=True)
                    for packet in box.demux(source):
                        if packet.dts is not None:
                            move = round(k * LOOP_S / source.time_base)
                            packet.pts, packet.dts, packet.stream = packet.pts + move, packet.dts + move, target
                            out.mux(packet)
        part.rename(path)
    return path


def number(pixels: np.ndarray) -> int:
    """The number in the strip along the top: twelve squares, dark or light."""
    side = pixels.shape[0] // 20
    middles = pixels[side // 4 : side - side // 4, side // 2 : side * BITS : side].mean(axis=(0, 2)) > 127
    return int("".join("01"[int(b)] for b in middles), 2)


def _loop(width: int, height: int, group_s: int, still: bool) -> bytes:
    draw = np.random.default_rng(0)
    scene = sum(
        np.kron(draw.normal(0, 60 / 1.7**k, (-(-(height + 320) // s), -(-(width + 640) // s))), np.ones((s, s)))[: height + 320, : width + 640]
        for k, s in enumerate((160, 40, 16, 8, 4))
    )
    scene = np.clip(np.asarray(scene) + 128, 0, 255)
    grain = [draw.normal(0, 8, (height, width)) for _ in range(4)]
    out, side = io.BytesIO(), height // 20
    with av.open(out, "w", format="mp4") as box:
        stream = box.add_stream("libx264", rate=FPS, options={**_CODEC, "g": str(group_s * FPS), "keyint_min": str(group_s * FPS)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        stream.bit_rate = BITS_PER_S[height] // (20 if still else 1)
        planes = np.full((height * 3 // 2, width), 128, np.uint8)
        for i in range(LOOP_S * FPS):
            x, y = (0, 0) if still else (2 * i, i)
            planes[:height] = np.clip(scene[y : y + height, x : x + width] + (0 if still else np.roll(grain[i % 4], 7 * i)), 16, 235)
            for b in range(BITS):
                planes[:side, b * side : (b + 1) * side] = 235 if i >> (BITS - 1 - b) & 1 else 16
            planes[height : height * 5 // 4] = 110
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
    return out.getvalue()
