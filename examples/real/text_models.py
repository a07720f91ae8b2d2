"""Two small fastText models for the recipes beside this file, trained on the data itself: python examples/real/text_models.py DATA/text OUT

    OUT/lid.bin         language of a sentence: the odd lines of sentences_by_language, one label a file
    OUT/book.bin        `book` or `web`: paragraphs of books_en against those of the C4 samples; a toy where a quality model goes
    OUT/sentences/      the even lines as JSON Lines, with the file's name as `truth`: what text_languages.yaml reads

They show that the filters work and are no models to use: for those, see docs/text.md. One thread and fixed order, so a run can be repeated; fastText
reads memory that it never set, hence the process whose memory starts as zeros.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

TRAIN = (
    "import sys, fasttext as f; "
    "f.train_supervised(sys.argv[1], dim=16, lr=1.0, epoch=50, minn=2, maxn=4, bucket=50000, thread=1, verbose=0).save_model(sys.argv[2])"
)


def train(rows: list[tuple[str, str]], model: Path) -> None:
    """One label and one line of text a row → a model file."""
    told = model.with_suffix(".txt")
    told.write_text("".join(f"__label__{label} {' '.join(text.split())}\n" for label, text in rows), encoding="utf-8")
    # glibc fills new memory with the complement of this byte: zeros
    subprocess.run([sys.executable, "-c", TRAIN, str(told), str(model)], env={**os.environ, "MALLOC_PERTURB_": "255"}, check=True)
    told.unlink()


def paragraphs(text: str) -> list[str]:
    """Pieces of 80 characters or more between empty lines."""
    return [p for p in text.replace("\r", "").split("\n\n") if len(p) >= 80]


def main(data: Path, out: Path) -> None:
    (out / "sentences").mkdir(parents=True, exist_ok=True)
    rows = []
    for file in sorted((data / "sentences_by_language").glob("*.txt")):
        lines = file.read_text(encoding="utf-8").splitlines()
        rows += [(file.stem, line) for line in lines[1::2]]
        held = [json.dumps({"text": line, "truth": file.stem}, ensure_ascii=False) + "\n" for line in lines[::2]]
        (out / "sentences" / f"{file.stem}.jsonl").write_text("".join(held), encoding="utf-8")
    train(rows, out / "lid.bin")
    books = [p for f in sorted((data / "books_en").rglob("*.txt")) for p in paragraphs(f.read_text(encoding="utf-8", errors="replace"))]
    web = []
    for file in sorted((data / "jsonl" / "c4").glob("*.gz")):
        texts = [json.loads(line)["text"] for line in gzip.decompress(file.read_bytes()).splitlines()]
        web += [p for text in texts for p in text.split("\n") if len(p) >= 80]
    train([("book", p) for p in books[:: max(len(books) // len(web), 1)]] + [("web", p) for p in web], out / "book.bin")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
