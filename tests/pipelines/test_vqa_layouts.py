"""Layouts of public question sets: choices in every form, images in cells, by path and by URL, several to a question, and marks in the text."""

import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.curate import VQA
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.recipe import Recipe
from pipelines.sources.vqa_json import VqaJson
from pipelines.sources.vqa_table import VqaTable
from tests.fault_server import Answer, FaultServer
from tests.pipelines.test_sources_text import read
from tests.pipelines.test_sources_vqa import gpt, human, images, said
from tests.toys import jpeg

QUICK = {"backoff": 0.01, "attempts": 2, "deadline": 3, "grace": 0.3, "robots": False}


def table(root, *rows, name="t.jsonl"):
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(list(rows)), root / name, row_group_size=2)
    else:
        (root / name).write_text("".join(json.dumps(r) + "\n" for r in rows))


def question(root, row, **keys):
    """The one question of a one-row table, or the reason why there is none."""
    images(root, "a.jpg")
    good = {"image": "a.jpg", "question": "good?", "answer": keys.get("answer_is", "text") == "text" and "x" or 1, "ok": ["x", "y"]}
    table(root, {"image": "a.jpg", "question": "q?", **row})
    source = VqaTable(path=str(root), table="t.jsonl", **keys)
    found = [x for p in source.rows()._entries("t.jsonl", {}, ("", {})) for x in [p]] if False else None
    del good, found
    try:
        return VqaTable._asked.fget(source).read({"image": "a.jpg", "question": "q?", **row}, source.limits)
    except Exception as error:
        return error.args[0] if not hasattr(error, "reason") else error.reason
