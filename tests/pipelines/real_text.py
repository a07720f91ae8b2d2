"""Texts for tests: real ones when the sample data is there, and generated ones that stand on every rule's border."""

import gzip
import json
import os
import random
from pathlib import Path

WORDS = ["the", "be", "of", "river", "stones", "a", "with", "walked", "don't", "e.g.", "U.S.A.", "x", "it’s", "naïve", "#", "...", "10a.m.", "—"]
LINES = ["- menu", "• item", "Home", "more…", "Read more...", "We use cookies.", "Uses JavaScript to work.", "{ code }", "See [12].[3]", "", "  "]


def generated(seed: int, n: int) -> list[str]:
    """Documents of a few lines to a few pages, with repeated lines and phrases in every amount."""
    draw = random.Random(seed)
    return [_document(draw) for _ in range(n)]


def _document(draw: random.Random) -> str:
    phrases = [" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(draw.randint(1, 12))]
    lines = []
    for _ in range(draw.randint(0, 25)):
        kind = draw.random()
        if kind < 0.15:
            lines.append(draw.choice(LINES))
        else:
            joined = " ".join(draw.choices(phrases, k=draw.randint(1, 4)))
            fresh = " ".join(f"w{draw.randint(0, 400)}" for _ in range(draw.randint(0, 12)))
            lines.append(joined + draw.choice([" ", "  ", "\t", ""]) + fresh + draw.choice([".", "!", "", " :)", ". So?", " x:) )"]))
    return draw.choice(["\n", "\n\n", "\r\n"]).join(lines)


def real() -> list[str]:
    """Pages, books and sentences in 27 languages from the sample data; nothing without it."""
    root = os.environ.get("HEADWATER_DATA")
    if not root:
        return []
    text = Path(root) / "text"
    out = []
    for path in sorted(text.glob("jsonl/**/*.gz")):
        rows = map(json.loads, gzip.decompress(path.read_bytes()).decode().splitlines())
        out += [row["text"] for row in rows if isinstance(row.get("text"), str)]
    for path in sorted(text.glob("books_en/**/*.txt")):
        book = path.read_text(encoding="utf-8", errors="replace")
        out += [book[i : i + 6_000] for i in range(0, min(len(book), 30_000), 6_000)]
    out += [path.read_text(encoding="utf-8")[:4_000] for path in sorted(text.glob("sentences_by_language/*.txt"))]
    return out
