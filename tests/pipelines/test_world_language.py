"""Words: every sentence is true of its scene, and every question is answered right by a reader that saw only the picture."""

import re
from collections import Counter
from pathlib import Path

import pytest

from pipelines.world import census, language, oracle, render
from pipelines.world.questions import TYPES, ask
from pipelines.world.scene import COLOURS, KINDS, SIZES, make_scene, place_name

DOC = Path(__file__).parents[2] / "docs" / "world.md"
NUMBERS = ("zero", "one", "two", "three")


def questions(scene, n=8, phrasing="plain"):
    return ask(scene, scene.dice("test"), n, phrasing=phrasing)


@pytest.mark.parametrize("phrasing", ["plain", "other"])
@pytest.mark.parametrize("grid", [2, 3])
def test_every_question_is_answered_as_the_oracle_answers_it(phrasing, grid):
    types = Counter()
    for number in range(400):
        scene = make_scene(11, number, grid)
        for q in questions(scene, phrasing=phrasing):
            assert oracle.answer(scene.shapes, grid, q.text) == q.answer, (q, scene)
            types[q.type] += 1
    assert set(types) == set(TYPES)


def test_questions_are_answered_right_from_the_pixels_alone():
    for number in range(150):
        scene = make_scene(12, number)
        shapes = oracle.see(render.picture(scene))
        for q in questions(scene):
            assert oracle.answer(shapes, 2, q.prompt) == q.answer, (q, scene)


def test_the_answer_is_among_the_choices_and_within_the_bag():
    for number in range(400):
        for q in questions(make_scene(0, number)):
            assert q.answer in q.choices and len(set(q.choices)) == len(q.choices)
            assert q.bag is None or (q.answer in q.bag and set(q.bag) <= set(q.choices) and len(set(q.bag)) == len(q.bag))
            assert (q.bag is None) == (q.type == "count")


def test_a_bag_of_attributes_is_certain_only_where_nothing_needs_binding():
    for number in range(200):
        scene = make_scene(0, number)
        for q in questions(scene):
            if q.bag is None:
                continue
            if len(scene.shapes) == 1:
                assert len(q.bag) == 1, q
            elif q.type in ("where", "shape"):
                assert len(q.bag) == len(scene.shapes), q


def test_prompts_end_in_the_answer_mark_and_targets_begin_with_a_space():
    for number in range(50):
        for q in questions(make_scene(0, number)):
            assert q.prompt.startswith("Question: ") and q.prompt.endswith(" Answer:") and q.target == " " + q.answer
            assert q.prompt.endswith("? Answer:") == (q.type != "choice")


def test_questions_of_a_record_are_of_different_types_and_as_many_as_asked():
    for number in range(200):
        scene = make_scene(0, number)
        for n in (1, 5, 8):
            types = [q.type for q in questions(scene, n)]
            assert len(set(types)) == len(types) <= n
            assert len(types) == n or n == 8  # relation, size and shape cannot be asked of every scene
        assert [q.type for q in ask(scene, scene.dice("t"), 5, ["where"])] == ["where"]


def test_plain_and_other_wordings_never_coincide():
    def wordings(phrasing):
        return {q.text for n in range(300) for q in questions(make_scene(0, n), phrasing=phrasing)}

    plain, other, both = wordings("plain"), wordings("other"), wordings("both")
    assert not plain & other
    assert both & plain and both & other


def told(sentence):
    """(size, colour, kind, place) of a sentence or caption piece about one shape, in whatever order it tells them."""
    words = re.findall(r"[a-z]+", sentence.lower())
    size, colour, kind = (next((w for w in words if w in known), None) for known in (SIZES, COLOURS, KINDS))
    place = next((place_name(2, c) for c in range(4) if place_name(2, c) in sentence.lower()), None)
    return size, colour, kind, place


def facts(scene):
    return Counter((s.size, s.colour, s.kind, place_name(2, s.cell)) for s in scene.shapes)


@pytest.mark.parametrize("phrasing", ["plain", "other", "both"])
def test_a_recaption_tells_all_and_an_original_nothing_untrue(phrasing):
    incomplete = 0
    for number in range(200):
        scene = make_scene(0, number)
        pieces = re.split(r", | and ", language.recaption(scene, phrasing))
        assert Counter(map(told, pieces)) == facts(scene)
        named = [told(p)[1:3] for p in re.split(r", | and ", language.original(scene, phrasing))]
        assert named and set(named) <= {(s.colour, s.kind) for s in scene.shapes} and len(set(named)) == len(named)
        incomplete += len(named) < len(scene.shapes)
    assert 30 < incomplete < 120


@pytest.mark.parametrize("phrasing", ["plain", "other", "both"])
def test_prose_tells_the_number_each_shape_and_only_true_relations(phrasing):
    for number in range(200):
        scene = make_scene(0, number)
        first, *rest = language.prose(scene, phrasing).split(".")[:-1]
        n = len(scene.shapes)
        assert NUMBERS[n] in first.lower()
        assert Counter(map(told, rest[:n])) == facts(scene)
        assert len(rest) == n + (n > 1)
        if n > 1:
            a, b = re.findall("|".join(KINDS), rest[n])
            cells = {s.kind: divmod(s.cell, 2) for s in scene.shapes}
            (ra, ca), (rb, cb) = cells[a], cells[b]
            true = {"left of": ca < cb, "right of": ca > cb, "above": ra < rb, "below": ra > rb}
            assert true[next(r for r in true if r in rest[n])]


def test_questions_on_prose_follow_it_and_are_answered_right():
    for number in range(200):
        scene = make_scene(0, number)
        told_, *asked = language.prose_with_questions(scene, 2).split(" Question: ")
        assert told_ == language.prose(scene) and len(asked) == 2
        for text in asked:
            question, answer = text.split(" Answer: ")
            assert oracle.answer(scene.shapes, 2, question) == answer


def test_the_vocabulary_is_small():
    words = set()
    for number in range(400):
        scene = make_scene(0, number)
        for phrasing in ("plain", "other"):
            texts = [language.original(scene, phrasing), language.recaption(scene, phrasing), language.prose_with_questions(scene, 4, phrasing)]
            words |= set(re.findall(r"[a-z]+", " ".join(texts).lower()))
    assert len(words) < 80


def test_the_documented_tables_are_the_counted_ones():
    documented = DOC.read_text(encoding="utf-8")
    for table in (census.question_table, census.cast_table):
        for row in table(census.SCENES):
            assert row in documented, row


def test_no_constant_answer_comes_far_above_chance():
    counted = census.tally(make_scene(5, n) for n in range(4000))
    chance = {"colour": 1 / 6, "shape": 1 / 4, "count": 1 / 3, "where": 1 / 4, "relation": 1 / 4, "yesno": 1 / 2, "size": 1 / 4, "choice": 1 / 3}
    for type, tally in counted.items():
        assert tally.constant < chance[type] + 0.05, type


def test_the_oracle_refuses_what_it_does_not_understand():
    scene = make_scene(0, 0)
    with pytest.raises(ValueError, match="does not understand"):
        oracle.answer(scene.shapes, 2, "why is the triangle?")
