"""Tiny files of the sixteen sets, each in the layout that it was published with, and how their first question is put."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.toys import jpeg

N = 6  # pictures and questions of each set
CELL = [{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in range(N)]
WORDS = ("dog", "cat", "cow")
LETTERS = "ABC"


def rows(**more):
    """A question a picture; `right[i]` is which of WORDS is right."""
    return [{"question": f"Q{i}?", **{k: v(i) if callable(v) else v for k, v in more.items()}} for i in range(N)]


def right(i: int) -> int:
    return (i * 2 + i // 3) % 3


def word(i: int) -> str:
    return WORDS[right(i)]


def parquet(name: str, rows_: list[dict]):
    return lambda root: pq.write_table(pa.Table.from_pylist(rows_), root / name)


def text(name: str, content, folder: str | None = None, file: str = "{}.jpg"):
    def write(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
        if folder is not None:
            (root / folder).mkdir(parents=True, exist_ok=True)
            for i in range(N):
                (root / folder / file.format(i)).write_bytes(jpeg(i))

    return write


def table(name: str, rows_: list[dict], delimiter: str, folder: str | None = None, file: str = "{}.jpg"):
    def write(root: Path) -> None:
        with (root / name).open("w", newline="") as f:
            writer = csv.DictWriter(f, list(rows_[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows_)
        if folder:
            (root / folder).mkdir()
            for i in range(N):
                (root / folder / file.format(i)).write_bytes(jpeg(i))

    return write


def letter(i: int) -> str:
    return LETTERS[right(i)]


IMAGE = {"image": lambda i: CELL[i]}
LISTED = {"choices": list(WORDS), "answer": right}
OPTIONS = {"options": str(list(WORDS)), "answer": letter}
SPATIAL = {**IMAGE, "choices": list(WORDS), "answer": lambda i: f"({letter(i)})"}
YES = ("Yes", "No")
TYPES = ("existence", "OCR", "code_reasoning")  # the last is cognition, which the score leaves out
SCIENCE = rows(**IMAGE, **LISTED, hint="", subject="x")
MME = [
    {**q, "question": f"{q['question']} {half}", "answer": YES[(i + k) % 2], "category": TYPES[i // 2], "question_id": str(i)}
    for i, q in enumerate(rows(**IMAGE))
    for k, half in enumerate("ab")
]
MMBENCH = [
    {"index": i, "image": base64.b64encode(jpeg(i)).decode(), **q, "A": "dog", "B": "cat", "C": "cow", "D": "", "answer": letter(i), "hint": "grown"}
    for i, q in enumerate(rows(category="c"))
]
FOUR = {f"choice_{x}": w for x, w in zip("abcd", ("dog", "cat", "cow", "hen"), strict=True)}
SEED = rows(image=lambda i: [CELL[i]], **FOUR, answer=letter, data_type=lambda i: "video" if i == 5 else "image")
GQA = {f"0{i}": {**q, "types": {"structural": "query"}} for i, q in enumerate(rows(imageId=lambda i: f"n{i}", answer=word))}
MMMU = [
    {**q, "question": f"<image 1> {q['question']}", **{f"image_{k}": None for k in range(2, 8)}, "question_type": "multiple-choice"}
    for q in rows(image_1=lambda i: CELL[i], **OPTIONS)
]
FREE = {"choices": None, "answer": "1.5", "answer_type": "float"}
MATH = [
    {**q, "image": "1.jpg", **({"choices": list(WORDS), "answer": word(i), "answer_type": "text"} if i % 2 else FREE)}
    for i, q in enumerate(rows(decoded_image=lambda i: CELL[i]))
]
CHARTS = [{"imgname": f"{i}.png", "query": f"Q{i}?", "label": str(10 * i + 5) if i < 3 else "Blue"} for i in range(N)]
TEXTS = rows(image_id=str, answers=lambda i: [word(i)] * 4 + ["a hen"] * 6)
DOCUMENTS = rows(image=lambda i: f"documents/{i}.png", answers=lambda i: [f"letter {i}", "note"])
MMVP = [{"Index": i + 1, "Question": f"Q{i}?", "Options": "(a) dog (b) cat", "Correct Answer": f"({'ab'[i % 2]})"} for i in range(N)]
REAL = [{**q, "question": f"Q{i}? A. dog B. cat C. cow"} for i, q in enumerate(rows(**IMAGE, answer=letter))]
FILES = {
    "mme": parquet("mme.parquet", MME),
    "mmbench": table("mmbench_dev_en.tsv", MMBENCH, "\t"),
    "seed": parquet("seed.parquet", SEED),
    "gqa": text("testdev_balanced_questions.json", GQA, "images", "n{}.jpg"),
    "scienceqa": parquet("test-00000.parquet", [*SCIENCE, {**SCIENCE[0], "image": None}]),
    "mmmu": parquet("v.parquet", MMMU),
    "mathvista": parquet("testmini-0.parquet", MATH),
    "ai2d": parquet("a.parquet", rows(**IMAGE, options=list(WORDS), answer=lambda i: str(right(i)))),
    "chartqa": lambda root: [text("test_human.json", CHARTS[:3], "png", "{}.png")(root), text("test_augmented.json", CHARTS[3:])(root)],
    "ocrbench": parquet("o.parquet", rows(**IMAGE, answer=lambda i: [f"STOP {i}", "HALT"], dataset="d", question_type="Scene Text-centric VQA")),
    "textvqa": text("TextVQA_0.5.1_val.json", {"data": TEXTS}, "train_images"),
    "docvqa": text("val_v1.0_withQT.json", {"data": DOCUMENTS}, "documents", "{}.png"),
    "mmvp": table("Questions.csv", MMVP, ",", "MMVP Images"),
    "realworldqa": parquet("r.parquet", REAL),
    "cvbench_2d": parquet("test_2d.parquet", rows(**SPATIAL, source=lambda i: ("ADE20K", "COCO")[i > 1])),
    "cvbench_3d": parquet("test_3d.parquet", rows(**SPATIAL, source="Omni3D")),
}
PROMPT = {
    "mme": "Q0? a\nAnswer:| Yes",
    "mmbench": "grown\nQ0?\nA. dog\nB. cat\nC. cow\nAnswer with the option's letter from the given choices directly.\nAnswer:| A",
    "seed": "Q0?\nA. dog\nB. cat\nC. cow\nD. hen\nAnswer with the option's letter from the given choices directly.\nAnswer:| A",
    "mmmu": "Q0?\nA. dog\nB. cat\nC. cow\nAnswer with the option's letter from the given choices directly.\nAnswer:| A",
    "mathvista": "Q0?\nAnswer the question using a single word or phrase.\nAnswer:| 1.5",
    "gqa": "Q0?\nAnswer the question using a single word or phrase.\nAnswer:| dog",
    "chartqa": "Q3?\nAnswer the question using a single word or phrase.\nAnswer:| Blue",  # files in the order of their names
    "mmvp": "Q0? (a) dog (b) cat\nAnswer with the option's letter from the given choices directly.\nAnswer:| (a)",
    "textvqa": "Q0?\nAnswer the question using a single word or phrase.\nAnswer:| a hen",
    "realworldqa": "Q0? A. dog B. cat C. cow\nAnswer:| A",
    "ocrbench": "Q0?\nAnswer:| STOP 0",
}
