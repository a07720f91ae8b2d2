"""Random kills and changes of world over the stream: `python -m tests.stream_soak --trials 100`.

A plan is read once undisturbed, one rank, no workers. Each trial reads it again in two or three runs of random world size (1, 2, 3, 4, 8), workers
(0 to 4) and depth. Every run but the last is stopped at a random step, by dropping its streams or, where ranks are processes of their own, by
kill -9; the next goes on from a checkpoint at or before that step. While a run goes, its worker processes are killed at random. In the end the
global sequence of sample ids must be the undisturbed one, every row the same to the byte, the ledger without a difference, and no process left.
The seed is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from hashlib import blake2b
from pathlib import Path

from mixtures.plan import Plan
from trainer.batch import Batch
from trainer.ledger import Seen, check
from trainer.stream import Reading, Stream

REPO = Path(__file__).resolve().parents[1]
WORLDS = (1, 2, 3, 4, 8)
PROCESSES = (0, 0, 0, 1, 1, 2, 3, 4)  # workers of a run, all ranks together: two processors have to start them
Rows = dict[int, str]  # by sequence: a hash of all that its row holds


def rows_of(batch: Batch) -> Rows:
    """A hash of everything that stands in each row, by sequence number."""
    found = {}
    for i, seq in enumerate(batch.seq.tolist()):
        if seq >= 0:
            row, digest = batch.rows(i, i + 1), blake2b(digest_size=16)
            for f in fields(row):
                digest.update(getattr(row, f.name).contiguous().numpy().tobytes())
            found[seq] = digest.hexdigest()
    return found


def workers_of(parent: int) -> list[int]:
    """Living worker processes of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(stat[1]) == parent and stat[0] != "Z" and b"trainer.worker" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


