"""Near duplicates against datatrove's four MinHash stages: read JSON Lines → signatures → pairs → clusters → a dataset without the
duplicates.

    python -m benchmarks.minhash --json

Ours is one recipe with `across: [minhash]`: candidates, rounds, the rewritten dataset, all published and hashed. The peer's are its four
stages in a row with their defaults, from the same files to JSON Lines. One worker each, in this process; words that our side remembers are
forgotten before each run. Outside the timing: both put the same documents together.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.alternating import alternate, compared
from benchmarks.text import RUNS, versions
from benchmarks.web_pages import write

BAR = 1.0
FILES = 4


def ours(pages: Path, out: Path) -> None:
    """One recipe."""
    from pipelines import words
    from pipelines.curate import TEXT
    from pipelines.engine import open_job
    from pipelines.format.document import parse
    from pipelines.recipe import Recipe

    words._lexicons.clear()
    recipe = {"name": "pages", "source": {"jsonl": {"path": str(pages)}}, "across": ["minhash"], "engine": "local", "output": str(out)}
    job: Any
    with open_job("local") as job:
        TEXT.run(parse(Recipe, recipe), job)


def peer(pages: Path, out: Path) -> None:
    """The four stages, as their example runs them."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    at = {name: str(out / name) for name in ("signatures", "buckets", "clusters", "kept")}
    stages: list[tuple[list[Any], int]] = [
        ([JsonlReader(str(pages)), MinhashDedupSignature(at["signatures"])], FILES),
        ([MinhashDedupBuckets(at["signatures"], at["buckets"])], 14),
        ([MinhashDedupCluster(at["buckets"], at["clusters"], save_cluster_id=True)], 1),
        ([JsonlReader(str(pages)), MinhashDedupFilter(at["clusters"]), JsonlWriter(at["kept"])], FILES),
    ]
    for k, (chain, tasks) in enumerate(stages):
        LocalPipelineExecutor(chain, tasks=tasks, workers=1, logging_dir=str(out / f"logs{k}")).run()


def clusters_peer(out: Path, texts: list[str]) -> set[frozenset[int]]:
    """What the peer's third stage put together, as places in `texts`."""
    found: dict[int, set[int]] = {}
    starts = [f * len(texts) // FILES for f in range(FILES)]
    for path in (out / "clusters").glob("*.clusters"):
        start = starts[int(path.stem)]
        for place, cluster in np.frombuffer(path.read_bytes(), "<u4").reshape(-1, 2).tolist():
            found.setdefault(cluster, set()).add(start + place)
    return {frozenset(c) for c in found.values()}


def clusters_ours(texts: list[str]) -> set[frozenset[int]]:
    """The same of our signatures."""
    from pipelines.across.minhash import Minhash, clusters

    stage, bands = Minhash(), list[tuple[bytes, int]]()
    for k, text in enumerate(texts):
        signature = stage.signature(text)
        bands += [] if signature is None else [(bytes([b]) + row.tobytes(), k) for b, row in enumerate(signature)]
    groups = [[str(k) for _, k in same] for _, same in groupby(sorted(bands), key=lambda x: x[0])]
    return {frozenset(map(int, c)) for c in clusters([pair for g in groups for pair in pairwise(g)])}


def measure(n: int, runs: int) -> dict[str, Any]:
    """The comparison on n documents."""
    from loguru import logger

    logger.remove()
    root = Path(tempfile.mkdtemp(prefix="benchmark-minhash-"))
    try:
        texts = write(root / "pages", n, FILES, seed=1)
        took = alternate(lambda k: ours(root / "pages", root / f"ours{k}"), lambda k: peer(root / "pages", root / f"peer{k}"), runs)
        mine, theirs = clusters_ours(texts), clusters_peer(root / "peer0", texts)
        removed = json.loads((root / "ours0" / "manifest.json").read_text())["filtered"]
    finally:
        shutil.rmtree(root)
    facts = {"documents": n, "clusters": len(mine), "removed": removed, "same_clusters": mine == theirs}
    row = compared("text.minhash", n, "documents/s of processor time, one worker", BAR, took, facts=facts, versions=versions())
    return {**row, "ok": row["ok"] and mine == theirs and removed == {"minhash": sum(len(c) - 1 for c in mine)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object on stdout, nothing else")
    parser.add_argument("--documents", type=int, default=4_000)
    parser.add_argument("--runs", type=int, default=RUNS)
    args = parser.parse_args()
    row = measure(args.documents, args.runs)
    print(json.dumps(row) if args.json else f"{row['name']}: {row['ours']:,} against {row['peer']:,} {row['unit']}: {row['ratio']}× {row['facts']}")


if __name__ == "__main__":
    main()
