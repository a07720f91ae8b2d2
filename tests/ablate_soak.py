"""Kills at random moments of a whole ablation: `python -m tests.ablate_soak --kills 5`.

A toy ablation (three arms, two seeds, all of `vqa`, text and flow loss) is run once undisturbed. The same one is then begun anew and killed with -9,
the parent alone or all its workers with it, at moments drawn by the seed: so many lines of all metrics.jsonl after so many, and up to a second later
(the first may fall into planning, others into evaluations). Each start is the same command.
After the last kill it runs to its end. Then `results.parquet` and `diff.json` must have the bytes of the undisturbed ablation's, every run must have
trained each step once into metrics.jsonl, and `verify --deep` must find nothing. The seed is printed.
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
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
RUN = """
import json, sys
from pipelines.format.document import parse
from tests.trainer.test_ablation import Job
from trainer.ablate_stage import ABLATE
from trainer.ablation import Ablation

if __name__ == "__main__":
    ABLATE.run(parse(Ablation, json.loads(sys.argv[1]), name="toy.yaml"), Job())
"""


def start(document: dict[str, Any], script: Path) -> subprocess.Popen[bytes]:
    """The ablation in a session of its own, so that a kill can take its workers too."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), json.dumps(document)]
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)


def kill(process: subprocess.Popen[bytes], whole: bool) -> None:
    """The parent alone (its workers must leave by themselves), or everything at once."""
    if whole:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True).returncode == 0:
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)


def lines(run: Path) -> list[int]:
    """The steps that metrics.jsonl tells, in order."""
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def progress(root: Path) -> int:
    """Lines of metrics of all runs."""
    return sum(path.read_bytes().count(b"\n") for path in root.glob("arms/*/*/metrics.jsonl"))


def soak(kills: int, seed: int) -> dict[str, Any]:
    """Raises AssertionError where a killed ablation differs from the undisturbed one. Returns what was done."""
    from tests.trainer.asked import HeldOut
    from tests.trainer.test_ablation import document
    from trainer.check import check

    dice, where = random.Random(seed), []
    with tempfile.TemporaryDirectory(prefix="ablate-soak-") as root:
        HeldOut(root, 60)
        script = Path(root, "run.py")
        script.write_text(RUN)
        base = {"parallel": 2, "run": {**document()["run"], "checkpoint_every": 3}}
        said = [document(root, **base, output=f"{root}/{name}") for name in ("whole", "killed")]
        begun = time.monotonic()
        process = start(said[0], script)
        assert process.wait() == 0, process.stderr and process.stderr.read().decode()
        whole = time.monotonic() - begun
        total = progress(Path(root, "whole"))
        moments = sorted(dice.randrange(-total // 10, total) for _ in range(kills))
        for moment in moments:
            process = start(said[1], script)
            if moment < 0:
                time.sleep(dice.uniform(0.5, 5.0))
            while process.poll() is None and progress(Path(root, "killed")) < moment:
                time.sleep(0.05)
            time.sleep(dice.uniform(0.0, 1.0))
            if process.poll() is None:
                both = dice.random() < 0.5
                kill(process, both)
                done = len(list(Path(root, "killed").glob("arms/*/*/eval.json")))
                at = f"{progress(Path(root, 'killed'))} of {total} steps told"
                where.append(f"{at}, {done} of 6 arm-runs evaluated, {'all' if both else 'the parent'} killed")
        process = start(said[1], script)
        assert process.wait() == 0, process.stderr and process.stderr.read().decode()
        for name in ("results.parquet", "diff.json"):
            assert Path(root, "whole", name).read_bytes() == Path(root, "killed", name).read_bytes(), f"{name} differs"
        for run in Path(root, "killed/arms").glob("*/*"):
            steps = lines(run)
            assert steps == list(range(steps[0], steps[0] + len(steps))), f"{run}: {steps}"
        assert check(f"{root}/killed", {"deep": True}) == []
    return {"kills": len(where), "seconds undisturbed": round(whole, 1), "moments": where}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=None)
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 30) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    found = soak(args.kills, seed)
    print(json.dumps(found, indent=1))
    print(f"{found['kills']} kills: the same results.parquet to the byte")


if __name__ == "__main__":
    main()
