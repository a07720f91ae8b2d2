"""One question of a table: choices in every form, what cleaning does to words, and what is no question at all."""

import pytest

from pipelines.format.errors import Reject
from pipelines.question_text import Columns, Limits


def question(row, **keys):
    """The question of a row, or the reason why there is none."""
    try:
        return Columns(**keys).read({"question": "q?", **row}, Limits())
    except Reject as reject:
        return reject.reason


RIGHT = [
    ({"o": ["cat", "dog"], "answer": "dog"}, {"choices": "o"}),
    ({"o": ["cat", "dog"], "answer": " Dog "}, {"choices": "o"}),
    ({"o": ["cat", "dog"], "answer": "B"}, {"choices": "o", "answer_is": "letter"}),
    ({"o": ["cat", "dog"], "answer": "(b)."}, {"choices": "o", "answer_is": "letter"}),
    ({"o": ["cat", "dog"], "answer": 1}, {"choices": "o", "answer_is": "index0"}),
    ({"o": ["cat", "dog"], "answer": "2"}, {"choices": "o", "answer_is": "index1"}),
    ({"o": ["cat", "dog"], "answer": 2.0}, {"choices": "o", "answer_is": "index1"}),
    ({"A": "cat", "B": "dog", "C": None, "D": float("nan"), "answer": "B"}, {"choices": tuple("ABCD"), "answer_is": "letter"}),
    ({"A": "cat", "B": "", "C": "dog", "answer": "C"}, {"choices": tuple("ABC"), "answer_is": "letter"}),  # the gap moves no letter
    ({"o": "['cat', 'dog']", "answer": 1}, {"choices": "o", "answer_is": "index0"}),  # as Python writes lists
    ({"o": '["cat", "dog"]', "answer": "dog"}, {"choices": "o"}),
    ({"o": {"A": "cat", "B": "dog"}, "answer": "B"}, {"choices": "o", "answer_is": "letter"}),
    ({"o": {"label": ["X", "Y"], "text": ["cat", "dog"]}, "answer": "Y"}, {"choices": "o", "answer_is": "letter"}),
    ({"answer": "dog"}, {"choice_list": ("cat", "dog")}),
]


@pytest.mark.parametrize(("row", "keys"), RIGHT)
def test_the_right_choice_is_found_however_a_table_names_it(row, keys):
    found = question(row, **keys)
    assert found["choices"] == ["cat", "dog"] and found["choice"] == 1 and found["answers"][0].strip().lower() == "dog"


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        ({"o": ["a", "b"], "answer": "c"}, {}),
        ({"o": ["a", "b"], "answer": "C"}, {"answer_is": "letter"}),
        ({"o": ["a", "b"], "answer": "a"}, {"answer_is": "index0"}),
        ({"o": ["a", "b"], "answer": -1}, {"answer_is": "index0"}),
        ({"o": ["a", "b"], "answer": 0}, {"answer_is": "index1"}),
        ({"o": ["a", "b"], "answer": 1.5}, {"answer_is": "index0"}),
        ({"o": ["a", ""], "answer": "B"}, {"answer_is": "letter"}),
        ({"o": ["a", "b"], "answer": 1e300}, {"answer_is": "index0"}),
    ],
)
def test_an_answer_that_is_none_of_the_choices_is_refused(row, keys):
    assert question(row, choices="o", **keys) == "answer_not_in_choices"


def test_words_are_cleaned_and_numbers_are_words_but_lists_and_half_characters_are_none():
    assert question({"question": " a &amp; b &#39;c&#39; &copy=2 ", "answer": 3.0})["question"] == "a & b 'c' &copy=2"
    assert [question({"answer": a}).get("answers") for a in (3, 3.0, 2.5, True)] == [["3"], ["3"], ["2.5"], ["True"]]
    assert [question({"answer": a}) for a in (None, "", " ", float("nan"), [])] == ["empty"] * 5
    assert [question({"answer": a}) for a in ({}, [["x"]], "\ud800")] == ["unreadable"] * 3
    assert question({"question": "", "answer": "x"}) == "empty" and question({"question": "x" * 100_001, "answer": "x"}) == "too_large"
    voted = [{"answer": "red", "answer_id": 1}, {"answer": "blue", "answer_id": 2}, {"answer": "red", "answer_id": 3}]
    assert question({"answer": voted})["answers"] == ["red", "blue"]


def test_several_accepted_answers_may_be_written_as_one_text_and_what_only_looks_so_stays():
    said = lambda answer, **keys: question({"answer": answer, **keys}, **({"choices": "o"} if keys else {}))["answers"]
    assert said("['24/7', '3.429']") == ["24/7", "3.429"] and said('["a", "b"]') == ["a", "b"]
    for plain in ("[0, 1]", "[[1, 2], [3, 4]]", "[x, y)", "[]", "['']", "['a', 2]", "[a]"):
        assert said(plain) == [plain]
    assert said("['a']", o=["['a']", "b"]) == ["['a']"]  # where choices are offered the answer is one of them
    mmmu = {"answer": "['24/7', '3.429']", "options": "[]"}
    assert question(mmmu, choices="options", answer_is="letter")["answers"] == ["24/7", "3.429"]
    assert question({"answer": "B", "options": "['x', 'y']"}, choices="options", answer_is="letter")["answers"] == ["y"]


def test_a_column_of_two_spellings_is_the_one_that_is_there():
    for spelled in ("Index", "lndex"):
        assert question({"answer": "x", spelled: "7"}, type="Index|lndex")["type"] == "7"
    assert question({"answer": "x", "a|b": "1", "a": "2"}, type="a|b")["type"] == "1"
    assert question({"answer": "x"}, type="Index|lndex") == "unreadable"


def test_hints_and_types_are_kept_where_there_are_any():
    found = question({"answer": "x", "h": "look &lt;up&gt;", "t": {"kind": "how"}}, hint="h", type="t.kind")
    assert (found["hint"], found["type"]) == ("look <up>", "how")
    assert "hint" not in question({"answer": "x", "h": None}, hint="h")
