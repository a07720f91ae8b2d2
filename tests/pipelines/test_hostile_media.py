"""Hostile pictures and videos: each ends in good pixels or in a reason, on time and within memory, and none reaches another file or a server.

Our sniffing, FFmpeg's options, Landlock and seccomp are taken away in turn. The last trial has none of them, to see that the attacks are real.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.format.errors import Reject
from pipelines.media import child, images, still, video
from pipelines.media.child import Child, Kind, close_children
from tests import hostile_media
from tests.peak import held_from_now, most_held
from tests.pipelines.clips import clip

REASONS = {"invalid_image", "too_large", "truncated", "unreadable", "not_allowed", "timeout", "no_clip", "too_short"}
PARENT = 256 << 20  # bytes the parent may grow by over a whole corpus
DEADLINE = 22.0  # the processor limit of an answer, and two seconds


def _outcomes(files: dict[str, bytes], look: Callable[[bytes], Any]) -> Counter[str]:
    before = held_from_now()
    out: Counter[str] = Counter()
    for name, data in files.items():
        start = time.thread_time(), time.monotonic()
        try:
            look(data)
            out["good"] += 1
        except Reject as e:
            assert e.reason in REASONS, (name, e)
            assert e.reason != "timeout" and "SIG" not in str(e), (name, e)  # a decoder that dies or spins here is news
            out[e.reason] += 1
        assert time.monotonic() - start[1] < 3 * DEADLINE and time.thread_time() - start[0] < 2, name  # the wall is that of a busy machine
        for held in child._idle:
            assert most_held(held.pid) <= child.MEMORY, (name, most_held(held.pid))
    assert most_held() - before < PARENT, most_held() - before
    return out


@pytest.fixture(autouse=True)
def _children() -> Iterator[None]:
    close_children()
    yield
    close_children()


def test_every_hostile_picture_ends_in_pixels_or_a_reason_guarded():
    files = hostile_media.pictures()
    seen = _outcomes(files, lambda data: still.resized(data, 64, "border", 90, False, images.MAX_PIXELS))
    assert sum(seen.values()) == len(files) > 100 and set(seen) >= {"good", "invalid_image", "too_large", "truncated"}
    assert set(_outcomes(files, still.verify)) >= {"good", "too_large", "truncated"}


def test_every_hostile_video_ends_in_frames_or_a_reason_as_bytes_and_as_a_file(tmp_path):
    files = hostile_media.videos()

    def opened(data: bytes) -> None:
        (tmp_path / "evil.mp4").write_bytes(data)
        with open(tmp_path / "evil.mp4", "rb") as f:
            _frames(f)

    seen = _outcomes(files, _frames)
    assert sum(seen.values()) == len(files) > 60 and set(seen) >= {"good", "truncated", "unreadable", "too_large", "not_allowed"}
    some = {name: data for name, data in files.items() if "cut" not in name and "16,384" not in name}
    assert _outcomes(some, opened) == _outcomes(some, _frames)


def _frames(data: Any) -> None:
    for shown in video.stills(data, fps=2.0, size=32):
        assert shown.shape == (32, 32, 3)


def test_pictures_that_claim_much_are_refused_before_they_are_unpacked():
    files = hostile_media.pictures()
    for name in ("png claims 2^31 pixels a side", "png of 100 megapixels in 64 KB", "jpeg claims 65,500 a side", "gif of 65,535 a side",
                 "bmp of 2^31 a side", "webp of 16,384 a side", "tiff of 2^31 a side"):  # fmt: skip
        start = time.process_time()
        with pytest.raises(Reject) as e:
            images.probe(files[name])
        assert e.value.reason in ("too_large", "invalid_image") and time.process_time() - start < 0.5, name


# ---- other files, servers ----------------------------------------------------------------------------------------------------------------------


class Trap:
    """A file and a server that nobody may touch, and whether anybody did."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "canary.mp4"
        self.file.write_bytes(clip(6, first=2000))
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.watch = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.libc.inotify_add_watch(self.watch, bytes(self.file), 0x21) > 0  # opened, read

    def port(self) -> int:
        return int(self.server.getsockname()[1])

    def touched(self) -> bool:
        """Since the last time it was asked."""
        hit = False
        for source, take in ((self.watch, lambda: os.read(self.watch, 1 << 16)), (self.server, lambda: self.server.accept()[0].close())):
            while select.select([source], [], [], 0)[0]:
                take()
                hit = True
        return hit

    def close(self) -> None:
        os.close(self.watch)
        self.server.close()


