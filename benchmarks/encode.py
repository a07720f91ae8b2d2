"""What the encode job costs beside its network: images a second from curated JPEG shards to encoded shards, against the bare forward pass.

    python -m benchmarks.encode --json                 both towers, at least 120 s of steady state each
    python -m benchmarks.encode --seconds 20 --towers small
    python -m benchmarks.encode --toy                  proof that it runs, not a measurement

    encode.*.core      one process, one thread: decode, resize, network, codec, statistics, shard, index, commit. Peer: `forward` alone, same network,
                       batch and thread, its pictures at hand. Part by part in turn; images per second of processor time.
    encode.*.loop      the same work against what one would write with transformers: Pillow, the model's processor, the model, to bf16 bytes
    encode.*.stage     the whole stage on Ray with two workers, against two bare processes of one thread; steady state: from when each worker has
                       committed a part to when fewer parts are left than workers, so Ray's start and loading of weights are outside. Stage and bare
                       take turns, and the ratio is that of the medians, by wall time
    encode.*.stage_cpu the same by processor time of all processes, Ray's own included

Towers are SigLIP's shape with random weights, f32: base/16 at 256 pixels (86M) and one of 22M (384 wide, 12 layers, 224 pixels). Photos are JPEGs
with sides of 256 to 512 pixels.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from benchmarks.alternating import alternate, compared
from benchmarks.encode_inputs import Shape, curated, photos, plain_loop, tokenizer, tower
from benchmarks.video_stage import cpu_s

BAR, LOOP_BAR = 0.92, 1.0
WORKERS, ROUNDS, PAIRS = 2, 3, 5


class Tower(NamedTuple):
    """What is measured: a shape, the batch, and the pictures of a part (some seconds of work)."""

    shape: Shape
    batch: int
    per_part: int


TOWERS = {"base": Tower(Shape(768, 3072, 12, 12, 256, 16), 8, 16), "small": Tower(Shape(384, 1536, 12, 6, 224, 16), 16, 64)}
TOY = {"toy": Tower(Shape(32, 64, 2, 2, 32, 16), 4, 8)}


class Inputs:
    """A tower, a curated dataset of as many parts as asked, and the recipe."""

    def __init__(self, scratch: Path, kind: Tower, parts: int) -> None:
        from encode.encoders.siglip2 import Siglip2

        self.kind, self.scratch = kind, scratch
        self.weights = tower(scratch / "weights", kind.shape) if not (scratch / "weights").exists() else str(scratch / "weights")
        self.jpegs = photos(parts * kind.per_part)
        place = scratch / f"curated-{parts}"
        self.dataset = curated(place, self.jpegs, kind.per_part) if not place.exists() else str(place)
        self.tokenizer = tokenizer(scratch / f"tokenizer-{parts}", self.dataset)
        self.encoder = Siglip2(weights=self.weights, dtype="f32", batch=kind.batch)

    def recipe(self, output: Path, **resources: Any) -> Any:
        from encode.recipe import EncodeRecipe, Resources

        text = {"text_tokens": {"tokenizer": self.tokenizer}}
        return EncodeRecipe(dataset=self.dataset, text=text, images=self.encoder, output=str(output), resources=Resources(**resources))

    def pictures(self) -> np.ndarray:
        side = self.kind.shape.image
        return np.random.default_rng(0).integers(0, 256, (self.kind.batch, side, side, 3), dtype=np.uint8)


def core(name: str, kind: Tower, seconds: float, scratch: Path) -> list[dict[str, Any]]:
    """Rows of one process."""
    import torch

    from encode.parts import encode_parts
    from encode.stage import chain
    from pipelines.format.dataset import Dataset

    torch.set_num_threads(1)
    count = 2 * (PAIRS + 1)
    while True:
        inputs = Inputs(scratch, kind, count)
        out = scratch / f"core-{count}"
        recipe, dataset = inputs.recipe(out), Dataset.open(inputs.dataset)
        (step,) = chain(recipe, dataset, str(out), SimpleNamespace(where="ray", cpus=1, gpus=None))  # type: ignore[arg-type]
        whole, parts = step.ready(), encode_parts(recipe, dataset)
        network: Any = whole._calls[1].encoding.network
        resident = torch.from_numpy(inputs.pictures())

        def bare(_: int, n: int = kind.per_part // kind.batch, network: Any = network, resident: Any = resident) -> None:
            with torch.inference_mode():
                for _ in range(n):
                    network.forward(resident)

        began = time.perf_counter()
        bare(0)
        pairs = max(PAIRS, int(seconds / (time.perf_counter() - began)) + 1)
        if 2 * (pairs + 1) <= count:
            break
        count = 2 * (pairs + 1)
    plain = plain_loop(inputs.weights, "cpu", "f32", kind.batch)
    each = [inputs.jpegs[k * kind.per_part : (k + 1) * kind.per_part] for k in range(len(parts))]
    told = {"versions": _versions()}
    unit = "images per processor second, one thread"
    against_bare = alternate(lambda k: whole(parts[k]), bare, pairs)
    rows = [compared(f"encode.{name}.core", kind.per_part, unit, BAR, against_bare, **told)]
    against_loop = alternate(lambda k: whole(parts[pairs + 1 + k]), lambda k: plain(each[k]), min(pairs, 2 * PAIRS))
    rows.append(compared(f"encode.{name}.loop", kind.per_part, unit, LOOP_BAR, against_loop, **told))
    return rows


# ---- the stage ---------------------------------------------------------------------------------------------------------------------------

_bare: dict[str, Any] = {}


def _open(weights: str, batch: int, pictures: np.ndarray) -> None:
    """A bare process: the network, one thread, pictures at hand."""
    import torch

    from encode.encoder import ImageEncoding
    from encode.encoders.siglip2 import Siglip2

    torch.set_num_threads(1)
    _bare["network"] = ImageEncoding(Siglip2(weights=weights, dtype="f32", batch=batch), "cpu").network
    _bare["pictures"] = torch.from_numpy(pictures)


def _forward(seconds: float) -> tuple[float, float]:
    """Images per second, and per second of processor time, over so many seconds."""
    import torch

    began, used, n = time.perf_counter(), time.process_time(), 0
    with torch.inference_mode():
        while time.perf_counter() - began < seconds:
            _bare["network"].forward(_bare["pictures"])
            n += len(_bare["pictures"])
    return n / (time.perf_counter() - began), n / (time.process_time() - used)


def bare_rate(pool: Any, seconds: float) -> dict[str, float]:
    """Of all processes together, at the same time."""
    rates = pool.map(_forward, [seconds] * WORKERS, chunksize=1)
    return {"wall": sum(r[0] for r in rates), "cpu": statistics.mean(r[1] for r in rates)}


class Watch(threading.Thread):
    """Processor time of everything below this process, as it goes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, float]] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.25):
            self.seen.append((time.time(), cpu_s()))

    def at(self, moment: float) -> float:
        """Between the two looks beside a moment."""
        times, used = zip(*self.seen, strict=True)
        return float(np.interp(moment, times, used))


