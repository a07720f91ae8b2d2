"""Frames by presentation time: exact on every kind of stream, and safe on every kind of file."""

from __future__ import annotations

import io
import os
import random
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.format.errors import Reject
from pipelines.media import video
from pipelines.media.child import close_children
from pipelines.media.timeline import Table, every, nearest, numbered, plan
from pipelines.media.video import Limits, frames_at, frames_every, probe, sniff, stills
from tests.pipelines.clips import HEIGHT, WIDTH, clip, number

DATA = os.environ.get("HEADWATER_DATA")
real = pytest.mark.skipif(not DATA, reason="HEADWATER_DATA names no real files")

STREAMS = {
    "mp4, B-frames": {},
    "mp4, one group": {"options": {"g": "500", "bf": "3"}},
    "mp4, no pyramid": {"options": {"g": "30", "bf": "3", "x264-params": "b-pyramid=none"}},
    "mp4, open groups": {"options": {"g": "12", "bf": "4", "x264-params": "open-gop=1:b-pyramid=strict"}},
    "mkv": {"container": "matroska"},
    "ts": {"container": "mpegts"},
    "hevc, open groups": {"codec": "libx265", "options": {"x265-params": "keyint=12:open-gop=1:log-level=none"}},
    "vp8, hidden frames": {"codec": "libvpx", "container": "webm", "options": {"lag-in-frames": "16", "auto-alt-ref": "1"}},
    "vp9, hidden frames": {"codec": "libvpx-vp9", "container": "webm", "options": {"lag-in-frames": "16", "auto-alt-ref": "1"}},
    "av1": {"codec": "libsvtav1", "options": {"preset": "8", "crf": "1"}},
    "avi": {"codec": "mpeg4", "container": "avi", "options": {"bf": "2"}},
    "mjpeg": {"codec": "mjpeg", "container": "mov"},
}


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


