"""Large inputs made from a seed as fast as they can be written: one long file of documents, a hundred thousand pictures. For benchmarks/memory.py.

Documents are paragraphs of made-up English (web_pages.py), drawn from a pool that is made anew as the file grows; each starts with a line
of its own, so that none is another's copy unless it is meant to be. Their lengths are lognormal (median 2 KB, mean 5 KB, some of several MB),
and among them stand what real files hold and what hostile ones do:

    one in 50      a copy of a document before it            one in 200    text of four-byte characters, in which Python takes four bytes each
    one in 30      a line of a few words                     one in 500    symbols                       one in 1,000   broken JSON
    at a third, a half and nine tenths   a line of 100 MB             at a quarter and three quarters   15 MB of words, most of them new
    at a fifth and seven tenths          15 MB of ordinary text       last                              300 MB without a line end

so that a second half asks as much as the first.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.web_pages import _paragraph, words

POOL = 4_000  # paragraphs at a time: 0.4 s to make, 2 MB
RENEW = 128 << 20  # bytes written with one pool
LINE, BOOK, ENDLESS = 100_000_000, 15_000_000, 300_000_000


def text_file(path: Path, size: int, seed: int = 0, fresh: bool = False, hostile: float = 1.0) -> dict[str, int]:
    """A JSONL file of about `size` bytes. `fresh` makes new paragraphs for every document (for near duplicates; forty times slower). `hostile`
    scales the long lines. Returns counts."""
    rng = np.random.default_rng(seed)
    specials = sorted([(f, LINE) for f in (1 / 3, 0.5, 0.9)] + [(f, BOOK) for f in (0.25, 0.75)] + [(f, 0) for f in (0.2, 0.7)])
    counts = {"lines": 0, "bytes": 0, "longest": 0}
    with path.open("wb", buffering=1 << 20) as f:

        def put(line: bytes) -> None:
            f.write(line)
            counts["lines"] += 1
            counts["bytes"] += len(line)
            counts["longest"] = max(counts["longest"], len(line))

        for line in _lines(rng, fresh):
            if counts["bytes"] >= size:
                break
            if specials and counts["bytes"] >= specials[0][0] * size and len(line) > 4_000:
                length = specials.pop(0)[1]
                put(_long(int(length * hostile), rng) if length else _book(line, int(BOOK * hostile)))
            put(line)
        put(_long(int(ENDLESS * hostile), rng)[:-3])
    return counts


def _lines(rng: np.random.Generator, fresh: bool) -> Iterator[bytes]:
    vocabulary = words(60_000, rng)
    weights = np.cumsum(1.0 / (np.arange(len(vocabulary)) + 2.7))
    pool, written, k = _pool(vocabulary, weights, rng, 0), 0, 0
    last = b""
    while True:
        if written > RENEW or (fresh and k % 200 == 199):
            pool, written = _pool(vocabulary, weights, rng, k), 0
        kinds = rng.random(512).tolist()
        lengths = np.exp(rng.normal(7.6, 1.3, 512)).tolist()
        for kind, length in zip(kinds, lengths, strict=True):
            k += 1
            if kind < 0.02 and last:
                line = last
            elif kind < 0.055:
                line = b'{"id": %d, "text": "Page %d not found."}\n' % (k, k)
            elif kind < 0.057:
                line = b'{"id": %d, "text": "%s"}\n' % (k, b"## ... ## | " * 60)
            elif kind < 0.058:
                line = b'{"id": %d, "text": "cut here\n' % k
            elif kind < 0.063:
                line = json.dumps({"id": k, "text": "\U00020000\U0001f600文字です。" * int(length / 20)}, ensure_ascii=False).encode() + b"\n"
            else:
                length = length * 400 if kind > 0.9997 else length
                picked = rng.integers(0, len(pool), max(1, int(length / 450)))
                line = b'{"id": %d, "text": "Document %d.\\n%s"}\n' % (k, k, b"\\n".join(pool[i] for i in picked.tolist()))
            last = line
            written += len(line)
            yield line


def _pool(vocabulary: list[str], weights: np.ndarray, rng: np.random.Generator, k: int) -> list[bytes]:
    return [json.dumps(_paragraph(vocabulary, weights, rng, k))[1:-1].encode() for _ in range(POOL)]


def _long(size: int, rng: np.random.Generator) -> bytes:
    """A line of `size` bytes: words of one to twelve letters, most of them new."""
    letters = rng.integers(97, 123, size, dtype=np.uint8)
    letters[np.cumsum(rng.integers(2, 13, size // 7))[:-1] % size] = 32
    text = letters.tobytes()
    return b'{"id": -1, "text": "' + text[: max(0, size - 24)] + b'"}\n'


def _book(line: bytes, size: int) -> bytes:
    """A line of `size` bytes that says the text of another line again and again, with a number in every sentence."""
    text = line[line.index(b"text") + 8 : -3].decode(errors="ignore").replace("\\", " ").replace('"', " ") or "Nothing said."
    said = " ".join(f"{text.replace('. ', f' {k}. ')}" for k in range(max(1, size // (len(text) + 40))))
    return json.dumps({"id": -2, "text": said[:size]}).encode() + b"\n"


def pictures(n: int, size: tuple[int, int] = (120, 90), seed: int = 0) -> Iterator[bytes]:
    """n different JPEGs of about 3 KB: fifty drawings, each copy with a comment of its own."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    bases = []
    for _ in range(50):
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        out = io.BytesIO()
        small.save(out, "JPEG", quality=85)
        bases.append(out.getvalue())
    for k in range(n):
        comment = b"%012d" % k
        base = bases[k % 50]
        yield base[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + base[2:]


def image_folder(folder: Path, n: int) -> None:
    """n pictures below folders of a thousand, and one table of captions."""
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as table:
        for k, data in enumerate(pictures(n)):
            name = f"{k // 1000:04d}/{k:07d}.jpg"
            if k % 1000 == 0:
                (folder / name).parent.mkdir(parents=True)
            (folder / name).write_bytes(data)
            table.write(json.dumps({"image": name, "caption": f"drawing number {k} of many"}) + "\n")


def image_tar(path: Path, n: int) -> None:
    """The same in one WebDataset tar: one part, one worker."""
    with path.open("wb", buffering=1 << 20) as f:
        for k, data in enumerate(pictures(n)):
            for end, content in (("jpg", data), ("txt", f"drawing number {k} of many".encode())):
                info = tarfile.TarInfo(f"{k:07d}.{end}")
                info.size = len(content)
                f.write(info.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % 512))
        f.write(b"\0" * 1024)


def img2dataset(folder: Path, n: int, shard: int = 10_000) -> None:
    """The same as img2dataset leaves it: tars of ten thousand, each with its table of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    every = pictures(n)
    for start in range(0, n, shard):
        stem = folder / f"{start // shard:05d}"
        keys = [f"{start // shard:05d}{k:04d}" for k in range(min(shard, n - start))]
        with stem.with_suffix(".tar").open("wb", buffering=1 << 20) as f:
            for key, data in zip(keys, every, strict=False):
                info = tarfile.TarInfo(f"{key}.jpg")
                info.size = len(data)
                f.write(info.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % 512))
            f.write(b"\0" * 1024)
        none = [None] * len(keys)
        rows = {"key": keys, "status": ["success"] * len(keys), "caption": [f"drawing {k}" for k in keys], "sha256": none, "error_message": none}
        rows["url"] = [f"https://example.com/{k}.jpg" for k in keys]
        table = pa.table({name: pa.array(column, pa.string()) for name, column in rows.items()})
        pq.write_table(table, stem.with_suffix(".parquet"))
