"""Sources of questions about images: turns, answers and images as the record's convention says, from every layout people use."""

import json
import os
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import json_list
from pipelines.format.errors import InputError
from pipelines.format.record import atoms
from pipelines.sources.vqa_json import VqaJson
from pipelines.sources.vqa_table import VqaTable
from pipelines.transforms.template import Template
from pipelines.turns import ranked
from tests.pipelines.test_sources_text import read
from tests.toys import jpeg


def images(root, *names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(i))


def said(record):
    return [(s.turn, s.role, s.text) for s in record.segments if s.kind == "text"]


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def conversations(root, *rows):
    (root / "data.json").write_text(json.dumps(list(rows), ensure_ascii=False))
    return VqaJson(path=str(root), table="data.json")


def test_questions_on_one_image_are_one_atom_of_numbered_turns(tmp_path):
    images(tmp_path, "a.jpg", "b.jpg")
    rows = [("a.jpg", "what?", "cat"), ("b.jpg", "who?", "dog"), ("a.jpg", "where?", "home")]
    (tmp_path / "qa.jsonl").write_text("\n".join(json.dumps(dict(zip(("image", "question", "answer"), r, strict=True))) for r in rows))
    (a, b), rejects = read(VqaTable(path=str(tmp_path), table="qa.jsonl"))
    assert [(s.kind, s.role, s.atom, s.turn) for s in a.segments] == [
        ("image", "context", 0, -1), ("text", "context", 0, 0), ("text", "target", 0, 0), ("text", "context", 0, 1), ("text", "target", 0, 1),
    ]  # fmt: skip
    assert said(a)[:2] == [(0, "context", "Question: what? Answer:"), (0, "target", " cat")]
    assert [q["question"] for q in a.fields["questions"]] == ["what?", "where?"] and "dialogue" not in a.fields
    assert (a.origin, a.data, a.group) == ("a.jpg", "vqa", sha256(jpeg(0)).hexdigest()) and not rejects
    assert (atoms(a.segments).images, atoms(a.segments).flags, b.origin) == ([1], [0], "b.jpg")


def test_a_record_for_each_question_shares_the_image_bytes(tmp_path):
    images(tmp_path, "a.jpg")
    (tmp_path / "qa.json").write_text(json.dumps([{"image": "a.jpg", "question": f"{i}?", "answer": i} for i in range(3)]))
    records, _ = read(VqaTable(path=str(tmp_path), table="qa.json", per="question"))
    assert [r.origin for r in records] == ["a.jpg", "a.jpg#1", "a.jpg#2"]
    assert len({id(r.segments[0].payload) for r in records}) == len({r.group for r in records}) == 1
    assert [said(r)[1][2] for r in records] == [" 0", " 1", " 2"]


def test_rows_that_are_lists_are_read_by_position_and_images_by_template(tmp_path):
    images(tmp_path, "train/images/0007.jpg")
    (tmp_path / "train/q.json").write_text(json.dumps([["colour?", "red", 7]]))
    (record,), _ = read(VqaTable(path=str(tmp_path), table="train/q.json", question="0", answer="1", image="images/{2:04}.jpg"))
    assert record.origin == "train/images/0007.jpg" and said(record)[1] == (0, "target", " red")


def test_answers_choices_and_types_are_kept_for_evaluation(tmp_path):
    images(tmp_path, "a.jpg")
    row = {"image": "a.jpg", "question": "q?", "best": "two", "all": ["one", "two", "one", "three"], "options": ["one", "two"], "kind": "count"}
    (tmp_path / "qa.jsonl").write_text(json.dumps(row))
    source = VqaTable(path=str(tmp_path), table="qa.jsonl", answer="best", answers="all", choices="options", type="kind")
    (record,), _ = read(source)
    question = {"question": "q?", "answers": ["two", "one", "three"], "votes": [1, 2, 1], "turn": 0}
    question |= {"choices": ["one", "two"], "choice": 1, "type": "count"}
    assert record.fields["questions"] == [question]
    (fixed,), _ = read(VqaTable(path=str(tmp_path), table="qa.jsonl", answer="all", choice_list=("x", "One "), type="=plain"))
    asked = {"question": "q?", "answers": ["one", "two", "three"], "votes": [2, 1, 1], "type": "plain", "turn": 0}
    asked |= {"choices": ["x", "One"], "choice": 1}
    assert fixed.fields["questions"][0] == asked


