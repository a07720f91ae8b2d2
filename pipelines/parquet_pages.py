"""How much the rows of a Parquet column can unpack to: what the footer does not say, from the first page's header.

What comes in: the metadata of a column chunk and a way to read a few bytes of the file. What goes out: the unpacked size of its dictionary, the most
that any one cell can hold then. A dictionary of one 60 MB text that a million rows point to is 60 MB by the footer and 60 TB as rows; Arrow
unpacks as many rows as it is asked for, so whoever asks must know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

UNKNOWN = 1 << 31  # of a header that cannot be read: taken to be as bad as can be
_TEXTS = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")


def dictionary_bytes(chunk: Any, peek: Callable[[int, int], bytes]) -> int:
    """Unpacked bytes of the dictionary of a text column's chunk; 0 where there is none, or its values are numbers. `peek(at, n)` reads."""
    if chunk.physical_type not in _TEXTS or not any("DICTIONARY" in e for e in chunk.encodings):
        return 0
    at = chunk.dictionary_page_offset
    head = peek(chunk.data_page_offset if at is None or at <= 0 else at, 16)
    # Thrift's compact form of PageHeader: field 1, the kind of page; field 2, its unpacked size; both 32-bit integers, zigzag and in sevens.
    try:
        if head[0] != 0x15:
            return UNKNOWN
        _, after = _integer(head, 1)
        if head[after] != 0x15:
            return UNKNOWN
        size, _ = _integer(head, after + 1)
    except IndexError:
        return UNKNOWN
    return size if 0 <= size < UNKNOWN else UNKNOWN


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return (value >> 1) ^ -(value & 1), at
