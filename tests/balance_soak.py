"""The same balanced pairs for any number of workers, any shards and any kill: `python -m tests.balance_soak --kills 24`.

A table of URLs with captions is fetched from a server on loopback, filtered, cleared of doubles, balanced (`pairs`, one text a record) and
written: once undisturbed in this machine's simplest way, then in other ways: 1, 2 and 4 Ray workers, tiny and large shards, parts of few rows and
of many, two lists in other buckets. Every one of them is killed (-9, everything it started) at random moments and begun again, many times, before
it may finish. What is compared is what was sampled: ids, texts, hashes of pictures, in order, and the figures that explain the numbers; where
shards and parts are the same, the fingerprint too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipelines.format import storage
from pipelines.format.dataset import Dataset
from tests.fault_server import Answer, FaultServer, Seen
from tests.soak import killed, launch, waited
from tests.toys import jpeg

WORDS = ["dog", "cat", "red fox", "lamp", "owl", "river", "New York", "axolotl", "a", "in", "nothing"]
PICTURES = 40  # distinct ones; each is served under many addresses


@dataclass(frozen=True)
class Way:
    """One way to make the dataset: who runs it, how it is cut. Nothing here may show in what is sampled."""

    name: str
    engine: str = "local"
    workers: int = 1
    shard_bytes: int = 256 << 20
    rows: int = 10_000
    buckets: int = 64


GOLDEN = Way("undisturbed")
RAY = (
    Way("ray, 1 worker, tiny shards", "ray", 1, shard_bytes=1 << 16, rows=400),
    Way("ray, 2 workers", "ray", 2, rows=150),
    Way("ray, 4 workers, small shards, 3 buckets", "ray", 4, shard_bytes=1 << 18, rows=70, buckets=3),
)
LOCAL = (Way("in process, tiny shards, few rows", shard_bytes=1 << 16, rows=40, buckets=5), Way("in process, as the undisturbed one"))


def web(seen: Seen) -> Answer | None:
    """/N.jpg is a picture; every 17th is gone."""
    n = int(seen.path.strip("/").split(".")[0])
    return None if n % 17 == 0 else Answer(jpeg(n % PICTURES, 48), headers={"Content-Type": "image/jpeg"})


def world(folder: Path, server: FaultServer, rows: int) -> None:
    """Three tables of URLs with two captions a row, of common and rare words and some doubles, and a list of entries."""
    random_ = random.Random(11)
    (folder / "in").mkdir(parents=True)
    weights = [2.0 ** -min(i, 6) for i in range(len(WORDS))]

    def text() -> str:
        return " ".join(random_.choices(WORDS, weights, k=random_.randint(2, 6))) + random_.choice(["", ".", f", {random_.randint(0, 99)}"])

    said = [(text(), text()) for _ in range(rows)]
    for i in range(PICTURES, rows, 7):
        said[i] = said[i - PICTURES]  # the same picture with the same captions at another address
    made = [json.dumps({"url": server.url(f"/{i}.jpg"), "alt": a, "again": b}) + "\n" for i, (a, b) in enumerate(said)]
    for k in range(3):
        (folder / "in" / f"{k}.jsonl").write_text("".join(made[k * rows // 3 : (k + 1) * rows // 3]))
    (folder / "entries.json").write_text(json.dumps([w for w in WORDS if w != "nothing"] + [str(n) for n in range(100)]))


def recipe(folder: Path, way: Way, output: str, rows: int) -> dict[str, Any]:
    """The whole recipe, as YAML would say it."""
    patience = {"backoff": 0.01, "attempts": 2, "robots": False, "per_host": 16}
    source = {"path": str(folder / "in"), "caption_fields": {"original": "alt", "second": "again"}, "fetch": patience}
    balance = {"entries": str(folder / "entries.json"), "pairs": rows // 3, "texts": "one", "buckets": way.buckets}
    return {
        "name": "soaked",
        "source": {"url_table": source},
        "filters": [{"caption_length": {"min_words": 2}}],
        "transforms": [{"resize_image": {"size": 32}}],
        "across": ["exact_text", {"metaclip": balance}],
        "engine": way.engine,
        "shard_bytes": way.shard_bytes,
        "output": output,
    }


def make(document: dict[str, Any], way: Way) -> str:
    """Run the recipe in this process, with so many workers and so many rows a part."""
    from pipelines import url_rows
    from pipelines.curate import IMAGE_TEXT
    from pipelines.engine import open_job
    from pipelines.format.document import parse
    from pipelines.recipe import Recipe

    url_rows.ROWS = way.rows
    with open_job(way.engine, cpus=way.workers) as job:
        return IMAGE_TEXT.run(parse(Recipe, document), job)


def sampled(output: str) -> tuple[list[Any], dict[str, Any], str]:
    """(what was sampled, in order; the card's counts and figures; the fingerprint)."""
    dataset = Dataset.open(output)
    rows = []
    for i in range(len(dataset.shards)):
        for r in dataset.records(i, payloads=True):
            rows.append([r.id, [s.text or sha256(s.payload or b"").hexdigest() for s in r.segments]])
    told = {key: dataset.card[key] for key in ("in", "written", "filtered", "rejected", "figures")}
    return rows, told, dataset.fingerprint


def soak(folder: Path, kills: int, seed: int, ways: Sequence[Way], rows: int) -> list[str]:
    """Spread the kills over the ways. Returns the differences found; none is what is hoped for."""
    random_ = random.Random(seed)
    with FaultServer(web) as server:
        os.environ["HEADWATER_FETCH_PRIVATE"] = f"{server.address}:{server.port}"
        try:
            world(folder, server, rows)
            golden = sampled(make(recipe(folder, GOLDEN, str(folder / "golden"), rows), GOLDEN))
            balanced = golden[1]["filtered"]["metaclip.balanced"]
            print(f"undisturbed: {len(golden[0])} of {golden[1]['in']} records sampled, {balanced} drawn away", flush=True)
            assert golden[0] and balanced
            wrong = []
            for i, way in enumerate(ways):
                wrong += _one(folder, way, sum(k % len(ways) == i for k in range(kills)), random_, rows, golden)
            return wrong
        finally:
            del os.environ["HEADWATER_FETCH_PRIVATE"]


def _one(folder: Path, way: Way, kills: int, random_: random.Random, rows: int, golden: tuple[list[Any], dict[str, Any], str]) -> list[str]:
    """Kill one way so many times, let it finish, and compare."""
    place = folder / way.name.replace(" ", "-").replace(",", "")
    config, log = f"{place}.json", f"{place}.log"
    Path(config).write_text(json.dumps({"recipe": recipe(folder, way, str(place), rows), "way": vars(way)}))

    def begin(mark: str) -> subprocess.Popen[bytes]:
        return launch(["tests.balance_soak", "--make", config], log, mark)

    long, moments, wrong = (40.0 if way.engine == "ray" else 12.0), [], []
    while len(moments) < kills:
        after, ended = killed(begin, random_.uniform(0, long))
        if ended:  # too late: compare, and begin from nothing, so that every kill that is counted hits a job at work
            long = min(long, max(after, 0.5))
            wrong += _differences(str(place), way, golden)
            storage.delete_tree(str(place))
        else:
            moments.append(f"{after:.1f}")
    took = waited(begin, log)
    wrong += _differences(str(place), way, golden)
    print(f"{'DIFFERS' if wrong else 'equal'}  {way.name}: killed after [{' '.join(moments)}] s, then {took:.1f} s", flush=True)
    return wrong


def _differences(output: str, way: Way, golden: tuple[list[Any], dict[str, Any], str]) -> list[str]:
    found = sampled(output)
    same = (way.shard_bytes, way.rows) == (GOLDEN.shard_bytes, GOLDEN.rows)
    checks = {"records": found[0] == golden[0], "figures": found[1] == golden[1], "fingerprint": not same or found[2] == golden[2]}
    return [f"{way.name}: {what}" for what, ok in checks.items() if not ok]


def main() -> int:
    """Exit status 0 when nothing differed."""
    parser = argparse.ArgumentParser(description="kill -9 at random moments over ways to make one balanced dataset; what is sampled must be the same")
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--rows", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        asked = json.loads(Path(args.make).read_text())
        make(asked["recipe"], Way(**asked["way"]))
        return 0
    seed, began = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="headwater-balance-"))
    print(f"seed {seed}, in {folder}", flush=True)
    wrong = soak(folder, args.kills, seed, [*RAY, *LOCAL], args.rows)
    print(f"{args.kills} kills over {len(RAY + LOCAL)} ways in {time.monotonic() - began:.0f} s: {wrong or 'the same pairs every time'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
