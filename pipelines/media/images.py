"""Still images: bytes in, `uint8 [H, W, 3]` out, and back to bytes. The only importer of Pillow.

Image bytes come from strangers, so: a format allow-list instead of Pillow's fifty plug-ins, the size read from the header and held
against a cap *before* any pixel is decoded (a 22 KB PNG can ask for 176 megapixels), truncated files refused instead of filled with grey,
and Pillow's warnings taken as errors. What cannot be read costs one record: every failure is a `Reject` with a reason of the contract
(`invalid_image`, `too_large`, `truncated`, `unreadable`).

Pixels are what a viewer shows: EXIF orientation applied, transparency laid over white, palettes resolved, 16-bit greys scaled to 8, the
first frame of an animation. Colour profiles are not applied: the numbers in the file are taken as sRGB.
"""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, features

from pipelines.format.errors import Reject
from pipelines.media import jpeg
from pipelines.media.endings import has_end

ImageFile.LOAD_TRUNCATED_IMAGES = False
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF") + (("AVIF",) if features.check("avif") else ())
MAX_PIXELS = 50_000_000  # larger than any photo sensor in common use, and 150 MB decoded; Pillow itself refuses from 89 million on
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WebP", b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_ORIENTATION = 0x0112  # EXIF tag
# What Pillow's readers have been seen to raise on damaged files; RuntimeError is its AVIF decoder's.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, ArithmeticError, LookupError, TypeError, RuntimeError, Warning)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the header says. `format` is lower case (`jpeg`); width and height are as displayed, orientation applied. `frames` is exact for
    PNG, WebP and AVIF; a GIF or TIFF says only 1 or 2 (two or more), since counting would read the whole file. `upright`: shown as stored."""

    format: str
    width: int
    height: int
    mode: str
    frames: int
    upright: bool = True


def probe(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """Reads the header only. Raises `Reject`; the pixel cap is not applied here when `max_pixels` is 0."""
    plain = jpeg.header(data) if data.startswith(b"\xff\xd8") else None
    if plain is not None:
        if max_pixels:
            check_size(plain.width, plain.height, max_pixels)
        return ImageInfo("jpeg", plain.width, plain.height, "L" if plain.components == 1 else "RGB", 1)
    with reading(data) as image:
        name = "JPEG" if image.format == "MPO" else str(image.format)  # MPO: a JPEG with a second picture behind it
        width, height = image.size
        if max_pixels:
            check_size(width, height, max_pixels)
        turn = orientation(image)
        if turn >= 5 and name != "TIFF":  # Pillow turns TIFFs itself, size and pixels
            width, height = height, width
        animated = bool(getattr(image, "is_animated", False))
        frames = int(getattr(image, "n_frames", 1)) if animated and name in ("PNG", "WEBP", "AVIF") else 1 + animated
        return ImageInfo(name.lower(), width, height, image.mode, frames, turn == 1)


def verify(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """`probe`, and the file must reach its end. Formats with an end mark are judged by that mark (microseconds); a file without
    one is decoded to see. Damage in the middle of a file that has its end is found only by `decode`. Raises `Reject`."""
    info = probe(data, max_pixels)
    if not has_end(info.format, data):
        decode(data, max_pixels)
    return info


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The first frame as `uint8 [H, W, 3]`, C-contiguous. Raises `Reject`."""
    with reading(data) as image:
        return np.ascontiguousarray(np.asarray(pixels(image, max_pixels)))


def encode_jpeg(array: np.ndarray, quality: int = 92) -> bytes:
    """`uint8 [H, W, 3]` → baseline JPEG, 4:2:0 chroma, no metadata. Equal arrays give equal bytes with one libjpeg build."""
    return as_jpeg(as_image(array), quality)


def encode_png(array: np.ndarray) -> bytes:
    """`uint8 [H, W, 3]` → PNG, zlib level 6, no metadata. Lossless; equal arrays give equal bytes with one zlib build."""
    out = io.BytesIO()
    as_image(array).save(out, "PNG", compress_level=6, optimize=False)
    return out.getvalue()


def stretch(array: np.ndarray, height: int, width: int, filter: str = "bicubic") -> np.ndarray:
    """`uint8 [H, W, 3]` → exactly [height, width, 3], sides scaled apart, as image processors of vision towers do it. `filter` is Pillow's
    name of the kernel: nearest, box, bilinear, hamming, bicubic, lanczos."""
    if array.shape[:2] == (height, width):
        return array
    return cast(np.ndarray, np.asarray(as_image(array).resize((width, height), Image.Resampling[filter.upper()])))


