"""Turns: what is dropped from a record of questions, and what stays as it was."""

from itertools import combinations

import pytest

from pipelines.format.record import Image, Record, Text
from pipelines.turns import without_turns


def asked(n, dialogue=False, own_images=()):
    segments = [Image(b"shared", role="context", atom=0)]
    for t in range(n):
        segments += [Image(b"own", role="context", atom=0, turn=t)] * (t in own_images)
        segments += [Text(f"q{t}", role="context", atom=0, turn=t), Text(f"a{t}", atom=0, turn=t)]
    fields = {"questions": [{"question": f"q{t}", "answers": [f"a{t}"], "turn": t} for t in range(n)], "kept": 1}
    return Record.make("s", "a.jpg", "vqa", segments, fields=fields | ({"dialogue": True} if dialogue else {}))


@pytest.mark.parametrize("gone", [set(c) for k in range(5) for c in combinations(range(4), k)])
def test_dropped_turns_go_with_their_questions_segments_and_images_and_the_others_keep_their_numbers(gone):
    record = asked(4, own_images=(1, 3))
    left = without_turns(record, gone)
    if len(gone) == 4:
        assert left is None
        return
    stay = [t for t in range(4) if t not in gone]
    assert [q["turn"] for q in left.fields["questions"]] == stay == sorted({s.turn for s in left.segments} - {-1})
    assert left.segments == tuple(s for s in record.segments if s.turn not in gone)
    assert left.segments[0].turn == -1 and (left.id, left.origin, left.group) == (record.id, record.origin, record.group)
    assert left.fields["kept"] == 1 and len(record.fields["questions"]) == 4  # what was given is not changed
    if not gone:
        assert left is record


def test_what_follows_a_dropped_turn_of_a_dialogue_goes_with_it():
    left = without_turns(asked(4, dialogue=True), {2})
    assert [q["turn"] for q in left.fields["questions"]] == [0, 1] and left.fields["dialogue"] is True
    assert "dialogue" not in without_turns(asked(4, dialogue=True), {3, 1}).fields
    assert without_turns(asked(4, dialogue=True), {0}) is None


def test_turns_that_are_not_there_change_nothing_and_dropping_twice_is_dropping_once():
    record = asked(3)
    assert without_turns(record, {7, -1}) is record
    once = without_turns(record, {1})
    assert without_turns(once, {1}) is once
    assert without_turns(without_turns(record, {0}), {2}) == without_turns(record, {0, 2})
