"""A whole stage, `video → one frame a second → shards` on Ray with two workers, against the bare loop of two processes; and its memory on a film
of two hours.

    python -m benchmarks.video_stage --json
    python -m benchmarks.video_stage --seconds 20 --hours 0.1          a small version

The bare loop does in process what the guarded children do: the same survey, decoding of what is wanted, resize to 224 and JPEG, films taken in
turn by two processes, results thrown away. No guard, no hash of the file, no record, no shard, no index, no Ray. Films are h264 of a minute at 480p
and 1080p, as on the web (`video_clips.py`); a film is a copy of another by hard link, so all is read from the page cache on both sides.

`steady` is frames a second of wall time while both workers have work: from the first part that is committed to the moment when fewer parts are left
than workers. Parts are made small for this (on a cluster they are thousands, and the end of the last does not weigh). `cpu` is processor time of
everything below this process, Ray's own included. The bare loop runs before and after the stage, and counts as the mean of both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.processes import _descendants, facts, watched
from benchmarks.video_clips import film

BAR, CAP = 0.85, 1_000
WORKERS = 2
FILM_S = 60
LOOK = {"size": 224, "mode": "center_crop", "quality": 92}
MIX = ("1080p", "480p", "480p", "1080p", "480p")


def bare(path: str) -> int:
    """Frames of one film, in this process."""
    from pipelines.media.frames import sample
    from pipelines.media.video import Limits, _args

    with open(path, "rb") as f:
        answers = sample({**_args(f, Limits()), "fps": 1.0, **LOOK}, f)
        next(answers)
        return sum(1 for _ in answers)


def films(folder: Path, count: int) -> list[str]:
    """`count` names of films in folders of their own size."""
    made = {size: film(folder / f"{size}.mp4", size, FILM_S, 2) for size in sorted(set(MIX))}
    out = folder / "films"
    out.mkdir(exist_ok=True)
    for i in range(count):
        path = out / f"{i:04}.mp4"
        if not path.exists():
            os.link(made[MIX[i % len(MIX)]], path)
    return [str(out / f"{i:04}.mp4") for i in range(count)]


def cpu_s() -> float:
    """Processor seconds of this process and all below it, those that ended included."""
    ticks = 0
    for pid, _ in _descendants(os.getpid()):
        try:
            ticks += sum(int(x) for x in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15])
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def loop(pool: Any, paths: list[str]) -> dict[str, float]:
    """The bare loop over these films: frames a second of wall and of processor time."""
    began, used = time.perf_counter(), cpu_s()
    frames = sum(pool.imap_unordered(bare, paths, chunksize=1))
    wall = time.perf_counter() - began
    return {"frames": frames, "wall": frames / wall, "cpu": frames / (cpu_s() - used)}


def stage(job: Any, folder: Path, out: Path) -> dict[str, float]:
    """The stage over the folder's films."""
    from pipelines.curate import VIDEO
    from pipelines.recipe import Recipe

    source = {"video_folder": {"path": str(folder / "films"), "fps": 1.0, "frames_per_clip": 16, **LOOK}}
    recipe = Recipe.model_validate({"name": "films", "source": source, "output": str(out)})
    used = cpu_s()
    VIDEO.run(recipe, job)
    used = cpu_s() - used
    commits = sorted((p.stat().st_mtime, json.loads(p.read_text())) for p in (out / "parts").glob("*.json"))
    frames = [_frames(c) for _, c in commits]
    last = len(commits) - WORKERS  # the first moment with fewer parts left than workers
    seconds = commits[last][0] - commits[0][0]
    return {"frames": sum(frames), "parts": len(commits), "seconds": seconds, "wall": sum(frames[1 : last + 1]) / seconds, "cpu": sum(frames) / used}


def _frames(commit: dict[str, Any]) -> int:
    """Frames of a part of whole films: each is so many seconds and as many frames, in clips of 16."""
    return FILM_S * int(commit["written"]) // -(-FILM_S // 16)


def speed(seconds: float, scratch: Path) -> list[dict[str, Any]]:
    """Rows of the stage against the loop, each at least this long."""
    from pipelines import listing
    from pipelines.engine import open_job
    from pipelines.sources import video_folder

    paths = films(scratch, 2 * len(MIX))
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        once = loop(pool, paths)  # and how fast this machine is
        count = max(8 * len(MIX), int(seconds * once["wall"] / FILM_S))
        count += -count % len(MIX)
        paths = films(scratch, count)
        size = sum(os.path.getsize(p) for p in paths)
        video_folder.runs = partial(listing.runs, max_bytes=max(size // 24, 40 << 20))  # type: ignore[attr-defined]
        first = loop(pool, paths)
        with open_job("ray", cpus=WORKERS) as job:
            ours = stage(job, scratch, scratch / "out")
        second = loop(pool, paths)
    peer = {key: (first[key] + second[key]) / 2 for key in ("wall", "cpu")}
    runs = {"loop": [first, second], "stage": [ours], "films": count}
    return [
        _row("video_stage.steady", ours["wall"], peer["wall"], "frames/s of wall time, 2 workers", runs),
        _row("video_stage.cpu", ours["cpu"], peer["cpu"], "frames per processor second, all processes", runs),
    ]


def _row(name: str, ours: float, peer: float, unit: str, runs: dict[str, Any]) -> dict[str, Any]:
    ratio = ours / peer
    told = {"name": name, "ours": round(ours, 1), "peer": round(peer, 1), "unit": unit, "ratio": round(ratio, 3), "bar": BAR, "ok": ratio >= BAR}
    return {**told, "runs": 1, "facts": runs, "versions": _versions()}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "av": version("av"), "pillow": version("pillow"), "ray": version("ray")}


def memory(hours: float, scratch: Path) -> dict[str, Any]:
    """The largest process of a stage over one long 1080p film: driver, worker, decoding child or Ray's own."""
    folder = scratch / "long"
    folder.mkdir()
    film(folder / "long.mp4", "1080p", int(hours * 360) * 10, 2, still=True)
    source = {"video_folder": {"path": str(folder), "fps": 1.0, "frames_per_clip": 16, **LOOK}}
    (scratch / "long.yaml").write_text(json.dumps({"name": "long", "source": source, "output": str(scratch / "long_out")}), encoding="utf-8")
    code = "from pipelines.commands import main; main()"
    seen = watched([sys.executable, "-c", code, "run", "video", "-c", str(scratch / "long.yaml")], scratch, lambda: "curate")
    if seen.status:
        raise SystemExit(f"the stage over a long film ended with {seen.status}: {seen.stderr}")
    card = json.loads((scratch / "long_out/manifest.json").read_text(encoding="utf-8"))
    peak = seen.worst.rss
    told = {"name": "video_stage.memory", "ours": round(peak, 1), "peer": CAP, "unit": f"MB, largest process of any kind, {hours:g} h of 1080p"}
    more = {"records": card["records"], **facts(seen)}
    return {**told, "ratio": round(CAP / peak, 3), "bar": 1.0, "ok": peak <= CAP, "runs": 1, "facts": more, "versions": _versions()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one list on stdout, nothing else")
    parser.add_argument("--seconds", type=float, default=150, help="of steady state (default: 150)")
    parser.add_argument("--hours", type=float, default=2.0, help="of the long film; 0 leaves it out")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="hw-video-stage"))
    try:
        rows = speed(args.seconds, scratch) + ([memory(args.hours, scratch)] if args.hours else [])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if args.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['name']}: {row['ours']} against {row['peer']} {row['unit']}: {row['ratio']} (bar {row['bar']})")
        print(json.dumps(row["facts"]))


if __name__ == "__main__":
    main()
