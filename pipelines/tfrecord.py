"""TFRecord files of `tf.train.Example`, without TensorFlow: how RLDS datasets (Open X-Embodiment, Bridge) lie on disk.

    file      length u64 │ its checksum u32 │ record │ its checksum u32 │ …
    record    Features: name → list of bytes, of float32 or of int64          an episode's steps one after another in each list

What comes in: a path. What goes out: records one at a time, each a mapping from names to arrays or lists of bytes. A length is believed only when its
checksum (CRC-32C, masked) fits, so that a damaged file ends in a `Reject` and never in an allocation; the record's own checksum is not computed (in
Python it would take longer than everything else): damage inside shows where a picture does not decode or a list has another length.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines.bounded import opened
from pipelines.format.errors import Reject

MAX_RECORD = 1 << 30  # one episode: five minutes of four cameras at 50 Hz in 640 × 480 JPEGs is 0.6 GB
Example = dict[str, np.ndarray | list[bytes]]
_HEAD = struct.Struct("<QI")


def examples(path: str) -> Iterator[Example | Reject]:
    """The file's records in order; a `Reject` in the place of one that does not parse, or as the last thing of a damaged file."""
    try:
        with opened(path) as stream:
            while head := stream.read(_HEAD.size):
                if len(head) < _HEAD.size:
                    raise Reject("truncated", "the file ends inside a record's length")
                length, said = _HEAD.unpack(head)
                if said != _masked(head[:8]):
                    raise Reject("unreadable", "a record's length does not fit its checksum")
                if length > MAX_RECORD:
                    raise Reject("too_large", f"a record of {length} bytes, allowed {MAX_RECORD}")
                data = stream.read(length + 4)
                if len(data) < length + 4:
                    raise Reject("truncated", "the file ends inside a record")
                try:
                    yield example(memoryview(data)[:length])
                except Reject as e:
                    yield e
    except Reject as e:
        yield e


def example(data: memoryview) -> Example:
    """One `tf.train.Example`. Raises `Reject`."""
    out: Example = {}
    for features in _messages(data, 1):
        for entry in _messages(features, 1):
            name = b"".join(bytes(x) for x in _messages(entry, 1)).decode("utf-8", "replace")
            for feature in _messages(entry, 2):
                out[name] = _values(feature)
    return out


def _values(feature: memoryview) -> np.ndarray | list[bytes]:
    """BytesList, FloatList or Int64List, whose numbers come packed or one by one."""
    for kind, value in _fields(feature):
        if not isinstance(value, memoryview):
            raise Reject("unreadable", "a feature that is no list")
        if kind == 1:
            return [bytes(x) for x in _messages(value, 1)]
        if kind == 2:
            packed = b"".join(bytes(x) for _, x in _fields(value) if isinstance(x, memoryview))
            if len(packed) % 4:
                raise Reject("unreadable", "a list of floats with a piece missing")
            return np.frombuffer(packed, "<f4")
        if kind == 3:
            numbers: list[int] = []
            for _, x in _fields(value):
                numbers += [x] if isinstance(x, int) else _varints(x)
            return np.array(numbers, np.uint64).astype(np.int64)
    return []


def _messages(data: memoryview, number: int) -> Iterator[memoryview]:
    for found, value in _fields(data):
        if found == number and isinstance(value, memoryview):
            yield value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Protobuf's wire form: (field number, a number or a slice)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise Reject("unreadable", f"no protobuf: wire type {wire}")
        if at + size > len(data):
            raise Reject("unreadable", "a field longer than its message")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    out = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        out |= (byte & 127) << shift
        if byte < 128:
            return out & 0xFFFFFFFFFFFFFFFF, at
    raise Reject("unreadable", "a number that does not end")


def _varints(data: memoryview) -> list[int]:
    out, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        out.append(value)
    return out


def _table() -> list[int]:
    out = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)  # CRC-32C (Castagnoli), reflected
        out.append(n)
    return out


_CRC = _table()


def _masked(data: bytes) -> int:
    """TFRecord's checksum: CRC-32C, turned by 15 bits, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def columns_of(found: Example, prefix: str) -> Any:
    """The features under `prefix` as columns of its steps: numbers as [steps, width], text as strings, pictures left as bytes."""
    return Steps({name.removeprefix(prefix): v for name, v in found.items() if name.startswith(prefix)})


class Steps:
    """`Columns` over an episode. How many steps there are is what its flags and lists of bytes agree on; a list of numbers is cut into that many."""

    def __init__(self, features: Example) -> None:
        lists = {len(v) for v in features.values() if isinstance(v, list)}
        flags = {len(v) for name, v in features.items() if isinstance(v, np.ndarray) and name in ("is_first", "is_last")}
        lengths = flags or lists
        if len(lengths) != 1:
            raise Reject("unreadable", f"the episode's steps are not as many in every list: {sorted(lengths)[:5]}")
        self.rows = lengths.pop()
        self._features = features
        self.names = [n for n, v in features.items() if self.rows and len(v) and len(v) % self.rows == 0]

    def raw(self, name: str) -> Any:
        """A column; one number a step as [steps]."""
        found = self._features[name]
        if isinstance(found, list):
            return [b.decode("utf-8", "replace") for b in found[: self.rows]]
        return found.reshape(self.rows, -1) if len(found) > self.rows else found

    def pictures(self, name: str) -> list[bytes]:
        """A list of encoded images, one a step. `Reject` when there is none by that name."""
        found = self._features.get(name)
        if not isinstance(found, list) or len(found) != self.rows:
            there = ", ".join(n for n, v in self._features.items() if isinstance(v, list))
            raise Reject("unreadable", f"no pictures called {name!r}; lists of bytes: {there[:200] or 'none'}")
        return found
