"""Five kinds of real files to two trained runs with one command, and an account of every record on the way.

    python examples/real/journey.py DATA [--work DIR] [--engine local|ray] [--json]

In: a folder of sample data laid out as journey.yaml names it. Out: everything below DIR/out/real; on stdout a table of what became of every
source's records, and the losses of both runs. The stages are those of journey.yaml, each a document in this folder that also runs alone; what
is added here is the tower with random weights (no download) and the table. The same command again continues where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipelines import journey
from pipelines.engine import open_job
from pipelines.format import storage
from pipelines.format.errors import HeadwaterError, InputError
from pipelines.stopping import stopping
from pipelines.terminal import say, table

HERE = Path(__file__).resolve().parent
TOWER = Path("out/real/tower")
COLUMNS = ("source", "kind", "in", "written", "filtered", "rejected", "text tokens", "pixels tokens", "siglip2 tokens")


def steps(data: Path) -> journey.Journey:
    """journey.yaml with DATA as given and its documents found beside it."""
    what = journey.read(str(HERE / "journey.yaml"))
    known = {"DATA": str(data)}

    def placed(value: Any) -> Any:
        first, slash, rest = value.partition("/") if isinstance(value, str) else ("", "", "")
        return f"{known[first]}{slash}{rest}" if first in known else value

    here = [s.model_copy(update={"config": str(HERE / s.config), "set": {k: placed(v) for k, v in s.set.items()}}) for s in what.steps]
    return what.model_copy(update={"steps": tuple(here)})


def travelled(what: journey.Journey, engine: str) -> list[dict[str, Any]]:
    """Every step's row, in order. The tower is written once."""
    ready = journey.prepare(what)
    if not (TOWER / "preprocessor_config.json").exists():  # written last
        subprocess.run([sys.executable, str(HERE / "random_tower.py"), str(TOWER)], check=True, stdout=subprocess.DEVNULL)
    with stopping(["python", *sys.argv]) as stop, open_job(engine) as job:
        stop.watch(job.stop)
        rows = list(journey.travel(ready, job, lambda text: say(text, stderr=True)))
        stop.check()
    return rows


def account(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What became of each source: its curated card's counts, and its tokens under either encoder."""
    found: dict[str, dict[str, Any]] = {}
    for row in (r for r in rows if r["stats"]["kind"] == "dataset"):
        card = row["stats"]
        if "encoding" not in card:
            counts = {k: card[k] for k in ("in", "written")} | {k: card.get(k) or {} for k in ("filtered", "rejected")}
            found[row["path"]] = {"source": card["name"], "kind": card["data"], **counts}
            continue
        about, encoder = found[card["lineage"][0]["path"]], card["encoding"].get("image", {}).get("encoder")
        about["text tokens"] = card["tokens"]["text"]
        if encoder:
            about[f"{encoder} tokens"] = card["tokens"]["visual"]
    return list(found.values())


def losses(run: str) -> list[dict[str, Any]]:
    """The run's metrics, a line a step."""
    return [json.loads(line) for line in storage.read(storage.join(run, "metrics.jsonl")).splitlines()]


def show(sources: list[dict[str, Any]], runs: dict[str, list[dict[str, Any]]]) -> None:
    """Both tables for people. A step without images has no flow loss; steps differ in what they hold, hence the means."""
    table("what became of the records", COLUMNS, [[_cell(about.get(column)) for column in COLUMNS] for about in sources])
    for name, lines in runs.items():
        single = [(str(line["step"]), [line]) for line in (*lines[:5], *lines[-5:])]
        rows = [*single[:5], ("mean of the first 10", lines[:10]), *single[5:], ("mean of the last 10", lines[-10:])]
        table(name, ("step", "text loss", "flow loss"), [[step, _mean(some, "text"), _mean(some, "flow")] for step, some in rows])


def _mean(lines: list[dict[str, Any]], kind: str) -> str:
    found = [line[kind] for line in lines if kind in line]
    return f"{sum(found) / len(found):.3f}" if found else ""


def _cell(value: Any) -> Any:
    """A count, or counts by reason with their sum first."""
    if not isinstance(value, dict):
        return value
    return f"{sum(value.values())}: " + ", ".join(f"{reason} {n}" for reason, n in sorted(value.items())) if value else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder of sample data")
    parser.add_argument("--work", type=Path, default=Path("."), help="the folder below which out/real is written (default: here)")
    parser.add_argument("--engine", choices=("local", "ray"), help="where the steps run (default: as journey.yaml says)")
    parser.add_argument("--json", action="store_true", help="one object on stdout instead of tables")
    args = parser.parse_args()
    try:
        if not args.data.is_dir():
            raise InputError("the first argument names the folder of sample data", where=args.data, found="no folder")
        what = steps(args.data.resolve())
        args.work.mkdir(parents=True, exist_ok=True)
        os.chdir(args.work)
        rows = travelled(what, args.engine or what.engine)
    except HeadwaterError as error:
        say(str(error), stderr=True)
        return error.exit
    runs = {Path(r["path"]).name: losses(r["path"]) for r in rows if r["run"] == "train"}
    sources = account(rows)
    if args.json:
        print(json.dumps({"sources": sources, "runs": runs, "steps": [{k: r[k] for k in ("run", "path", "seconds")} for r in rows]}))
    else:
        show(sources, runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
