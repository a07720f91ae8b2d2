"""Reading samples: headwater beside WebDataset, MosaicML Streaming, LitData and Megatron Energon, and beside a bare loop over a mapped file.

    python -m benchmarks.reader --json

The same samples for all: 12,288 of 2 KiB (as 1,024 tokens of two bytes), and 2,560 images of 256 x 1,152 bf16 latents (589,824 bytes each, 1.5 GB a
side, in the page cache). Every side hands each sample over as its bytes, tokens or bits, undecoded, and the same function sums all of them. Tasks:
in written order, shuffled, three sources mixed 50 : 30 : 20. A side is a process of its own in a venv of its own, without worker processes; it opens,
goes through each task once uncounted (our side's files are verified then), and then for some passes, each counted from its first sample to its
last, in processor time of all threads. `ratio` is against the best peer of that task, median of runs in turns. `resume` is a fresh process: open, go
to 90 % of a shuffled epoch, one sample; imports do not count (WebDataset has no state: it is given the tars that are left, unshuffled).

`reader.*.limit` compares with mmap + offsets + touch, the bare Python loop, in the same kind of order; the least of the three tasks.
Needs peers.txt's venvs; `--toy` makes it small and leaves out the peers that are not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers import installed, python_of, versions
from benchmarks.reader_sides import SIDES, TASKS

ROOT = Path(__file__).resolve().parent.parent
PEERS = {"webdataset": "webdataset", "streaming": "mosaicml-streaming", "litdata": "litdata", "energon": "megatron-energon"}
SIZES = {"text": (12_288, 2_048, 2.0, 0.6), "latents": (2_560, 589_824, 1.2, 0.8)}  # samples, bytes each, bar against peers, against the limit
TOY = {"text": (96, 2_048), "latents": (24, 12_288)}
RESUME_MS = 100.0
RUNS, SECONDS = 3, 0.4


class Comparison:
    """One size of samples in a folder that holds every side's copy."""

    def __init__(self, data: Path, n: int, nbytes: int, peers: list[str], seconds: float) -> None:
        self.data, self.n, self.nbytes, self.seconds = data, n, nbytes, seconds
        self.sides = ["ours", "limit", *peers]
        self.taken: list[dict[str, Any]] = []
        data.mkdir(parents=True, exist_ok=True)
        (data / "about.json").write_text(json.dumps({"n": n, "nbytes": nbytes}))
        for side in self.sides:
            if not (data / side).exists():
                self.ask(side, "write")

    def ask(self, side: str, job: str) -> dict[str, Any]:
        """A job in a process of its own."""
        python = sys.executable if side in ("ours", "limit") else python_of(side)
        command = [python, str(ROOT / "benchmarks" / "reader_sides.py"), side, job, str(self.data), str(self.seconds)]
        cache = str(self.data.parent / "cache")
        env = {**os.environ, "HEADWATER_CACHE": cache, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        env |= {"PYTHONPATH": str(ROOT)} if side in ("ours", "limit") else {}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
        return dict(json.loads(done.stdout or "{}"))

    def measure(self, runs: int) -> None:
        """Every side in turn, `runs` times; each run begins with another side."""
        for side in self.sides[2:]:
            if side == "energon":
                self.ask(side, "resume")  # reads 90 % once to have a state
        self.ask("ours", "resume")  # hashes what the first sample lies in, once a machine
        for run in range(1, runs + 1):
            for side in self.sides[run % len(self.sides) :] + self.sides[: run % len(self.sides)]:
                self.taken.append({"run": run, "which": side, "tasks": self.ask(side, "read")})
                if side != "limit":
                    self.taken[-1]["resume"] = self.ask(side, "resume")

    def of(self, side: str, task: str) -> list[float]:
        """Samples a processor second of each run."""
        return [t["tasks"][task]["rate"] for t in self.taken if t["which"] == side]

    def started(self, side: str, key: str) -> float:
        """Milliseconds to the first sample, median."""
        return round(1000 * statistics.median(t["resume"][key] for t in self.taken if t["which"] == side), 1)

    def rows(self, name: str, bar: float, limit_bar: float, common: dict[str, Any]) -> list[dict[str, Any]]:
        """What machines read: three tasks against the best peer, the limit, and resuming."""
        peers, out = self.sides[2:], list[dict[str, Any]]()
        # The limit and we read every byte in every task; a peer does where it draws none twice.
        sums = {t["tasks"][task]["sum"] for t in self.taken for task in TASKS if t["which"] in ("ours", "limit")}
        same = len(sums) == 1 and all(t["tasks"]["sequential"]["sum"] in {*sums, None} for t in self.taken)  # None: it did not get through
        facts = {"samples": self.n, "bytes": self.nbytes, "same_bytes_read": same}
        common = {**common, "runs": self.taken, "unit": "samples per processor second"}
        for task in TASKS:
            rates = {side: round(statistics.median(self.of(side, task))) for side in self.sides}
            best = max(peers, key=lambda side, rates=rates: rates[side], default=None)  # type: ignore[misc]
            if best is None:
                continue
            ratio = statistics.median(a / b for a, b in zip(self.of("ours", task), self.of(best, task), strict=True))
            row = {"name": f"reader.{name}.{task}", "ours": rates["ours"], "peer": rates[best], "ratio": round(ratio, 3), "bar": bar}
            gb = round(rates["ours"] * self.nbytes / 1e9, 2)
            out.append({**row, "ok": same and ratio >= bar, "facts": {**facts, "best": best, "rates": rates, "ours_gb_a_second": gb}, **common})
        shares = {
            task: statistics.median(a / b for a, b in zip(self.of("ours", task), self.of("limit", task), strict=True)) for task in TASKS
        }
        least = min(shares, key=lambda task: shares[task])
        row = {side: round(statistics.median(self.of(by, least))) for side, by in (("ours", "ours"), ("peer", "limit"))}
        said = {**facts, "task": least, "shares": {task: round(share, 3) for task, share in shares.items()}}
        ok = same and shares[least] >= limit_bar
        out.append({"name": f"reader.{name}.limit", **row, "ratio": round(shares[least], 3), "bar": limit_bar, "ok": ok, "facts": said, **common})
        times = {side: {key: self.started(side, key) for key in ("cpu_s", "wall_s")} for side in self.sides if side != "limit"}
        mine = times["ours"]["cpu_s"]
        theirs = min((times[side]["cpu_s"] for side in peers), default=RESUME_MS)
        row = {"name": f"reader.{name}.resume", "ours": mine, "peer": theirs, "ratio": round(theirs / mine, 3), "bar": f"{RESUME_MS:.0f} ms"}
        said = {**facts, "milliseconds": times}
        common |= {"unit": "ms of processor time to the first sample at 90 %"}
        return [*out, {**row, "ok": mine <= RESUME_MS, "facts": said, **common}]


def measure(runs: int, seconds: float, toy: bool, names: list[str], data: Path | None = None) -> list[dict[str, Any]]:
    """Five rows a size."""
    peers = [side for side in PEERS if installed(side)] if toy else list(PEERS)
    said = {package: versions(side, [package])[package] for side, package in PEERS.items() if side in peers}
    said |= {name: version(name) for name in ("numpy", "pyarrow")} | {"python": platform.python_version()}
    out = []
    with tempfile.TemporaryDirectory(prefix="benchmark-reader-") as scratch:
        for name in names:
            n, nbytes, bar, limit_bar = SIZES[name]
            n, nbytes = TOY[name] if toy else (n, nbytes)
            comparison = Comparison((data or Path(scratch)) / name, n, nbytes, peers, seconds)
            comparison.measure(runs)
            out += comparison.rows(name, bar, limit_bar, {"versions": said})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one list on stdout, nothing else")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="processor seconds a task is read for, at least")
    parser.add_argument("--toy", action="store_true", help="few and small samples, and only peers that are installed")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--data", type=Path, help="keep every side's files here and use them again (10 GB)")
    args = parser.parse_args()
    assert set(SIDES) == {"ours", "limit", *PEERS}
    found = measure(args.runs, args.seconds, args.toy, args.sizes, args.data)
    if args.json:
        print(json.dumps(found))
        return
    for r in found:
        facts = {k: v for k, v in r["facts"].items() if k in ("best", "rates", "shares", "milliseconds")}
        met = "ok" if r["ok"] else "MISSED"
        print(f"{r['name']}: {r['ours']:,} · peer {r['peer']:,} {r['unit']} · ratio {r['ratio']} · bar {r['bar']} · {met} · {facts}")


if __name__ == "__main__":
    main()
