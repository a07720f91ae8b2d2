"""One side of benchmarks.reader, run by the interpreter of that side's venv: it writes the samples in its own format, or reads them and says what
it took. Imports nothing of this folder.

    python reader_sides.py SIDE JOB DATA SECONDS          JOB: write, read, or resume; DATA: a folder with about.json {n, nbytes}

Sample i is `nbytes` random bytes from a seed; three sources hold the first 50 %, the next 30 % and the last 20 %. Every side reads with no worker
process (its least processor time), without decoding, at the settings its documents name; what a sample comes as, `touch` sums all of it as
uint64. `read` goes once through each task uncounted and then again and again for SECONDS of processor time, counted from an epoch's first sample to
its last, so neither imports, opening, nor the start of an epoch weigh on anybody. `resume` counts just those: opening, going to 90 %, one sample.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice, pairwise
from operator import itemgetter, methodcaller
from pathlib import Path
from typing import Any

import numpy as np

SHARES = (0.5, 0.3, 0.2)
NAMES = ("a", "b", "c")
LONGEST = 1.0  # processor seconds after which a pass of a slow side ends early
SHARD = 64 << 20  # bytes of a file of each side, about


def touch(payload: Any) -> int:
    """The sum of all of it, whatever it comes as."""
    return int(np.frombuffer(payload, np.uint64).sum())


def sample(i: int, nbytes: int) -> np.ndarray:
    """Sample number i."""
    return np.random.Generator(np.random.SFC64(i)).integers(0, 1 << 64, nbytes // 8, dtype=np.uint64)


def parts(n: int) -> list[range]:
    """The numbers of each source."""
    ends = [0, int(n * 0.5), int(n * 0.8), n]
    return [range(a, b) for a, b in pairwise(ends)]


class Side:
    """Writes and reads; `open` is what a job does once, `epoch` gives one pass of a task as things to touch."""

    def __init__(self, data: Path, side: str) -> None:
        about = json.loads((data / "about.json").read_text())
        self.n, self.nbytes, self.root = int(about["n"]), int(about["nbytes"]), data / side
        self.text = self.nbytes < 65536

    def write(self) -> None:
        raise NotImplementedError

    def open(self, task: str) -> Any:
        raise NotImplementedError

    def epoch(self, opened: Any) -> Iterator[Any]:
        return iter(opened)

    def resume(self) -> Iterator[Any]:
        """Samples from 90 % on, of a shuffled epoch where the side can say where it was."""
        raise NotImplementedError


class Limit(Side):
    """mmap + offsets + touch: one file, a list of places, a bare loop."""

    def write(self) -> None:
        self.root.mkdir()
        with open(self.root / "all.bin", "wb") as f:
            for i in range(self.n):
                f.write(sample(i, self.nbytes).data)

    def open(self, task: str) -> Any:
        words = np.memmap(self.root / "all.bin", np.uint64, "r").view(np.ndarray)
        starts = np.arange(self.n) * (self.nbytes // 8)
        order = starts if task == "sequential" else np.random.default_rng(0).permutation(starts)
        return words, order.tolist()

    def epoch(self, opened: Any) -> Iterator[Any]:
        raise AssertionError("the limit is a loop of its own")

    def loop(self, opened: Any) -> int:
        """The bare loop: no iterator between the places and the sum."""
        words, starts = opened
        size, total = self.nbytes // 8, 0
        for at in starts:
            total += touch(words[at : at + size])
        return total


class WebDataset(Side):
    """Tars without compression, read unpacked by nothing but `to_tuple`; shuffle buffer of 1,000, the number its documents show."""

    def write(self) -> None:
        import webdataset as wds

        for name, numbers in zip(NAMES, parts(self.n), strict=True):
            (self.root / name).mkdir(parents=True)
            with wds.ShardWriter(f"{self.root / name}/%06d.tar", maxcount=1 << 30, maxsize=SHARD, verbose=0) as sink:
                for i in numbers:
                    sink.write({"__key__": f"{i:08}", "bin": sample(i, self.nbytes).tobytes()})

    def _of(self, names: tuple[str, ...], shuffle: bool, skip: int = 0) -> Any:
        import webdataset as wds

        urls = sorted(str(p) for name in names for p in (self.root / name).glob("*.tar"))[skip:]
        found = wds.WebDataset(urls, shardshuffle=1000 if shuffle else False, seed=0 if shuffle else None)
        return (found.shuffle(1000) if shuffle else found).to_tuple("bin")

    def open(self, task: str) -> Any:
        import webdataset as wds

        if task == "mixture":
            return wds.RandomMix([self._of((name,), True) for name in NAMES], list(SHARES), longest=True)
        return self._of(NAMES, task == "shuffled")

    def epoch(self, opened: Any) -> Iterator[Any]:
        return map(itemgetter(0), opened)

    def resume(self) -> Iterator[Any]:
        # It has no state: whoever knows how many samples a tar holds can leave out whole tars, and reads over the rest of one.
        import tarfile

        left, skip = int(self.n * 0.9), 0
        for path in sorted(p for name in NAMES for p in (self.root / name).glob("*.tar")):
            with tarfile.open(path) as tar:
                held = len(tar.getnames())
            if held > left:
                break
            left, skip = left - held, skip + 1
        counted = (left, skip)
        began.reset()  # finding that out is not counted
        return islice(self.epoch(self._of(NAMES, False, counted[1])), counted[0], None)


class Streaming(Side):
    """MDS shards with one column of bytes; `py1e`, its default, shuffles."""

    def _import(self) -> Any:
        import types
        from importlib.machinery import ModuleSpec

        # torchvision beside a CPU build of torch cannot be imported; streaming names two things of it, and nothing here uses them.
        for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
            module: Any = types.ModuleType(name)
            module.__spec__, module.__path__ = ModuleSpec(name, None), []
            module.VisionDataset, module.to_tensor = object, None
            sys.modules[name] = module
        import streaming

        return streaming

    def write(self) -> None:
        streaming = self._import()
        from streaming.base.util import merge_index

        for name, numbers in zip(NAMES, parts(self.n), strict=True):
            with streaming.MDSWriter(out=str(self.root / name), columns={"x": "bytes"}, size_limit=SHARD) as out:
                for i in numbers:
                    out.write({"x": sample(i, self.nbytes).tobytes()})
        merge_index(str(self.root), keep_local=True)

    def open(self, task: str) -> Any:
        streaming = self._import()
        how: dict[str, Any] = {"batch_size": 256, "num_canonical_nodes": 1, "shuffle": task != "sequential", "shuffle_seed": 0}
        if task == "mixture":
            streams = [streaming.Stream(local=str(self.root / name), proportion=share) for name, share in zip(NAMES, SHARES, strict=True)]
            return streaming.StreamingDataset(streams=streams, epoch_size=self.n, **how)
        return streaming.StreamingDataset(local=str(self.root), **how)

    def epoch(self, opened: Any) -> Iterator[Any]:
        return map(itemgetter("x"), opened)

    def resume(self) -> Iterator[Any]:
        opened = self.open("shuffled")
        opened.load_state_dict(opened.state_dict(int(self.n * 0.9), True))
        return self.epoch(opened)


class LitData(Side):
    """Tokens by its TokensLoader (memory-mapped chunks), latents as tensors; chunks of 64 MB; window shuffle as it chooses by itself."""

    def write(self) -> None:
        import litdata

        bounds = [*zip(NAMES, parts(self.n), strict=True), ("all", range(self.n))]
        for name, numbers in bounds:
            how: dict[str, Any] = {"num_workers": 1, "keep_data_ordered": True, "verbose": False}
            how |= {"item_loader": litdata.TokensLoader(self.nbytes // 2), "chunk_size": SHARD // 2} if self.text else {"chunk_bytes": SHARD}
            litdata.optimize(_Tensor(self.nbytes), list(numbers), str(self.root / name), **how)

    def _of(self, name: str, shuffle: bool) -> Any:
        import litdata

        loader = litdata.TokensLoader(self.nbytes // 2) if self.text else None
        return litdata.StreamingDataset(str(self.root / name), item_loader=loader, shuffle=shuffle, drop_last=False)

    def open(self, task: str) -> Any:
        import litdata

        if task == "mixture":
            return litdata.CombinedStreamingDataset([self._of(name, True) for name in NAMES], weights=list(SHARES), iterate_over_all=False)
        return self._of("all", task == "shuffled")

    def epoch(self, opened: Any) -> Iterator[Any]:
        return map(methodcaller("numpy"), opened)

    def resume(self) -> Iterator[Any]:
        opened = self._of("all", True)
        opened.load_state_dict(opened.state_dict(int(self.n * 0.9), 0, 1))
        return self.epoch(opened)


class _Tensor:
    """What litdata's optimize calls in its process."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def __call__(self, i: int) -> Any:
        import torch

        return torch.from_numpy(sample(i, self.nbytes).view(np.int16))


