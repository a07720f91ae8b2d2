"""An encoded dataset is the same after any kill: `python -m tests.encode_soak --kills 20`.

Pictures with captions of the embedded world, in several parts, are encoded by a small SigLIP tower: once undisturbed in this process, then again and
again in processes of their own, on Ray unless `--engine local`, that are killed (-9, all that they started) in rounds of five. Moments are drawn by
the seed; each has an aim, a sign on the disk that it waits for: right after the start; soon after it knows its parts; after some more; while
files of a part are written; when all parts are there and the card is not. After each round the job may finish. Then, once `gc` has been, there must
be the files of the undisturbed dataset and no other, all with its bytes, the card too; and `verify --deep --audit 100%` must find nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.commands import gc, verify
from pipelines.format import storage
from pipelines.format.document import parse
from tests.soak import kill_all, launch, waited

LAST_S = 180.0  # seconds: no sign takes longer, or something is wrong
# A sign, and the most seconds that pass between it and the kill: about as long as the phase takes that it announces.
AIMS = {"start": 4.0, "load": 2.0, "encode": 0.4, "write": 0.01, "seal": 0.06}


@dataclass
class World:
    """What is encoded, where to, and what a job has left there. `golden` is what it must come to."""

    folder: Path
    engine: str
    document: dict[str, Any] = field(default_factory=dict)
    golden: dict[str, bytes] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def make(self, scenes: int) -> None:
        """Curated pictures, a tokenizer, a tower; and the dataset that no kill disturbs, in the place of the others, so that all paths are alike."""
        from encode.fit_tokenizer import STAGE as FIT
        from encode.fit_tokenizer import FitTokenizer
        from pipelines.curate import IMAGE_TEXT
        from pipelines.engine import open_job
        from pipelines.recipe import Recipe
        from tests.encode.models import save_siglip

        pairs, tokenizer, tower = (str(self.folder / name) for name in ("pairs", "tokenizer", "tower"))
        world = {"kind": "image-text", "scenes": scenes, "seed": 3}
        with open_job("local") as job:
            IMAGE_TEXT.run(parse(Recipe, {"source": {"world": world}, "shard_bytes": 1 << 16, "output": pairs, "name": "pairs"}), job)
            FIT.run(parse(FitTokenizer, {"datasets": [pairs], "vocab": 320, "output": tokenizer}), job)
        save_siglip(tower)
        images = {"siglip2": {"weights": tower, "batch": 8}}
        text = {"text_tokens": {"tokenizer": tokenizer}}
        self.document = {"dataset": pairs, "text": text, "images": images, "engine": self.engine, "output": str(self.output)}
        encode(self.document, "local")
        self.golden = self.files()
        storage.delete_tree(str(self.output))
        assert self.n > 3 and any(name.startswith("stats-position-") for name in self.golden), f"{self.n} parts: too few to mean anything"
        assert sum(name.startswith("moments/") for name in self.golden) > 3, "too few parts with moments by position"

    @property
    def n(self) -> int:
        return sum(name.startswith("parts/") for name in self.golden)

    def files(self) -> dict[str, bytes]:
        """Every file of the dataset but its log, of scratch space too."""
        found = [p for p in self.output.rglob("*") if p.is_file() and p.name != "log.jsonl"]
        return {p.relative_to(self.output).as_posix(): p.read_bytes() for p in found}

    def parts(self) -> int:
        return len(list((self.output / "parts").glob("*.json")))

    def scratch(self) -> set[str]:
        """Files that are being built, or were when a process was killed."""
        return {str(p) for p in self.output.rglob(f"{storage.TMP}/*")}

    def starts(self) -> int:
        """How often a job has come as far as knowing its parts."""
        log = self.output / "log.jsonl"
        return log.read_bytes().count(b'"start"') if log.exists() else 0

    def sealed(self) -> bool:
        return (self.output / "manifest.json").exists()


def encode(document: dict[str, Any], where: str) -> None:
    """Run the recipe in this process, on so many processors that Ray has two workers."""
    from encode.recipe import EncodeRecipe
    from encode.stage import STAGE
    from pipelines.engine import open_job
    from pipelines.journey import log_path

    config = parse(EncodeRecipe, document)
    with open_job(where, cpus=2, log_path=log_path(config)) as job:
        STAGE.run(config, job)


def sign(world: World, aim: str, draw: random.Random) -> Callable[[], bool]:
    """Whether the time has come that the aim waits for, as what is there now and the draw say."""
    there, before, begun = world.parts(), world.scratch(), world.starts()
    wanted = min(there + draw.randint(1, 3), world.n)
    return {
        "start": lambda: True,
        "load": lambda: world.starts() > begun,
        "encode": lambda: world.parts() >= wanted,
        "write": lambda: world.parts() >= wanted - 1 and bool(world.scratch() - before),
        "seal": lambda: world.parts() == world.n,
    }[aim]


def kill(world: World, begin: Callable[[str], subprocess.Popen[bytes]], aim: str, draw: random.Random) -> tuple[str, str]:
    """Begin, and kill -9 all of it at a moment of the kind of `aim`. Returns (where that was, in words; before, while or after)."""
    mark, began, come, more = uuid.uuid4().hex, time.monotonic(), sign(world, aim, draw), draw.uniform(0, AIMS[aim])
    there, before, begun = world.parts(), world.scratch(), world.starts()
    child = begin(mark)
    try:
        while child.poll() is None and not come():
            assert time.monotonic() - began < LAST_S, f"{aim}: nothing came of it in {LAST_S:.0f} s"
            time.sleep(0.001)
        time.sleep(more)
        ended = child.poll() is not None
        with contextlib.suppress(ProcessLookupError):  # the one that seals, at once; looking for its workers takes a while
            os.killpg(child.pid, signal.SIGKILL)
    finally:
        kill_all(child, mark)
    if ended and child.returncode != 0:
        raise RuntimeError(f"the job ended by itself with {child.returncode} before it was killed, see {world.folder}/log")
    torn, after = len(world.scratch() - before), time.monotonic() - began
    when = "after" if world.sealed() else "while" if world.starts() > begun else "before"
    card = "there" if world.sealed() else "missing"
    said = f"{aim:6s} {after:5.1f} s  parts {there} -> {world.parts()} of {world.n}, {torn} half-written files, card {card}"
    return said + (", had ended" if ended else ""), when


def differences(world: World) -> list[str]:
    """Of a finished dataset after gc: what is not as it is when nothing was killed."""
    gone = gc.answer(Namespace(path=str(world.output), older_than=0.0, dry_run=False))["removed"]
    found, wrong = world.files(), []
    for name in sorted(found.keys() | world.golden.keys()):
        if found.get(name) != world.golden.get(name):
            wrong.append(f"{name}: {'missing' if name not in found else 'left over' if name not in world.golden else 'other bytes'}")
    if list(world.output.rglob(storage.TMP)):
        wrong.append("the scratch folder is still there")
    told = verify.answer(Namespace(path=str(world.output), deep=True, audit="100%", seed=0, parent=None, check=[]))
    wrong += [f"{p['file']}: {p['what']}" for p in told["problems"]]
    again = {what: (told["audit"][what]["equal"], told["audit"][what]["of"]) for what in ("images", "texts") if not told["problems"]}
    wrong += [f"audit: {equal} of {of} {what} equal" for what, (equal, of) in again.items() if equal != of]
    audit = ", ".join(f"{equal} of {of} {what}" for what, (equal, of) in again.items())
    print(f"{'DIFFERS' if wrong else 'equal  '} {len(found)} files; gc took {len(gone)}; encoded again and equal: {audit}", flush=True)
    return wrong


def soak(folder: Path, kills: int, seed: int, engine: str, scenes: int) -> tuple[list[str], Counter[str]]:
    """So many kills in rounds of one for each aim. Returns the differences found, none is what is hoped for, and how many kills hit when."""
    draw, world, hit, wrong = random.Random(seed), World(folder, engine), Counter[str](), list[str]()
    world.make(scenes)
    config, log = folder / "encode.json", str(folder / "log")
    config.write_text(json.dumps(world.document))

    def begin(mark: str) -> subprocess.Popen[bytes]:
        return launch(["tests.encode_soak", "--make", str(config)], log, mark)

    print(f"undisturbed: {world.n} parts, {len(world.golden)} files", flush=True)
    while hit.total() < kills:
        early = list(AIMS)[:-1]
        aims = [*draw.sample(early, min(len(early), kills - hit.total() - 1)), "seal"]  # with all parts there, little is left to be killed in
        for aim in aims:
            said, when = kill(world, begin, aim, draw)
            hit[when] += 1
            print(f"killed  {said}", flush=True)
            if when == "after":  # finished: judged as it is, and begun from nothing
                wrong += differences(world)
                storage.delete_tree(str(world.output))
        if engine == "local":
            encode(world.document, engine)
        else:
            print(f"left to finish: {waited(begin, log):.1f} s", flush=True)
        wrong += differences(world)
        storage.delete_tree(str(world.output))
    return wrong, hit


def main() -> int:
    """Exit status 0 when nothing differed."""
    parser = argparse.ArgumentParser(description="kill -9 at random moments of an encode job; its dataset must have the bytes of an undisturbed one")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--scenes", type=int, default=960, help="pictures")
    parser.add_argument("--engine", choices=("ray", "local"), default="ray")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        document = json.loads(Path(args.make).read_text())
        encode(document, document["engine"])
        return 0
    seed, began = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="headwater-encode-"))
    print(f"seed {seed}, in {folder}", flush=True)
    wrong, hit = soak(folder, args.kills, seed, args.engine, args.scenes)
    told = ", ".join(f"{hit[when]} {when}" for when in ("before", "while", "after"))
    print(f"{args.kills} kills ({told}) in {time.monotonic() - began:.0f} s: {wrong or 'the same bytes every time'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
