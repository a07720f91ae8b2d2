"""Words for questions: patterns, choices, letters and pictures in their places; what evaluation reads is what was trained on."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.format.record import Image, Record
from pipelines.transforms.template import Template
from pipelines.turns import turn_segments
from pipelines.wording import PLAIN, Wording, filled, letter, problem

CHOICES = ["cat", "dog", "cow"]
LETTERED = {"with_choices": "{hint}{question}\n{choices}\n{instruction} Answer:", "choice": "{letter}. {choice}", "answer_with_choices": " {letter}"}


def record(*questions, own=(), **fields):
    made = [{"answers": ["dog"], **q, "turn": i} for i, q in enumerate(questions)]
    pictures = [Image(b"front", role="context", atom=0), *(Image(b"own", role="context", atom=0, turn=t) for t in own)]
    segments = [pictures[0], *turn_segments(made, pictures[1:], PLAIN, bool(fields.get("dialogue")))]
    return Record.make("s", "a.jpg", "vqa", segments, fields={"questions": made, **fields})


def read(template, *questions, **more):
    (out,) = template.apply(record(*questions, **more))
    return [s.text if s.kind == "text" else None for s in out.segments][1:], out


def test_questions_with_choices_are_lettered_and_the_others_asked_for_a_short_answer():
    short = "\nAnswer the question using a single word or phrase."
    template = Template(question="{question}{instruction} Answer:", instruction=short, instruction_for_choices="Answer with the letter.", **LETTERED)
    said, out = read(
        template,
        {"question": "Which?", "choices": CHOICES, "choice": 1, "hint": "It barks."},
        {"question": "What?"},
        {"question": "Why?", "answers": ["because it barks all night"]},
    )
    assert said[0] == "It barks.\nWhich?\nA. cat\nB. dog\nC. cow\nAnswer with the letter. Answer:" and said[1] == " B"
    assert said[2:] == ["What?" + short + " Answer:", " dog", "Why? Answer:", " because it barks all night"]
    first, second, _ = out.fields["questions"]
    assert first["shown"] == {"answers": ["B"], "choices": ["A", "B", "C"]} and first["answers"] == ["dog"] and "shown" not in second


def test_a_letter_and_its_text_can_be_answered_together():
    said, out = read(Template(answer_with_choices=" {letter}. {answer}"), {"question": "Which?", "choices": CHOICES, "choice": 1})
    assert said[1] == " B. dog" and out.fields["questions"][0]["shown"]["choices"] == ["A. cat", "B. dog", "C. cow"]


def test_a_dialogue_has_its_system_message_once_and_each_later_question_on_a_line_of_its_own():
    template = Template(system="record", question="{system} USER: {question} ASSISTANT:", follows="</s>")
    said, _ = read(template, {"question": "a?"}, {"question": "b?"}, dialogue=True, system="Be brief.")
    assert said == ["Be brief. USER: a? ASSISTANT:", " dog", "</s> USER: b? ASSISTANT:", " dog"]
    assert read(template, {"question": "a?"}, {"question": "b?"}, system="S")[0][2] == "S USER: b? ASSISTANT:"  # each is asked alone


def test_pictures_keep_their_places_in_any_wording():
    q = {"question": "Is  larger than ?", "image_at": [3, 16]}
    assert read(Template(question="USER: {question} ASSISTANT:"), q, own=(0, 0))[0][:-1] == ["USER: Is ", None, " larger than ", None, "? ASSISTANT:"]
    assert read(Template(question="Say something."), q, own=(0, 0))[0][:-1] == [None, None, "Say something."]
    assert read(Template(), q, own=(0, 0, 0))[0][:2] == [None, "Question: Is "]  # a picture without a place is not lost


def test_shuffling_follows_the_record_moves_the_right_choice_and_has_no_favourite_place():
    places: Counter[int] = Counter()
    template = Template(shuffle=True, seed=1, **LETTERED)
    for i in range(300):
        questions = [{"question": f"{i}?", "choices": CHOICES, "choice": 1, "answers": ["dog"], "turn": 0}]
        made = Record.make("s", f"{i}.jpg", "vqa", turn_segments(questions, [], PLAIN), fields={"questions": questions})
        (out,), (same,) = template.apply(made), template.apply(made)
        (q,) = out.fields["questions"]
        assert out == same and sorted(q["choices"]) == sorted(CHOICES) and q["choices"][q["choice"]] == "dog"
        assert out.segments[-1].text == f" {letter(q['choice'])}" and q["shown"]["answers"] == [letter(q["choice"])]
        assert f"{letter(q['choice'])}. dog" in out.segments[0].text
        places[q["choice"]] += 1
    assert all(70 < n < 130 for n in places.values()) and len(places) == 3


def test_two_choices_of_one_text_keep_their_own_letters():
    said, out = read(Template(**LETTERED), {"question": "?", "choices": ["dog", "dog"], "choice": 1})
    assert said[1] == " B" and out.fields["questions"][0]["shown"]["answers"][0] == "B"


@given(st.text(), st.lists(st.text(min_size=1), min_size=2, max_size=4), st.lists(st.integers(0, 40), max_size=3))
def test_no_words_of_the_data_are_taken_for_a_pattern_and_none_is_lost(asked, choices, places):
    pieces = Wording(question="<{question}|{choices}>", choice="{letter}{choice}").asked(
        {"question": asked, "choices": choices, "answers": ["x"]}, sorted(places)
    )
    assert sum(p is None for p in pieces) == len(places)
    assert "".join(p or "" for p in pieces) == f"<{asked}|" + "\n".join(f"{letter(i)}{c}" for i, c in enumerate(choices)) + ">"


def test_patterns_that_reach_for_more_are_refused():
    for bad in ("{nothing}", "{question.__class__}", "{question!r}", "{question:>9999999999}", "{question[0]}", "{", "{}"):
        assert problem(bad, ("question",)), bad
        with pytest.raises(ValueError, match=r"template|brace|'{'|\}"):
            Template(question=bad)
    assert filled("{{{letter}}}", {"letter": "{answer}"}) == "{{answer}}" and letter(25) + letter(26) + letter(52) == "ZAABA"