class Energon(Side):
    """WebDataset tars with its indexes, as crude samples, undecoded; shuffle buffer of 1,000 and runs of 100, as its documents show."""

    def write(self) -> None:
        import subprocess
        import tarfile
        from io import BytesIO

        for name, numbers in [*zip(NAMES, parts(self.n), strict=True), ("all", range(self.n))]:
            (self.root / name).mkdir(parents=True)
            each = SHARD // (self.nbytes + 1024)
            for k in range(0, len(numbers), each):
                with tarfile.open(self.root / name / f"{k // each:06}.tar", "w") as tar:
                    for i in numbers[k : k + each]:
                        info = tarfile.TarInfo(f"{i:08}.bin")
                        info.size = self.nbytes
                        tar.addfile(info, BytesIO(sample(i, self.nbytes).tobytes()))
            command = [sys.executable, "-m", "megatron.energon.cli.main", "prepare", "--non-interactive", "--no-progress", "--split-ratio", "1,0,0"]
            command += ["--sample-type", "CrudeWebdataset", "--num-workers", "1", str(self.root / name)]
            subprocess.run(command, check=True, stdout=sys.stderr)
        blend = "".join(f"      - {{weight: {share}, path: {name}}}\n" for name, share in zip(NAMES, SHARES, strict=True))
        text = f"__module__: megatron.energon\n__class__: MetadatasetV2\nsplits:\n  train:\n    blend:\n{blend}"
        (self.root / "blend.yaml").write_text(text)

    def open(self, task: str) -> Any:
        return task

    def loader(self, task: str) -> Any:
        """energon's loader for a task."""
        from megatron import energon

        @energon.stateless
        def cook(found: Any) -> Any:
            return found

        class Encoder(energon.DefaultTaskEncoder):  # type: ignore[misc,name-defined]
            decoder = None
            cookers = [energon.Cooker(cook)]

        config = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
        path = self.root / ("blend.yaml" if task == "mixture" else "all")
        common = {"worker_config": config, "batch_size": None, "task_encoder": Encoder()}
        if task == "sequential":
            made = energon.get_val_dataset(path, split_part="train", **common)
        else:
            made = energon.get_train_dataset(path, shuffle_buffer_size=1000, max_samples_per_sequence=100, **common)
        return energon.get_savable_loader(made)

    def epoch(self, opened: Any) -> Iterator[Any]:
        return map(itemgetter("bin"), islice(self.loader(opened), self.n))  # a loader is for one pass over a finite dataset

    def resume(self) -> Iterator[Any]:
        import torch

        state, opened = self.root / "state.pt", self.loader("shuffled")
        if not state.exists():
            for _ in islice(opened, int(self.n * 0.9)):
                pass
            torch.save(opened.save_state_rank(), state)
            os._exit(0)
        began.reset()
        opened = self.loader("shuffled")
        opened.restore_state_rank(torch.load(state, weights_only=False))
        return map(itemgetter("bin"), opened)


