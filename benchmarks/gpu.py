"""What only an accelerator can show, in one command of at most eight minutes: numerics, encoding, attention, training steps,
evaluations; one table.

    python -m benchmarks.gpu --table benchmarks/gpu.md         on a machine with CUDA
    python -m benchmarks.gpu --toy                             the same code at toy size on a CPU: proof that it runs, not a measurement

Networks have their published shapes and random weights (speed and rounding do not depend on what was learned). Every figure stands beside what
limits it, measured in the same process: the bare network for an encoder, a plain causal kernel for masked attention, the card's own speed at a
large matrix product for a training step. A section that fails becomes a row that says so; the others still run. It needs neither Ray nor a video
codec. Without --toy it refuses to run on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import torch

from benchmarks import gpu_attention, gpu_encoding, gpu_evaluating, gpu_training
from benchmarks.gpu_rows import REAL, TOY, Row, figure, peak, row, table


def measure() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="toy sizes, on a CPU")
    parser.add_argument("--only", default="", help="sections whose names begin so, with commas between: encode, attention, train, evaluate")
    parser.add_argument("--table", help="write the table here")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.toy:
        print("no CUDA device is to be seen; --toy shows on a CPU that everything runs", file=sys.stderr)
        return 2
    import transformers

    s = TOY if args.toy else REAL
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU, toy sizes"
    machine = f"{card}, {date.today()}, torch {torch.__version__}, transformers {transformers.__version__}, python {sys.version.split()[0]}"
    flops = peak(device, args.toy)
    rows = [row("device.matmul", flops / 1e12, "TFLOP/s, bf16, 8192 x 8192 x 8192" if not args.toy else "TFLOP/s, bf16, toy")]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sections: list[tuple[str, Callable[[], Iterator[Row]]]] = [
            *gpu_encoding.sections(root, device, s),
            ("attention.marks", lambda: gpu_attention.marks(device)),
            ("attention", lambda: gpu_attention.attention(device, s)),
            *gpu_training.sections(root, device, s, flops),
            *gpu_evaluating.sections(root, device, s),
        ]
        sections = [(name, section) for name, section in sections if name.startswith(tuple(args.only.split(",")))]
        while sections:
            name, section = sections.pop(0)  # what it holds of the device's memory goes with it
            began = time.monotonic()
            try:
                for found in section():
                    rows.append(found)
                    print(f"{found['name']}: {figure(found['ours'])} {found['unit']}, ratio {figure(found['ratio'])}", file=sys.stderr, flush=True)
            except Exception as e:
                traceback.print_exc()
                rows.append({**row(name, 0.0, f"failed: {type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"), "ok": False})
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    text = table(rows, machine)
    if args.table:
        Path(args.table).write_text(text, encoding="utf-8")
    print(json.dumps(rows) if args.json else text)
    return 1 if any(r["ok"] is False for r in rows) else 0


if __name__ == "__main__":
    sys.exit(measure())