@pytest.mark.parametrize("name", STREAMS)
def test_no_wrong_frame_at_any_rate_or_time(name):
    try:
        data = clip(150, **STREAMS[name])
    except (av.FFmpegError, ValueError) as e:
        pytest.skip(f"this PyAV cannot make it: {e}")
    for fps in (1, 0.5, 7):
        got = frames_every(data, fps)
        assert [number(a) for _, a in got.frames] == [int(Fraction(k) / Fraction(str(fps)) * 30) for k in range(len(got.frames))]
        assert len(got.frames) == -(-5 * fps // 1) and got.stopped is None
    at = [4.0, 1.034, 2.5333333, 0.0, 4.96]
    assert [number(a) for _, a in frames_at(data, at).frames] == sorted(round(t * 30) for t in at)


def test_every_frame_at_its_own_rate_is_every_frame_once():
    for name in ("mp4, B-frames", "mkv", "vp9, hidden frames"):
        got = frames_every(clip(90, **STREAMS[name]), 30)
        assert [number(a) for _, a in got.frames] == list(range(90)), name


def test_variable_frame_rate_shows_what_is_on_screen_at_each_second():
    ticks, at = [], 0
    draw = random.Random(0)
    for _ in range(120):
        ticks.append(at)
        at += draw.choice((11, 33, 50, 120))
    got = frames_every(clip(ticks=ticks, frames=120), 2)
    for k, (time, pixels) in enumerate(got.frames):
        wanted = max(i for i, t in enumerate(ticks) if t <= 500 * k)
        assert number(pixels) == wanted and time == pytest.approx(ticks[wanted] / 1000, abs=1e-3)


def test_rotation_is_applied():
    upright, turned = (frames_every(clip(5, first=3, rotation=r)).frames[0][1] for r in (0, 90))
    assert turned.shape == (WIDTH, HEIGHT, 3)
    assert number(np.rot90(turned, -1)) == number(upright) == 3


def test_a_range_of_time_gives_the_same_frames_as_the_whole():
    data = clip(200)
    whole = [(t, number(a)) for t, a in frames_every(data, 3).frames]
    parts = [(t, number(a)) for a0, a1 in ((0, 2), (2, 4.5), (4.5, None)) for t, a in frames_every(data, 3, a0, a1).frames]
    assert parts == whole


def test_frames_by_number_and_as_jpeg_of_the_asked_size():
    got = list(stills(clip(60), numbers=[0, 7, 8, 59, 60], size=32, quality=95))
    assert [s.k for s in got] == [0, 1, 2, 3] and got[1].time_s == pytest.approx(7 / 30)
    assert all(s.shape == (32, 32, 3) and s.payload[:2] == b"\xff\xd8" for s in got)


def test_probe_believes_packets_not_headers():
    info = probe(clip(75, fps=25))
    assert (info.codec, info.width, info.height, info.frames, info.fps) == ("h264", WIDTH, HEIGHT, 75, 25.0)
    assert info.duration_s == pytest.approx(3.0) and info.damage is None


def test_an_open_file_and_its_bytes_give_the_same_frames(tmp_path):
    data = clip(40)
    (tmp_path / "a.mp4").write_bytes(data)
    with open(tmp_path / "a.mp4", "rb") as f:
        assert [s.payload for s in stills(f)] == [s.payload for s in stills(data)]


# ---- damage ----------------------------------------------------------------------------------------------------------------------------------


def test_a_cut_file_gives_the_frames_before_the_cut_and_says_where():
    data = clip(300, container="matroska", options={"g": "30"})
    got = frames_every(data[: len(data) * 2 // 3], 1)
    assert 2 < len(got.frames) < 10 and [number(a) for _, a in got.frames] == [30 * k for k in range(len(got.frames))]
    assert got.stopped is not None and got.stopped.reason == "truncated" and "stops at" in got.stopped.detail


def test_damage_in_one_group_costs_that_group_only():
    data = bytearray(clip(300, options={"bf": "0", "x264-params": "keyint=30:scenecut=0"}))
    with av.open(io.BytesIO(bytes(data))) as box:
        packets = [p for p in box.demux(video=0) if p.size]
    victim = packets[95]
    data[victim.pos : victim.pos + victim.size] = b"\xff" * victim.size
    got = frames_every(bytes(data), 10)
    shown = [number(a) for _, a in got.frames]
    assert got.stopped is not None and "lost" in got.stopped.detail
    assert set(range(0, 95, 3)) <= set(shown) and set(range(120, 300, 3)) <= set(shown)


def test_every_cut_and_many_flips_end_in_frames_or_a_reason():
    draw = random.Random(1)
    data = clip(30, options={"g": "10"})
    for cut in range(0, len(data), max(1, len(data) // 25)):
        _outcome(data[:cut])
    for _ in range(25):
        bad = bytearray(data)
        for _ in range(4):
            bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        _outcome(bytes(bad))


def _outcome(data: bytes) -> None:
    try:
        got = frames_every(data, 5)
        assert got.stopped is None or got.stopped.reason in ("truncated", "unreadable", "too_large", "not_allowed", "timeout")
    except Reject as e:
        assert e.reason in ("truncated", "unreadable", "too_large", "not_allowed", "timeout")


# ---- hostility -------------------------------------------------------------------------------------------------------------------------------


def test_playlists_and_concat_scripts_are_refused_by_any_name(tmp_path):
    canary = tmp_path / "canary.mp4"
    canary.write_bytes(clip(30))
    hits: list[bytes] = []
    port = _listener(hits)
    for text in (
        f"ffconcat version 1.0\nfile {canary}\n",
        f"ffconcat version 1.0\nfile http://127.0.0.1:{port}/x.mp4\n",
        f"#EXTM3U\n#EXTINF:10,\n{canary}\n",
        f"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\nhttp://127.0.0.1:{port}/x.ts\n",
        f"<?xml version='1.0'?><MPD><BaseURL>{canary}</BaseURL></MPD>",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n",
        f"subfile,,start,0,end,0,,:{canary}",
        f"concat:{canary}|{canary}",
        "data:video/mp4;base64,AAAA",
    ):
        evil = tmp_path / "evil.mp4"
        evil.write_text(text)
        with open(evil, "rb") as f:
            for data in (text.encode(), f):
                with pytest.raises(Reject) as e:
                    frames_every(data)
                assert e.value.reason == "not_allowed", text
    assert hits == []


def test_ffmpeg_itself_opens_no_other_file_even_past_our_sniffing(tmp_path, monkeypatch):
    """The second lock: with the sniffing taken away, the demuxer that is named and the refusing opener still hold."""
    canary = tmp_path / "canary.mp4"
    canary.write_bytes(clip(30))
    for container in ("mov", "matroska", "avi", "mpegts"):
        monkeypatch.setattr(video, "sniff", lambda head, container=container: container)
        for text in (f"ffconcat version 1.0\nfile {canary}\n", f"#EXTM3U\n#EXTINF:1,\n{canary}\n"):
            with pytest.raises(Reject):
                frames_every(text.encode() + b"\n" * 4096)


def test_a_quicktime_reference_to_another_file_is_not_followed(tmp_path):
    canary = tmp_path / "canary.mp4"
    canary.write_bytes(clip(30, first=2000))
    data = bytearray(_pointing_at(canary.read_bytes(), str(canary)))
    start, stop = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:stop] = bytes(stop - start)  # its own pictures are gone: what is shown can only come from the other file
    (tmp_path / "evil.mp4").write_bytes(bytes(data))
    with av.open(str(tmp_path / "evil.mp4"), options={"enable_drefs": "1", "use_absolute_path": "1"}) as box:
        assert number(next(box.decode(video=0)).to_ndarray(format="rgb24")) == 2000  # the attack works where nobody stops it
    with open(tmp_path / "evil.mp4", "rb") as f:
        for given in (bytes(data), f):
            with pytest.raises(Reject):
                frames_every(given)


def _pointing_at(data: bytes, path: str) -> bytes:
    """The same file with its data reference replaced by a Mac alias to `path`; boxes around it grow (the pictures lie before them)."""
    record = b"\0" * 10 + b"\0" + b"\0" * 27 + b"\0" * 12 + b"\0" + b"\0" * 63 + b"\0" * 16 + b"\xff\xff" * 2 + b"\0" * 16
    name = path.encode() + b"\0" * (len(path) % 2)
    record += (2).to_bytes(2, "big") + len(name).to_bytes(2, "big") + name + b"\xff\xff" + b"\0\0"
    entry = b"alis" + b"\0\0\0\0" + record
    entry = (len(entry) + 4).to_bytes(4, "big") + entry
    at = data.index(b"url \0\0\0\1") - 4
    out = bytearray(data)
    for tag in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        size = data.rindex(tag, 0, at) - 4
        out[size : size + 4] = (int.from_bytes(data[size : size + 4], "big") + len(entry) - 12).to_bytes(4, "big")
    return bytes(out[:at] + entry + out[at + 12 :])


def test_sizes_are_judged_before_pictures_are_made():
    data = clip(10)
    for limits in (Limits(max_pixels=WIDTH * HEIGHT - 1), Limits(max_frames_in_file=9), Limits(max_seconds=0)):
        with pytest.raises(Reject) as e:
            frames_every(data, limits=limits)
        assert e.value.reason == "too_large"


def test_codecs_off_the_list_are_refused():
    with pytest.raises(Reject, match="mpeg2video") as e:
        frames_every(clip(5, codec="mpeg2video", container="mpegts"))
    assert e.value.reason == "not_allowed"


def test_the_container_is_told_by_its_bytes():
    assert [sniff(clip(3, **STREAMS[n])) for n in ("mp4, B-frames", "mkv", "ts", "avi", "mjpeg")] == ["mov", "matroska", "mpegts", "avi", "mov"]
    for head in (b"", b"<html>", b"\0\0\0\x18ftypheic", b"FLV\1", b"RIFF\0\0\0\0WAVE", b"\xff\xd8\xff\xe0"):
        assert sniff(head) is None


# ---- arithmetic ------------------------------------------------------------------------------------------------------------------------------


def _table(pts: list[int], keys: set[int], base: Fraction = Fraction(1, 10)) -> Table:
    shown = np.ones(len(pts), bool)
    return Table(np.array(pts), np.array([i in keys for i in range(len(pts))]), shown, base, min(pts), max(pts) + 1, None)


def test_plan_decodes_from_the_key_before_to_the_last_packet_needed():
    table = _table([0, 3, 1, 2, 6, 4, 5], {0, 4})  # I P B B I(6) with two leading B pictures
    wants = {w.tick: w for w in plan(table, [(0, 0), (1, 2), (2, 4), (3, 6)])}
    assert [(wants[t].pts, wants[t].low, wants[t].high) for t in (0, 2, 4, 6)] == [(0, 0, 0), (2, 0, 3), (4, 0, 5), (6, 4, 6)]


def test_times_are_counted_from_the_first_frame_and_end_with_the_last():
    table = _table([100, 110, 120, 130], {0})
    assert every(table, {"fps": 1.0}) == [(0, 100), (1, 110), (2, 120), (3, 130)]
    assert every(table, {"fps": 1.0, "start": 1.5, "stop": 3.0}) == [(2, 120)]
    assert nearest(table, [0.4, 0.51, 2.5, 99.0]) == [(0, 100), (1, 110), (2, 120), (3, 130)]
    assert numbered(table, [3, 0, 9, -1]) == [(0, 130), (1, 100)]


# ---- real files ------------------------------------------------------------------------------------------------------------------------------


@real
def test_published_frame_times_of_real_files_are_met():
    import json

    folder = Path(str(DATA)) / "video" / "torchcodec"
    for facts in folder.glob("*.stream0.all_frames_info.json"):
        data = (folder / facts.name.replace(".stream0.all_frames_info.json", "")).read_bytes()
        listed = json.loads(facts.read_text())
        times = [float(f["pts_time"]) for f in (listed.values() if isinstance(listed, dict) else listed)]
        info = probe(data)
        if len(times) != info.frames:
            continue  # a file with several streams: the facts are of another one
        got = [s.time_s for s in stills(data, numbers=range(len(times)), size=16)]
        assert got == pytest.approx([t - times[0] for t in times], abs=2e-3)


def _listener(hits: list[bytes]) -> int:
    import socket

    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(20)

    def wait() -> None:
        try:
            while True:
                connection, _ = server.accept()
                hits.append(b"hit")
                connection.close()
        except OSError:
            return

    threading.Thread(target=wait, daemon=True).start()
    return int(server.getsockname()[1])