def test_a_bad_question_costs_itself_and_leaves_the_others_on_its_image(tmp_path):
    images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    rows = [{"image": "a.jpg", "question": "ok?", "answer": "yes"}, {"image": "a.jpg", "question": "no answer"},
            {"image": "a.jpg", "question": "", "answer": "x"}, {"image": "b.jpg", "question": "ok?", "answer": "x"},
            {"image": "gone.jpg", "question": "ok?", "answer": "x"}, {"image": "../a.jpg", "question": "ok?", "answer": "x"}]  # fmt: skip
    (tmp_path / "qa.json").write_text(json.dumps(rows))
    (record,), rejects = read(VqaTable(path=str(tmp_path), table="qa.json"))
    assert len(record.fields["questions"]) == 1
    assert [(r.origin, r.reason) for r in rejects] == [
        ("qa.json#1", "unreadable"), ("qa.json#2", "empty"), ("b.jpg", "invalid_image"), ("qa.json#4", "unreadable"), ("qa.json#5", "not_allowed"),
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [{"question": "asked"}, {"answer": "reply"}, {"image": "pictures/{image}"}, {"image": "file"}])
def test_a_recipe_that_fits_no_row_is_refused_with_what_there_is(tmp_path, wrong):
    images(tmp_path, "a.jpg")
    rows = [{"image": "a.jpg", "question": "q?", "answer": "a"}] * 3
    (tmp_path / "qa.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"image, question, answer|no such image file"):
        VqaTable(path=str(tmp_path), table="qa.json", **wrong).parts()


def test_parquet_tables_hold_their_images(tmp_path):
    cells = [{"bytes": jpeg(0), "path": None}, {"bytes": b"x", "path": None}]
    pq.write_table(pa.table({"image": cells, "question": ["a?", "b?"], "answers": [["yes", "no", "yes"], ["no"]]}), tmp_path / "t.parquet")
    (record,), (reject,) = read(VqaTable(path=str(tmp_path), table="*.parquet", answer="answers"))
    assert record.origin == "t.parquet#0" and record.fields["questions"][0]["answers"] == ["yes", "no"]
    assert (reject.origin, reject.reason) == ("t.parquet#1", "invalid_image")


def test_a_conversation_is_one_record_whose_turns_lean_on_one_another(tmp_path):
    images(tmp_path, "x/a.jpg")
    turns = [human("<image>\nWhat is it?"), gpt("A cat."), human("Why?"), gpt("Whiskers.")]
    (record,), rejects = read(conversations(tmp_path, {"id": 7, "image": "x/a.jpg", "conversations": turns}))
    assert said(record) == [(0, "context", "Question: What is it? Answer:"), (0, "target", " A cat."),
                            (1, "context", "\nQuestion: Why? Answer:"), (1, "target", " Whiskers.")]  # fmt: skip
    assert record.fields["dialogue"] is True and record.fields["source_id"] == "7" and not rejects
    apart = VqaJson(path=str(tmp_path), table="data.json", independent=True)
    assert "dialogue" not in read(apart)[0][0].fields


def test_chat_messages_and_several_images_are_read_too(tmp_path):
    images(tmp_path, "a.jpg", "b.jpg")
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which is larger?"}]
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}, {"role": "assistant", "content": "The left."}]
    (record,), _ = read(conversations(tmp_path, {"image": ["a.jpg", "b.jpg"], "messages": chat}))
    assert [s.payload for s in record.segments if s.kind == "image"] == [jpeg(0), jpeg(1)]
    assert said(record) == [(0, "context", "Question: Which is larger? Answer:"), (0, "target", " The left.")]
    assert record.group == sha256((sha256(jpeg(0)).hexdigest() + sha256(jpeg(1)).hexdigest()).encode()).hexdigest()


def test_conversations_that_make_no_sense_are_rejects_with_a_reason(tmp_path):
    images(tmp_path, "a.jpg")
    bad = [[], None, [gpt("first")], [human("only a question")], [human("a"), human("b")], [{"from": "human", "value": 3}, gpt("x")], ["text"]]
    rows = [{"image": "a.jpg", "conversations": b} for b in bad] + [{"conversations": [human("no image"), gpt("x")]}]
    records, rejects = read(conversations(tmp_path, *rows, {"image": "a.jpg", "conversations": [human("q"), gpt("a")]}))
    assert len(records) == 1
    assert [r.reason for r in rejects] == ["unreadable"] * 3 + ["empty"] + ["unreadable"] * 3 + ["no_image"]


