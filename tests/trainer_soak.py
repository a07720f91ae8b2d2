"""Kills inside saves: `python -m tests.trainer_soak --trials 50`.

A small run with experts, their biases and a moving average is trained once undisturbed, by one process and by two. Each trial goes on from where
the one before it died and is killed with -9 inside a save: at a step of storage drawn by the seed (a write, a rename, the marker), or some
milliseconds after the save began; of two ranks a drawn one dies, and its launcher ends the other. Then the newest complete checkpoint must be
found, whatever is unfinished must be named, and a copy of the folder must go on for 50 steps whose metrics lines are to the byte those of the
undisturbed run; so must all lines before them. The seed is printed. Processes are forked from one that has loaded torch and run nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
AFTER = 50  # steps that must be equal
MODEL = {"layers": 2, "width": 32, "heads": 2, "norm": "layer", "activation": "relu2", "embedding_std": 0.3, "ffn": "moe",
         "experts": {"count": 8, "top_k": 3, "granularity": 8, "balance": "bias"}}  # fmt: skip
CLOCK = ("tokens_per_s", "data_wait", "step_s", "mfu", "memory_gib", "save_s")  # trainer.meter.CLOCK, without importing torch here


def forked(*jobs: Callable[[], Any]) -> list[int]:
    """Run each job in a process of its own at the same time; their statuses (-9 for killed). When one was killed, the others are."""
    pids = []
    for job in jobs:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                job()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        pids.append(pid)
    statuses = {}
    while len(statuses) < len(pids):
        pid, status = os.waitpid(-1, 0)
        statuses[pid] = os.waitstatus_to_exitcode(status)
        if statuses[pid] != 0:
            for other in pids:
                if other not in statuses:
                    os.kill(other, signal.SIGKILL)
    return [statuses[pid] for pid in pids]


class StopAfter(threading.Event):
    """Set after so many looks: the loop looks once a step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


def rank_job(
    plan: str, root: Path, rank: int, world: int, port: int, every: int, kill: dict[str, Any] | None, stop: int | None
) -> Callable[[], None]:
    """Train, as one rank, until the end, a stop, or the kill that was drawn. Events go to root.events."""

    def job() -> None:
        import toyplan

        from pipelines.format.errors import Stopped
        from trainer.loop import train

        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if kill is not None and kill["rank"] == rank:
            die_at(kill["save"], kill["step"], kill["kinds"], kill["delay"])
        steps, said = count_steps() if kill is None else {}, []
        try:
            train(toyplan.run(plan, root, model={"transfusion": MODEL}, ema={"decay": 0.99}, checkpoint_every=every),
                  log=lambda event, **fields: said.append([event, fields]), stop=StopAfter(stop) if stop else None)  # fmt: skip
        except Stopped:
            pass
        finally:
            Path(f"{root}.steps-{rank}").write_text(json.dumps(steps))
            if rank == 0:
                Path(f"{root}.events").write_text(json.dumps(said, default=str))

    return job


def die_at(save: int, step: int, kinds: str, delay: float | None) -> None:
    """Arrange for this process's death in its save number `save`: at storage's step number `step` of a kind, or `delay` seconds after the first."""
    from pipelines.format import storage

    seen = {"saves": set(), "steps": 0}

    def at(name: str) -> None:
        thread = threading.current_thread()
        if not thread.name.startswith("checkpoint"):
            return
        seen["saves"].add(thread.name)
        if len(seen["saves"]) != save:
            return
        if delay is not None and seen["steps"] == 0:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        seen["steps"] += name != "write" or kinds == "all"
        if delay is None and seen["steps"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    storage.failpoint = at


def count_steps() -> dict[str, int]:
    """Storage's steps in this process's saves, by thread: all of them, and those that are not writes."""
    from pipelines.format import storage

    counts: dict[str, int] = {}

    def at(name: str) -> None:
        thread = threading.current_thread().name
        if thread.startswith("checkpoint"):
            for key in (f"{thread} all", f"{thread} turns") if name != "write" else (f"{thread} all",):
                counts[key] = counts.get(key, 0) + 1

    storage.failpoint = at
    return counts


def launched(plan: str, root: Path, world: int, every: int, kill: dict[str, Any] | None = None, stop: int | None = None) -> list[int]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return forked(*(rank_job(plan, root, rank, world, port, every, kill, stop) for rank in range(world)))


def lines(root: Path) -> list[dict[str, Any]]:
    made = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in made]


