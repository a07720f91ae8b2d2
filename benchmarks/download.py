"""Download, resize and shard: headwater beside img2dataset. Same loopback server (its processor time outside the count), same bytes, same size, mode
and JPEG quality, in turns.

    python -m benchmarks.download --json

Processor time is that of everything a run starts, until the last of its processes is gone, less that of a run over 40 images: loading
libraries (theirs take longer) is no part of the rate. The ratio is the median over pairs of runs. The pictures are made from a seed: noise of
every scale, and edges; 1,280 × 960 and, in `download.large`, 2,560 × 1,920, JPEG quality 88. img2dataset runs with one process and 32 threads and
reduces by area averaging; ours with 32 connections. `download.default` also takes a perceptual hash of every picture, as we do unless told
otherwise and the peer does not. Quality is the PSNR of what was stored against a
float64 bicubic reduction (antialiased, a = -0.5) of the full decode.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.peers import python_of, versions

SIZE, QUALITY, DISTINCT = 256, 95, 40
SIZES = {"download.speed": (1280, 960, 1.0), "download.large": (2560, 1920, 0.3)}  # width, height, share of the images
BAR, QUALITY_BAR = 2.0, -0.5  # images a processor second against theirs; dB of the median against theirs
RUNS = 5
# Runs a command and says its (wall, processor) seconds. As a subreaper (prctl 36) it inherits and so counts processes that outlive their parent.
_METER = """
import ctypes, json, os, resource, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
began = time.monotonic()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
wall = time.monotonic() - began
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([wall, used.ru_utime + used.ru_stime, done.returncode, done.stderr[-2000:]]))
"""
_SERVER = """
import asyncio, pathlib, sys
files = [p.read_bytes() for p in sorted(pathlib.Path(sys.argv[1]).glob("*.jpg"))]
answers = [b"HTTP/1.1 200 OK\\r\\nContent-Type: image/jpeg\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(f) + f for f in files]
class Web(asyncio.Protocol):
    def connection_made(self, transport): self.transport, self.seen = transport, b""
    def data_received(self, data):
        self.seen += data
        while b"\\r\\n\\r\\n" in self.seen:
            head, _, self.seen = self.seen.partition(b"\\r\\n\\r\\n")
            number = head.split(b" ", 2)[1].partition(b"?")[2]
            self.transport.write(answers[int(number) % len(answers)] if number else b"HTTP/1.1 404 x\\r\\nContent-Length: 0\\r\\n\\r\\n")
async def main():
    server = await asyncio.get_running_loop().create_server(Web, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""
_PEER = """
import os, sys
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network for newer versions at import
from img2dataset import download
if __name__ == "__main__":
    table, out, size, quality = sys.argv[1:]
    download(url_list=table, input_format="parquet", url_col="url", caption_col="caption", output_folder=out, output_format="webdataset",
             image_size=int(size), resize_mode="border", encode_quality=int(quality), processes_count=1, thread_count=32, enable_wandb=False)
"""


def photo(seed: int, width: int = 1280, height: int = 960) -> np.ndarray:
    """Noise of every scale with the power of natural pictures, and edges: `uint8 [height, width, 3]`."""
    rng = np.random.Generator(np.random.Philox(seed))
    out = np.zeros((height, width, 3))
    for octave in range(8 + (width > 2000)):
        small = rng.standard_normal((3 << octave, 4 << octave, 3)).clip(-2, 2) * 40 + 128
        big = Image.fromarray(small.clip(0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        out += (np.asarray(big, float) - 128) * 0.62**octave
    y, x = np.mgrid[0:height, 0:width]
    for cx, cy, r in rng.integers(50, 900, (6, 3)):
        out[(x - cx) ** 2 + (y - cy) ** 2 < (r // 4) ** 2] += rng.integers(-60, 60, 3)
    return (out + 128).clip(0, 255).astype(np.uint8)


def ideal(array: np.ndarray) -> np.ndarray:
    """The reduction both are judged by: float64 [SIZE, SIZE, 3] on white."""
    height, width = array.shape[0] * SIZE // array.shape[1], SIZE

    def weights(n: int, m: int) -> np.ndarray:
        x = np.abs((np.arange(n)[None, :] + 0.5) / (n / m) - (np.arange(m)[:, None] + 0.5))
        w = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
        return np.asarray(w / w.sum(axis=1, keepdims=True))

    inner = np.einsum("ih,hwc,jw->ijc", weights(array.shape[0], height), array.astype(float), weights(array.shape[1], width), optimize=True)
    out = np.full((SIZE, SIZE, 3), 255.0)
    top = (SIZE - height) // 2
    out[top : top + height] = inner.clip(0, 255)
    return out


def psnr(jpeg: bytes, wanted: np.ndarray) -> float:
    found = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), float)
    return float(10 * np.log10(255**2 / np.mean((found - wanted) ** 2)))


def ours(table: str, out: str, port: int, **how: Any) -> list[str]:
    fetch = {"per_host": 32, "concurrency": 32}
    recipe = {
        "name": "bench",
        "source": {"url_table": {"path": table, "fetch": fetch}},
        "transforms": [{"resize_image": {"size": SIZE, "mode": "border", "quality": QUALITY, **how}}],
        "output": f"{out}/ours",
        "engine": "local",
    }
    path = Path(out, "recipe.yaml")
    path.write_text(json.dumps(recipe))
    os.environ["HEADWATER_FETCH_PRIVATE"] = f"127.0.0.1:{port}"
    return [sys.executable, "-m", "pipelines.commands", "run", "image-text", "-c", str(path)]


def peer(table: str, out: str, port: int) -> list[str]:
    script = Path(out, "peer.py")
    script.write_text(_PEER)
    return [python_of("img2dataset"), str(script), table, f"{out}/peer", str(SIZE), str(QUALITY)]


def stored_ours(out: str) -> dict[str, bytes]:
    from pipelines.format.dataset import Dataset

    dataset = Dataset.open(f"{out}/ours")
    return {str(r.url): bytes(dataset.payload(i, r.segments[0])) for i in range(len(dataset.shards)) for r in dataset.records(i)}


def stored_peer(out: str) -> dict[str, bytes]:
    from pipelines.sources.img2dataset import Img2dataset
    from pipelines.stage import Record

    source = Img2dataset(path=f"{out}/peer")
    found = [r for part in source.parts() for r in source.read(part.spec, "peer")]
    return {str(r.url): r.segments[0].payload or b"" for r in found if isinstance(r, Record)}


def timed(command: list[str]) -> dict[str, float]:
    """Seconds of a command and all that it started."""
    said = subprocess.run([sys.executable, "-c", _METER, *command], stdout=subprocess.PIPE, text=True, check=True).stdout
    wall, cpu, code, error = json.loads(said)
    if code:
        raise SystemExit(error)
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}


def measure(images: int = 1000, runs: int = RUNS) -> list[dict[str, Any]]:
    """One object a bar: speed at both sizes, speed of the default settings, quality."""
    out: list[dict[str, Any]] = []
    for name, (width, height, share) in SIZES.items():
        with tempfile.TemporaryDirectory() as scratch:
            pictures = [photo(i, width, height) for i in range(DISTINCT)]
            for i, array in enumerate(pictures):
                Image.fromarray(array).save(f"{scratch}/{i:03}.jpg", quality=88)
            server = subprocess.Popen([sys.executable, "-c", _SERVER, scratch], stdout=subprocess.PIPE, text=True)
            assert server.stdout is not None
            try:
                bench = Comparison(scratch, int(server.stdout.readline()), int(images * share))
                out += bench.rows(name, runs, default=name == "download.speed")
            finally:
                server.kill()
                server.wait()
    return out


class Comparison:
    """One size of pictures on one server."""

    def __init__(self, scratch: str, port: int, images: int) -> None:
        self.scratch, self.port, self.images = scratch, port, images
        self.urls = [f"http://127.0.0.1:{port}/picture.jpg?{i}" for i in range(images)]
        for name, n in (("few", DISTINCT), ("many", images)):
            pq.write_table(pa.table({"url": self.urls[:n], "caption": [f"picture {i}" for i in range(n)]}), f"{scratch}/{name}.parquet")
        self.taken: list[dict[str, Any]] = []

    def run(self, side: str, table: str, number: int) -> dict[str, Any]:
        """One run of one side in a folder of its own."""
        here = f"{self.scratch}/{number}-{table}-{side}"
        Path(here).mkdir()
        settings = {"ours": {"phash": False}, "default": {}}
        command = peer(f"{self.scratch}/{table}.parquet", here, self.port) if side == "peer" else None
        command = command or ours(f"{self.scratch}/{table}.parquet", here, self.port, **settings[side])
        n = DISTINCT if table == "few" else self.images
        self.taken.append({"run": number, "which": side, "images": n, "at": here, **timed(command)})
        return self.taken[-1]

    def rows(self, name: str, runs: int, default: bool) -> list[dict[str, Any]]:
        """The rows of this size; quality is judged once, at the first."""
        sides = ["ours", "peer", *(["default"] if default else [])]
        start = {side: self.run(side, "few", 0) for side in sides}
        pairs = [{side: self.run(side, "many", k) for side in sides[:: 1 if k % 2 else -1]} for k in range(1, runs + 1)]

        def a_second(side: str, key: str) -> list[float]:
            return [(self.images - DISTINCT) / (pair[side][key] - start[side][key]) for pair in pairs]

        stored = {side: (stored_peer if side == "peer" else stored_ours)(pairs[-1][side]["at"]) for side in sides}
        facts = {
            "images": {side: len(kept) for side, kept in stored.items()},
            "source_bytes": round(statistics.fmean(p.stat().st_size for p in Path(self.scratch).glob("*.jpg"))),
            "stored_bytes": {side: round(statistics.fmean(map(len, kept.values()))) for side, kept in stored.items()},
            "images_a_wall_second": {side: round(statistics.median(a_second(side, "wall_s")), 1) for side in sides},
        }
        complete = all(len(kept) == self.images for kept in stored.values())
        common = {"unit": "images per processor second", "facts": facts, "versions": self.versions(), "runs": self.runs()}
        out = []
        for row, side, bar in ((name, "ours", BAR), ("download.default", "default", BAR)):
            if side in sides:
                rates, theirs = a_second(side, "cpu_s"), a_second("peer", "cpu_s")
                ratio = statistics.median(a / b for a, b in zip(rates, theirs, strict=True))
                mean = {"ours": round(statistics.median(rates), 1), "peer": round(statistics.median(theirs), 1)}
                out.append({"name": row, **mean, "ratio": round(ratio, 3), "bar": bar, "ok": complete and ratio >= bar, **common})
        return [*out, *(self.quality(stored) if default else [])]

    def quality(self, stored: dict[str, dict[str, bytes]]) -> list[dict[str, Any]]:
        """Median PSNR of what each side stored."""
        wanted = [ideal(np.asarray(Image.open(f"{self.scratch}/{i:03}.jpg"))) for i in range(DISTINCT)]
        found = {side: statistics.median(psnr(kept[self.urls[i]], wanted[i]) for i in range(DISTINCT)) for side, kept in stored.items()}
        gain = {side: round(dB - found["peer"], 2) for side, dB in found.items()}
        about = {"name": "download.quality", "ours": round(found["ours"], 2), "peer": round(found["peer"], 2), "unit": "dB, median PSNR"}
        ok = {"ratio": round(found["ours"] / found["peer"], 3), "bar": f"{QUALITY_BAR} dB", "ok": gain["ours"] >= QUALITY_BAR}
        return [{**about, **ok, "facts": {"gain_db": gain}, "versions": self.versions(), "runs": self.runs()}]

    def runs(self) -> list[dict[str, Any]]:
        """What was timed, without the folders."""
        return [{k: v for k, v in taken.items() if k != "at"} for taken in self.taken]

    def versions(self) -> dict[str, str]:
        theirs = versions("img2dataset", ["img2dataset", "opencv-python-headless"])
        return {**theirs, "pillow": metadata.version("pillow"), "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one list on stdout, nothing else")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=RUNS)
    args = parser.parse_args()
    found = measure(args.images, args.runs)
    if args.json:
        print(json.dumps(found))
        return
    for r in found:
        met = "ok" if r["ok"] else "MISSED"
        print(f"{r['name']}: {r['ours']} {r['unit']} · img2dataset {r['peer']} · ratio {r['ratio']} · bar {r['bar']} · {met} · {r['facts']}")


if __name__ == "__main__":
    main()
