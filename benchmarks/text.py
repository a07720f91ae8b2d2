"""A text chain against datatrove's own: read JSON Lines → Gopher repetition and quality, C4, FineWeb → tokenise → write.

    python -m benchmarks.text --json

Ours are two stages, `text` and `encode`, with all they publish and hash on the way; the peer's is one LocalPipelineExecutor of the same
blocks with their defaults and DocumentTokenizer (no shuffling). One worker each, in this process, the same files and the same
tokenizer.json (made here), Rust's threads off on both sides; words and sentences that our side remembers are forgotten before each run.
Then, outside the timing: every document is kept or dropped alike, for the same reason, and the text left is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.alternating import alternate, compared
from benchmarks.web_pages import write

BAR = 1.3
RUNS = 5
FILTERS = ("gopher_repetition", "gopher_quality", "c4", "fineweb_quality")


def fit_tokenizer(texts: list[str], path: Path) -> str:
    """A byte-level BPE of 8,192 entries on these texts."""
    from tokenizers import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(texts, vocab_size=8_192, special_tokens=["<|endoftext|>"], show_progress=False)
    made.save(str(path))
    return str(path)


def ours(pages: Path, tokenizer: str, out: Path, keep_dropped: bool = False) -> Path:
    """Our two stages; returns the curated dataset."""
    from encode.recipe import EncodeRecipe
    from encode.stage import STAGE
    from pipelines import words
    from pipelines.curate import TEXT
    from pipelines.engine import open_job
    from pipelines.format.document import parse
    from pipelines.recipe import Recipe

    words._lexicons.clear()
    recipe: dict[str, Any] = {"name": "pages", "source": {"jsonl": {"path": str(pages)}}, "filters": list(FILTERS), "engine": "local"}
    encoded = {"dataset": str(out / "text"), "text": {"text_tokens": {"tokenizer": tokenizer}}, "engine": "local", "output": str(out / "tokens")}
    job: Any
    with open_job("local") as job:
        TEXT.run(parse(Recipe, {**recipe, "output": str(out / "text"), "keep_dropped": keep_dropped}), job)
        if not keep_dropped:
            STAGE.run(parse(EncodeRecipe, encoded), job)
    return out / "text"


def blocks() -> list[Any]:
    """The peer's filters, as they come."""
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter

    return [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(), FineWebQualityFilter()]


def peer(pages: Path, tokenizer: str, out: Path) -> None:
    """datatrove's chain."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    write_tokens = DocumentTokenizer(str(out / "tokens"), tokenizer, shuffle_documents=False)
    chain = [JsonlReader(str(pages)), *blocks(), write_tokens]
    LocalPipelineExecutor(chain, tasks=len(list(pages.iterdir())), workers=1, logging_dir=str(out / "logs")).run()


def verdicts_ours(dataset: Path) -> Counter[tuple[str, str]]:
    """(reason, or "kept" and the text left) of every document, as often as it occurs."""
    from pipelines.format.dataset import Dataset

    found: Counter[tuple[str, str]] = Counter()
    for path in (dataset, dataset / "dropped"):
        ds = Dataset.open(str(path))
        for i in range(len(ds.shards)):
            for r in ds.records(i):
                reason = r.fields.get("dropped")
                found[(reason.partition(".")[2], "") if reason else ("kept", r.segments[0].text or "")] += 1
    return found


def verdicts_peer(texts: list[str]) -> Counter[tuple[str, str]]:
    """The same of datatrove's filters, asked one after the other."""
    from datatrove.data import Document

    found: Counter[tuple[str, str]] = Counter()
    chain = blocks()
    for text in texts:
        document, verdict = Document(text=text, id=""), ("kept", "")
        for block in chain:
            said = block.filter(document)
            if said is not True:
                verdict = (said[1], "")
                break
        found[verdict if verdict[0] != "kept" else ("kept", document.text)] += 1
    return found


def measure(n: int, runs: int) -> dict[str, Any]:
    """The comparison on n documents."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from loguru import logger

    logger.remove()  # the peer's log lines would cost it time
    root = Path(tempfile.mkdtemp(prefix="benchmark-text-"))
    try:
        texts = write(root / "pages", n, files=4)
        tokenizer = fit_tokenizer(texts[:2_000], root / "tokenizer.json")
        pages = root / "pages"
        took = alternate(lambda k: ours(pages, tokenizer, root / f"ours{k}"), lambda k: peer(pages, tokenizer, root / f"peer{k}"), runs)
        mine, theirs = verdicts_ours(ours(root / "pages", tokenizer, root / "checked", keep_dropped=True)), verdicts_peer(texts)
    finally:
        shutil.rmtree(root)
    reasons = Counter[str]()
    for (reason, _), count in mine.items():
        reasons[reason] += count
    facts = {
        "documents": n,
        "mean_characters": sum(map(len, texts)) // n,
        "same_verdicts_and_texts": mine == theirs,
        "verdicts": dict(reasons.most_common()),
    }
    row = compared("text.chain", n, "documents/s of processor time, one worker", BAR, took, facts=facts, versions=versions())
    return {**row, "ok": row["ok"] and mine == theirs}


def versions() -> dict[str, str]:
    """Who was compared."""
    return {name: version(name) for name in ("datatrove", "spacy", "tokenizers", "numpy", "pyarrow")}


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