def drawn_kill(drawn: random.Random, golden: Path, world: int) -> dict[str, Any]:
    """Which rank dies, in which of its saves, where: at any of the steps that an undisturbed save takes, or at one that is not a write."""
    rank, kinds = drawn.randrange(world), drawn.choice(("all", "turns", "turns"))
    taken = [n for name, n in json.loads(Path(f"{golden}.steps-{rank}").read_text()).items() if name.endswith(kinds)]
    delay = drawn.uniform(0, 0.1) if drawn.random() < 0.3 else None
    return {"rank": rank, "save": drawn.randint(1, 2), "step": drawn.randint(1, min(taken)), "kinds": kinds, "delay": delay}


def soak(folder: Path, trials: int, seed: int) -> list[str]:
    """So many kills. Returns what was not as promised; nothing is what is hoped for."""
    plan = str(folder / "plan")
    assert forked(lambda: __import__("toyplan").make(folder, tokens=9_000 if trials > 5 else 4_500, n=400)) == [0]
    golden: dict[int, list[dict[str, Any]]] = {}
    for world in (1, 2):
        assert launched(plan, folder / f"golden-{world}", world, every=60) == [0] * world
        golden[world] = lines(folder / f"golden-{world}")
    print(f"{len(golden[1])} steps undisturbed", flush=True)
    wrong: list[str] = []
    counts = {"inside": 0, "unfinished": 0, "two": 0, "compared": 0}
    for i in range(trials):
        drawn = random.Random(f"{seed}-{i}")
        world = drawn.choice((1, 1, 2))
        problems = trial(plan, folder / f"run-{world}", world, golden[world], drawn, counts)
        wrong += [f"trial {i}: {p}" for p in problems]
        print(f"{'WRONG' if problems else 'equal'}  trial {i}, {world} ranks", *problems, flush=True)
    good = trials - len({w.split(":")[0] for w in wrong})
    print(f"{good} of {trials} as promised: {counts['inside']} killed inside a save ({counts['two']} of two ranks), "
          f"{counts['unfinished']} left an unfinished folder, {counts['compared']} lines compared")  # fmt: skip
    return wrong


def trial(plan: str, root: Path, world: int, golden: list[dict[str, Any]], drawn: random.Random, counts: dict[str, int]) -> list[str]:
    from trainer import checkpoint

    found, _ = checkpoint.newest(str(root))
    if found is not None and found.step > len(golden) - AFTER - 30:
        shutil.rmtree(root)
    if -signal.SIGKILL not in launched(plan, root, world, drawn.randint(3, 7), drawn_kill(drawn, root.with_name(f"golden-{world}"), world)):
        return ["the kill did not come"]
    found, passed = checkpoint.newest(str(root))
    counts["inside"] += 1
    counts["two"] += world == 2
    counts["unfinished"] += bool(passed)
    copy = root.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root, copy)
    if launched(plan, copy, world, 1000, stop=AFTER) != [0] * world:
        return ["going on failed"]
    said = json.loads(Path(f"{copy}.events").read_text())
    problems = []
    first = next((f["step"] for e, f in said if e == "resumed"), 0)
    if first != (found.step if found is not None else 0):
        problems.append(f"went on from {first}, the newest complete checkpoint is {found and found.step}")
    if left := list(copy.glob("_tmp/*")):
        problems.append(f"scratch of the killed save is left: {left}")
    named = [f["path"].rpartition("/")[2] for e, f in said if e == "incomplete checkpoint passed over"]
    if named != [p.rpartition("/")[2] for p in passed]:
        problems.append(f"named {named}, unfinished are {passed}")
    made = lines(copy)
    counts["compared"] += len(made)
    if len(made) != first + AFTER or made != golden[: len(made)]:
        problems.append(f"{len(made)} lines after going on from {first}, first difference at "
                        f"{next((n for n, (a, b) in enumerate(zip(made, golden, strict=False)) if a != b), None)}")  # fmt: skip
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.path.insert(0, str(REPO / "tests" / "trainer"))
    import toyplan  # noqa: F401 - loaded once, before the forks

    import trainer.loop  # noqa: F401

    print(f"seed {args.seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        wrong = soak(Path(folder), args.trials, args.seed)
    print("\n".join([*wrong, f"{time.monotonic() - began:.0f} s"]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
