"""A question that an evaluation asks leaves its record; the others stay, and every record is accounted for."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.curate import Curate
from pipelines.engine import open_job
from pipelines.filters.decontaminate_questions import DecontaminateQuestions
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.format.errors import InputError
from pipelines.format.record import Text
from pipelines.image_rows import Item
from pipelines.media import images
from pipelines.recipe import Recipe
from pipelines.reference_questions import ReferenceQuestions, reference_questions, words_asked
from pipelines.turns import vqa_record
from tests.pipelines.copies import COPIES, scenes

PHOTOS = list(scenes(4))
JPEGS = [images.encode_jpeg(p, 95) for p in PHOTOS]
LONG = "How many of the people who stand behind the counter wear a hat?"  # 13 words
SHORT = "Where is the lesion?"


def table(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def about(k, *questions, **fields):
    """A record on photo k, as a source makes it."""
    turns = [{"question": q, "answers": ["yes"]} for q in questions]
    return vqa_record("t", Item(f"{k}.jpg", [(f"{k}.jpg", JPEGS[k])], []), turns, 10**7, fields=fields)


def rule(path, image=None, **keys):
    return DecontaminateQuestions(against={"test": ReferenceQuestions(path=path, image_field=image)}, **keys)


def after(filter, record):
    reason = filter.reason(record)
    return reason if reason else [q["question"] for q in filter.kept(record).fields["questions"]]


def test_a_long_question_leaves_whatever_its_spelling_and_the_others_stay_numbered_anew(tmp_path):
    f = rule(table(tmp_path / "q.jsonl", {"question": LONG}))
    record = about(0, "What is it?", "how many of the PEOPLE who stand behind the counter wear a hat", "Who is it?", note="kept")
    made = f.kept(record)
    assert f.reason(record) is None and made.fields["questions_leaked"] == {"test": 1} and made.fields["note"] == "kept"
    assert [(q["question"], q["turn"]) for q in made.fields["questions"]] == [("What is it?", 0), ("Who is it?", 1)]
    assert [(s.kind, s.turn) for s in made.segments] == [("image", -1), ("text", 0), ("text", 0), ("text", 1), ("text", 1)]
    assert "counter" not in "".join(s.text or "" for s in made.segments) and made.id == record.id and made.group == record.group


def test_a_short_question_is_a_leak_on_its_own_picture_alone(tmp_path):
    (tmp_path / "e").mkdir()
    for k in (0, 1):
        (tmp_path / "e" / f"{k}.png").write_bytes(COPIES["0.7 of the size, JPEG at 60"](PHOTOS[k]))
    rows = [{"question": SHORT, "id": 0}, {"question": "Is it large?", "id": 1}, {"question": SHORT, "id": 0}]
    path = table(tmp_path / "e" / "q.jsonl", *rows)
    f = rule(path, "{id}.png")
    assert after(f, about(0, SHORT, "Is it large?")) == ["Is it large?"]
    assert after(f, about(1, SHORT, "Is it large?")) == [SHORT]
    assert after(f, about(2, SHORT, "Is it large?")) == [SHORT, "Is it large?"]
    assert after(f, about(0, SHORT)) == "decontaminate_questions.test"
    assert after(rule(path, "{id}.png", with_picture=False), about(0, SHORT)) == [SHORT]
    assert after(rule(path, min_words=4), about(2, SHORT)) == "decontaminate_questions.test"
    assert after(rule(path), about(0, SHORT)) == [SHORT]  # without pictures of the set


def test_a_question_that_shares_a_long_run_of_words_leaves(tmp_path):
    f = rule(table(tmp_path / "q.jsonl", {"question": f"Look closely. {LONG} Answer with a number."}))
    assert after(f, about(0, f"In this photo: {LONG}")) == "decontaminate_questions.test"
    assert after(f, about(0, LONG.replace("hat", "tie"))) == [LONG.replace("hat", "tie")]


def test_of_a_dialogue_nothing_stays_and_other_records_pass(tmp_path):
    f = rule(table(tmp_path / "q.jsonl", {"question": LONG}))
    assert f.reason(about(0, "What is it?", LONG, dialogue=True)) == "decontaminate_questions.test"
    clean = about(0, "What is it?", dialogue=True)
    assert f.reason(clean) is None and f.kept(clean) is clean
    from pipelines.format.record import Record

    text = Record.make("t", "a", "text", [Text(LONG)])
    assert f.reason(text) is None and f.kept(text) is text


def test_the_first_set_of_the_recipe_is_named_and_each_question_counted_once(tmp_path):
    a, b = (ReferenceQuestions(path=table(tmp_path / f"{n}.jsonl", {"question": LONG})) for n in "ab")
    f = DecontaminateQuestions(against={"x": a, "y": b})
    assert f.reason(about(0, LONG)) == "decontaminate_questions.x"
    assert f.kept(about(0, LONG, "Who?")).fields["questions_leaked"] == {"x": 1}


def run(source, output, *filters):
    document = {"name": "t", "source": source, "filters": list(filters), "engine": "local", "output": str(output)}
    with open_job("local") as job:
        return Dataset.open(Curate("vqa").run(parse(Recipe, document), job))


def test_the_law_holds_and_the_same_set_as_table_parquet_or_dataset_gives_the_same(tmp_path):
    (tmp_path / "in").mkdir()
    for k, data in enumerate(JPEGS):
        (tmp_path / "in" / f"{k}.jpg").write_bytes(data)
    rows = [{"image": f"{k}.jpg", "question": q, "answer": "yes"} for k in range(4) for q in ([SHORT, LONG] if k < 3 else [LONG])]
    table(tmp_path / "in" / "qa.jsonl", *rows)
    source = {"vqa_table": {"path": str(tmp_path / "in"), "table": "qa.jsonl"}}
    tested = [{"image": "0.jpg", "question": SHORT, "answer": "no"}, {"image": "1.jpg", "question": LONG, "answer": "no"}]
    path = table(tmp_path / "in" / "test.jsonl", *tested)
    pq.write_table(pa.table({"q": [r["question"] for r in tested], "picture": [JPEGS[0], JPEGS[1]]}), tmp_path / "test.parquet")
    held = run({"vqa_table": {"path": str(tmp_path / "in"), "table": "test.jsonl"}}, tmp_path / "test")
    made = []
    for k, one in enumerate(
        (
            {"path": path, "image_field": "image"},
            {"path": str(tmp_path / "test.parquet"), "question_field": "q", "image_field": "picture"},
            {"path": held.path},
        )
    ):
        data = run(source, tmp_path / f"out{k}", {"decontaminate_questions": {"against": {"test": one}}})
        records = [r for i in range(len(data.shards)) for r in data.records(i)]
        made.append({r.origin: [q["question"] for q in r.fields["questions"]] for r in records})
        assert data.card["in"] == 4 and data.card["written"] == 2 and data.card["filtered"] == {"decontaminate_questions.test": 2}
    assert made[0] == made[1] == made[2] == {"1.jpg": [SHORT], "2.jpg": [SHORT]}


def test_a_set_with_holes_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no column 'question'"):
        list(reference_questions(ReferenceQuestions(path=table(tmp_path / "a.jsonl", {"q": "what?"}))))
    with pytest.raises(InputError, match="no questions"):
        rule(table(tmp_path / "b.jsonl")).reason(about(0, SHORT))
    asked = reference_questions(ReferenceQuestions(path=table(tmp_path / "c.jsonl", {"question": ["one?", "two?"]})))
    assert [a.question for a in asked] == ["one?", "two?"]


def test_words_of_a_question_are_letters_and_digits_in_lower_case():
    assert words_asked("  What’s the ＣＯＬＯＵＲ of car №2, (left)?") == ["what", "s", "the", "colour", "of", "car", "no2", "left"]
