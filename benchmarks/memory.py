"""Memory of a job over large inputs, against the stated cap of 1,500 MB a process: five gigabytes of text in one file, a hundred thousand pictures.

    python -m benchmarks.memory --json
    python -m benchmarks.memory --text-mb 100 --images 1000 --engine local          a small version, in half a minute

    text_plain     one JSONL file (bulk.py says what is in it: copies, documents of several MB, lines of 100 MB, one without an end) →
                   text_length, line_ratios, symbol_ratio, repeated_lines → exact_text: rules that let gigabytes pass in minutes
    text_web       a tenth of it, new sentences throughout → gopher_repetition, gopher_quality, c4, fineweb_quality → exact_text, minhash
    images_folder, images_tar, images_img2dataset
                   pictures → resize_image → shards: from files and a table of captions, from one tar, from what img2dataset leaves

Each is one run of the command line, with keep_dropped for text. The figure is the highest resident set that any one process of the job
reached (processes.py says how it is measured, and reports what is private and what is shared beside it): driver, workers on Ray and decoding
children alike, mapped files and Ray's store included. For each phase (curate, across, rewrite) `second_half_to_first` compares the peaks of its
halves: about 1 is flat. What is generated is deleted.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import bulk
from benchmarks.processes import facts, watched

CAP = 1_500  # MB of one process
CASES = ("text_plain", "text_web", "images_folder", "images_tar", "images_img2dataset")
_PLAIN = [
    {"text_length": {"min_chars": 100, "min_words": 20}},
    {"line_ratios": {"min_ended": 0.2, "max_capitals": 0.5, "min_letters": 0.5}},
    "symbol_ratio",
    "repeated_lines",
]
_WEB = ["gopher_repetition", "gopher_quality", "c4", "fineweb_quality"]


def recipe(case: str, data: Path, out: Path) -> dict[str, Any]:
    """What the job is asked to do."""
    text = {"source": {"jsonl": {"path": str(data)}}, "keep_dropped": True}
    resize = {"transforms": [{"resize_image": {"size": 64}}]}
    asked: dict[str, dict[str, Any]] = {
        "text_plain": {**text, "filters": _PLAIN, "across": ["exact_text"]},
        "text_web": {**text, "filters": _WEB, "across": ["exact_text", "minhash"]},
        "images_folder": {"source": {"image_folder": {"path": str(data), "captions": "pairs.jsonl"}}, **resize},
        "images_tar": {"source": {"image_tar": {"path": str(data)}}, **resize},
        "images_img2dataset": {"source": {"img2dataset": {"path": str(data)}}, **resize},
    }
    return {"name": case, "output": str(out), **asked[case]}


def inputs(case: str, data: Path, text_mb: int, images: int) -> dict[str, int]:
    """Make what the case reads; returns what it is."""
    hostile = min(1.0, text_mb / 2_000)  # the long lines of a small version are shorter
    if case == "text_plain":
        return bulk.text_file(data / "one.jsonl", text_mb * 1_000_000, hostile=hostile)
    if case == "text_web":
        return bulk.text_file(data / "one.jsonl", text_mb * 100_000, seed=1, fresh=True, hostile=hostile)
    {"images_folder": bulk.image_folder, "images_img2dataset": bulk.img2dataset}.get(case, lambda d, n: bulk.image_tar(d / "0.tar", n))(data, images)
    return {"images": images}


def phase(out: Path) -> str:
    """What a job writing to `out` is at, by what is there."""
    if (out / "manifest.json").exists():
        return "seal"
    if not (out / "_work/candidates/manifest.json").exists():
        return "curate"
    return "rewrite" if (out / "parts").exists() else "across"


def measure(case: str, engine: str, text_mb: int, images: int, scratch: Path) -> dict[str, Any]:
    """One row: a case on an engine."""
    data, out = scratch / "data", scratch / "out"
    data.mkdir()
    try:
        what = inputs(case, data, text_mb, images)
        (scratch / "recipe.yaml").write_text(json.dumps(recipe(case, data, out)), encoding="utf-8")
        verb = "text" if case.startswith("text") else "image-text"
        code = "from pipelines.commands import main; main()"
        argv = [sys.executable, "-c", code, "run", verb, "-c", str(scratch / "recipe.yaml"), f"engine={engine}"]
        seen = watched(argv, scratch, lambda: phase(out))
        if seen.status:
            raise SystemExit(f"{case} on {engine} ended with {seen.status}: {seen.stderr}")
        card = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(data)
        shutil.rmtree(out, ignore_errors=True)
    counts = {key: card[key] for key in ("in", "written", "filtered", "rejected")}
    return row(f"memory.{case}.{engine}", seen.worst.rss, {"input": what, "counts": counts, **facts(seen)})


def row(name: str, peak: float, about: dict[str, Any]) -> dict[str, Any]:
    """What machines read of one comparison; the peer is the stated cap."""
    versions = {"python": platform.python_version(), "pyarrow": version("pyarrow"), "ray": version("ray")}
    told = {"name": name, "ours": round(peak, 1), "peer": CAP, "unit": "MB, largest process", "ratio": round(CAP / peak, 3), "bar": 1.0}
    return {**told, "ok": peak <= CAP, "runs": 1, "facts": about, "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one list on stdout, nothing else")
    parser.add_argument("--text-mb", type=int, default=5_000, help="of the long file; text_web takes a tenth (default: 5000)")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--engine", choices=("local", "ray"), action="append", help="default: both, one after the other")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--scratch", type=Path, help="where the inputs are made (default: a temporary folder)")
    args = parser.parse_args()
    found = []
    for case in args.case or CASES:
        for engine in args.engine or ("local", "ray"):
            with tempfile.TemporaryDirectory(prefix="hw-memory", dir=args.scratch) as scratch:
                found.append(measure(case, engine, args.text_mb, args.images, Path(scratch)))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps(found))
        return
    for r in found:
        print(f"{r['name']}: {r['ours']:,} {r['unit']} · cap {r['peer']:,} · ratio {r['ratio']} · {'ok' if r['ok'] else 'MISSED'} · {r['facts']}")


if __name__ == "__main__":
    main()