def test_vqa_v2_joins_questions_to_annotations_by_question_id(tmp_path):
    images(tmp_path, "train/COCO_000000000042.jpg")
    asked = [{"image_id": 42, "question_id": i, "question": f"q{i}?"} for i in (3, 1, 9)]
    notes = [{"question_id": i, "question_type": "how", "multiple_choice_answer": f"best {i}",
              "answers": [{"answer": "other"}, {"answer": f"best {i}"}, {"answer": "other"}]} for i in (1, 2, 3)]  # fmt: skip
    (tmp_path / "questions.json").write_text(json.dumps({"info": {"x": [1]}, "questions": asked}))
    (tmp_path / "annotations.json").write_text(json.dumps({"annotations": notes, "licence": "x"}))
    source = VqaJson(path=str(tmp_path), table="questions.json", annotations="annotations.json", image="train/COCO_{image_id:012}.jpg")
    (record,), (reject,) = read(source)
    assert [(q["question"], q["answers"], q["type"]) for q in record.fields["questions"]] == [
        ("q3?", ["best 3", "other"], "how"), ("q1?", ["best 1", "other"], "how"),
    ]  # fmt: skip
    assert reject.reason == "unreadable" and "annotations.json" in reject.detail


@pytest.mark.parametrize("chunk", [16, 200, 1 << 20])
def test_a_long_list_streams_and_its_cut_tail_is_one_reject(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_list, "_CHUNK", chunk)
    images(tmp_path, "a.jpg")
    rows = [{"image": "a.jpg", "conversations": [human(f"ä{i} {'x' * (i * 13 % 90)}"), gpt('quoted "] } ,\n')]} for i in range(60)]
    source = conversations(tmp_path, *rows)
    records, rejects = read(source)
    assert [r.fields["questions"][0]["question"] for r in records] == [f"ä{i} {'x' * (i * 13 % 90)}".strip() for i in range(60)] and not rejects
    data = (tmp_path / "data.json").read_bytes()
    (tmp_path / "data.json").write_bytes(data[: len(data) * 2 // 3])
    fewer, rejects = read(source)
    assert 30 < len(fewer) < 50 and [r.id for r in fewer] == [r.id for r in records[: len(fewer)]]
    assert [r.reason for r in rejects] == ["truncated"]


def test_a_template_rewrites_questions_and_answers_but_not_the_fields(tmp_path):
    images(tmp_path, "a.jpg")
    row = {"image": "a.jpg", "question": "q?", "answer": "b", "c": ["a", "b", "c"]}
    (tmp_path / "qa.jsonl").write_text(json.dumps(row))
    (record,), _ = read(VqaTable(path=str(tmp_path), table="qa.jsonl", choices="c"))
    (plain,) = Template(question="Q: {question}\nA:", answer=" {answer}.").apply(record)
    assert [t for _, _, t in said(plain)] == ["Q: q?\nA:", " b."]
    (listed,) = Template(with_choices="{question} ({choices}) Answer:").apply(record)
    assert said(listed)[0][2] == "q? (a, b or c) Answer:"
    assert listed.fields == record.fields and listed.segments[0] == record.segments[0] and listed.id == record.id
    with pytest.raises(ValueError, match="nothing"):
        Template(question="{nothing}")


def test_answers_are_ranked_by_how_many_gave_them():
    assert ranked(["b", "a", "a", "", "c", "c"]) == ["a", "c", "b"]
    assert ranked(["b", "a", "a"], first="z") == ["z", "a", "b"]


DATA = os.environ.get("HEADWATER_DATA")


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA is not set")
@pytest.mark.parametrize(
    ("where", "fields", "records", "questions"),
    [
        ("vqa/easy_vqa", {"table": "train/questions.json", "question": "0", "answer": "1", "image": "images/{2}.png"}, 400, 3934),
        ("vqa/vqa_rad", {"table": "qa.json", "image": "images/{image_name}", "type": "answer_type", "repeats": "keep"}, 110, 768),
        ("vqa/nlvr", {"table": "dev/items.jsonl", "question": "sentence", "answer": "label", "choice_list": ("true", "false")}, 200, 0),
        ("", {"table": "vqa/vqav2_on_coco/qa.jsonl", "answer": "multiple_choice_answer", "answers": "answers"}, 4, 4),
    ],
)
def test_real_question_sets_are_read_whole(where, fields, records, questions):
    found, rejects = read(VqaTable(path=str(Path(str(DATA), where)), **fields))
    asked = [q for r in found for q in r.fields["questions"]]
    assert len(found) == records and not rejects and len(asked) >= max(questions, records)
