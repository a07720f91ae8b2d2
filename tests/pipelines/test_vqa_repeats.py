"""Too much of one thing: repeated questions and conversations, and more questions or images than a record should hold."""

from pipelines.sources.vqa_json import VqaJson
from pipelines.sources.vqa_table import VqaTable
from tests.pipelines.test_sources_text import read
from tests.pipelines.test_sources_vqa import gpt, human, images
from tests.pipelines.test_vqa_layouts import table
from tests.toys import jpeg


def test_more_questions_than_a_record_may_hold_go_on_in_another_and_repeats_are_counted(tmp_path):
    images(tmp_path, "a.jpg")
    asked = ["one?", "two?", "One ?".replace(" ?", "?"), "three?", "four?", "five?"]
    table(tmp_path, *({"image": "a.jpg", "question": q, "answer": str(i)} for i, q in enumerate(asked)))
    records, (repeat,) = read(VqaTable(path=str(tmp_path), table="t.jsonl", max_turns=2))
    assert [(r.origin, len(r.fields["questions"])) for r in records] == [("a.jpg", 2), ("a.jpg~1", 2), ("a.jpg~2", 1)]
    assert len({r.id for r in records}) == 3 and len({r.group for r in records}) == 1
    assert (repeat.origin, repeat.reason) == ("t.jsonl#2", "duplicate") and "'0'" in repeat.detail
    kept, none = read(VqaTable(path=str(tmp_path), table="t.jsonl", repeats="keep"))
    assert len(kept[0].fields["questions"]) == 6 and not none


def test_repeats_of_whole_records_are_counted_and_absurd_rows_refused(tmp_path):
    images(tmp_path, "0.jpg", "1.jpg")
    (tmp_path / "2.jpg").write_bytes(jpeg(0))  # the same picture under another name
    rows = [{"image": f"{n}.jpg", "question": "q?", "answer": a} for n, a in ((0, "x"), (0, "x"), (0, "y"), (1, "x"), (2, "x"))]
    table(tmp_path, *rows)
    records, rejects = read(VqaTable(path=str(tmp_path), table="t.jsonl", per="question"))
    assert [r.origin for r in records] == ["0.jpg", "0.jpg#2", "1.jpg"]
    assert [(r.origin, r.reason) for r in rejects] == [("0.jpg#1", "duplicate"), ("2.jpg", "duplicate")]
    assert len(read(VqaTable(path=str(tmp_path), table="t.jsonl", per="question", repeats="keep"))[0]) == 5
    talk = [human("q?"), gpt("a")]
    table(
        tmp_path,
        {"image": ["0.jpg"] * 65, "conversations": talk},
        *[{"image": "0.jpg", "conversations": talk}] * 2,
        {"conversations": talk * 201, "image": "0.jpg"},
    )
    records, rejects = read(VqaJson(path=str(tmp_path), table="t.jsonl"))
    assert len(records) == 1 and [r.reason for r in rejects] == ["too_large", "duplicate", "too_large"]
