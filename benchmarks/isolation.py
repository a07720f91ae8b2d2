"""What the guarded child costs: the same decoding in this process and through the child, per second of processor time of both together.

    python -m benchmarks.isolation --json

    isolation.video.*   one frame a second of a film of 10 s, as JPEGs of 224 × 224
    isolation.images    photos of 640 × 480 to JPEGs of 224 × 224

`ours` is through the child, `peer` in process with the same settings of the allocator (`child.py` says why it has them), so a ratio of 0.9 is a cost
of 11 %. Answers must be equal byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av

from benchmarks.alternating import alternate, compared
from benchmarks.frames import cpu_s
from benchmarks.video_clips import film

BAR = 0.9  # at most a tenth
RUNS, PHOTOS = 9, 200
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "67108864", "MALLOC_TRIM_THRESHOLD_": "268435456"}


def video_here(path: Path) -> list[bytes]:
    """In this process."""
    from pipelines.media.frames import sample
    from pipelines.media.video import Limits, _args

    with path.open("rb") as f:
        answers = sample({**_args(f, Limits()), "fps": 1.0, "size": 224, "mode": "center_crop", "quality": 92}, f)
        next(answers)
        return [bytes(jpeg) for _, jpeg in answers]


def video_child(path: Path) -> list[bytes]:
    """As sources call it."""
    from pipelines.media.video import stills

    with path.open("rb") as f:
        return [s.payload for s in stills(f, fps=1.0, size=224)]


def images_here(photos: list[bytes]) -> list[bytes]:
    """In this process."""
    from pipelines.media.resizing import resized

    return [resized(p, 224)[0] for p in photos]


def images_child(photos: list[bytes]) -> list[bytes]:
    """As `resize_image` calls it."""
    from pipelines.media.still import resized

    return [resized(p, 224, "center_crop", 92, True, 50_000_000)[0] for p in photos]


def photos_of(path: Path, n: int) -> list[bytes]:
    """Frames of a film as JPEGs of 640 × 480."""
    from pipelines.media import images

    with av.open(str(path)) as box:
        frames = (f.to_ndarray(format="rgb24", width=640, height=480) for f in box.decode(video=0))
        return [bytes(images.encode_jpeg(a, 90)) for a, _ in zip(frames, range(n), strict=False)]


def rows() -> list[dict[str, Any]]:
    """Three rows."""
    out = []
    versions = {p: version(p) for p in ("av", "pillow")}
    with tempfile.TemporaryDirectory() as folder:
        films = {size: film(Path(folder) / f"{size}.mp4", size, 10, 2) for size in ("480p", "1080p")}
        photos = photos_of(films["1080p"], PHOTOS)
        work: list[tuple[str, Any, Any, Any, int]] = [(f"isolation.video.{s}", p, video_child, video_here, 10) for s, p in films.items()]
        for name, given, mine, theirs, n in [*work, ("isolation.images", photos, images_child, images_here, PHOTOS)]:
            assert mine(given) == theirs(given), name
            pairs = alternate(lambda _, f=mine, x=given: f(x), lambda _, f=theirs, x=given: f(x), RUNS, cpu_s)
            out.append(compared(name, n, "pictures/s of processor time", BAR, pairs, versions=versions))
            print(f"{name}: {out[-1]['ratio']} (wall {out[-1]['wall_ratio']})", file=sys.stderr, flush=True)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.isolation", *sys.argv[1:]], {**os.environ, **ALLOCATOR})
    found = rows()
    print(json.dumps(found) if args.json else "\n".join(f"{r['name']}: {r['ratio']}" for r in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
