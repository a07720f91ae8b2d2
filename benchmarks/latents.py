"""Reading stored latents in a plan's order, against a plain copy of the same bytes out of a map of the same file.

    python -m benchmarks.latents --json

The dataset is as an encode leaves it: one data file of over 2 GB, 256 x 1152 an image, 590 KB in bf16, and its index. Images are read in an order
drawn from a seed; the file lies in the page cache on both sides (it was read through just before), so that the reader is compared and no disk.
Ours is what the trainer's stream does for an image: a row of the index as a record, its segment, its bytes through the dataset's map. The peer knows
every offset beforehand and copies from a `numpy.memmap`. Both copy the bytes as stored into the same buffer. Apart from that stands what it takes to
have float32: the stored bytes a second that `array` decodes, for each codec. No limit follows from the copy there, which writes a half or a quarter
as much; their bar is a twentieth of it, to notice a decoder that has become slow. Rates are of processor time: other work may share the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.alternating import alternate, compared
from pipelines.format import codec
from pipelines.format.dataset import Dataset
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment
from tests.toys import seal
from trainer.shard import Shard

TOKENS, WIDTH = 256, 1152
READ_BAR, DECODE_BAR = 0.8, 0.05
RUNS = 7


def dataset(root: str, name: str, images: int) -> Dataset:
    """An encoded dataset of so many different images in one shard."""
    x = np.random.default_rng(0).standard_normal((TOKENS, WIDTH), dtype=np.float32)
    base = np.frombuffer(codec.encode_latents(x, name), np.uint8).copy()
    each = base.view("<u8")
    with PartWriter(root, 0, fingerprint="0" * 64, encoded=True, shard_bytes=1 << 40) as w:
        for i in range(images):
            each[0] ^= i ^ (i - 1) & 0xFFFF  # other values, the same length: a payload that is there already would not be stored again
            shape = (TOKENS, WIDTH)
            w.emit()
            w.add(Record.make("bench", f"{i}", "image-text", [Segment("latents", "target", 0, -1, None, None, base.tobytes(), name, shape, TOKENS)]))
        commit = w.commit()
    encoding = {"text": {"vocab": 5}, "image": {"encoder": "none", "tokens": TOKENS, "width": WIDTH, "codec": name}}
    return Dataset.open(seal(root, "bench", "image-text", [commit], {}, encoding))


def measure(images: int, runs: int) -> list[dict[str, Any]]:
    """A row of reading as stored, and a row of decoding per codec."""
    rows = []
    for name in ("bf16", "f32", "int8", "f8e4m3"):
        with tempfile.TemporaryDirectory() as folder:
            n = images if name == "bf16" else max(1, images // 8)  # decoding does not ask how long the file is
            made = dataset(folder, name, n)
            rows += sides(made, Path(folder), name, n, runs)
    return rows


def sides(made: Dataset, folder: Path, name: str, n: int, runs: int) -> list[dict[str, Any]]:
    """Reading (bf16 alone) and decoding, against the copy."""
    shard = Shard(made, 0)
    size = codec.nbytes(name, TOKENS, WIDTH)
    order = np.random.default_rng(1).permutation(n).tolist()
    path = folder / str(made.shards[0].data)
    mapped, buffer = np.memmap(path, np.uint8, "r"), np.empty(size, np.uint8)
    starts = [int(shard.offset[row]) for row in order]
    assert int(np.add.reduce(mapped[::4096], dtype=np.int64)) >= 0, "every page is read, so that the file lies in memory"

    def copy(_: int) -> None:
        for start in starts:
            buffer[:] = mapped[start : start + size]

    def read(_: int) -> None:
        for row in order:
            (segment,) = shard.record(row).segments
            buffer[:] = np.frombuffer(made.payload(0, segment), np.uint8)

    def decode(_: int) -> None:
        for row in order:
            (segment,) = shard.record(row).segments
            shard.array(segment)

    (segment,) = shard.record(order[-1]).segments
    read(0)
    seen = buffer.copy()
    copy(0)
    assert np.array_equal(seen, buffer) and np.array_equal(shard.array(segment), codec.decode_latents(buffer, name, TOKENS, WIDTH))
    megabytes = n * size / 1e6
    versions = {"numpy": np.__version__, "python": platform.python_version(), "machine": platform.machine()}
    facts = {"images": n, "file_bytes": path.stat().st_size, "bytes_an_image": size, "page_cache": "warm"}
    unit = "MB/s of processor time, as stored"
    out = []
    if name == "bf16":
        out.append(compared("latents.read", megabytes, unit, READ_BAR, alternate(read, copy, runs), facts=facts, versions=versions))
    unit = "MB/s of stored bytes to float32; peer: the bytes as stored"
    out.append(compared(f"latents.decode.{name}", megabytes, unit, DECODE_BAR, alternate(decode, copy, runs), facts=facts, versions=versions))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one list on stdout, nothing else")
    parser.add_argument("--images", type=int, default=3_600, help="590 KB each in bf16")
    parser.add_argument("--runs", type=int, default=RUNS)
    args = parser.parse_args()
    found = measure(args.images, args.runs)
    if args.json:
        print(json.dumps(found))
        return
    for r in found:
        print(f"{r['name']}: {r['ours']:,} {r['unit']} · copy {r['peer']:,} · ratio {r['ratio']} · {'ok' if r['ok'] else 'MISSED'} · {r['facts']}")


if __name__ == "__main__":
    main()
