"""RLDS TFRecords without TensorFlow: episodes give samples, damaged files give reasons."""

from __future__ import annotations

import io
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.media.child import close_children
from pipelines.media.images import encode_jpeg
from pipelines.sources.rlds import Rlds
from pipelines.stage import Rejected
from pipelines.tfrecord import _masked, example, examples
from tests.pipelines.clips import number, painted

DATA = os.environ.get("HEADWATER_DATA")


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(values: Any) -> bytes:
    if isinstance(values, list):
        return message(1, b"".join(message(1, v) for v in values))
    if values.dtype.kind == "f":
        return message(2, message(1, values.astype("<f4").tobytes()))
    return message(3, message(1, b"".join(varint(int(v) & (1 << 64) - 1) for v in values)))


def encoded(features: dict[str, Any]) -> bytes:
    return message(1, b"".join(message(1, message(1, name.encode()) + message(2, feature(v))) for name, v in features.items()))


def framed(record: bytes) -> bytes:
    head = struct.pack("<Q", len(record))
    return head + struct.pack("<I", _masked(head)) + record + b"\0\0\0\0"


def episode(first: int, n: int = 12) -> dict[str, Any]:
    return {
        "steps/observation/image_0": [encode_jpeg(painted(first + i), 95) for i in range(n)],
        "steps/action": np.arange(2 * n, dtype=np.float32) / 10,
        "steps/is_first": np.array([1] + [0] * (n - 1)),
        "steps/language_instruction": [b"put the pot on the towel"] * n,
        "episode_metadata/episode_id": np.array([first]),
    }


def read(path: Path, **keys: Any) -> tuple[list[Record], list[Rejected]]:
    given: dict[str, Any] = {"camera": "observation/image_0", "actions": {"a": "action"}, "size": 48, "quality": 95, "goals": {"max": 1}}
    source = Rlds(path=str(path), **{**given, **keys})
    found = [r for part in source.parts() for r in source.read(part.spec, "arm")]
    return [r for r in found if isinstance(r, Record)], [r for r in found if isinstance(r, Rejected)]


def shown(record: Record) -> list[int]:
    return [number(np.asarray(Image.open(io.BytesIO(s.payload)))) for s in record.segments if s.payload]


def test_each_record_is_an_episode_of_its_own(tmp_path):
    (tmp_path / "arm-train.tfrecord-00000-of-00001").write_bytes(framed(encoded(episode(0))) + framed(encoded(episode(100))))
    records, rejected = read(tmp_path, fps=5)
    assert rejected == [] and len(records) == 16 and len({r.group for r in records}) == 2
    for i, r in enumerate(records):
        e, at = divmod(i, 8)
        at += 3
        assert shown(r) == [100 * e + k for k in range(at - 3, at + 2)] and r.fields["task"] == "put the pot on the towel"
        assert r.segments[4].text == f"action: a0=+{at / 5:.3f}, a1=+{at / 5 + 0.1:.3f}" and r.segments[0].time_s == pytest.approx((at - 3) / 5)
        assert r.origin == f"arm-train.tfrecord-00000-of-00001!{e}#{at}~0"


def test_an_episode_without_its_camera_or_with_uneven_lists_costs_itself(tmp_path):
    uneven = {**episode(0), "steps/observation/image_0": episode(0)["steps/observation/image_0"][:-1]}
    unlike = {k: v for k, v in episode(50).items() if "image" not in k}
    (tmp_path / "a.tfrecord").write_bytes(b"".join(framed(encoded(e)) for e in (uneven, unlike, episode(20))))
    records, rejected = read(tmp_path)
    assert [(r.origin, r.reason) for r in rejected] == [("a.tfrecord!0", "unreadable"), ("a.tfrecord!1", "unreadable")]
    assert {r.fields["episode"] for r in records} == {2} and "image_0" in rejected[1].detail


def test_a_cut_file_gives_its_good_episodes_and_one_reason(tmp_path):
    good = framed(encoded(episode(0)))
    for cut in (5, 11, 12, 200, len(good) - 1):
        (tmp_path / "a.tfrecord").write_bytes(good + good[:cut])
        records, rejected = read(tmp_path)
        assert len(records) == 8 and [(r.origin, r.reason) for r in rejected] == [("a.tfrecord!1", "truncated")]
    (tmp_path / "a.tfrecord").write_bytes(good + b"\xff" * 8 + good[8:])
    assert Counter(r.reason for r in read(tmp_path)[1]) == {"unreadable": 1}
    huge = struct.pack("<Q", 1 << 60)
    (tmp_path / "a.tfrecord").write_bytes(huge + struct.pack("<I", _masked(huge)))
    assert [r.reason for r in read(tmp_path)[1]] == ["too_large"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 300))
def test_any_bytes_are_read_or_refused(noise, at):
    good = encoded({"steps/is_first": np.array([1, 0, -1]), "steps/a": np.zeros(6, np.float32), "b": [b"x" * 40]})
    for data in (noise, good[:at], good[:at] + noise + good[at:]):
        try:
            assert isinstance(example(memoryview(data)), dict)
        except Reject as e:
            assert e.reason == "unreadable"


def test_numbers_come_packed_or_one_by_one():
    floats = message(2, b"".join(b"\x0d" + struct.pack("<f", v) for v in (1.5, -2.0)))
    numbers = message(3, b"".join(b"\x08" + varint(v) for v in (7, (1 << 64) - 1)))
    found = example(memoryview(message(1, message(1, message(1, b"f") + message(2, floats)) + message(1, message(1, b"n") + message(2, numbers)))))
    assert np.asarray(found["f"]).tolist() == [1.5, -2.0] and np.asarray(found["n"]).tolist() == [7, -1]


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA names no real files")
def test_a_real_robots_episodes_read():
    folder = Path(str(DATA)) / "action_video/bridge_rlds_tfrecord"
    found = list(examples(str(next(folder.glob("*.tfrecord*")))))
    assert len(found) == 25 and all(not isinstance(e, Reject) and len(e["steps/action"]) == 7 * len(e["steps/is_first"]) for e in found)
    records, rejected = read(folder, goals={"max": 4})
    assert rejected == [] and len(records) == 150 and len({r.fields["task"] for r in records}) == 4
    assert len(records[0].fields["action"]) == 7
