"""The lines of docs/vqa.md, each tried on files of that set's own layout: two questions in, two questions out."""

import base64
import csv
import json
import os
import re
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.curate import VQA
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import load
from pipelines.format.record import Record
from pipelines.recipe import Recipe
from pipelines.sources.vqa_json import VqaJson
from pipelines.sources.vqa_table import VqaTable
from pipelines.transforms.template import Template
from pipelines.turns import turn_segments
from pipelines.wording import PLAIN
from tests.pipelines.test_sources_text import read
from tests.pipelines.test_sources_vqa import gpt, human, images
from tests.toys import jpeg

REPO = Path(__file__).resolve().parents[2]
REAL = REPO / "examples/real"
DOC = (REPO / "docs/vqa.md").read_text()
LINES = dict(re.findall(r"^\| ([^|`]+) \| `(\{vqa_.*\})` \|$", DOC, re.M))
CELL = {"bytes": jpeg(0), "path": "0.jpg"}
TALK = [human("<image>\nOne?"), gpt("yes"), human("Two?"), gpt("no")]
CHOICE = {"question": "One?", "choices": ["no", "yes"]}


def questions(**more):
    return [{"question": "One?", **more}, {"question": "Two?", **more}]


def parquet(*rows):
    return lambda path: pq.write_table(pa.Table.from_pylist(list(rows)), path)


def tsv(path):
    large = base64.b64encode(jpeg(0) + bytes(200_000)).decode()  # a cell of more than the csv module's own 128 KiB
    rows = [
        {"index": i, "image": large, **q, "A": "no", "B": "yes", "C": "", "D": "", "answer": "B", "hint": "h", "category": "c"}
        for i, q in enumerate(questions())
    ]
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


VOTES = [{"answer": a, "answer_confidence": "yes"} for a in ("yes", "no", "yes")]
NOTES = [{"question_id": i, "image_id": 7, "question_type": "is", "answers": [{"answer": "yes"}]} for i in (1, 2)]
OPTIONS = {"options": "['no', 'yes']", "answer": "B", "question_type": "multiple-choice"}
# For each set: its files, and its images.
SETS = {
    "LLaVA-1.5 mix665k": ({"llava_v1_5_mix665k.json": [{"id": "1", "image": "coco/a.jpg", "conversations": TALK}]}, ["coco/a.jpg"]),
    "Cambrian-7M": (
        {"Cambrian7M_withsystemprompt.jsonl": json.dumps({"image": "coco/a.jpg", "conversations": TALK}) + "\n", "b.tar": bytes(1024)},
        ["coco/a.jpg"],
    ),
    "The Cauldron": (
        {"t.parquet": parquet({"images": [CELL], "texts": [{"user": f"{q}?", "assistant": "yes", "source": "x"} for q in ("One", "Two")]})},
        [],
    ),
    "LLaVA-OneVision (Parquet)": ({"t.parquet": parquet({"id": "1", "image": CELL, "conversations": TALK, "data_source": "x"})}, []),
    "chat messages, hub form": (
        {
            "t.parquet": parquet(
                {
                    "images": [CELL],
                    "messages": [
                        {"role": r, "content": [{"type": "text", "text": t}]}
                        for r, t in (("user", "One?"), ("assistant", "yes"), ("user", "Two?"), ("assistant", "no"))
                    ],
                }
            )
        },
        [],
    ),
    "VQA v2, OK-VQA": (
        {
            "v2_questions.json": {"questions": [{**q, "image_id": 7, "question_id": i} for i, q in enumerate(questions(), 1)]},
            "v2_annotations.json": {"annotations": NOTES},
        },
        ["train2014/COCO_train2014_000000000007.jpg"],
    ),
    "GQA": (
        {
            "train_balanced_questions.json": {
                f"0{i}": {**q, "imageId": "n7", "answer": "yes", "fullAnswer": "Yes.", "types": {"structural": "verify"}}
                for i, q in enumerate(questions())
            }
        },
        ["images/n7.jpg"],
    ),
    "TextVQA": (
        {"TextVQA_0.5.1_train.json": {"dataset_type": "train", "data": questions(image_id="7", answers=["yes", "yes", "no"])}},
        ["train_images/7.jpg"],
    ),
    "DocVQA": (
        {
            "train_v1.0_withQT.json": {
                "dataset_name": "SP-DocVQA",
                "data": questions(questionId=1, image="documents/a.png", answers=["yes"], question_types=["form"]),
            }
        },
        ["documents/a.png"],
    ),
    "VizWiz": ({"train.json": questions(image="a.jpg", answers=VOTES, answer_type="other", answerable=1)}, ["train/a.jpg"]),
    "CLEVR": (
        {"questions/CLEVR_train_questions.json": {"info": {}, "questions": questions(image_filename="a.png", answer="yes", program=[])}},
        ["images/train/a.png"],
    ),
    "ChartQA": ({"train_human.json": [{"imgname": "a.png", "query": q["question"], "label": "yes"} for q in questions()]}, ["png/a.png"]),
    "ScienceQA (its files)": (
        {
            "problems.json": {
                str(i): {**CHOICE, **q, "answer": 1, "hint": "", "image": "image.png", "split": "train", "subject": "x"}
                for i, q in enumerate(questions(), 3)
            }
        },
        ["images/train/3/image.png", "images/train/4/image.png"],
    ),
    "ScienceQA (Parquet)": (
        {"t.parquet": parquet(*({**CHOICE, **q, "image": CELL, "answer": 1, "hint": "h", "subject": "x"} for q in questions()))},
        [],
    ),
    "A-OKVQA": (
        {"aokvqa_v1p0_train.json": [{**CHOICE, **q, "image_id": 7, "correct_choice_idx": 1, "direct_answers": ["yes", "yeah"]} for q in questions()]},
        ["train2017/000000000007.jpg"],
    ),
    "AI2D (Parquet)": ({"t.parquet": parquet(*questions(options=["no", "yes"], answer="1", image=CELL))}, []),
    "MMMU (Parquet)": (
        {"t.parquet": parquet(*({**q, **OPTIONS, "question": "<image 1> " + q["question"], "image_1": CELL, "image_2": None} for q in questions()))},
        [],
    ),
    "MMBench (TSV)": ({"mmbench_dev_en.tsv": tsv}, []),
}


