"""Evaluations: one file each, run on a finished run, deterministic, on the plan's held-out split.

    evaluate_run("out/runs/base", parts)  →  eval.json {run, fingerprint, computed, rows: [{metric, split, value, n, chance}]}, answers.parquet

Adding an evaluation is adding a file with a Part whose `run(subject, out)` returns such rows; files that begin with _ are what they share. A
run that has been evaluated in the same way is not evaluated again. A part may have a key `weights: last | ema` (which weights it judges), a method
`reads()`: datasets beside the plan's whose content decides its rows, and a `version`, raised when its numbers change for the same run.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from pipelines.format import storage
from pipelines.format.document import Document, Part, PartOf, dump, fingerprint, part_name
from pipelines.format.errors import InputError
from pipelines.format.manifest import read_card

VERSION = 2  # of all; a part whose numbers change for the same run raises a `version` of its own, and it alone is asked again
Evaluation = Annotated[Any, PartOf("trainer.evaluate")]


class Evaluations(Document):
    """A list of evaluations by name, as it stands in YAML."""

    evaluate: list[Evaluation] = []


def evaluate_run(run_dir: str, parts: list[Part], device: str = "cpu", ema: bool = False) -> list[dict[str, Any]]:
    """Evaluate the run (with `ema` the moving average of its weights) and write eval.json; or read it, when the run was already evaluated so."""
    place = storage.join(run_dir, "eval.json")
    run, asked, mark = _mark(run_dir, parts, ema)
    if storage.exists(place):
        before = storage.read_json(place)
        if before.get("fingerprint") == mark:
            return list(before["rows"])
    rows: list[dict[str, Any]] = []
    computed: dict[str, str] = {}
    if parts:
        from trainer.evaluate._subject import Subject

        subjects: dict[bool, Subject] = {}
        for part in parts:
            average = ema or getattr(part, "weights", "last") == "ema"
            if average not in subjects:
                subjects = {average: Subject.load(run_dir, device, average)}  # one at a time: they are as large as models are
            rows += part.run(subjects[average], run_dir)  # type: ignore[attr-defined]
            computed = {"device": device, "precision": subjects[average].precision}
    told = Counter((row["metric"], row["split"]) for row in rows)
    if twice := [f"{metric} of {split}" for (metric, split), n in told.items() if n > 1]:
        raise InputError("two evaluations of one run say the same row", where=run_dir, found=twice[0],
                         next="leave one out, or evaluate it in an ablation of its own")  # fmt: skip
    storage.replace(place, _json({"run": run, "fingerprint": mark, "evaluate": asked, "computed": computed, "rows": rows}), scratch=run_dir)
    return rows


def is_evaluated(run_dir: str, parts: list[Part], ema: bool = False) -> bool:
    """Whether the run is finished and was evaluated so."""
    place = storage.join(run_dir, "eval.json")
    if not storage.exists(storage.join(run_dir, "run.json")) or not storage.exists(place):
        return False
    return bool(storage.read_json(place).get("fingerprint") == _mark(run_dir, parts, ema)[2])


def _mark(run_dir: str, parts: list[Part], ema: bool) -> tuple[str, list[Any], str]:
    """(the run's fingerprint, the evaluations as plain values, the fingerprint of both and of what they read beside the run)."""
    run = str(read_card(run_dir)["fingerprint"])
    asked = dump(Evaluations(evaluate=list(parts)))["evaluate"]
    read = {path: read_card(path)["fingerprint"] for part in parts if hasattr(part, "reads") for path in part.reads()}
    outside = [part.outside(run_dir) for part in parts if hasattr(part, "outside")]  # files that a part reads beside the run
    more = {**({"ema": True} if ema else {}), **({"reads": read} if read else {}), **({"outside": outside} if outside else {})}
    more |= {"versions": found} if (found := versions(parts)) else {}
    return run, asked, fingerprint({"run": run, "evaluate": asked, "version": VERSION, **more})


def versions(parts: list[Part]) -> list[list[Any]]:
    """[name, version] of parts whose numbers are others than they once were, and of those that they ask in turn."""
    found = []
    for part in parts:
        version = getattr(part, "version", 1)
        found += [] if version == 1 else [[part_name(part), version]]
        found += versions(getattr(part, "evaluate", []))
    return found


def _json(value: Any) -> bytes:
    import json

    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()