class Trial:
    """One plan read in several runs. `problems` is empty where all went as it should."""

    def __init__(self, plan: Plan, batch: int, golden: Rows, drawn: random.Random) -> None:
        self.plan, self.batch, self.golden, self.drawn = plan, batch, golden, drawn
        self.rows: Rows = {}
        self.order: list[int] = []
        self.killed = self.stopped = self.processes = 0
        self.problems: list[str] = []
        self.seen = Seen(len(plan.sources))

    def run(self) -> None:
        """All runs, and the comparison."""
        steps, at, said = -(-self.plan.sequences() // self.batch), 0, []
        for left in reversed(range(self.drawn.randint(2, 3))):
            world = self.drawn.choice(WORLDS)
            stop = steps if not left else self.drawn.randint(at, steps)
            kept = stop if not left else self.drawn.randint(at, stop)  # the checkpoint that the next run finds
            if world <= 2 and left and self.drawn.random() < 0.2:
                made = self._as_processes(world, at, stop)
                self.processes += 1
            else:
                made = self._here(world, at, stop)
            said.append((world, at, kept, stop))
            self.stopped += bool(left)
            for step in range(at, kept):
                found = made[step - at]
                self.order += sorted(found)
                self.rows |= found
            at = kept
        self.problems += [f"runs {said}: {p}" for p in self._differences()]

    def _differences(self) -> list[str]:
        wrong = [] if self.order == list(range(self.plan.sequences())) else [f"sequences were read in the order {self.order}"]
        ids = lambda numbers: [self.plan.record(span).id for n in numbers for span in self.plan.row(n).spans]
        if not wrong and ids(self.order) != ids(range(self.plan.sequences())):
            wrong.append("the sequence of sample ids differs")
        wrong += [f"row {seq} differs from the undisturbed one" for seq in self.golden if self.rows.get(seq) != self.golden[seq]]
        return wrong + ([f"processes left: {left}"] if (left := workers_of(os.getpid())) else [])

    def _here(self, world: int, start: int, stop: int) -> list[Rows]:
        """Ranks in this process, in lock step; those with workers lose some of them on the way."""
        spare, streams = self.drawn.choice(PROCESSES), []
        for rank in self.drawn.sample(range(world), world):
            count = self.drawn.randint(min(spare, 1), spare)
            spare -= count
            reading = Reading(workers=count, depth=self.drawn.randint(1, 6))
            streams.append(iter(Stream(self.plan, self.batch, rank, world, start, reading=reading)))
        made: list[Rows] = []
        seen = Seen(len(self.plan.sources))
        try:
            for step in range(start, stop):
                if (victims := workers_of(os.getpid())) and self.drawn.random() < 0.15:
                    os.kill(self.drawn.choice(victims), signal.SIGKILL)
                    self.killed += 1
                found: Rows = {}
                for stream in streams:
                    batch, position = next(stream)
                    seen.add(batch, position)
                    found |= rows_of(batch)
                    if position != step + 1:
                        self.problems.append(f"position {position} after step {step}")
                made.append(found)
        finally:
            for stream in streams:
                stream.close()  # type: ignore[attr-defined]
        self.problems += check(self.plan, seen, self.batch, start, stop)
        return made

    def _as_processes(self, world: int, start: int, stop: int) -> list[Rows]:
        """Ranks as processes with workers of their own, each killed with -9 at the step where the run ends. Their workers must end with them."""
        made: list[Rows] = [{} for _ in range(stop - start)]
        ranks = []
        for rank in range(world):
            said = json.dumps([self.plan.path, self.batch, rank, world, start, self.drawn.randint(0, 1)])
            ranks.append(subprocess.Popen([sys.executable, "-m", "tests.stream_soak", "--rank", said], stdout=subprocess.PIPE, cwd=REPO))
        orphans: list[int] = []
        try:
            for child in ranks:
                assert child.stdout is not None
                for step in range(stop - start):
                    made[step] |= {int(seq): digest for seq, digest in json.loads(child.stdout.readline()).items()}
                orphans += workers_of(child.pid)
        finally:
            for child in ranks:
                child.kill()
                child.wait()
                assert child.stdout is not None
                child.stdout.close()
        deadline = time.monotonic() + 10
        while (alive := [pid for pid in orphans if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.killed += len(orphans)
        self.problems += [f"workers {alive} outlived their killed rank"] if alive else []
        return made


def rank_process(said: str) -> None:
    """One rank: a line per step, until it is killed."""
    path, batch, rank, world, start, count = json.loads(said)
    for made, _ in Stream(Plan.open(path), batch, rank, world, start, reading=Reading(workers=count)):
        print(json.dumps(rows_of(made)), flush=True)
    time.sleep(60)  # to be killed


def soak(plan: Plan, trials: int, seed: int) -> list[str]:
    """So many trials. Returns the differences found; none is what is hoped for."""
    goldens: dict[int, Rows] = {}
    wrong, counts, began = [], [0, 0, 0], time.monotonic()
    for i in range(trials):
        drawn = random.Random(f"{seed}-{i}")
        batch = drawn.randint(4, 9)
        if batch not in goldens:
            goldens[batch] = {}
            for made, _ in Stream(plan, batch):
                goldens[batch] |= rows_of(made)
        trial = Trial(plan, batch, goldens[batch], drawn)
        trial.run()
        wrong += [f"trial {i}: {p}" for p in trial.problems]
        counts = [a + b for a, b in zip(counts, (trial.killed, trial.stopped, trial.processes), strict=True)]
        print(f"{'DIFFERS' if trial.problems else 'equal'}  trial {i}", flush=True)
    killed, stopped, processes = counts
    print(f"{trials - len({w.split(':')[0] for w in wrong})} of {trials} equal; {stopped} runs stopped ({processes} with kill -9 of ranks), "
          f"{killed} workers killed, {time.monotonic() - began:.0f} s")  # fmt: skip
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        rank_process(args.rank)
        return 0
    sys.path.insert(0, str(REPO / "tests" / "trainer"))
    import toyplan

    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        wrong = soak(Plan.open(toyplan.make(Path(folder), tokens=900, n=60)), args.trials, args.seed)
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