def test_every_line_of_the_table_has_its_layout_here():
    assert set(LINES) == set(SETS) and len(SETS) >= 12


@pytest.mark.parametrize("name", SETS)
def test_the_documented_line_reads_the_sets_own_files(tmp_path, name):
    files, pictures = SETS[name]
    images(tmp_path, *pictures)
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(tmp_path / path)
        elif isinstance(content, bytes):
            (tmp_path / path).write_bytes(content)
        else:
            (tmp_path / path).write_text(content if isinstance(content, str) else json.dumps(content))
    ((kind, keys),) = yaml.safe_load(LINES[name]).items()
    source = {"vqa_json": VqaJson, "vqa_table": VqaTable}[kind](**{**keys, "path": str(tmp_path)})
    records, rejects = read(source)
    asked = [q for r in records for q in r.fields["questions"]]
    assert not rejects and (asked[0]["question"], asked[0]["answers"][0]) == ("One?", "yes") and len(asked) == 2, rejects
    assert all(sum(s.kind == "image" for s in r.segments) == 1 for r in records)
    assert ("choices" in asked[0]) == ("choices" in keys)


def test_the_documented_words_are_what_the_template_makes():
    block = re.search(r"    transforms:\n(?:      .*\n)+", DOC)
    template = Template(**yaml.safe_load(block[0])["transforms"][0]["template"])
    top = json.loads(re.search(r'    (\{"question": "Which.*?"turn": 0\})', DOC, re.S)[1])
    short = {"question": "What time does the clock say?", "answers": ["11:43"], "turn": 0}
    for q, how in ((top, template), (short, template), (top, Template())):
        made = Record.make("farm", "a.jpg", "vqa", turn_segments([q], [], PLAIN), fields={"questions": [q]})
        (out,) = how.apply(made)
        assert textwrap.indent("".join(s.text for s in out.segments), "    ") + "\n\n" in DOC


DATA = os.environ.get("HEADWATER_DATA")


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA is not set")
@pytest.mark.parametrize(
    ("name", "where", "records", "asked", "rejected"),
    [
        ("vqa", "vqa/easy_vqa", 400, 3934, {}),
        ("vqa_rad", "vqa/vqa_rad", 110, 768, {}),
        ("vqa_rad_chat", "vqa/vqa_rad", 110, 767, {"duplicate": 1}),
        ("vqa_nlvr", "vqa/nlvr", 200, 200, {}),
        ("vqa_coco", "", 4, 4, {}),
    ],
)
def test_the_real_sets_are_accounted_for_to_the_question(tmp_path, name, where, records, asked, rejected):
    recipe = load(Recipe, str(REAL / f"{name}.yaml"), [f"output={tmp_path}/out", "engine=local", f"source.vqa_table.path={DATA}/{where}"])
    with open_job("local") as job:
        data = Dataset.open(VQA.run(recipe, job))
    assert (data.card["written"], data.card["rejected"], data.card["in"]) == (records, rejected, records + sum(rejected.values()))
    found = [q for i in range(len(data.shards)) for r in data.records(i) for q in r.fields["questions"]]
    assert len(found) == asked
    if name == "vqa_nlvr":
        assert 60 < sum(q["choices"][0] == "true" for q in found) < 140 and all(q["shown"]["answers"][0] in "AB" for q in found)
