"""A worker process: batches of one stream, made on demand and laid into shared memory.

Its parent starts it with two descriptors (shared memory; answers) and a line that says which stream; then each line of its standard input is a step
and a slot, each answer a line of JSON: where in the slot the arrays lie, or what went wrong. It ends when its input ends, so it cannot outlive its
parent, however that dies. It imports no torch. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any

from mixtures.plan import Plan
from pipelines.format.errors import HeadwaterError
from trainer.pictures import Encoding
from trainer.slots import Slots
from trainer.stream import Reading, Stream


def main(memory: int, answers: int) -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that unfinished files of the cache are removed
    said = json.loads(sys.stdin.readline())
    slots = Slots(said["size"], said["count"], memory)
    stream: Stream | None = None
    try:
        with os.fdopen(answers, "w") as out:
            for line in sys.stdin:
                step, slot = json.loads(line)
                try:
                    if stream is None:
                        stream = opened(said)
                    before = stream.reader.left_out
                    where = slots.write(slot, stream.arrays(step))
                    answer: dict[str, Any] = {"step": step, "slot": slot, "where": where, "left_out": stream.reader.left_out - before}
                except Exception as error:
                    answer = {"step": step, "error": error_as(error)}
                out.write(json.dumps(answer) + "\n")
                out.flush()
    finally:
        if stream is not None:
            stream.close()


def opened(said: dict[str, Any]) -> Stream:
    """The stream that the parent has."""
    known = said["reading"]
    encode = None if known["encode"] is None else Encoding(*known["encode"])
    reading = Reading(**{**known, "node": tuple(known["node"] or ()) or None, "encode": encode})
    return Stream(Plan.open(said["plan"]), said["batch"], said["rank"], said["world"], 0, said["split"], said["steps"], reading)


def error_as(error: Exception) -> dict[str, Any]:
    """What the parent raises again: our own errors by their fields, others by their trace."""
    if isinstance(error, HeadwaterError):
        return error.as_dict()
    return {"class": type(error).__name__, "what": "".join(traceback.format_exception(error))}


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]))
    except BrokenPipeError:  # the parent is gone
        os._exit(0)
