"""Run the whole journey on an embedded little world: no download, no GPU, minutes.

    pipelines demo [--out DIR]

Five kinds of data are made from a seed, curated, tokenised and encoded; token-budget mixtures of them train one small model each; the
last line is the path of the report that compares them. The same command again continues where it stopped.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from pipelines.format.errors import InputError
from pipelines.terminal import clean, say


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="out/demo", metavar="DIR", help="where everything is written (default: out/demo)")
    parser.add_argument("--journey", default="demo", metavar="FILE", help="another journey: a YAML document or a packaged name (default: demo)")
    parser.add_argument("--address", metavar="A", help="a running Ray cluster; default: start one here")
    parser.add_argument("--engine", choices=("ray", "local"), help="override where the journey's steps run")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    from pipelines import journey
    from pipelines.engine import open_job
    from pipelines.stopping import stopping

    start = time.monotonic()
    what = journey.read(args.journey)
    out = Path(args.out).resolve()
    if out.exists() and not out.is_dir():
        raise InputError("the output must be a folder", where=out)
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)  # the packaged documents write below the working directory
    steps = journey.prepare(what)
    say(f"{what.name}: {len(steps)} steps into {out}", stderr=True)
    rows = []
    with stopping(args.command) as stop, open_job(args.engine or what.engine, args.address) as job:
        stop.watch(job.stop)
        for row in journey.travel(steps, job, lambda text: say(text, stderr=True)):
            rows.append(row)
        if len(rows) < len(steps):
            stop.check()
    report = out / rows[-1]["path"] / "report.html"
    made = {"report": str(report)} if report.is_file() else {"path": str(out)}  # a journey need not end in an ablation
    return {"journey": what.name, "steps": rows, **made, "seconds": round(time.monotonic() - start, 1)}


def show(answer: dict[str, Any]) -> None:
    say(f"{answer['seconds']} s for {len(answer['steps'])} steps", stderr=True)
    print(clean(answer.get("report") or answer["path"]))
