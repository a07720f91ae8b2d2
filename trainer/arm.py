"""`python -m trainer.arm RUN.yaml EVALUATE.yaml`: train and evaluate one arm with one seed, as a task of a batch system does.

What is finished is not done again: a run that torchrun has trained before is only evaluated. SIGTERM asks for a checkpoint; the same command goes on.
Exit statuses are the trainer's (docs/exit_codes.md).
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from pipelines.format.document import load
from pipelines.format.errors import HeadwaterError, InputError, Stopped
from trainer.evaluate import Evaluations
from trainer.run import Run


def main(arguments: list[str]) -> int:
    """The exit status."""
    stop, number = threading.Event(), [0]

    def on_signal(given: int, frame: Any) -> None:
        number[0] = given
        stop.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, on_signal)
    try:
        if len(arguments) != 2:
            raise InputError("which arm?", where="the command line", found=" ".join(arguments), allowed="-m trainer.arm RUN.yaml EVALUATE.yaml")
        from trainer.sweep import do, task

        run, asked = load(Run, arguments[0]), load(Evaluations, arguments[1])
        done = do(task(run.name or run.output, run, asked.model_dump(mode="json")["evaluate"], 0.0), stop)
    except HeadwaterError as error:
        print(error, file=sys.stderr, flush=True)
        return 128 + number[0] if number[0] and isinstance(error, Stopped) else error.exit
    print(f"{done['name']}: {done['seconds']} s", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
