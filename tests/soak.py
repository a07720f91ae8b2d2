"""Random kills over every stage: `python -m tests.soak --kills 50`.

Run the tiny journey once undisturbed. Then, in a second place, run each stage again and again: start the same command as the leader of a process
group of its own, wait a random while, `kill -9` everything it started (Ray's workers sit in groups of their own and are found by a variable in their
environment), and start the same command again. In the end every stage is left to finish, and every artifact must equal the undisturbed one's to the
hash: shards, plan, weights. The seed is printed; a failing run is repeated with it.
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
from pathlib import Path

from pipelines.format import storage
from pipelines.format.document import sha256_hex
from tests import tiny

MARK = "HEADWATER_SOAK"


def start(run: tiny.Run, mark: str) -> subprocess.Popen[bytes]:
    """The command, in a session and process group of its own; its output goes to a file beside the config."""
    env = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"}
    with open(run.config + ".log", "ab") as log:
        return subprocess.Popen([sys.executable, "-m", "pipelines.commands", *run.argv()], env=env, stdout=log, stderr=log, start_new_session=True)


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
    mark, began = uuid.uuid4().hex, time.monotonic()
    child = start(run, mark)
    try:
        status = child.wait(timeout)
    finally:
        kill_all(child, mark)
    if status != 0:
        raise RuntimeError(f"{run.stage} ended with {status}:\n{Path(run.config + '.log').read_text()[-3000:]}")
    return time.monotonic() - began


def digest(output: str) -> dict[str, str]:
    """What must be equal: the hash of every committed file that bears no clock and no path."""
    out = {}
    for path, _, _ in storage.listing(output):
        committed = path.endswith((".tar", ".bin", ".parquet", ".safetensors", "tokenizer.json")) and not path.startswith((storage.TMP, "checkpoints"))
        if committed:
            out[path] = sha256_hex(storage.read(storage.join(output, path)))
    card = next(f"{output}/{name}" for name in ("manifest.json", "plan.json", "run.json", "ablation.json") if storage.exists(f"{output}/{name}"))
    out["fingerprint"] = storage.read_json(card)["fingerprint"]
    return out


def soak(folder: Path, kills: int, seed: int) -> list[str]:
    """Returns the differences found; none is what is hoped for."""
    random_ = random.Random(seed)
    golden = tiny.write(folder / "golden-yaml", str(folder / "golden"))
    seconds = []
    for run in golden:
        seconds.append(finish(run))
        print(f"undisturbed {run.stage:14s} {seconds[-1]:6.1f} s  {run.output.rsplit('/', 1)[-1]}", flush=True)
    victims = tiny.write(folder / "soak-yaml", str(folder / "soak"))
    share = [len([k for k in range(kills) if k % len(victims) == i]) for i in range(len(victims))]
    wrong = []
    for run, twin, n, long in zip(victims, golden, share, seconds, strict=True):
        for _ in range(n):
            wait = random_.uniform(0, long * 1.1)
            mark = uuid.uuid4().hex
            child = start(run, mark)
            time.sleep(wait)
            before = child.poll()
            kill_all(child, mark)
            print(f"killed {run.stage:14s} after {wait:5.1f} s{'  (had ended)' if before is not None else ''}", flush=True)
        finish(run)
        mine, theirs = digest(run.output), digest(twin.output)
        extra = set(mine) - set(theirs)  # files of lost attempts are rubbish for gc; the card must not name them, and the fingerprint says so
        differing = [k for k in theirs if mine.get(k) != theirs[k]]
        wrong += [f"{run.stage} {run.output}: {k}" for k in differing]
        print(f"equal  {run.stage:14s} {len(theirs)} hashes, {len(extra)} leftovers" if not differing else f"DIFFERS {differing}", flush=True)
    return wrong


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
    print(f"{args.kills} kills: {'all artifacts equal the undisturbed ones' if not wrong else wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
