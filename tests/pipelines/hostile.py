"""Hostile videos, made on the spot: the same bytes each time, nothing kept in the repository.

What comes in: the path of a file that nobody may read, and a URL that nobody may ask for. What goes out: bytes by name. `texts` are no videos at all;
`boxes` are MP4 files whose boxes lie; `streams` are whole files with one thing that a decoder may stumble over.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np

from tests.pipelines.clips import clip


def texts(canary: str, url: str) -> dict[str, bytes]:
    """Playlists, scripts and descriptions that FFmpeg would follow, if one let it."""
    segment = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n{}\n#EXT-X-ENDLIST\n"
    mpd = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"><Period><BaseURL>{}</BaseURL>'
    )
    mpd += '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"/></AdaptationSet></Period></MPD>'
    return {
        "m3u8 of a file": segment.format(canary).encode(),
        "m3u8 of file:": segment.format(f"file://{canary}").encode(),
        "m3u8 of a server": segment.format(url).encode(),
        "m3u8 of concat:": segment.format(f"concat:{canary}|{url}").encode(),
        "m3u8 key": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF:1,\n{canary}\n#EXT-X-ENDLIST\n'.encode(),
        "ffconcat": f"ffconcat version 1.0\nfile '{canary}'\n".encode(),
        "ffconcat of a server": f"ffconcat version 1.0\nfile '{url}'\n".encode(),
        "mpd of a file": mpd.format(f"file://{canary}").encode(),
        "mpd of a server": mpd.format(url).encode(),
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "subfile:": f"subfile,,start,0,end,64,,:{canary}".encode(),
        "concat:": f"concat:{canary}|{canary}".encode(),
        "data:": b"data:video/mp4;base64,AAAAGGZ0eXBpc29t",
        "smil": f'<smil><body><video src="{url}"/></body></smil>'.encode(),
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{canary}"/></svg>'.encode(),
        "vapoursynth": b"import vapoursynth as vs\nopen('/tmp/x','w')\n",
        "png": b"\x89PNG\r\n\x1a\n" + bytes(64),
        "elf": b"\x7fELF" + bytes(200),
        "zip": b"PK\x03\x04" + bytes(200),
        "nothing": b"",
        "zeros": bytes(4096),
    }


def box(name: bytes, body: bytes = b"", size: int | None = None) -> bytes:
    """A box of the ISO format; `size` lies about its length."""
    return struct.pack(">I", (len(body) + 8 if size is None else size) & 0xFFFFFFFF) + name + body


@functools.cache
def good() -> bytes:
    """One second of MP4 that every lie below starts from."""
    return clip(30, options={"g": "10"})


def patched(name: bytes, change: Callable[[bytes], bytes], data: bytes | None = None) -> bytes:
    """The body of the first box of this name replaced by one as long or shorter, which keeps all sizes around it true."""
    data = good() if data is None else data
    at = data.index(name) + 4
    size = struct.unpack_from(">I", data, at - 8)[0] - 8
    new = change(data[at : at + size])
    assert len(new) <= size, name
    return data[:at] + new + data[at + len(new) :]


def _grown(name: bytes, into: bytes, data: bytes | None = None) -> bytes:
    """A child box put first into `name` (at the end of the file, where no offset of a sample points behind); the sizes around it grow."""
    data = good() if data is None else data
    chain = {b"moov": [b"moov"], b"trak": [b"moov", b"trak"]}[name]
    out = bytearray(data)
    for outer in chain:
        at = data.index(outer) - 4
        out[at : at + 4] = struct.pack(">I", struct.unpack_from(">I", data, at)[0] + len(into))
    at = data.index(name) + 4
    return bytes(out[:at] + into + out[at:])


def boxes(canary: str, url: str) -> dict[str, bytes]:
    """MP4 files that lie in one place."""
    deep = b""
    for _ in range(10_000):
        deep = box(b"udta", deep)
    many, far = struct.pack(">I", 0x7FFFFFFF), struct.pack(">I", 0xFFFFFFF0)
    alis = struct.pack(">IHHH", 0, 0, 0, 0) + canary.encode()[:200]
    return {
        "stsz of 2^31 entries": patched(b"stsz", lambda b: b[:8] + many),
        "stsz of huge samples": patched(b"stsz", lambda b: b[:4] + many + b[8:]),
        "stsz of one huge size for 2^31": patched(b"stsz", lambda b: b[:4] + struct.pack(">I", 1) + many),
        "stts of 2^31 entries": patched(b"stts", lambda b: b[:4] + many),
        "stts of 2^31 frames": patched(b"stts", lambda b: b[:8] + many + struct.pack(">I", 1)),
        "stts of huge steps": patched(b"stts", lambda b: b[:12] + many),
        "stts of no time at all": patched(b"stts", lambda b: b[:12] + bytes(4)),
        "stsc of 2^31 entries": patched(b"stsc", lambda b: b[:4] + many),
        "stsc of 2^31 samples a chunk": patched(b"stsc", lambda b: b[:12] + many),
        "stco of 2^31 entries": patched(b"stco", lambda b: b[:4] + many),
        "stco outside": patched(b"stco", lambda b: b[:8] + far),
        "stss of 2^31 entries": patched(b"stss", lambda b: b[:4] + many),
        "ctts of 2^31 entries": patched(b"ctts", lambda b: b[:4] + many),
        "ctts below zero": patched(b"ctts", lambda b: b"\1" + b[1:12] + struct.pack(">i", -0x7FFFFFFF)),
        "timescale 1": patched(b"mdhd", lambda b: b[:12] + struct.pack(">I", 1)),
        "timescale 0": patched(b"mdhd", lambda b: b[:12] + bytes(4)),
        "timescale 2^32": patched(b"mdhd", lambda b: b[:12] + far),
        "duration 2^32": patched(b"mdhd", lambda b: b[:16] + far),
        "edit list of 2^31 entries": patched(b"elst", lambda b: b[:4] + many),
        "edit list far away": patched(b"elst", lambda b: b[:12] + struct.pack(">i", 0x7FFFFFFF)),
        "edit list before the start": patched(b"elst", lambda b: b[:12] + struct.pack(">i", -2)),
        "edit list of no length": patched(b"elst", lambda b: b[:8] + bytes(4)),
        "edit list at speed 0": patched(b"elst", lambda b: b[:16] + bytes(4)),
        "sample entry count": patched(b"stsd", lambda b: b[:4] + many),
        "encrypted": good().replace(b"avc1", b"encv"),
        "another codec's name": good().replace(b"avc1", b"mjpg"),
        "avcC of nothing": patched(b"avcC", lambda b: bytes(len(b))),
        "avcC of noise": patched(b"avcC", lambda b: bytes(255 - x for x in b)),
        "dref to a URL": patched(b"dref", lambda b: b[:8] + struct.pack(">I", 12) + b"url " + bytes(4)),
        "dref to a file": _grown(b"moov", box(b"meta", box(b"dref", bytes(4) + b"\0\0\0\1" + box(b"url ", bytes(4) + canary.encode())))),
        "dref to a Macintosh alias": _grown(b"trak", box(b"dinf", box(b"dref", bytes(4) + b"\0\0\0\1" + box(b"alis", alis)))),
        "boxes nested 10,000 deep": box(b"ftyp", b"isom" + bytes(4)) + box(b"moov", deep),
        "nested in a good file": _grown(b"moov", deep),
        "a box of size 0 in the middle": box(b"ftyp", b"isom" + bytes(4)) + box(b"free", bytes(64), 0) + good(),
        "a box of size 1 without its long size": box(b"ftyp", b"isom" + bytes(4)) + box(b"moov", b"", 1),
        "a box of 2^63 bytes": box(b"ftyp", b"isom" + bytes(4)) + struct.pack(">I4sQ", 1, b"moov", 1 << 63) + bytes(64),
        "a million empty boxes": box(b"ftyp", b"isom" + bytes(4)) + box(b"free") * 200_000 + good(),
        "compressed header": box(b"ftyp", b"qt  " + bytes(4)) + box(b"moov", box(b"cmov", box(b"dcom", b"zlib") + box(b"cmvd", far + bytes(64)))),
        "redirection": box(b"moov", box(b"rmra", box(b"rmda", box(b"rdrf", bytes(4) + b"url " + struct.pack(">I", len(url)) + url.encode())))),
        "500 tracks": box(b"ftyp", b"isom" + bytes(4)) + box(b"moov", _moov_of_tracks(500)),
    }


def _moov_of_tracks(n: int) -> bytes:
    data = good()
    at = data.index(b"trak") - 4
    trak = data[at : at + struct.unpack_from(">I", data, at)[0]]
    head = data.index(b"mvhd") - 4
    return data[head : head + struct.unpack_from(">I", data, head)[0]] + trak * n


def muxed(
    container: str, codec: str, sizes: list[tuple[int, int]], pts: list[int] | None = None, base: Fraction = Fraction(1, 30), **options: str
) -> bytes:
    """Grey frames of these (width, height), packets written as they come; each size has an encoder of its own."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=30, options=options)
        form = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.width, stream.height, stream.pix_fmt = *sizes[0], form
        stream.time_base = base
        for i, size in enumerate(sizes):
            one = av.CodecContext.create(codec, "w")
            one.width, one.height, one.pix_fmt, one.time_base, one.options = *size, form, Fraction(1, 30), dict(options)
            frame = av.VideoFrame.from_ndarray(np.full((size[1] * 3 // 2, size[0]), i * 9 % 255, np.uint8), format=form)
            for packet in [*one.encode(frame), *one.encode(None)]:
                packet.stream = stream
                packet.pts = packet.dts = i if pts is None else pts[i]
                packet.time_base = base
                file.mux(packet)
    return out.getvalue()


def _element(ident: bytes, body: bytes, size: bytes | None = None) -> bytes:
    return ident + (size if size is not None else (len(body) | 1 << 56).to_bytes(8, "big")) + body


@functools.cache
def _matroska() -> bytes:
    return clip(30, container="matroska", options={"g": "10"})


def matroska(canary: str, url: str) -> dict[str, bytes]:
    """EBML that lies, or points elsewhere."""
    head = _element(b"\x1aE\xdf\xa3", _element(b"\x42\x82", b"matroska"))
    unknown, huge = b"\x01" + b"\xff" * 7, b"\x01\x7f" + b"\xff" * 6
    whole = _matroska()
    at = whole.index(b"\x16\x54\xae\x6b")  # Tracks
    file = _element(b"\x61\xa7", _element(b"\x46\x6e", canary.encode()) + _element(b"\x46\x60", b"text/plain") + _element(b"\x46\x5c", b"x" * 999))
    atom = _element(b"\xb6", _element(b"\x6e\x67", b"\1" * 16) + _element(b"\x91", b"\0"))
    chapters = _element(b"\x10\x43\xa7\x70", _element(b"\x45\xb9", _element(b"\x45\xdd", b"\1") + atom))
    linked = _element(b"\x15\x49\xa9\x66", _element(b"\x3e\xb9\x23", b"\2" * 16) + _element(b"\x3e\x83\xbb", canary.encode()))
    segment = _element(b"\x18\x53\x80\x67", b"", unknown)
    deep = b""
    for _ in range(10_000):
        deep = _element(b"\xb6", deep)
    return {
        "mkv with an attachment": whole[:at] + _element(b"\x19\x41\xa4\x69", file) + whole[at:],
        "mkv with ordered chapters of another file": whole[:at] + linked + chapters + whole[at:],
        "ebml of unknown size": head[:4] + unknown + head[12:] + segment + segment,
        "ebml of 2^56 bytes": head + _element(b"\x18\x53\x80\x67", b"x" * 64, huge),
        "ebml tracks of 2^56 bytes": head + segment + _element(b"\x16\x54\xae\x6b", b"\xae" * 64, huge),
        "ebml nested 10,000 deep": head + segment + _element(b"\x10\x43\xa7\x70", _element(b"\x45\xb9", deep)),
        "ebml of zeros": head + segment + bytes(100_000),
        "ebml cues of many entries": whole[:at] + _element(b"\x1c\x53\xbb\x6b", _element(b"\xbb", _element(b"\xb3", b"\1")) * 50_000) + whole[at:],
        "webm by another doctype": whole.replace(b"matroska", b"playlist", 1),
    }


def streams(canary: str, url: str) -> dict[str, Callable[[], bytes]]:
    """Whole files, each made when asked for, since some cost a second."""
    far = (1 << 62) // 1000
    return {
        "h264 of 16384 x 8192": lambda: muxed("mp4", "libx264", [(16384, 8192)], preset="ultrafast"),
        "sizes change in mid-stream": lambda: muxed("mpegts", "libx264", [(64, 64)] * 5 + [(4096, 2160)] * 2 + [(64, 64)] * 3, preset="ultrafast"),
        "sizes change in avi": lambda: muxed("avi", "mjpeg", [(64, 64), (1024, 512), (64, 64)]),
        "sizes change in mkv": lambda: muxed("matroska", "libvpx", [(64, 64)] * 3 + [(640, 480)] * 3),
        "times below zero": lambda: muxed("matroska", "libx264", [(64, 64)] * 5, [-50, -20, 0, 10, 20]),
        "times far away": lambda: muxed("matroska", "libx264", [(64, 64)] * 3, [0, 1, 1 << 40]),
        "times at the end of numbers": lambda: muxed("mp4", "libx264", [(64, 64)] * 3, [0, far, far + 1], Fraction(1, 1000)),
        "a billion frames a second": lambda: muxed("mp4", "libx264", [(64, 64)] * 5, base=Fraction(1, 1_000_000_000)),
        "a frame in a thousand years": lambda: muxed("matroska", "libx264", [(64, 64)] * 3, [0, 10**10, 2 * 10**10], Fraction(1, 1)),
        "ansi art in avi": lambda: _renamed(b"XBIN"),
        "magicyuv in avi": lambda: _renamed(b"MAGY"),
        "script in avi": lambda: _renamed(b"PSD "),
        "avi of a playlist": lambda: b"RIFF\xff\xff\xff\x7fAVI " + texts(canary, url)["m3u8 of a file"],
        "avi index of 2^31 entries": lambda: b"RIFF" + struct.pack("<I", 1 << 20) + b"AVI idx1" + struct.pack("<I", 0x7FFFFFFF) + bytes(64),
        "ts of hundreds of programmes": _programmes,
        "ts of noise": lambda: (b"\x47" + bytes(range(187))) * 500,
        "ts that is a playlist": lambda: b"\x47" + bytes(187) + b"\x47" + bytes(187) + b"\x47" + texts(canary, url)["ffconcat"],
        "opened by a brand, closed by a playlist": lambda: box(b"ftyp", b"isom") + texts(canary, url)["m3u8 of a file"],
    }


def _renamed(fourcc: bytes) -> bytes:
    return clip(10, codec="mpeg4", container="avi").replace(b"FMP4", fourcc).replace(b"fmp4", fourcc)


def _programmes() -> bytes:
    """A transport stream whose association table names hundreds of programmes, each map with eight streams."""

    def packet(pid: int, body: bytes) -> bytes:
        return (b"\x47" + struct.pack(">H", 0x4000 | pid) + b"\x10\0" + body).ljust(188, b"\xff")

    def section(table: int, ident: int, body: bytes) -> bytes:
        return (
            bytes([table]) + struct.pack(">HHBBB", 0xB000 | (len(body) + 9), ident, 0xC1, 0, 0) + body + bytes(4)
        )  # a wrong checksum, which is not checked

    out = b""
    for first in range(1, 600, 40):
        out += packet(0, section(0, 1, b"".join(struct.pack(">HH", n, 0xE000 | (0x100 + n)) for n in range(first, first + 40))))
    for n in range(1, 600):
        es = b"".join(struct.pack(">BHH", 0x1B, 0xE000 | (0x400 + n * 8 + k), 0xF000) for k in range(8))
        out += packet(0x100 + n, section(2, n, struct.pack(">HH", 0xE000 | 0x400, 0xF000) + es))
    return out * 3 + clip(10, container="mpegts")