class Ours(Side):
    """An encoded dataset in written order, and two plans of it: one source, and three."""

    def write(self) -> None:
        from benchmarks.reader_data import write

        write(self.root, self.nbytes, parts(self.n), sample)

    def open(self, task: str) -> Any:
        from mixtures.samples import Samples

        return Samples(str(self.root / {"sequential": "all", "shuffled": "shuffled", "mixture": "mixture"}[task]))

    def epoch(self, opened: Any) -> Iterator[Any]:
        return chain.from_iterable(map(itemgetter(2), map(itemgetter(0), opened.read())))  # every array of every sample

    def resume(self) -> Iterator[Any]:
        from mixtures.samples import position_of

        opened = self.open("shuffled")
        return (found.arrays[0] for found, _ in opened.read(position_of(int(len(opened) * 0.9))))


SIDES: dict[str, type[Side]] = {
    "ours": Ours,
    "limit": Limit,
    "webdataset": WebDataset,
    "streaming": Streaming,
    "litdata": LitData,
    "energon": Energon,
}
TASKS = ("sequential", "shuffled", "mixture")


class Clock:
    """Processor seconds of this process and of children that have ended, and wall seconds, since `reset`."""

    def reset(self) -> None:
        self._began = self._now()

    def _now(self) -> tuple[float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime, time.perf_counter()

    def took(self) -> tuple[float, float]:
        """(processor, wall)"""
        return self._now()[0] - self._began[0], self._now()[1] - self._began[1]


began = Clock()


def passes(side: Side, task: str, seconds: float) -> dict[str, Any]:
    """Samples a processor second of a task, and the sum of all of the uncounted pass."""
    opened, clock, rates = side.open(task), Clock(), list[float]()
    total: int | None = 0
    spent, count = 0.0, 0
    one_pass: Callable[[], int]
    if isinstance(side, Limit):

        def one_pass() -> int:
            nonlocal total
            clock.reset()
            total = side.loop(opened) % (1 << 64)
            return side.n

    else:

        def one_pass() -> int:
            nonlocal total
            given = side.epoch(opened)
            first, n, rest, left = touch(next(given)), 0, 0, 1
            clock.reset()
            while left and clock.took()[0] < LONGEST:
                left = 0
                for left, payload in enumerate(islice(given, 2048), 1):  # noqa: B007
                    rest += touch(payload)
                n += left
            total = None if left else (first + rest) % (1 << 64)
            return n

    while spent < seconds or len(rates) < 2:
        n = one_pass()
        took = clock.took()[0]
        spent, rates, count = spent + took, [*rates, n / took], n
        if len(rates) > 1:
            continue
        spent = 0.0  # the first pass is warming up
    return {"rate": float(np.median(rates[1:])), "passes": len(rates) - 1, "samples": count, "sum": total}


def answer() -> None:
    name, job, data, seconds = sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    side = SIDES[name](data, name)
    if job == "write":
        side.write()
        said: dict[str, Any] = {}
    elif job == "resume":
        __import__({"ours": "mixtures.samples", "webdataset": "webdataset", "litdata": "litdata", "energon": "megatron.energon"}.get(name, "torch"))
        if isinstance(side, Streaming):
            side._import()
        began.reset()
        given = side.resume()
        touch(next(given))
        cpu, wall = began.took()
        said = {"cpu_s": cpu, "wall_s": wall}
    else:
        said = {task: passes(side, task, seconds) for task in TASKS}
    print(json.dumps(said), file=out, flush=True)
    os._exit(0)  # threads and shared memory of some sides wait for each other otherwise


if __name__ == "__main__":
    answer()
