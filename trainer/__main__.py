"""`torchrun --nproc-per-node 8 -m trainer RUN.yaml [a.b=c …]`: the trainer on its own, under any launcher that sets RANK and WORLD_SIZE.

SIGTERM and SIGINT ask for a checkpoint and a clean end; the same command goes on from there. Progress goes to stderr, the run's card (rank 0)
to stdout as one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from pipelines.format.document import load
from pipelines.format.errors import HeadwaterError, InputError
from trainer.run import Run

PACKAGED = [Path(__file__).parent / "runs"]


def main(arguments: list[str]) -> int:
    """Exit status as everywhere in the project (0 done, 2 bad input, 3 budget, 130/143 stopped)."""
    rank = int(os.environ.get("RANK", 0))
    stop, signalled = threading.Event(), [0]

    def on_signal(number: int, frame: Any) -> None:
        signalled[0] = number
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)

    def say(event: str, **fields: Any) -> None:
        if rank == 0:
            print(event, *(f"{k}={v}" for k, v in fields.items()), file=sys.stderr, flush=True)

    try:
        if not arguments:
            raise InputError("which run?", where="the command line", allowed="-m trainer RUN.yaml [a.b=c …]")
        run = load(Run, arguments[0], arguments[1:], PACKAGED)
        from trainer.loop import train

        card = train(run, log=say, stop=stop)
    except HeadwaterError as error:
        if rank == 0:
            print(error, file=sys.stderr, flush=True)
        return 128 + signalled[0] if signalled[0] else error.exit
    if rank == 0:
        print(json.dumps({k: card[k] for k in ("path", "fingerprint", "steps", "tokens", "sources", "seconds")}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
