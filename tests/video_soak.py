"""The same shards of pictures in time, whatever runs the job and however often it is killed: `python -m tests.video_soak --kills 30`.

Three kinds of data, each from places that fail: raw video (a folder with damaged files and one shared by several parts; tars, one of them cut; a
table of paths and URLs on a server whose bodies break off and which has lost some), video with actions beside it, and questions about images.
Each recipe is run once undisturbed in process, then on Ray with 1, 2 and 4 workers, and in process again. Every one of these is killed (-9, and
all that it started) after a random number of its parts and begun again, several times, before it may finish. What is compared is every byte:
data, indexes, rejects, commit records, card. In each, what came in must be what was written, filtered and rejected, to the one.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pipelines.fetch.scratch import sweep
from pipelines.format import storage
from tests.fault_server import Answer, FaultServer, Seen, ranged
from tests.pipelines.clips import clip
from tests.soak import digest, kill_all, launch, waited
from tests.toys import jpeg

VERB = {"folder": "video", "tar": "video", "table": "video", "actions": "action-video", "questions": "vqa"}
KINDS = tuple(VERB)
LAST_S = 60.0  # a job that has made no part in so long is killed where it is


@dataclass(frozen=True)
class Way:
    """Who runs a recipe. Nothing here may show in a byte."""

    name: str
    engine: str = "local"
    workers: int = 1


GOLDEN = Way("undisturbed")
LOCAL = (Way("in process"),)
WAYS = (Way("ray-1", "ray", 1), Way("ray-2", "ray", 2), Way("ray-4", "ray", 4), *LOCAL)


def films(n: int) -> dict[str, bytes]:
    """Name → bytes: short films of three codecs, every fifth one cut, one that is text."""
    out = {}
    for i in range(n):
        codec, container = (("libx264", "mp4"), ("libvpx", "webm"), ("mpeg4", "avi"))[i % 3]
        data = clip(90 + 17 * (i % 7), codec=codec, container=container, first=100 * i)
        out[f"{i:02}.{container}"] = data[: len(data) * 2 // 3] if i % 5 == 4 else data
    out["playlist.mp4"] = b"#EXTM3U\nhttp://127.0.0.1/\n"
    return out


class World:
    """Everything the recipes read, below one folder, and the server beside it."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.films = folder, films(size)

    def answer(self, seen: Seen) -> Answer | None:
        """A film; every third time it is asked for the body breaks off. Names with a 7 are gone."""
        data = self.films.get(seen.path.strip("/"))
        if data is None or "7" in seen.path:
            return None
        return ranged(seen, data, "whole" if seen.attempt % 3 else "break")

    def make(self, server: FaultServer) -> None:
        """Write the inputs."""
        draw = random.Random(7)
        for name in ("films", "tars", "drives", "vqa/images"):
            (self.folder / name).mkdir(parents=True)
        for name, data in self.films.items():
            (self.folder / "films" / name).write_bytes(data)
        (self.folder / "films/long.mp4").write_bytes(clip(900, first=2000))
        names = sorted(self.films)
        for k in range(5):
            whole = _tar({f"{n[:-4]}{k}.{n.rpartition('.')[2]}": self.films[n] for n in names[k::5]})
            (self.folder / f"tars/{k}.tar").write_bytes(whole[: len(whole) * 3 // 4] if k == 3 else whole)
        rows = []
        for name in [n for n in names for _ in range(3)]:
            start = draw.randint(0, 4)
            where = name if draw.random() < 0.3 else server.url("/" + name)
            rows.append({"url": where, "start": start, "end": start + draw.randint(1, 3), "text": f"about {name}"})
        _lines(self.folder / "films/rows.jsonl", rows)
        for i in range(2 * len(names) // 3):
            (self.folder / f"drives/{i:02}.mp4").write_bytes(clip(120, first=150 * i))
            turn = [{"x": math.cos(a / 9), "y": math.sin(a / 9) if a % 13 != 11 else None, "yaw": a / 9, "t": a / 4} for a in range(16)]
            if i % 4 != 3:  # a film without a table
                _lines(self.folder / f"drives/{i:02}.jsonl", turn)
        for i in range(3 * len(names)):
            (self.folder / f"vqa/images/{i}.jpg").write_bytes(jpeg(i, 48 if i % 4 else 20) if i % 11 else b"no picture")
        asked = [{"image": f"images/{i % (3 * len(names) + 2)}.jpg", "question": f"what is {i}?", "answer": str(i)} for i in range(9 * len(names))]
        _lines(self.folder / "vqa/rows.jsonl", [{**a, "answer": ""} if i % 17 == 3 else a for i, a in enumerate(asked)])

    def recipe(self, kind: str, way: Way, output: str) -> dict[str, Any]:
        """The whole recipe, as YAML would say it."""
        look = {"size": 32, "fps": 4, "frames_per_clip": 5, "quality": 90}
        patience = {"backoff": 0.01, "attempts": 4, "grace": 5, "robots": False, "per_host": 4}
        scratch = {"scratch": str(self.folder / "scratch")}
        pose = {"pose": {"x": "x", "y": "y", "yaw": "yaw"}, "time": "t", "goals": {"max": 6}, "size": 32, "layout": "beside"}
        pieces = {"start": "start", "end": "end", "caption_fields": {"original": "text"}, "rows_per_part": 8, "fetch": patience, **scratch}
        source: dict[str, dict[str, Any]] = {
            "folder": {"video_folder": {"path": str(self.folder / "films"), **look}},
            "tar": {"video_tar": {"path": str(self.folder / "tars"), **look, **scratch}},
            "table": {"video_table": {"path": str(self.folder / "films/rows.jsonl"), **look, **pieces}},
            "actions": {"video_actions": {"path": str(self.folder / "drives"), **pose}},
            "questions": {"vqa_table": {"path": str(self.folder / "vqa"), "table": "rows.jsonl"}},
        }
        drop = {"actions": {"clip_length": {"min_seconds": 1.6}}, "questions": {"image_size": {"min_side": 32}}}
        filters = [drop.get(kind, {"clip_length": {"min_frames": 3}})]
        return {"name": kind, "source": source[kind], "filters": filters, "engine": way.engine, "shard_bytes": 1 << 15, "output": output}


def _tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            for member, content in ((name, data), (name.rpartition(".")[0] + ".txt", b"a film")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def make(kind: str, document: dict[str, Any], way: Way) -> str:
    """Run a recipe in this process with so many workers. Its parts are small, so that there are several of few files."""
    from pipelines import image_rows, listing
    from pipelines.curate import Curate
    from pipelines.engine import open_job
    from pipelines.format.document import parse
    from pipelines.recipe import Recipe
    from pipelines.sources import video_actions, video_folder

    few = partial(listing.runs, max_bytes=60_000, max_files=2)
    with ExitStack() as small:  # and as before when done: other tests share the process
        for room, name, limit in (
            (video_folder, "runs", few),
            (video_actions, "runs", few),
            (image_rows, "PART_FILES", 9),
            (video_folder, "LONG_BYTES", 60_000),
        ):
            small.enter_context(patch.object(room, name, limit))
        job = small.enter_context(open_job(way.engine, cpus=way.workers))
        return Curate(VERB[kind]).run(parse(Recipe, document), job)


def made(output: str) -> dict[str, str]:
    """Everything that must be equal, and the law that must hold in every part and in the whole."""
    found = digest(output)
    card = storage.read_json(f"{output}/manifest.json")
    parts = [storage.read_json(f"{output}/parts/{name}") for name, _, _ in storage.listing(f"{output}/parts", (".json",))]
    for told in (card, *parts):
        assert told["in"] == told["written"] + sum(told["filtered"].values()) + sum(told["rejected"].values()), output
    assert all(card[key] for key in ("written", "filtered", "rejected")), f"{output}: {card['written']}, {card['filtered']}, {card['rejected']}"
    assert len(parts) > 3 and len(storage.listing(output, (".tar",))) > 3, f"{output}: too few parts and shards to mean anything"
    kept = ("in", "written", "filtered", "rejected", "fingerprint", "parts", "sources")
    return {**found, "card": json.dumps([card[k] for k in kept]), "parts": json.dumps(sorted(parts, key=lambda p: p["part"]), sort_keys=True)}


def soak(folder: Path, kills: int, seed: int, ways: Sequence[Way], size: int, kinds: Sequence[str] = KINDS) -> list[str]:
    """Spread the kills over kinds and ways. Returns the differences found; none is what is hoped for."""
    draw, world, wrong = random.Random(seed), World(folder / "world", size), list[str]()
    with FaultServer(world.answer) as server:
        os.environ["HEADWATER_FETCH_PRIVATE"] = f"{server.address}:{server.port}"
        try:
            world.make(server)
            golden = {kind: made(make(kind, world.recipe(kind, GOLDEN, str(folder / kind)), GOLDEN)) for kind in kinds}
            for kind in kinds:
                print(f"undisturbed {kind:10s} {golden[kind]['card'][:150]}", flush=True)
            hunted = [(kind, way) for way in ways for kind in kinds]
            draw.shuffle(hunted)  # kills that do not divide evenly fall anywhere
            for i, (kind, way) in enumerate(hunted):
                wrong += _one(world, kind, way, sum(k % len(hunted) == i for k in range(kills)), draw, golden[kind])
        finally:
            del os.environ["HEADWATER_FETCH_PRIVATE"]
    scratch = folder / "world/scratch"
    sweep(scratch)
    return wrong + [f"scratch file left: {p.name}" for p in (scratch.iterdir() if scratch.exists() else ())]


def _one(world: World, kind: str, way: Way, kills: int, draw: random.Random, golden: dict[str, str]) -> list[str]:
    """Kill one job so many times, let it finish, and compare."""
    place = world.folder.parent / f"{kind}-{way.name.replace(' ', '-')}"
    config, log, parts = f"{place}.json", f"{place}.log", len(json.loads(golden["parts"]))
    Path(config).write_text(json.dumps({"kind": kind, "recipe": world.recipe(kind, way, str(place)), "way": vars(way)}))

    def begin(mark: str) -> subprocess.Popen[bytes]:
        return launch(["tests.video_soak", "--make", config], log, mark)

    moments: list[str] = []
    for k in range(kills):
        moments.append(_killed(begin, place, draw.randint(0, parts - 1) if k else draw.randint(0, parts // 2), draw.uniform(0, 0.4)))
    took = waited(begin, log)
    found = made(str(place))
    wrong = [f"{kind}, {way.name}: {name}" for name in sorted(golden.keys() | found.keys()) if golden.get(name) != found.get(name)]
    print(f"{'DIFFERS' if wrong else 'equal'}  {kind}, {way.name}: killed at [{', '.join(moments)}] of {parts} parts, then {took:.1f} s", flush=True)
    return wrong


def _killed(begin: Any, place: Path, after: int, more: float) -> str:
    """Begin, and kill -9 all of it `more` seconds after so many parts are there. Returns how many were. A job that was faster is begun anew."""

    def parts() -> int:
        return len(list((place / "parts").glob("*.json")))

    while True:
        mark, began, there = uuid.uuid4().hex, time.monotonic(), parts()
        child = begin(mark)
        while child.poll() is None and time.monotonic() - began < LAST_S and parts() <= max(after, there):
            time.sleep(0.01)
        time.sleep(more)
        ended = child.poll() is not None
        kill_all(child, mark)
        if not ended:
            return str(parts())
        storage.delete_tree(str(place))
        after, more = after // 2, more / 2


def main() -> int:
    """Exit status 0 when nothing differed."""
    parser = argparse.ArgumentParser(description="kill -9 at random moments over jobs on video, actions and questions; all must make the same bytes")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--size", type=int, default=24, help="films")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        asked = json.loads(Path(args.make).read_text())
        make(asked["kind"], asked["recipe"], Way(**asked["way"]))
        return 0
    seed, began = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="headwater-video-"))
    print(f"seed {seed}, in {folder}", flush=True)
    wrong = soak(folder, args.kills, seed, WAYS, args.size)
    print(f"{args.kills} kills over {len(WAYS) * len(KINDS)} jobs in {time.monotonic() - began:.0f} s: {wrong or 'the same bytes every time'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
