"""`torchrun --nproc-per-node 8 -m trainer RUN.yaml [a.b=c …]`: the trainer on its own, under any launcher that sets RANK and WORLD_SIZE.

SIGTERM and SIGINT ask for a checkpoint and a clean end; the same command goes on from there. Progress goes to stderr, the run's card (rank 0)
to stdout as one JSON object. A document may stand on the command line itself, as JSON: so a launcher hands it to machines that share no disk.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.format.document import load, parse
from pipelines.format.errors import HeadwaterError, InputError, Stopped
from pipelines.format.yaml_text import read_yaml
from trainer import outcome
from trainer.run import Run

PACKAGED = [Path(__file__).parent / "runs"]


def main(arguments: list[str], stop: threading.Event | None = None, tell: Callable[[str], None] | None = None) -> int:
    """Exit status as everywhere in the project (0 done, 2 bad input, 3 budget, 130/143 stopped). `stop` asks for a clean end as a signal does;
    `tell` takes the lines of progress (default: standard error)."""
    rank = int(os.environ.get("RANK", 0))
    stop, signalled = stop or threading.Event(), [0]

    def on_signal(number: int, frame: Any) -> None:
        signalled[0] = number
        stop.set()

    if threading.current_thread() is threading.main_thread():  # a worker of Ray Train calls from another
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
    out = tell or (lambda line: print(line, file=sys.stderr, flush=True))

    def say(event: str, **fields: Any) -> None:
        if rank == 0:
            out(" ".join([event, *(f"{k}={v}" for k, v in fields.items())]))

    try:
        run = _document(arguments)
        from trainer.loop import train

        card = train(run, log=say, stop=stop)
    except HeadwaterError as error:
        if not isinstance(error, Stopped):
            outcome.leave(error)
        if rank == 0:
            out(str(error))
        return 128 + signalled[0] if signalled[0] else error.exit
    if rank == 0 and tell is None:
        print(json.dumps({k: card[k] for k in ("path", "fingerprint", "steps", "tokens", "sources", "seconds")}))
    return 0


def _document(arguments: list[str]) -> Run:
    if not arguments:
        raise InputError("which run?", where="the command line", allowed="-m trainer RUN.yaml [a.b=c …]")
    if not arguments[0].startswith("{"):
        return load(Run, arguments[0], arguments[1:], PACKAGED)
    data, marks = read_yaml(arguments[0], "the command line")
    return parse(Run, data, marks, name="the command line", overrides=arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
