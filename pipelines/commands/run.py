"""Run a stage: one YAML in, one artifact out, resumed where it was left.

    pipelines run STAGE -c FILE [a.b=c …] [--x v]
    pipelines run mix --diff A B            what two artifacts have in common (plans, or mixtures that are planned first); nothing is made

STAGE is a name from `pipelines stages`; FILE a YAML document or the name of a packaged one. `a.b=c` overrides any key of it (lists by
index); a flag `--x v` is the key `x=v`. The same command again skips what is finished.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from pipelines import plugins
from pipelines.format.errors import InputError
from pipelines.terminal import figure, say, table


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", metavar="STAGE", help="what to run: pipelines stages lists them")
    parser.add_argument("-c", "--config", metavar="FILE", help="a YAML document, or the name of a packaged one")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and what it would take; write nothing")
    parser.add_argument("--diff", nargs=2, metavar=("A", "B"), help="compare two artifacts of the stage instead of making one")
    parser.add_argument("--address", metavar="A", help="a running Ray cluster (ray://host:port or auto); default: start one here")
    parser.set_defaults(takes_rest=True)


def answer(args: argparse.Namespace) -> dict[str, Any]:
    from pipelines.format.document import load

    stage = plugins.find(plugins.STAGES, args.stage)
    if args.diff:
        return {"stage": args.stage, "diff": True, **_diff(stage, args)}
    if args.config is None:
        raise InputError("a stage needs a configuration", where="the command line", next=f"pipelines run {args.stage} -c FILE")
    config = load(stage.config, args.config, overrides(args.rest), plugins.packaged(args.stage))
    if args.dry_run:
        estimate = stage.plan(config)
        return {"stage": args.stage, "dry_run": True, **estimate.as_dict()}
    return carry_out(args.stage, stage, config, args)


def _diff(stage: Any, args: argparse.Namespace) -> dict[str, Any]:
    """`--diff A B` is a mode, not a key: it takes no configuration and leaves no artifact."""
    if not hasattr(stage, "diff"):
        raise InputError("this stage cannot compare what it makes", found=args.stage, next=f"pipelines run {args.stage} --help")
    if args.config is not None or args.rest:
        found = args.config or " ".join(args.rest)
        raise InputError("--diff takes two artifacts and nothing else", where="the command line", found=found, next="pipelines run mix --diff A B")
    told: dict[str, Any] = stage.diff(*args.diff)
    return told


def carry_out(name: str, stage: Any, config: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Run the stage in a job of its own and read what it left."""
    from pipelines.engine import open_job
    from pipelines.journey import log_path
    from pipelines.stopping import stopping
    from pipelines.summary import stats

    start = time.monotonic()
    with stopping(args.command) as stop, open_job(getattr(config, "engine", "ray"), args.address, log_path=log_path(config)) as job:
        stop.watch(job.stop)
        path = stage.run(config, job)
        found = stats(path)  # in here: a stage that returns early when it is stopped has left no card yet
    return {"stage": name, **found, "path": str(path), "seconds": round(time.monotonic() - start, 2)}


def overrides(rest: list[str]) -> list[str]:
    """`a.b=c`, `--x v`, `--x=v` and a bare `--x` (true) as overrides, in the order said."""
    found: list[str] = []
    words = iter(rest)
    pending: str | None = None
    for word in words:
        if pending is not None:
            if not word.startswith("--") and not _assigns(word):
                found.append(f"{pending}={word}")
                pending = None
                continue
            found.append(f"{pending}=true")
            pending = None
        if word.startswith("--"):
            key, given, value = word[2:].partition("=")
            key = key.replace("-", "_")
            if given:
                found.append(f"{key}={value}")
            else:
                pending = key
        elif _assigns(word):
            found.append(word)
        else:
            raise InputError("this is not understood", where="the command line", found=word, allowed="a.b=c or --x v", next="pipelines run --help")
    return [*found, f"{pending}=true"] if pending is not None else found


def _assigns(word: str) -> bool:
    key, given, _ = word.partition("=")
    return bool(given and key) and not any(c.isspace() for c in key)


def show(answer: dict[str, Any]) -> None:
    if answer.get("dry_run"):
        _show_estimate(answer)
        return
    if answer.get("diff"):
        _show_diff(answer)
        return
    from pipelines.summary import show_stats

    show_stats(answer)
    say(f"{answer['seconds']} s\n{answer['path']}")


def _flat(said: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Figures inside figures, one a line: `tokens text`, `heldout tokens all`."""
    for key, value in said.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key} ")
        else:
            yield above + key, value


def _show_diff(answer: dict[str, Any]) -> None:
    """Sentences first, then whatever is a table: rows as mappings, in a list or by name."""
    say(answer["title"])
    for sentence in answer["said"]:
        say(f"  {sentence}")
    say()
    for key, value in answer.items():
        rows = [{"": name, **row} for name, row in value.items() if isinstance(row, dict)] if isinstance(value, dict) else value
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            columns = list(dict.fromkeys(column for row in rows for column in row))
            spoken = [column.replace("_", " ") for column in columns]
            table(key.replace("_", " "), spoken, [[figure(row.get(column)) for column in columns] for row in rows])


def _show_estimate(answer: dict[str, Any]) -> None:
    known = ("stage", "dry_run", "estimate", "table", "warnings")
    facts = [[key, figure(value)] for key, value in _flat(answer) if key not in known and not isinstance(value, list)]
    table(f"{answer['stage']}, not run: {answer['estimate']}", ["", ""], facts)
    if answer["table"]:
        columns = list(dict.fromkeys(key for row in answer["table"] for key in row))
        table("", columns, [[figure(row.get(column)) for column in columns] for row in answer["table"]])
    for key, value in answer.items():
        if key not in known and isinstance(value, list):  # the command lines of a launch, one a line, ready to copy
            say("\n".join(" ".join(map(str, line)) if isinstance(line, list) else str(line) for line in value))
    for warning in answer["warnings"]:
        say(f"warning: {warning}", stderr=True)
