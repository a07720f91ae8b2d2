"""From the bytes of an image file to an image segment, and from an image and its captions to a pair. Shared by the sources of still images.

What comes in: bytes that nobody vouches for. What goes out: a segment that keeps the file's own bytes, with the size as displayed, after the header
was read and the end was found (`media.still.verify`); pixels are decoded by transforms and encoders, not here. The group is the sha256 of
the bytes: wherever the same file turns up, in whatever source, it falls on the same side of every split.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pipelines.format.document import sha256_hex
from pipelines.format.errors import Reject
from pipelines.format.record import Image, Record, Role, Segment, Text
from pipelines.media import images, still

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
MAX_CAPTION = 1 << 20  # characters; a page of text is 3,000


def picture(data: bytes, role: Role = "target", max_pixels: int = images.MAX_PIXELS) -> Segment:
    """An image segment of atom 0. Raises `Reject` for what is no image, too large or cut short."""
    info = still.verify(data, max_pixels)
    return Image(data, role=role, atom=0, shape=(info.height, info.width, 3), dtype=info.format)


def group_of(files: Iterable[bytes]) -> str:
    """sha256 of the source bytes of a record's images (of one: of that file)."""
    hashes = [sha256_hex(data) for data in files]
    return hashes[0] if len(hashes) == 1 else sha256_hex("".join(hashes).encode())


def captions(fields: dict[str, Any]) -> list[tuple[str, str]]:
    """Caption name → value, as (name, text) of every caption there is. A list gives name, then `caption2`, `caption3` … for the captions of
    `original` and `name2` … for others; white space around is dropped, and so are empty captions."""
    out: list[tuple[str, str]] = []
    for name, value in fields.items():
        stem = "caption" if name == "original" else name
        texts = [sound(v).strip() for v in (value if isinstance(value, list | tuple) else [value]) if v is not None]
        out += [(name if i == 0 else f"{stem}{i + 1}", text) for i, text in enumerate(t for t in texts if t)]
    return out


def sound(value: Any, most: int = MAX_CAPTION) -> str:
    """A text that UTF-8 can hold, unchanged; `Reject` when it is none or longer than `most` characters."""
    if not isinstance(value, str):
        raise Reject("unreadable", f"not a text: {str(value)[:80]!r}")
    if len(value) > most:
        raise Reject("too_large", f"a text of {len(value)} characters, allowed {most}")
    try:
        value.isascii() or value.encode()  # a hundred times as fast as looking at each character
    except UnicodeEncodeError:
        raise Reject("unreadable", "half a surrogate pair: the text is not Unicode") from None
    return value


def pair(
    source: str, origin: str, data: bytes, texts: Sequence[tuple[str, str]], max_pixels: int, group: str | None = None, **rest: Any
) -> Record:
    """An image and its captions: the image is atom 0, each caption an atom of its own. `group` is the sha256 of the source's bytes, where it is
    known already. `Reject("empty")` without captions."""
    if not texts:
        raise Reject("empty", "an image without a caption")
    segments = [picture(data, max_pixels=max_pixels)]
    segments += [Text(text, atom=i + 1, name=name) for i, (name, text) in enumerate(texts)]
    return Record.make(source, origin, "image-text", segments, group=group or group_of([data]), **rest)
