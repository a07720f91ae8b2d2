"""How answers are scored, by the rules of those who made the sets, and what a model may gain by liking a letter: nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.format.errors import InputError
from pipelines.format.record import Record
from pipelines.turns import turn_segments
from pipelines.wording import Wording
from tests.trainer.asked import COLOURS, SPECIALS, HeldOut, subject, tokenizer
from tests.trainer.test_evaluate import Stub, question, seeing, values
from trainer.evaluate._answering import greedy
from trainer.evaluate._rotating import rotations
from trainer.evaluate._scores import distance, hopeless, normal, score
from trainer.evaluate._vqav2 import normalised, soft_accuracy, text_accuracy
from trainer.evaluate.vqa import Vqa
from trainer.models.transfusion import Output

BYTES = tokenizer()


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("The Dog.", "dog"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("Its a shouldnt've", "its shouldn't've"),
        ("1,000 dollars!", "1000 dollars"),  # a comma between digits takes all punctuation away
        ("yes/no", "yes no"),
        ("yes / no", "yes no"),
        ("x-ray", "x ray"),
        ("3.5 cm.", "3.5 cm"),
        ("U.S.A.", "usa"),
        ("10:30", "10:30"),  # colons and apostrophes stay
        ("an  apple \t a day", "apple day"),
    ],
)
def test_vqa_v2_normalises_as_its_evaluator_does(answer, what):
    assert normalised(answer) == what


@pytest.mark.parametrize(("n", "of_ten"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_soft_accuracy_is_the_mean_over_the_people_of_what_the_others_said(n, of_ten):
    assert soft_accuracy("red", ["red"] * n + ["blue"] * (10 - n)) == pytest.approx(of_ten)


def test_people_who_agree_to_the_letter_are_taken_at_their_word():
    assert soft_accuracy("the dog", ["dog"] * 10) == 0  # the evaluator normalises only where they do not
    assert soft_accuracy("The dog!", ["dog"] * 9 + ["cat"]) == 1


@pytest.mark.parametrize(
    ("said", "given", "points"),
    [
        ("Nokia", ["nokia"] * 10, 1),  # normalised also where all agree
        ("nokia.", ["nokia"] * 10, 1),
        ("the dog", ["dog"] * 10, 1),
        ("Nokia", ["nokia"] * 3 + ["phone"] * 7, 0.9),
        ("1,000", ["1000"] * 10, 1),
        ("stop, sign / x-ray", ["stop sign x ray"] * 10, 1),  # commas go first, so the marks that are left become spaces, or nothing beside one
        ("dunkin's", ["dunkin 's"] * 10, 1),
        ("two", ["2"] * 10, 1),
        ("phone", ["nokia"] * 10, 0),
        ("", ["nokia"] * 10, 0),
    ],
)
def test_textvqa_normalises_both_sides_always_as_its_evaluator_does(said, given, points):
    assert text_accuracy(said, given) == pytest.approx(points)
    assert score("textvqa", said, replace(question("g", tuple(dict.fromkeys(given))), votes=tuple(Counter(given).values()))) == pytest.approx(points)


def test_votes_that_were_not_kept_are_said_and_not_guessed():
    q = question("g", ("red", "crimson"))
    with pytest.raises(InputError, match="how many people"):
        score("vqav2", "red", q)
    assert score("vqav2", "red", replace(q, votes=(2, 8))) == pytest.approx(0.6)
    assert score("vqav2", "red", question("g", ("red",))) == 1


@pytest.mark.parametrize(
    ("rule", "said", "answers", "points"),
    [
        ("anls", "Hello  World", ("hello world",), 1),
        ("anls", "hallo", ("hello",), 0.8),
        ("anls", "abcd", ("abxy", "zzzz"), 0.5),
        ("anls", "abcd", ("axyz",), 0),
        ("relaxed", "10.4", ("10",), 1),
        ("relaxed", "10.6", ("10",), 0),
        ("relaxed", "52%", ("0.5",), 1),
        ("relaxed", "0", ("0",), 1),
        ("relaxed", "nan", ("5",), 0),
        ("relaxed", "Blue", ("blue",), 1),
        ("contains", "it says STOP here", ("stop",), 1),
        ("contains", "st op", ("stop",), 0),
        ("yes_no", "Yes, it is", ("Yes",), 1),
        ("yes_no", "no", ("yes",), 0),
        ("yes_no", "", ("yes",), 0),
        ("number", "12.04", ("12.0",), 1),
        ("number", "12.06", ("12.0",), 0),
        ("number", "7.0", ("7",), 1),
        ("number", "seven", ("7",), 0),
        ("exact", "A dog!", ("a dog",), 1),
        ("exact", ".5", ("5",), 0),  # a full stop before a digit is no punctuation
        ("exact", ".5", (".5",), 1),
        ("exact", "...5.", (".5",), 1),
        ("exact", '". five."', ("five",), 1),
        ("number", ".5", ("5",), 0),
        ("number", "0.5", (".5",), 1),
    ],
)
def test_each_rule_scores_as_its_set_does(rule, said, answers, points):
    assert score(rule, said, question("g", answers)) == pytest.approx(points)


def test_an_option_that_is_a_number_is_not_the_one_ten_times_as_large():
    q = question("g", ("A",), choices=("A", "B"), bare=("5", ".5"))
    assert score("number", "5", q) == 1 and score("number", ".5", q) == 0 and normal(" .5!") == ".5"
    assert question("g", (".5",)).open(".") and question("g", ("5",)).open(".") and not question("g", ("5",)).open(".5")


@pytest.mark.parametrize("answers", [("letter", "note"), ("a",), ("institute of health",)])
def test_what_is_given_up_scores_nothing_however_it_goes_on_and_nothing_else_is_given_up(answers):
    said = " ".join((*answers, "and so on it goes and never stops saying more"))
    for n in range(len(said) + 1):
        if hopeless(said[:n], answers):
            assert all(score("anls", said[:k], question("g", answers)) == 0 for k in range(n, len(said) + 1))
    right = max(answers, key=len)
    longer = [right + "x" * (len(right) + k) for k in (0, 1)]
    assert [hopeless(said, answers) for said in (f" {right}  ", *longer)] == [False, False, True]


def test_formulas_are_compared_without_spaces_and_with_case():
    q = question("g", (r"\frac { a } { B }",), "Handwritten Mathematical Expression Recognition")
    assert score("contains", r"= \frac{a}{B}", q) == 1 and score("contains", r"\frac{a}{b}", q) == 0


NAMED = [("B", 1), ("b.", 1), ("(B)", 1), ("B. blue", 1), ("blue", 1), ("A", 0), ("red", 0), ("Bluebell", 0), ("a blue one", 0), ("", 0)]


@pytest.mark.parametrize(("said", "right"), NAMED)
def test_an_option_may_be_named_by_its_letter_or_its_words(said, right):
    q = question("g", ("B",), choices=("A", "B", "C"), bare=("red", "blue", "grey"))
    assert score("letter", said, q) == right


def test_words_that_begin_with_a_letter_are_no_letter_where_options_are_words():
    q = question("g", ("a dog",), choices=("a dog", "a cat"), bare=("a dog", "a cat"))
    assert score("letter", "a dog", q) == 1 and score("letter", "a cat", q) == 0 and score("letter", "a", q) == 0


def test_edit_distance_is_levenshteins():
    assert [distance(*p) for p in (("kitten", "sitting"), ("", "abc"), ("abc", "abc"), ("ab", "ba"))] == [3, 3, 0, 2]


# ---- rotations ---------------------------------------------------------------------------------------------------------------------------

LETTERED = Wording(question="{question}\n{choices}\nAnswer:", choice="{letter}. {choice}", answer=" {letter}")
BOTH = Wording(question="{question} {choices} Answer:", choice="({letter}) {choice}", between=" ", answer=" ({letter}) {answer}")


def asked(bare: tuple[str, ...], right: int, wording: Wording = LETTERED, text: str = "which?", **more):
    q = {"question": text, "answers": [bare[right]], "choices": list(bare), "choice": right, "turn": 0, **more}
    shown = wording.shown(q) or q
    said = "".join(s.text for s in turn_segments([q], [], wording) if s.role == "context")
    ids_ = np.array(BYTES.encode(said).ids, np.int32)
    got = question("g", tuple(shown["answers"]), choices=tuple(shown["choices"]), bare=bare, hint=str(more.get("hint", "")))
    return replace(got, ids=ids_, text=text)


def words(way) -> str:
    return BYTES.decode(way.question.ids.tolist())


@pytest.mark.parametrize("wording", [LETTERED, BOTH])
def test_every_option_stands_once_under_every_letter(wording):
    bare = ("a dog", "cat", "cow (brown)", "A")
    ways = rotations(asked(bare, 2, wording), BYTES)
    assert len(ways) == 4 and words(ways[0]) == words(rotations(asked(bare, 2, wording), BYTES)[0])
    for way in ways:
        text = words(way)
        for j, k in enumerate(way.order):
            mark = f"{'ABCD'[j]}. {bare[k]}" if wording is LETTERED else f"({'ABCD'[j]}) {bare[k]}"
            assert mark in text
            assert way.options[j] == ("ABCD"[j] if wording is LETTERED else f"({'ABCD'[j]}) {bare[k]}")
    assert sorted(way.order for way in ways) == [tuple((j + r) % 4 for j in range(4)) for r in range(4)]


def test_options_that_are_known_by_their_letters_alone_are_found_in_the_question():
    q = question("g", ("b",), choices=("a", "b", "c"), bare=("a", "b", "c"))
    text = "what has a dog? a square, b triangle, c cross"
    q = replace(q, text=text, ids=np.array(BYTES.encode(f"Question: {text} Answer:").ids))
    ways = rotations(q, BYTES)
    assert [words(w)[26:-8] for w in ways] == ["a square, b triangle, c cross", "a triangle, b cross, c square", "a cross, b square, c triangle"]
    hinted = replace(asked(("(a)", "(b)"), 0, Wording(question="{question} {hint}\nAnswer:", hint="{hint}"), hint="(a) Open (b) Closed"))
    assert [words(w) for w in rotations(hinted, BYTES)] == ["which? (a) Open (b) Closed\nAnswer:", "which? (a) Closed (b) Open\nAnswer:"]


def test_a_question_is_left_alone_where_nothing_can_be_rotated():
    plain = Wording(question="{question} {choices}? Answer:")
    assert len(rotations(asked(("red", "blue"), 0, plain), BYTES)) == 1  # answered by words
    q = asked(("red", "blue"), 0)
    assert len(rotations(replace(q, ids=np.array(BYTES.encode("which? Answer:").ids)), BYTES)) == 1  # options stand nowhere


class Reads(torch.nn.Module):
    """Says what `says(question, images)` answers after `Answer:`, one byte at a time, then EOS."""

    def __init__(self, says) -> None:
        super().__init__()
        self.says = says

    def forward(self, batch, z, t, dropped=None, at=None):
        logits, length = torch.full((len(at), 261), -9.0), batch.shape[1]
        for k, place in enumerate(at.tolist()):
            row, end = divmod(place, length)
            seen = [j for j in range(end + 1) if batch.turn[row, j] in (-1, batch.turn[row, end])]
            asked, said = BYTES.decode([i for j in seen if (i := int(batch.tokens[row, j])) < 256]).rsplit("Answer:", 1)
            answer = self.says(asked, batch.latents[(batch.latent_slot >= row * length) & (batch.latent_slot <= place)])
            rest = BYTES.encode(answer).ids[len(said) :] if answer.startswith(said) else []
            logits[k, rest[0] if rest else SPECIALS.eos] = 9.0
        return Output(logits, at, z)


@pytest.mark.parametrize("draft", ["", "red", " red", " red and red", " red" * 50])
def test_an_answer_under_a_budget_is_what_the_model_says_whatever_the_true_one(tmp_path, draft):
    said = " red and red" + " and on" * 40
    judged = subject(HeldOut(str(tmp_path / "held"), 2), Reads(lambda q, s: said))
    q = replace(question("g", ("red",)), ids=np.array(BYTES.encode("which? Answer:").ids), answer_ids=np.array(BYTES.encode(draft).ids, np.int32))
    assert BYTES.decode(greedy(judged, [q], [()], budget=20)[0].tolist()) == said[:20]
    short = subject(judged.plan, Reads(lambda q, s: " red"))
    assert BYTES.decode(greedy(short, [q], [()], budget=20)[0].tolist()) == " red"


def lettered_plan(tmp_path, n: int = 12) -> HeldOut:
    """Held-out questions about a colour, answered by letter; the right letter is always B."""
    from tests.trainer import asked as made

    def record(i: int) -> Record:
        right = COLOURS[i % 4]
        offered = [COLOURS[(i + 1) % 4], right, COLOURS[(i + 2) % 4]]
        text = "which? A. {} B. {} C. {} Answer:".format(*offered)
        shown = {"answers": ["B"], "choices": ["A", "B", "C"]}
        q = {"turn": 0, "question": "which?", "answers": [right], "choices": offered, "choice": 1, "type": "which", "shown": shown}
        said = [made.ids(text, "context", 0, 0), made.ids(" B", "target", 0, 0)]
        return Record.make("toy", f"{i}.jpg", "vqa", [made.image(i % 4), *said], fields={"questions": [q]})

    before, made.asked = made.asked, record
    try:
        return HeldOut(str(tmp_path / "held"), n)
    finally:
        made.asked = before


def test_a_model_that_always_likes_one_letter_gains_nothing_by_it(tmp_path):
    rows = Vqa().run(subject(lettered_plan(tmp_path), Reads(lambda q, s: " B")), str(tmp_path))
    assert values(rows, "vqa")["held_out"] == 1  # the answer as asked is always B
    for metric in ("vqa.choice", "vqa.choice.blind", "vqa.choice.shuffled"):
        assert values(rows, metric)["held_out"] == pytest.approx(1 / 3)
    assert all(r["chance"] == pytest.approx(1 / 3) for r in rows if r["metric"].startswith("vqa.choice"))
    assert set(pq.read_table(tmp_path / "answers.parquet")["rotations"].to_pylist()) == {3}


def test_a_model_that_sees_finds_the_right_option_wherever_it_stands(tmp_path):
    def says(question: str, slots) -> str:
        colour = COLOURS[round(float(slots[0, 0]))] if len(slots) else "no colour"
        return f" {question.partition(f'. {colour}')[0][-1]}" if f". {colour}" in question else " A"

    rows = Vqa().run(subject(lettered_plan(tmp_path), Reads(says)), str(tmp_path))
    assert values(rows, "vqa.choice")["held_out"] == 1 and values(rows, "vqa.choice.blind")["held_out"] < 0.5


def test_items_of_every_metric_give_its_rows_back(tmp_path):
    plan = HeldOut(str(tmp_path / "held"))
    rows = Vqa(score="vqav2").run(subject(plan, Stub(seeing)), str(tmp_path))
    for metric in ("vqa", "vqa.blind", "vqa.shuffled", "vqa.constant", "vqa.attributes", "vqa.choice", "vqa.choice.blind", "vqa.choice.shuffled"):
        table = pq.read_table(tmp_path / f"items/{metric}.parquet").to_pandas()
        assert len(set(table.item)) == len(table)
        assert np.average(table.value, weights=table.weight) == pytest.approx(values(rows, metric)["held_out"])
        for split, mine in table.groupby("split"):
            assert mine.value.mean() == pytest.approx(values(rows, metric)[split])


def test_a_blind_model_scores_at_most_the_constant_answer_whatever_it_says(tmp_path):
    plan = HeldOut(str(tmp_path / "held"))
    for said in (*COLOURS, "pink", ""):
        for rule in ("exact", "vqav2"):
            rows = Vqa(score=rule).run(subject(plan, Stub(lambda q, s, said=said: f" {said}" if said else "")), str(tmp_path))
            for split in ("held_out", "held_out:colour", "held_out:which"):
                assert values(rows, "vqa.blind")[split] <= values(rows, "vqa.constant")[split] + 1e-12