def phash(array: np.ndarray) -> int:
    """64-bit perceptual hash: grey, 32 × 32, DCT-II, the 8 × 8 lowest frequencies against their median, row by row, first bit highest
    (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010). Integers only: no machine differs by rounding."""
    return phash_of(as_image(array))


def phash_of(image: Image.Image) -> int:
    """`phash` of an upright RGB picture, which may be a reduced decode. Pixels are averaged by whole numbers first and the kernel does the rest:
    a tenth of the time of the kernel alone."""
    grey = image.convert("L").resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=2.0)
    pixels = np.asarray(grey, dtype=np.int64)
    low = (_DCT @ pixels @ _DCT.T).ravel()
    ordered = np.sort(low)
    bits = 2 * low > ordered[31] + ordered[32]
    return int(np.packbits(bits).view(">u8")[0])


_DCT = np.rint(np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32)[None, :] + 1) / 64) * 2**14).astype(np.int64)


class _Hearing:
    """What Pillow's warnings mean while any thread reads. Python's filters belong to the whole process, and a thread that put them back while
    another reads would change what that one sees: so the first to come sets them, the last to go puts them back, and they touch nothing but these."""

    def __init__(self) -> None:
        self._lock, self._readers = threading.Lock(), 0
        self._before = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                # Tags that no pixel depends on: a camera's broken EXIF block must not cost the photo.
                warnings.filterwarnings("ignore", category=UserWarning)
            self._readers += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._before.__exit__(None, None, None)


_HEARING = _Hearing()


@contextmanager
def reading(data: bytes) -> Iterator[Image.Image]:
    """Opens by the allow-list, lazily; whatever Pillow raises inside becomes a `Reject`."""
    if not data:
        raise Reject("truncated", "0 bytes")
    try:
        with _HEARING:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                yield image
    except Reject:
        raise
    except UnidentifiedImageError:
        known = next((name for start, name in _MAGIC.items() if data.startswith(start)), None)
        what = f"begins as a {known}, but its header is damaged or cut" if known else f"not one of {', '.join(FORMATS).lower()}"
        raise Reject("invalid_image", f"{what}: begins {data[:12]!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Reject("too_large", str(error)) from None
    except MemoryError:
        raise Reject("too_large", "out of memory while decoding") from None
    except _DAMAGE as error:
        text = str(error) or type(error).__name__
        short = isinstance(error, (EOFError, struct.error)) or "truncated" in text.lower() or "end of file" in text.lower()
        raise Reject("truncated" if short else "invalid_image", f"{type(error).__name__}: {text}"[:300]) from None


def check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise Reject("invalid_image", f"{width} × {height} pixels")
    if width * height > max_pixels:
        raise Reject("too_large", f"{width} × {height} = {width * height} pixels, allowed {max_pixels}")


def orientation(image: Image.Image) -> int:
    try:
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)  # not PNG's own, which decodes the whole image to look behind it
    except Exception:  # EXIF is a format of its own with its own damage; without it the picture is upright
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise Reject("invalid_image", "32-bit integer pixels without a stated range")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise Reject("invalid_image", "floating-point pixels without a stated range")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def as_image(array: np.ndarray) -> Image.Image:
    assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3, (array.dtype, array.shape)
    return Image.fromarray(np.ascontiguousarray(array), "RGB")


def as_jpeg(image: Image.Image, quality: int) -> bytes:
    """`encode_jpeg` of a picture; a comment that its file had is not handed on."""
    out = io.BytesIO()
    if isinstance(image, ImageFile.ImageFile):
        image = image.copy()  # what Pillow opened it asks the file system about, and the guarded child has none
    image.save(out, "JPEG", quality=quality, subsampling=2, optimize=False, progressive=False, comment="")
    return out.getvalue()


def pixels(image: Image.Image, max_pixels: int) -> Image.Image:
    """The opened image as upright RGB; the size is checked before any pixel is decoded."""
    check_size(*image.size, max_pixels)
    image.load()
    turn = _TURNS.get(orientation(image))  # asked now: Pillow has turned a TIFF itself by here
    rgb = _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)
