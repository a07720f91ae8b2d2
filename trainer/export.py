"""`python -m trainer.export FROM TO [--ema]`: weights alone, of a run, a stopped run, or one of its checkpoints.

Out: TO/model.safetensors, with --ema TO/ema.safetensors: parameters and buffers in float32 under the names that the model gives them, whatever
number of ranks wrote them, for those who go on with other tools (a finished run holds the same files already). Runs on one processor; nothing
of the optimizer is read.
"""

from __future__ import annotations

import argparse
import json
import sys

from pipelines.format import storage
from pipelines.format.errors import HeadwaterError
from trainer.models import load


def main(arguments: list[str]) -> int:
    """Exit status as everywhere in the project."""
    parser = argparse.ArgumentParser(prog="python -m trainer.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="FROM", help="a run's folder, or a checkpoint's (checkpoints/step-…)")
    parser.add_argument("to", metavar="TO", help="the folder to write into")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights instead")
    asked = parser.parse_args(arguments)
    try:
        start = load.start_of(asked.source)
        entry = load.export(asked.to, load.read_weights(asked.source, asked.ema), load.AVERAGE if asked.ema else load.WEIGHTS)
        storage.sweep(asked.to)
    except HeadwaterError as error:
        print(error, file=sys.stderr)
        return error.exit
    print(json.dumps({"of": start.path, "fingerprint": start.fingerprint, **entry}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
