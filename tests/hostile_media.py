"""Hostile pictures and videos, made anew each time: nothing of them is kept in the repository.

What comes in: nothing, or for videos the path of a canary and the port of a listener that no decoder may touch. What goes out: {name: bytes}, always
the same bytes. Each is an attack that has been tried on decoders: sizes that only a header claims, streams that unpack a thousandfold,
tables of four thousand million entries, boxes in boxes, and files that say that their content lies elsewhere.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.pipelines.clips import clip

_ZEROS = zlib.compress(bytes(64 << 20), 9)  # 64 MiB in 64 KiB


def _saved(form: str, size: tuple[int, int] = (32, 24), mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 1).save(out, form, **options)
    return out.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, data: bytes | None = None) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = zlib.compress(bytes(height * (1 + 3 * width)) if width * height < 1 << 16 else b"") if data is None else data
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _tiff(tags: list[tuple[int, int, int, int]], tail: bytes = b"", form: str = "<") -> bytes:
    """(tag, type, count, value) …"""
    entries = b"".join(struct.pack(form + "HHII", *t) for t in sorted(tags))
    return (b"II*\0" if form == "<" else b"MM\0*") + struct.pack(form + "IH", 8, len(tags)) + entries + struct.pack(form + "I", 0) + tail


def _patched(data: bytes, at: int, form: str, *values: int) -> bytes:
    out = bytearray(data)
    struct.pack_into(form, out, at, *values)
    return bytes(out)


def pictures() -> dict[str, bytes]:
    """Attacks by picture."""
    jpeg, gif, bmp, webp = _saved("JPEG"), _saved("GIF"), _saved("BMP"), _saved("WEBP", lossless=True)
    start = next(i for i in range(len(jpeg)) if jpeg[i : i + 2] == b"\xff\xc0")
    frame = gif[gif.rindex(b",") : -1]
    grey = [(256, 3, 1, 20), (257, 3, 1, 20), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (279, 4, 1, 400)]
    app = [b"\xff\xe2" + struct.pack(">H", 65535) + b"ICC_PROFILE\0" + bytes([i + 1, 255]) + bytes(65519) for i in range(255)]
    exif = b"Exif\0\0" + _tiff([(0x0112, 3, 0xFFFFFFFF, 6), (0x8769, 4, 1, 8), (0x9286, 7, 0x7FFFFFFF, 8)])
    out = {
        "png claims 2^31 pixels a side": _png(0x7FFFFFFF, 0x7FFFFFFF),
        "png claims no width": _png(0, 5),
        "png of 100 megapixels in 64 KB": _png(10_000, 10_000, depth=1, colour=0, data=zlib.compress(bytes(10_000 * 1251), 9)),
        "png below the cap, rows missing": _png(7000, 7000, data=zlib.compress(bytes(7000), 9)),
        "png whose pixels unpack too far": _png(8, 8, data=_ZEROS),
        "png text bomb": _png(8, 8, *[_chunk(b"zTXt", b"k\0\0" + _ZEROS)] * 4),
        "png international text bomb": _png(8, 8, *[_chunk(b"iTXt", b"k\0\1\0\0\0" + _ZEROS)] * 4),
        "png profile bomb": _png(8, 8, _chunk(b"iCCP", b"p\0\0" + _ZEROS)),
        "png of 50,000 chunks": _png(8, 8, *[_chunk(b"tEXt", b"a\0b")] * 50_000),
        "png of 65,535 animated frames claimed": _png(8, 8, _chunk(b"acTL", struct.pack(">II", 0xFFFFFFFF, 0))),
        "png chunk of 4 GB": _png(8, 8)[:33] + struct.pack(">I", 0xFFFFFFFF) + b"tEXtab",
        "png of an odd depth": _png(8, 8, depth=3),
        "png with a palette that is not there": _png(8, 8, colour=3),
        "png 16 bit": _saved("PNG", mode="I;16"),
        "jpeg claims 65,500 a side": _patched(jpeg, start + 5, ">HH", 65500, 65500),
        "jpeg claims no height": _patched(jpeg, start + 5, ">H", 0),
        "jpeg with 16 MB of profile": jpeg[:2] + b"".join(app) + jpeg[2:],
        "jpeg with an endless exif": jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:],
        "jpeg with exif that points at itself": _saved("JPEG", exif=b"Exif\0\0" + _tiff([(0x8769, 4, 1, 8), (0x8825, 4, 1, 8), (0xA005, 4, 1, 8)])),
        "jpeg of a million restarts": jpeg[:-2] + b"\xff\xd0" * 1_000_000 + jpeg[-2:],
        "jpeg of 65,000 comments": jpeg[:2] + b"\xff\xfe\0\3x" * 65_000 + jpeg[2:],
        "jpeg cmyk": _saved("JPEG", mode="CMYK"),
        "gif of 65,535 a side": _patched(_patched(gif, 6, "<HH", 65535, 65535), gif.rindex(b",") + 5, "<HH", 65535, 65535),
        "gif frame beyond its screen": _patched(gif, gif.rindex(b",") + 5, "<HH", 60000, 60000),
        "gif of 20,000 frames": gif[:-1] + frame * 20_000 + b";",
        "gif that never ends": gif[:-1] + b"!\xfe" + b"\xff" * 300_000,
        "bmp of 2^31 a side": _patched(bmp, 18, "<ii", 0x7FFFFFFF, 0x7FFFFFFF),
        "bmp of negative sides": _patched(bmp, 18, "<ii", -5, -0x80000000),
        "bmp whose pixels lie at 4 GB": _patched(bmp, 10, "<I", 0xFFFFFFF0),
        "webp of 16,384 a side": b"RIFF\x1e\0\0\0WEBPVP8L" + struct.pack("<IBI", 17, 0x2F, 16383 | 16383 << 14) + bytes(13),
        "webp canvas of 2^24 a side": b"RIFF\x16\0\0\0WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + b"\xff" * 6,
        "webp of a length it has not": _patched(webp, 4, "<I", 0xFFFFFFFE),
        "webp of 3,000 frames": _frames("WEBP"),
        "tiff of 2^31 a side": _tiff([(256, 4, 1, 0x7FFFFFFF), (257, 4, 1, 0x7FFFFFFF), *grey[2:]]),
        "tiff of 4,000 million strips": _tiff([*grey[:5], (273, 4, 0xFFFFFFFF, 8), grey[6], (279, 4, 0xFFFFFFFF, 8)]),
        "tiff directory that points at itself": _tiff(grey, bytes(500)).replace(struct.pack("<I", 0) + bytes(500), struct.pack("<I", 8) + bytes(500)),
        "tiff of 60,000 samples a pixel": _tiff([*grey[:6], (277, 3, 1, 60000), grey[7]], bytes(500)),
        "tiff deflate bomb": _tiff(
            [*grey[:3], (259, 3, 1, 8), *grey[4:5], (273, 4, 1, 8 + 2 + 96 + 4), *grey[6:7], (279, 4, 1, len(_ZEROS))], _ZEROS
        ),
        "svg that reads a file": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "fits of a huge side": b"SIMPLE  =                    T".ljust(80) + b"NAXIS1  =           2000000000".ljust(80) + bytes(2720),
        "mpo that counts 65,535 pictures": _saved("JPEG") + b"\xff\xd8\xff\xe2\0\x10MPF\0",
    }
    for form, whole in (("jpeg", jpeg), ("png", _saved("PNG")), ("gif", gif), ("bmp", bmp), ("webp", webp), ("tiff", _saved("TIFF"))):
        for cut in sorted({1, 2, 4, 8, 12, 20, 30, len(whole) // 3, len(whole) // 2, len(whole) - 5, len(whole) - 1}):
            out[f"{form} cut at {cut}"] = whole[:cut]
    return out


def _frames(form: str) -> bytes:
    out, pictures = io.BytesIO(), [Image.fromarray(np.full((8, 8, 3), i % 251, np.uint8)) for i in range(3000)]
    pictures[0].save(out, form, save_all=True, append_images=pictures[1:], duration=10)
    return out.getvalue()


# ---- videos ------------------------------------------------------------------------------------------------------------------------------------


def box(kind: bytes, *content: bytes) -> bytes:
    """An mp4 box."""
    body = b"".join(content)
    return struct.pack(">I", len(body) + 8) + kind + body


def rebuilt(data: bytes, path: tuple[bytes, ...], new: bytes, at: int = 0) -> bytes:
    """The file with the first box at `path` replaced; the boxes around it grow or shrink with it."""
    while at + 8 <= len(data):
        size = struct.unpack_from(">I", data, at)[0]
        if data[at + 4 : at + 8] == path[0]:
            inner = rebuilt(data[at + 8 : at + size], path[1:], new) if len(path) > 1 else b""
            return data[:at] + (box(path[0], inner) if len(path) > 1 else new) + data[at + size :]
        at += size
    raise AssertionError(f"no box {path[0]!r}")


def _full(kind: bytes, *numbers: int) -> bytes:
    return box(kind, struct.pack(f">{len(numbers) + 1}I", 0, *numbers))


def _ebml(kind: bytes, content: bytes, size: bytes | None = None) -> bytes:
    return kind + (size if size is not None else (len(content) | 1 << 56).to_bytes(8, "big")) + content


def references(canary: str, port: int) -> dict[str, bytes]:
    """Files that say that what is to be shown lies in another file or on a server."""
    url, good = f"http://127.0.0.1:{port}/x", clip(6)
    out = {}
    for where, target in (("file", canary), ("file url", f"file://{canary}"), ("server", url), ("subfile", f"subfile,,start,0,end,0,,:{canary}")):
        out[f"ffconcat to a {where}"] = f"ffconcat version 1.0\nfile '{target}'\n".encode()
        out[f"m3u8 to a {where}"] = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n".encode()
        out[f"m3u8 key in a {where}"] = f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:1,\nx.ts\n'.encode()
        out[f"mpd to a {where}"] = (
            f"<?xml version='1.0'?><MPD><Period><AdaptationSet><BaseURL>{target}</BaseURL></AdaptationSet></Period></MPD>".encode()
        )
        entry = box(b"url ", bytes(4), target.encode() + b"\0")
        out[f"mp4 data reference to a {where}"] = _referring(good, entry)
    out["sdp"] = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n".encode()
    out["concat protocol"] = f"concat:{canary}|{canary}".encode()
    out["data protocol"] = b"data:video/mp4;base64,AAAA"
    out["xml with an outer entity"] = f"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file://{canary}'>]><MPD>&e;</MPD>".encode()
    out["mp4 redirecting itself (rmra)"] = box(b"ftyp", b"qt  \0\0\0\0qt  ") + box(
        b"moov", box(b"rmra", box(b"rmda", box(b"rdrf", bytes(4), b"url ", struct.pack(">I", len(url) + 1), url.encode() + b"\0")))
    )
    out["avi, then a playlist"] = clip(6, codec="mpeg4", container="avi") + out["m3u8 to a file"]
    out["mkv linked to another segment"] = _matroska_linked(canary)
    for name in [n for n in out if n.startswith(("ffconcat", "m3u8"))]:  # past our own sniffing, were it the only lock
        out[f"{name}, behind an mp4 box"] = box(b"free", b"\n" + out[name]) + out[name]
    return out


def _referring(good: bytes, entry: bytes) -> bytes:
    path = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")
    data = rebuilt(good, path, box(b"dref", struct.pack(">II", 0, 1), entry))
    start = data.index(b"mdat") + 4
    size = struct.unpack_from(">I", data, start - 8)[0]
    return data[:start] + bytes(size - 8) + data[start + size - 8 :]  # its own pictures are gone


def _matroska_linked(canary: str) -> bytes:
    good = clip(6, container="matroska")
    at = good.index(b"\x15\x49\xa9\x66")  # Info
    name = _ebml(b"\x3e\x83\xbb", canary.encode()) + _ebml(b"\x3e\xb9\x23", b"\1" * 16)  # NextFilename, NextUID
    attachment = _ebml(b"\x19\x41\xa4\x69", _ebml(b"\x61\xa7", _ebml(b"\x46\x6e", canary.encode()) + _ebml(b"\x46\x5c", bytes(1 << 20))))
    return good[:at] + _ebml(b"\x15\x49\xa9\x66", name) + attachment + good[at:]


def videos() -> dict[str, bytes]:
    """Attacks by size, number and form."""
    good, mkv, ts, avi = clip(12), clip(12, container="matroska"), clip(12, container="mpegts"), clip(12, codec="mpeg4", container="avi")
    table = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
    most = 0xFFFFFFFF
    deep = b""
    for _ in range(10_000):
        deep = struct.pack(">I", len(deep) + 8) + b"trak" + deep
    trak = good[good.index(b"trak") - 4 :][: struct.unpack_from(">I", good, good.index(b"trak") - 4)[0]]
    at = good.index(b"avc1")
    entry = at + 4 + 24  # width and height in the sample entry
    header, cluster = mkv.index(b"\x18\x53\x80\x67"), mkv.index(b"\x1f\x43\xb6\x75")
    out = {
        "mp4 of 2^32 times": rebuilt(good, (*table, b"stts"), _full(b"stts", most, 1, 1)),
        "mp4 of 2^32 times in one": rebuilt(good, (*table, b"stts"), _full(b"stts", 1, most, 1)),
        "mp4 of 2^32 sizes": rebuilt(good, (*table, b"stsz"), _full(b"stsz", 0, most)),
        "mp4 of 2^32 equal sizes": rebuilt(good, (*table, b"stsz"), _full(b"stsz", 1, most)),
        "mp4 of 2^32 chunks": rebuilt(good, (*table, b"stsc"), _full(b"stsc", most, 1, most, 1)),
        "mp4 whose pictures lie beyond the file": rebuilt(good, (*table, b"stco"), box(b"co64", struct.pack(">IIQ", 0, 1, 1 << 62))),
        "mp4 whose pictures lie before the file": rebuilt(good, (*table, b"stco"), box(b"co64", struct.pack(">IIQ", 0, 1, (1 << 64) - 9))),
        "mp4 of boxes 10,000 deep": box(b"ftyp", b"isom\0\0\0\0") + box(b"moov", deep),
        "mp4 of 3,000 streams": rebuilt(good, (b"moov", b"trak"), trak * 3000),
        "mp4 of a box of 2^63 bytes": box(b"ftyp", b"isom\0\0\0\0") + struct.pack(">I4sQ", 1, b"moov", 1 << 63),
        "mp4 of a box of no bytes": box(b"ftyp", b"isom\0\0\0\0") + b"\0\0\0\4moov" * 1000,
        "mp4 of a million ticks a frame": rebuilt(good, (*table, b"stts"), _full(b"stts", 1, 12, 0x7FFFFFFF)),
        "mp4 at 4,000 million ticks a second": _timescale(good, most),
        "mp4 at no ticks a second": _timescale(good, 0),
        "mp4 of negative times": rebuilt(good, (*table, b"ctts"), _full(b"ctts", 1, 12, 0x80000000)),
        "mp4 of an absurd edit list": rebuilt(good, (b"moov", b"trak", b"edts"), box(b"edts", _full(b"elst", most, most, most, most))),
        "mp4 of 5,000 edits": rebuilt(good, (b"moov", b"trak", b"edts"), box(b"edts", _full(b"elst", 5000, *(1, 0, 0x10000) * 5000))),
        "mp4 of 65,535 a side": _patched(good, entry, ">HH", 65535, 65535),
        "mp4 of no side": _patched(good, entry, ">HH", 0, 0),
        "mp4 encrypted": good.replace(b"avc1", b"encv"),
        "mp4 of an unknown codec": good.replace(b"avc1", b"zzzz"),
        "mp4 of the wrong codec": good.replace(b"avc1", b"hvc1").replace(b"avcC", b"hvcC"),
        "mp4 with 16 MB of text about itself": good + box(b"moov", box(b"udta", box(b"meta", bytes(16 << 20)))),
        "mp4 twice": good + good,
        "mkv of unknown size": mkv[: header + 4] + b"\x01" + b"\xff" * 7 + mkv[header + 12 :],
        "mkv of an oversized element": mkv[:cluster] + _ebml(b"\xec", b"", b"\x01\x7f\xff\xff\xff\xff\xff\xff") + mkv[cluster:],
        "mkv of elements without end": mkv[:header] + (b"\x18\x53\x80\x67\x01" + b"\xff" * 7) * 20_000,
        "mkv of a size that is none": mkv[:header] + b"\x18\x53\x80\x67\0\0\0\0\0\0\0\0\0",
        "mkv whose header never ends": b"\x1aE\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff" + bytes(1000),
        "avi of another codec": avi.replace(b"FMP4", b"XBIN").replace(b"mp4v", b"XBIN"),
        "avi of a rate of 1/0": _patched(avi, avi.index(b"strh") + 8 + 20, "<II", 0, 1),
        "avi of 4,000 million frames a second": _patched(avi, avi.index(b"strh") + 8 + 20, "<II", 1, most),
        "avi whose index lies": avi.replace(b"idx1", b"idx1", 1)[: avi.index(b"idx1") + 8] + b"00dc" * 40_000,
        "ts of 8,000 programs": ts[:376] + _programs() + ts[376:],
        "ts of one size, then another": clip(6, container="mpegts") + _other_size(),
        "mp4 of one size, then another inside": _size_change(),
        "h264 of 16,384 × 8,192": _large(),
    }
    for form, whole in (("mp4", good), ("mkv", mkv), ("ts", ts), ("avi", avi)):
        for cut in sorted({1, 8, 100, 400, len(whole) // 3, len(whole) // 2, len(whole) - 9}):
            out[f"{form} cut at {cut}"] = whole[:cut]
    return out


def _timescale(good: bytes, ticks: int) -> bytes:
    return _patched(good, good.index(b"mdhd") + 4 + 12, ">I", ticks)


def _programs() -> bytes:
    """Transport packets of 8,000 streams of nobody."""
    return b"".join(b"\x47" + struct.pack(">H", 0x4000 | pid) + b"\x10" + b"\0\0\1\xe0" + bytes(180) for pid in range(100, 8100))


def _encoded(width: int, height: int, container: str, frames: int = 2) -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=container) as target:
        stream = target.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame(width, height, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.pts = i
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return out.getvalue()


def _other_size() -> bytes:
    return _encoded(320, 240, "mpegts", 6)


def _large() -> bytes:
    return _encoded(16384, 8192, "mp4", 1)


def _size_change() -> bytes:
    """Annex B streams of two sizes, one after the other, in one transport stream."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mpegts") as target:
        stream, at = None, 0
        for data in (clip(6, container="mpegts"), _other_size()):
            with av.open(io.BytesIO(data)) as source:
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = at
                        at, packet.stream = at + 3000, stream
                        target.mux(packet)
    return out.getvalue()
