"""Evaluations: one file each, run on a finished run, deterministic, on the plan's held-out split.

    evaluate_run("out/runs/base", parts)  →  eval.json {run, fingerprint, rows: [{metric, split, value, n, chance}]}, answers.parquet

Adding an evaluation is adding a file with a Part whose `run(subject, out)` returns such rows; files that begin with _ are what they share. A
run that has been evaluated in the same way is not evaluated again.
"""

from __future__ import annotations

from typing import Annotated, Any

from pipelines.format import storage
from pipelines.format.document import Document, Part, PartOf, dump, fingerprint
from pipelines.format.manifest import read_card

VERSION = 1  # raise it when a number changes for the same run
Evaluation = Annotated[Any, PartOf("trainer.evaluate")]


class Evaluations(Document):
    """A list of evaluations by name, as it stands in YAML."""

    evaluate: list[Evaluation] = []


def evaluate_run(run_dir: str, parts: list[Part], device: str = "cpu", ema: bool = False) -> list[dict[str, Any]]:
    """Evaluate the run (with `ema` the moving average of its weights) and write eval.json; or read it, when the run was already evaluated so."""
    place = storage.join(run_dir, "eval.json")
    run = str(read_card(run_dir)["fingerprint"])
    asked = dump(Evaluations(evaluate=list(parts)))["evaluate"]
    outside = [p.outside(run_dir) for p in parts if hasattr(p, "outside")]  # files that a part reads beside the run
    more = {**({"ema": True} if ema else {}), **({"outside": outside} if outside else {})}
    mark = fingerprint({"run": run, "evaluate": asked, "version": VERSION, **more})
    if storage.exists(place):
        before = storage.read_json(place)
        if before.get("fingerprint") == mark:
            return list(before["rows"])
    rows: list[dict[str, Any]] = []
    if parts:
        from trainer.evaluate._subject import Subject

        subject = Subject.load(run_dir, device, ema)
        for part in parts:
            rows += part.run(subject, run_dir)  # type: ignore[attr-defined]
    storage.replace(place, _json({"run": run, "fingerprint": mark, "evaluate": asked, "rows": rows}), scratch=run_dir)
    return rows


def _json(value: Any) -> bytes:
    import json

    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()