@pytest.fixture
def trap(tmp_path_factory) -> Iterator[Trap]:
    if sys.platform != "linux":
        pytest.skip("inotify is Linux's")
    out = Trap(tmp_path_factory.mktemp("canary"))
    yield out
    out.close()


LAYERS = ("sniffing", "options", "landlock", "seccomp")
_WITHOUT = {
    "landlock": "import pipelines.media.jail as jail\njail._only_read = lambda *a: False\n",
    "seccomp": "import pipelines.media.jail as jail\njail._filter = lambda *a: False\n",
    # Each option that holds FFmpeg is dropped, and what a decoder tries first is that it may.
    "options": "import av\nreal = av.open\ndef loose(file, **k):\n    return real(file, container_options={'enable_drefs': '1',"
    " 'use_absolute_path': '1', 'allowed_extensions': 'ALL', 'safe': '0', "
    "'protocol_whitelist': 'file,http,tcp,crypto,data,subfile,concat,rtp,udp'})\nav.open = loose\n",
}


def _touches(trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: tuple[str, ...]) -> dict[str, bool]:
    """Which files reach the trap with these layers off."""
    for name in LAYERS[1:]:
        (tmp_path / f"without_{name}.py").write_text(_WITHOUT[name])
    monkeypatch.syspath_prepend(str(tmp_path))
    containers = ("mov", "matroska", "avi", "mpegts") if "sniffing" in off and "options" not in off else ("mov",)
    reached: dict[str, bool] = {}
    for container in containers:
        if "sniffing" in off:
            monkeypatch.setattr(video, "sniff", lambda head, container=container: container)
        for name, data in hostile_media.references(str(trap.file), trap.port()).items():
            if not any(c.alive for c in child._idle):
                loose = Child(kind=Kind(first=tuple(f"without_{layer}" for layer in off if layer != "sniffing")))
                assert not set(off) & set(loose.walls)
                loose.kind = Kind()  # so that it is taken for the next call
                child._idle.append(loose)
            try:
                got = video.frames_every(data, 2.0)
                shown = [a for _, a in got.frames]
                assert "options" in off or not shown or "avi, then" in name or "linked" in name, name
            except Reject as e:
                assert e.reason in REASONS
            reached[name] = trap.touched() or reached.get(name, False)
    close_children()
    return reached


@pytest.mark.parametrize(
    "off", [(), ("sniffing",), ("sniffing", "landlock", "seccomp"), ("sniffing", "options"), ("options", "landlock", "seccomp")],
    ids=lambda off: "without " + (", ".join(off) or "nothing"),
)  # fmt: skip
def test_no_file_reaches_another_file_or_a_server_even_with_layers_off(trap, tmp_path, monkeypatch, off):
    reached = _touches(trap, tmp_path, monkeypatch, off)
    named = {name for name, hit in reached.items() if hit}
    if off == ("options", "landlock", "seccomp"):  # the sniffing alone lets a real mp4 through, and that may hold a reference
        assert all(name.startswith("mp4 data reference") or "behind an mp4 box" in name for name in named)
    else:
        assert named == set()


def test_the_attacks_are_real(trap, tmp_path, monkeypatch):
    """With every layer off the trap is touched: the tests above can fail."""
    whole = hostile_media.references
    monkeypatch.setattr(hostile_media, "references", lambda *a: {n: d for n, d in whole(*a).items() if n.startswith("ffconcat") and "box" not in n})
    monkeypatch.setattr(video, "_patience", lambda data: {"wall_s": 2.0, "cpu_s": 20})  # the server never answers
    reached = _touches(trap, tmp_path, monkeypatch, LAYERS)
    assert reached["ffconcat to a file"] and reached["ffconcat to a server"] and reached["ffconcat to a subfile"], reached


def test_the_trap_notices(trap):
    assert not trap.touched()
    trap.file.read_bytes()
    assert trap.touched() and not trap.touched()
    socket.create_connection(("127.0.0.1", trap.port())).close()
    assert trap.touched()