def stage_rate(job: Any, inputs: Inputs, out: Path) -> dict[str, float]:
    """The stage over the dataset, in its steady state."""
    from encode.stage import STAGE

    watch = Watch()
    watch.start()
    try:
        STAGE.run(inputs.recipe(out), job)
    finally:
        watch.over.set()
        watch.join()
    done = sorted(p.stat().st_mtime for p in (out / "parts").glob("*.json"))
    shutil.rmtree(out)
    first, last = WORKERS - 1, len(done) - WORKERS
    images = (last - first) * inputs.kind.per_part
    seconds = done[last] - done[first]
    return {"wall": images / seconds, "cpu": images / (watch.at(done[last]) - watch.at(done[first])), "seconds": seconds, "images": images}


def stage(name: str, kind: Tower, seconds: float, scratch: Path, rounds: int) -> list[dict[str, Any]]:
    """Rows of the whole stage."""
    from pipelines.engine import open_job

    weights = tower(scratch / "weights", kind.shape) if not (scratch / "weights").exists() else str(scratch / "weights")
    side = kind.shape.image
    pictures = np.random.default_rng(0).integers(0, 256, (kind.batch, side, side, 3), dtype=np.uint8)
    each = seconds / rounds
    os.environ["OMP_NUM_THREADS"] = "1"  # the bare processes start with it, as Ray's workers of one processor do
    with multiprocessing.get_context("spawn").Pool(WORKERS, _open, (weights, kind.batch, pictures)) as pool:
        rate = bare_rate(pool, min(each, 10))["wall"]
        inputs = Inputs(scratch, kind, max(3 * WORKERS, int(each * rate / kind.per_part) + 1) + 2 * WORKERS)
        runs = []
        with open_job("ray", cpus=WORKERS) as job:
            for k in range(rounds):
                runs.append({"bare": bare_rate(pool, each), "stage": stage_rate(job, inputs, scratch / f"stage-{k}")})
    rows = []
    for what, row, unit in (("wall", "stage", "images/s of wall time, 2 workers"), ("cpu", "stage_cpu", "images per processor second")):
        ours, peer = (statistics.median(r[side][what] for r in runs) for side in ("stage", "bare"))
        rows.append(
            {
                "name": f"encode.{name}.{row}", "ours": round(ours, 2), "peer": round(peer, 2), "unit": unit, "ratio": round(ours / peer, 3),
                "bar": BAR, "ok": ours / peer >= BAR, "runs": runs, "versions": {**_versions(), "ray": version("ray")},
            }
        )  # fmt: skip
    return rows


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{p: version(p) for p in ("torch", "transformers", "pillow")}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one list on stdout, nothing else")
    parser.add_argument("--seconds", type=float, default=130, help="of the pipeline's steady state, per tower and row (default: 130)")
    parser.add_argument("--towers", nargs="*", choices=list(TOWERS), default=list(TOWERS))
    parser.add_argument("--only", choices=["core", "stage"], help="rows of one process, or of the stage on Ray")
    parser.add_argument("--toy", action="store_true", help="a tower of two narrow layers, some seconds in all")
    args = parser.parse_args()
    towers = TOY if args.toy else {name: TOWERS[name] for name in args.towers}
    seconds, rounds = (1.0, 1) if args.toy else (args.seconds, ROUNDS)
    rows: list[dict[str, Any]] = []
    for name, kind in towers.items():
        with tempfile.TemporaryDirectory(prefix="hw-encode") as folder:
            if args.only != "stage":
                rows += core(name, kind, seconds, Path(folder))
            if args.only != "core":
                rows += stage(name, kind, seconds, Path(folder), rounds)
        for row in rows[-4:]:
            print(f"{row['name']}: {row['ours']} against {row['peer']} {row['unit']}: {row['ratio']}", file=sys.stderr, flush=True)
    print(json.dumps(rows) if args.json else "\n".join(f"{r['name']}: {r['ratio']} (bar {r['bar']})" for r in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
