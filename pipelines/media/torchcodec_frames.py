"""Wanted frames of a trusted video through torchcodec. Runs in a guarded child of its own kind (`backends.py`), where alone torch is loaded.

What comes in: a file that our survey found to be of a sort that torchcodec gets right, and frame numbers. What goes out: RGB pixels of each.

torchcodec brings no FFmpeg: it takes the shared libraries it finds, by LD_LIBRARY_PATH too. It is asked in its exact mode, on one thread, by
frame number, and every answer's time is held against our table.
"""

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from torchcodec import ffmpeg_major_version
from torchcodec.decoders import VideoDecoder

from pipelines.format.errors import Reject
from pipelines.media.frames import Decoded, Found, Lose, sampled
from pipelines.media.timeline import Want, places

_BATCH = 64 << 20  # bytes of pixels in hand


def about(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], bytes]]:
    """One answer: the versions that `doctor` shows."""
    yield {"found": f"{version('torchcodec')}, FFmpeg {ffmpeg_major_version}"}, b""


def sample(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """As `frames.sample`."""

    def decode(found: Found, wants: list[Want], lose: Lose) -> Decoded:
        return _decode(file, found, wants)

    return sampled(args, file, "torchcodec", decode)


def _decode(file: Any, found: Found, wants: list[Want]) -> Decoded:
    file.seek(0)
    table = found.table
    try:
        decoder = VideoDecoder(file, stream_index=found.stream, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        if len(decoder) != found.info["frames"]:
            raise Reject("not_allowed", f"torchcodec counts {len(decoder)} frames of {found.info['frames']}; backend: auto takes pyav")
        numbers = places(table, wants)
        step = max(1, _BATCH // (3 * found.info["width"] * found.info["height"]))
        for at in range(0, len(wants), step):
            batch = decoder.get_frames_at(indices=numbers[at : at + step])
            for want, pixels, time in zip(wants[at : at + step], batch.data.numpy(), batch.pts_seconds.tolist(), strict=True):
                if abs(time - float(want.pts * table.base)) > 1e-6:
                    raise Reject("not_allowed", f"torchcodec times a frame {time:.6f} s that lies elsewhere; backend: auto takes pyav")
                yield want, pixels, want.pts
    except (RuntimeError, ValueError, IndexError) as e:
        raise Reject("unreadable", f"torchcodec: {e}"[:200]) from None
