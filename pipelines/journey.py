"""A journey: several stages in order, written as one YAML, run in one job.

    steps:
      - {run: image-text, config: world_image_text}
      - {run: encode, config: pixels, set: {dataset: curated/image_text, output: encoded/image_text}}

In: a Journey and an open job. Out: a row per step (path, seconds, what it holds). A journey knows no stage: it finds each by name as
the command line does, and hands it the document of that name with `set` laid on top. It skips nothing itself, since every stage
resumes; the same command again therefore continues where the last one stopped. All documents are read before the first step runs, so a
mistake in the last one costs nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pipelines import plugins
from pipelines.format import storage
from pipelines.format.document import Document, load
from pipelines.summary import stats


class JourneyStep(Document):
    """`run`: a stage; `config`: a document, by file or packaged name; `set`: overrides, key.key: value."""

    run: str
    config: str
    set: dict[str, Any] = {}


class Journey(Document):
    """The document: a name, steps in order, and where they run."""

    name: str
    engine: Literal["ray", "local"] = "ray"
    steps: tuple[JourneyStep, ...]


def read(ref: str) -> Journey:
    """The journey at a path, or the packaged one of that name."""
    return load(Journey, ref, (), plugins.packaged())


def prepare(journey: Journey) -> list[tuple[JourneyStep, Any, Any]]:
    """Each step with its stage and its validated config: every error in a document shows here."""
    ready = []
    for step in journey.steps:
        stage = plugins.find(plugins.STAGES, step.run)
        changes = [f"{key}={json.dumps(value)}" for key, value in step.set.items()]
        ready.append((step, stage, load(stage.config, step.config, changes, plugins.packaged(step.run))))
    return ready


def travel(steps: list[tuple[JourneyStep, Any, Any]], job: Any, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Run the steps one after the other; one row per finished step. Stops between steps when the job is asked to."""
    for i, (step, stage, config) in enumerate(steps, 1):
        head = f"[{i:{len(str(len(steps)))}}/{len(steps)}] {step.run:13} {Path(step.config).stem}"
        say(f"{head} → {getattr(config, 'output', '')} …")
        start = time.monotonic()
        job.log_path = log_path(config)
        path = str(stage.run(config, job))
        seconds = time.monotonic() - start
        found = stats(path)
        say(f"{head} → {getattr(config, 'output', path)}: {_holds(found)} in {seconds:.1f} s")
        yield {"run": step.run, "config": step.config, "path": path, "seconds": round(seconds, 2), "stats": found}
        if job.stop.is_set():
            return


def log_path(config: Any) -> str | None:
    """Where clock and host go: log.jsonl of the artifact, on this machine's own disks."""
    output = getattr(config, "output", None)
    if not isinstance(output, str) or not storage.is_local(output):
        return None
    storage.local(output).mkdir(parents=True, exist_ok=True)
    return str(storage.local(output) / "log.jsonl")


def _holds(found: dict[str, Any]) -> str:
    parts = [f"{found['records']:,} records"] if found.get("records") else []
    tokens = (found.get("tokens") or {}).get("all")
    return ", ".join([*parts, *([f"{tokens:,} tokens"] if tokens else [])]) or "done"
