"""What every process of a job takes of memory, while it runs: the meter of benchmarks/memory.py. Linux only: it reads /proc.

A job here is a command and all that descends from it: the driver, Ray's own processes and workers, guarded decoding children. Of each
process three figures:

    rss     the kernel's own high-water mark (VmHWM), so that no peak between two looks is missed: everything mapped and in memory, pages of
            files and of Ray's shared store included. The strictest figure, and the one compared with the cap
    private what would be free again if the process ended (private clean and dirty pages of smaps_rollup)
    pss     private, and its share of what several processes map; these add up over a job

and over time, by phase of the job, the largest process's rss: is it flat, or does it grow with what has passed through?
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVERY_S = 0.25
_FIELDS = {"Pss:": "pss", "Private_Clean:": "private", "Private_Dirty:": "private"}


@dataclass
class Seen:
    """One process: peaks in MB, what it is, how long it was there."""

    what: str
    rss: float = 0.0
    pss: float = 0.0
    private: float = 0.0
    looks: int = 0


@dataclass
class Watch:
    """What was seen of a job. `over_time` holds (phase, seconds, rss of the largest process then, pss of all), in MB."""

    processes: dict[tuple[int, int], Seen] = field(default_factory=dict)
    over_time: list[tuple[str, float, float, float]] = field(default_factory=list)
    seconds: float = 0.0
    status: int = 0
    stderr: str = ""

    @property
    def worst(self) -> Seen:
        """The process with the highest mark."""
        return max(self.processes.values(), key=lambda p: p.rss)

    def by_kind(self) -> dict[str, dict[str, float]]:
        """Kind of process → how many there were, and the worst of them in MB."""
        out: dict[str, dict[str, float]] = {}
        for p in self.processes.values():
            row = out.setdefault(p.what, {"processes": 0, "rss": 0.0, "pss": 0.0, "private": 0.0})
            row["processes"] += 1
            for name in ("rss", "pss", "private"):
                row[name] = round(max(row[name], getattr(p, name)), 1)
        return dict(sorted(out.items()))

    def phases(self) -> dict[str, dict[str, Any]]:
        """Phase → its seconds, the largest rss of any one process in each tenth of them, and the second half's peak ÷ the first's (about 1: flat)."""
        out: dict[str, dict[str, Any]] = {}
        for name in dict.fromkeys(phase for phase, *_ in self.over_time):
            looks = [(at, rss) for phase, at, rss, _ in self.over_time if phase == name]
            first, span = looks[0][0], max(looks[-1][0] - looks[0][0], 1e-9)
            tenths = [0.0] * 10
            for at, rss in looks:
                place = min(9, int(10 * (at - first) / span))
                tenths[place] = round(max(tenths[place], rss), 1)
            ratio = round(max(tenths[5:]) / max(*tenths[:5], 1e-9), 3)
            out[name] = {"seconds": round(span, 1), "largest_rss_by_tenth_mb": tenths, "second_half_to_first": ratio}
        return out

    @property
    def together(self) -> float:
        """The highest pss of the whole job, MB."""
        return max((pss for *_, pss in self.over_time), default=0.0)


def watched(argv: list[str], cwd: Path, phase: Callable[[], str], every_s: float = EVERY_S) -> Watch:
    """Run a command to its end and look at all its processes meanwhile; `phase` says what it is at."""
    seen, began = Watch(), time.monotonic()
    with subprocess.Popen(argv, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as job:
        said: list[str] = []
        assert job.stderr is not None
        reader = threading.Thread(target=lambda pipe: said.append(pipe.read()[-4000:]), args=(job.stderr,))
        reader.start()
        try:
            while job.poll() is None:
                _look(job.pid, seen, phase(), time.monotonic() - began)
                time.sleep(every_s)
        except BaseException:  # stopped: the job is not left behind
            job.terminate()
            raise
        reader.join()
    seen.seconds, seen.status, seen.stderr = time.monotonic() - began, job.returncode, "".join(said)
    return seen


def _look(top: int, seen: Watch, phase: str, at: float) -> None:
    largest = together = 0.0
    for pid, start in _descendants(top):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            what = _what(pid)
        except OSError:  # it ended meanwhile
            continue
        now: dict[str, float] = defaultdict(float)
        for line in rollup.splitlines():
            name = _FIELDS.get(line.split(None, 1)[0])
            if name:
                now[name] += int(line.split()[1]) / 1024
        p = seen.processes.setdefault((pid, start), Seen(what))
        p.what, p.looks = what, p.looks + 1  # a worker of Ray gets its name after a while
        p.rss, p.pss, p.private = max(p.rss, _kb(status, "VmHWM:")), max(p.pss, now["pss"]), max(p.private, now["private"])
        largest, together = max(largest, _kb(status, "VmRSS:")), together + now["pss"]
    if largest:
        seen.over_time.append((phase, at, largest, together))


def most_held_mb() -> float:
    """The high-water mark of this process. Not getrusage's ru_maxrss: that outlives `exec`, so it begins with the peak of what started us."""
    return _kb(Path("/proc/self/status").read_text(), "VmHWM:")


def _kb(status: str, name: str) -> float:
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(name)), 0.0)


def _descendants(top: int) -> list[tuple[int, int]]:
    """(pid, start time) of a process and all below it; the start time tells a reused pid apart."""
    below: dict[int, list[int]] = defaultdict(list)
    start: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            rest = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        below[int(rest[1])].append(int(name))
        start[int(name)] = int(rest[19])
    out, todo = [], [top]
    while todo:
        pid = todo.pop()
        if pid in start:
            out.append((pid, start[pid]))
            todo += below[pid]
    return out


def _what(pid: int) -> str:
    words = [w.decode(errors="replace") for w in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    line = " ".join(words)
    if words[0].startswith("ray::"):
        return "ray's own" if words[0].startswith(("ray::IDLE", "ray::_StatsActor", "ray::Autoscaling")) else "worker on Ray"
    if "pipelines.media" in line and "serve" in line:  # how child.py starts one
        return "decoding child"
    if "/ray/" in words[0] or "/ray/" in line or "ray-" in line or "raylet" in line:
        return "ray's own"
    return "job"


def facts(seen: Watch) -> dict[str, Any]:
    """What is reported of one job, MB and seconds."""
    worst = seen.worst
    return {
        "worst": {"what": worst.what, "rss": round(worst.rss, 1), "pss": round(worst.pss, 1), "private": round(worst.private, 1)},
        "by_kind": seen.by_kind(),
        "all_pss_mb": round(seen.together, 1),
        "phases": seen.phases(),
        "looks": len(seen.over_time),
        "seconds": round(seen.seconds, 1),
    }
