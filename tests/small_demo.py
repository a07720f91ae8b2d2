"""The packaged demo at a size for tests: the same journey, the same documents, fewer scenes and fewer tokens.

`document()` is the journey with its sizes changed and nothing else; `make(folder)` runs it once, by the real command, and gives the
folder in which `out/demo` then lies. Test processes share one: the first makes it, the others wait.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from pipelines.format.document import load_raw

REPO = Path(__file__).resolve().parents[1]
SCENES = {"text": 400, "image-text": 400, "video": 300, "action-video": 16, "vqa": 400}
# 100B of the figure are 20K tokens: about 16 optimiser steps of one row for the smallest arm (10 are the least allowed), 80 for the others.
PAINT = {"samples": {"source": "image_text", "images": 3, "steps": 2, "required": False, "pictures": 2}}
ASKED = [{"vqa": {"set": "held_out", "questions": 60, "source": "vqa"}}, "flow_loss", PAINT]
SMALL = {"scale": 2e-7, "seeds": [0], "run.batch": 1, "evaluate": ASKED}


def document() -> dict[str, Any]:
    """The packaged journey, smaller, in process."""
    journey = load_raw(REPO / "pipelines/journeys/demo.yaml")
    for step in journey["steps"]:
        if step["run"] in SCENES:
            step["set"]["source.world.scenes"] = SCENES[step["run"]]
        if step["run"] == "ablate":
            step["set"] = SMALL
    return {**journey, "engine": "local"}


def run(folder: Path) -> dict[str, Any]:
    """`pipelines demo` on it, into folder/out/demo; the command's JSON and, as "wall", the seconds it took."""
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump(document(), sort_keys=False))
    words = [sys.executable, "-m", "pipelines.commands", "demo", "--journey", str(config), "--out", str(folder / "out/demo"), "--json"]
    start = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(done.stdout), "wall": time.monotonic() - start}


def make(shared: Path) -> tuple[Path, dict[str, Any]]:
    """The demo in `shared`, made by whichever test process comes first."""
    folder, said = shared / "small-demo", shared / "small-demo.json"
    try:
        folder.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 280
        while not said.exists():
            assert time.monotonic() < deadline and not (shared / "small-demo.failed").exists(), "another test process could not make it"
            time.sleep(0.2)
    else:
        try:
            found = run(folder)
        except BaseException:
            (shared / "small-demo.failed").touch()
            raise
        scratch = said.with_suffix(".part")
        scratch.write_text(json.dumps(found))
        scratch.rename(said)
    return folder, json.loads(said.read_text())
