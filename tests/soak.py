"""Random kills over every stage: `python -m tests.soak --kills 50`.

Run the tiny journey once undisturbed, in process. Then, in a second place, run each stage again and again on Ray: start the same command as the
leader of a process group of its own, wait a while, `kill -9` everything it started (Ray's workers sit in groups of their own and are found by a
variable in their environment), and start the same command again. In the end every stage is left to finish, and every artifact must equal the
undisturbed one's to the hash: shards, plan, weights. The seed is printed; a failing run is repeated with it.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from pipelines.format import storage
from pipelines.format.document import sha256_hex
from tests import tiny

MARK = "HEADWATER_SOAK"


def start(run: tiny.Run, mark: str) -> subprocess.Popen[bytes]:
    """The command of a stage; its output goes to a file beside the config."""
    return launch(["pipelines.commands", *run.argv()], run.config + ".log", mark)


def launch(module: list[str], log: str, mark: str) -> subprocess.Popen[bytes]:
    """A Python module with its arguments, in a session and process group of its own."""
    env = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"}
    with open(log, "ab") as file:
        return subprocess.Popen([sys.executable, "-m", *module], env=env, stdout=file, stderr=file, start_new_session=True)


def marked(mark: str) -> list[int]:
    """Every living process that carries our mark in its environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # gone, or not ours
                continue
    return found


def kill_all(child: subprocess.Popen[bytes], mark: str) -> None:
    """kill -9 to the group and to all that it started, until nothing of it lives."""
    for _ in range(200):
        left = marked(mark)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        child.poll()
        if not left and child.returncode is not None:
            return
        time.sleep(0.05)
    raise RuntimeError(f"processes survived: {marked(mark)}")


def finish(run: tiny.Run, timeout: float = 600) -> float:
    """Run to the end; returns the seconds it took. A failure shows the end of the log."""
    return waited(lambda mark: start(run, mark), run.config + ".log", timeout)


def waited(begin: Callable[[str], subprocess.Popen[bytes]], log: str, timeout: float = 600) -> float:
    """Begin, wait for the end and reap what is left; returns the seconds it took."""
    mark, began = uuid.uuid4().hex, time.monotonic()
    child = begin(mark)
    try:
        status = child.wait(timeout)
    finally:
        kill_all(child, mark)
    if status != 0:
        raise RuntimeError(f"{child.args!r} ended with {status}:\n{Path(log).read_text()[-3000:]}")
    return time.monotonic() - began


def killed(begin: Callable[[str], subprocess.Popen[bytes]], wait: float) -> tuple[float, bool]:
    """Begin, and kill -9 all of it after `wait` seconds. Returns when it was killed, and whether it had ended by itself."""
    mark, began = uuid.uuid4().hex, time.monotonic()
    child = begin(mark)
    while child.poll() is None and time.monotonic() - began < wait:
        time.sleep(0.02)
    ended = child.poll() is not None
    kill_all(child, mark)
    return time.monotonic() - began, ended


def digest(output: str) -> dict[str, str]:
    """What must be equal: the hash of every committed file that bears no clock and no path."""
    out = {}
    for path, _, _ in storage.listing(output):
        if path.endswith((".tar", ".bin", ".parquet", ".safetensors", "tokenizer.json")) and not path.startswith((storage.TMP, "checkpoints")):
            out[path] = sha256_hex(storage.read(storage.join(output, path)))
    card = next(f"{output}/{name}" for name in ("manifest.json", "plan.json", "run.json", "ablation.json") if storage.exists(f"{output}/{name}"))
    out["fingerprint"] = storage.read_json(card)["fingerprint"]
    return out


def soak(folder: Path, kills: int, seed: int, kinds: tuple[str, ...] = tiny.KINDS, spared: tuple[str, ...] = ()) -> list[str]:
    """Spread the kills over the stages (not those that are `spared`). Returns the differences found; none is what is hoped for."""
    random_ = random.Random(seed)
    golden = tiny.write(folder / "golden-yaml", str(folder / "golden"), "local", kinds)
    for run in golden:
        print(f"undisturbed {run.stage:14s} {finish(run):6.1f} s  {run.output.rsplit('/', 1)[-1]}", flush=True)
    victims = tiny.write(folder / "soak-yaml", str(folder / "soak"), "ray", kinds)
    hunted = [i for i, run in enumerate(victims) if run.stage not in spared]
    wrong = []
    for i, (run, twin) in enumerate(zip(victims, golden, strict=True)):
        wrong += _one(run, twin, sum(hunted[k % len(hunted)] == i for k in range(kills)), random_)
    return wrong


def _one(run: tiny.Run, twin: tiny.Run, kills: int, random_: random.Random) -> list[str]:
    """Kill one stage so many times, let it finish, and compare. The first run says how long it takes; kills fall anywhere in that time."""
    long = 12.0  # seconds: start-up, work and shutdown of a small stage on Ray; grows to what is seen
    for _ in range(kills):
        after, ended = killed(lambda mark: start(run, mark), random_.uniform(0, long * 1.1))
        long = min(long, after) if ended else long
        print(f"killed {run.stage:14s} after {after:5.1f} s{'  (had ended)' if ended else ''}", flush=True)
    finish(run)
    mine, theirs = digest(run.output), digest(twin.output)
    leftovers = len(set(mine) - set(theirs))  # files of lost attempts are rubbish for gc; no card names them, as the fingerprint shows
    differing = [k for k in theirs if mine.get(k) != theirs[k]]
    print(f"DIFFERS {differing}" if differing else f"equal  {run.stage:14s} {len(theirs)} hashes, {leftovers} leftovers", flush=True)
    return [f"{run.stage} {run.output}: {k}" for k in differing]


def main() -> int:
    """Exit status 0 when nothing differed."""
    parser = argparse.ArgumentParser(description="kill -9 at random moments over all stages; every artifact must equal an undisturbed one")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--dir", default=None)
    args = parser.parse_args()
    import tempfile

    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    folder = Path(args.dir or tempfile.mkdtemp(prefix="headwater-soak-"))
    print(f"seed {seed}, in {folder}", flush=True)
    wrong = soak(folder, args.kills, seed)
    print(f"{args.kills} kills: {wrong or 'all artifacts equal the undisturbed ones'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
