"""Latents between memory (float32 [n, width]) and a data file (bytes, little-endian), by name of the codec.

    f32      4 bytes a value, exact                         bf16     2 bytes, round to nearest even (rel. error <= 2^-8): the default
    int8     1 byte, + an f32 scale per token and 32 channels (abs. error <= scale / 2, scale = max|x| / 127)
    f8e4m3   1 byte (OCP e4m3fn), + the same scales with max|x| / 448 (rel. error <= 2^-4 of each value, about 2.6 % rms)

The scaled codecs lay the values [n, width] first and the scales [n, ceil(width / 32)] at the next multiple of 64, so one aligned
read brings both. One scale per 32 channels, because a single outlier channel of a vision tower would cost a whole token its bits.
numpy only: readers without torch (planner, stats, verify) decode too. Work goes in runs of rows that stay in the L2 cache, which is
two to three times as fast as whole-array temporaries.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipelines.format.errors import InputError

CODECS = ("bf16", "f32", "int8", "f8e4m3")
ALIGN = 64
CHANNELS_PER_SCALE = 32
LARGEST = {"int8": np.float32(127), "f8e4m3": np.float32(448)}
ROWS_BYTES = 1 << 18


def nbytes(codec: str, n: int, width: int) -> int:
    """Bytes of n latents of `width` channels, scales and the gap before them included."""
    known(codec)
    if codec in LARGEST:
        return aligned(n * width) + 4 * n * groups(width)
    return n * width * (4 if codec == "f32" else 2)


def encode_latents(x: np.ndarray, codec: str) -> bytes:
    """float [n, width] -> bytes of length nbytes(codec, n, width). The scaled codecs want finite values (InputError), below 2^127."""
    known(codec)
    x = np.ascontiguousarray(x, dtype="<f4")
    assert x.ndim == 2, f"latents are [n, width], not {x.shape}"
    if codec == "f32":
        return x.tobytes()
    n, width = x.shape
    out = np.zeros(nbytes(codec, n, width), np.uint8)
    if codec == "bf16":
        halves = out.view("<u2").reshape(n, width)
        for rows in row_runs(n, width):
            halves[rows] = bf16_bits(x[rows])
        return out.tobytes()
    values, scales = split(out, n, width)
    for rows in row_runs(n, width):
        values[rows], scales[rows] = scaled(x[rows], codec)
    return out.tobytes()


def decode_latents(buffer: bytes | bytearray | memoryview | np.ndarray, codec: str, n: int, width: int) -> np.ndarray:
    """The inverse: a new float32 [n, width]. InputError when the buffer has another length than nbytes(codec, n, width)."""
    data = np.frombuffer(buffer, np.uint8)
    if data.size != nbytes(codec, n, width):
        raise InputError(
            f"{codec} latents have the wrong length", found=f"{data.size} bytes", allowed=f"{nbytes(codec, n, width)} for {n} x {width}"
        )
    if codec == "f32":
        return data.view("<f4").reshape(n, width).astype(np.float32)
    if codec == "bf16":
        words = data.view("<u2").astype("<u4")  # widened and then shifted in place: half the time of one strided store
        words <<= 16
        return words.view("<f4").reshape(n, width)
    values, scales = split(data, n, width)
    out = np.empty((n, width), np.float32)
    for rows in row_runs(n, width):
        if codec == "f8e4m3":
            np.take(E4M3_VALUES, values[rows], out=out[rows], mode="clip")  # half the time of plain indexing, which checks each byte
        else:
            out[rows] = values[rows].view(np.int8)
        if width % CHANNELS_PER_SCALE == 0:
            grouped(out[rows])[...] *= scales[rows][..., None]
        else:
            out[rows] *= np.repeat(scales[rows], CHANNELS_PER_SCALE, axis=1)[:, :width]
    return out


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """float32 -> uint16 bit patterns, nearest even; every NaN becomes 0x7FC0, as in torch."""
    bits = x.view("<u4")
    rounded = ((bits + ((bits >> 16) & 1) + np.uint32(0x7FFF)) >> 16).astype("<u2")
    if np.isnan(x).any():
        rounded[np.isnan(x)] = 0x7FC0
    return rounded


def scaled(x: np.ndarray, codec: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 [rows, width] -> (uint8 [rows, width], float32 scales [rows, groups]); a group of zeros has scale 0."""
    rows, width = x.shape
    padded = np.zeros((rows, groups(width) * CHANNELS_PER_SCALE), np.float32)
    padded[:, :width] = x
    by_group = grouped(padded)
    scales = np.abs(by_group).max(axis=2) / LARGEST[codec]
    if not np.isfinite(scales).all():
        raise InputError(f"latents with NaN or infinity cannot be stored as {codec}", found=f"{int((~np.isfinite(x)).sum())} such values")
    by_group /= np.where(scales == 0, np.float32(1), scales)[..., None]
    # A scale below float32's normal range is itself rounded, so the quotient can leave the range by more than half a step.
    np.clip(padded, -LARGEST[codec], LARGEST[codec], out=padded)
    values = e4m3_bits(padded) if codec == "f8e4m3" else np.rint(padded).astype(np.int8).view(np.uint8)
    return values[:, :width], scales


def e4m3_bits(x: np.ndarray) -> np.ndarray:
    """float32 in [-448, 448] -> OCP e4m3fn bytes, nearest even. Adding 2^14 rounds to multiples of 2^-9, the step of the subnormals."""
    bits = x.view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    normal = (magnitude + np.uint32(0x7FFFF) + ((magnitude >> 20) & 1)) >> 20
    small = (magnitude.view(np.float32) + np.float32(16384)).view(np.uint32) - np.float32(16384).view(np.uint32)
    code = np.where(magnitude < np.float32(2.0**-6).view(np.uint32), small, normal - np.uint32((127 - 7) << 3))
    return (code | ((bits >> 24) & np.uint32(0x80))).astype(np.uint8)


def e4m3_values() -> np.ndarray:
    """The 256 values of OCP e4m3fn: sign, 4 exponent bits (bias 7), 3 mantissa bits; 0x7F and 0xFF are NaN, there is no infinity."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    value[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code & 0x80, -value, value).astype(np.float32)


E4M3_VALUES = e4m3_values()


def known(codec: str) -> None:
    if codec not in CODECS:
        raise InputError("unknown latent codec", found=codec, allowed=", ".join(CODECS))


def aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def groups(width: int) -> int:
    return -(-width // CHANNELS_PER_SCALE)


def grouped(x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[0], -1, CHANNELS_PER_SCALE)


def split(data: np.ndarray, n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Views of the values uint8 [n, width] and of the scales float32 [n, groups] in one buffer."""
    return data[: n * width].reshape(n, width), data[aligned(n * width) :].view("<f4").reshape(n, groups(width))


def row_runs(n: int, width: int) -> Iterator[slice]:
    step = max(1, ROWS_BYTES // (4 * max(1, width)))
    return (slice(first, min(first + step, n)) for first in range(0, n, step))
