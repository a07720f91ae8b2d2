"""Matching gives exactly what MetaCLIP's rule says, whatever the characters, the batching and the hashes."""

import random
import re

import numpy as np
import pytest

from pipelines import matching, phrases
from pipelines.matching import Matcher, pattern, reachable, scan, spacing, unspaced

PIECES = ["a", "b", "c", "ab", "ba", "é", "can't", "C++", "#x", "x.y", "U.S.", "", "New", "York", "New York", "!", "."]
PIECES += ["中", "国", "中国", "北京", "ไทย", "あ", "🙂"]
RULES = ["spaces", "scripts"]


def made(n_entries=400, n_texts=2000, seed=1):
    rng = random.Random(seed)
    entries = (" ".join(rng.choice(PIECES) for _ in range(rng.choice([1, 1, 2, 3]))) for _ in range(n_entries))
    entries = list(dict.fromkeys([" a", "a  b", "a , b", ", ,", "北京 中", "a long entry of many words", *(e for e in entries if e)]))
    between = [" ", " ", " ", ", ", "\n", "\t", "\r", "  ", "!", "`", "；", "\0", ""]
    texts = ["".join(rng.choice(PIECES) + rng.choice(between) for _ in range(rng.randrange(0, 14))) for _ in range(n_texts)]
    return entries, texts


def pairs(matcher, texts):
    t, e = matcher.match(texts)
    return list(zip(t.tolist(), e.tolist(), strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_it_equals_the_plain_scan_on_2000_captions_with_marks_and_scripts_without_spaces(rule):
    entries, texts = made()
    want = list(scan(texts, entries, rule))
    assert pairs(Matcher(entries, rule), texts) == want
    assert len(want) > 5000 and any(unspaced(entries[j][0]) for _, j in want)


def test_the_rule_on_cases_written_out():
    entries = ["dog", "New York", "cat", ",", "U.S.", "Dog", "a , b", "中国", "red fox"]
    cases = {
        "a dog": ["dog"],
        "dogs": [],
        "A Dog, a cat.": ["cat", ",", "Dog"],
        "New\tYork": ["New York"],
        "New  York": [],
        "the U.S. of": [],
        "a,b": [",", "a , b"],
        "在中国": [],
        "在 中国": ["中国"],
        "red\nfox!": ["red fox"],
        "": [],
    }
    m = Matcher(entries)
    for text, want in cases.items():
        assert [entries[j] for _, j in pairs(m, [text])] == sorted(want, key=entries.index), text


def test_the_second_versions_rule_asks_for_no_space_where_scripts_have_none():
    entries = ["中国", "C++", "ไทย", "dog", "中a"]
    m = Matcher(entries, "scripts")
    assert [entries[j] for _, j in pairs(m, ["在中国人", "C++11 dogs", "ภาษาไทย", "x中a", "中ab"])] == ["中国", "C++", "ไทย", "中a"]
    assert pattern("あ", "scripts") == " あ ", "kana are not in the published ranges"


def test_spacing_is_idempotent_in_what_it_finds_and_pads_both_ends():
    assert spacing("a,b\n") == " a , b  "


def test_entries_said_to_be_unreachable_are_never_found_and_the_rest_have_a_text():
    for rule in RULES:
        entries, texts = made(seed=2)
        found = {j for _, j in scan(texts, entries, rule)}
        assert not found & {j for j, e in enumerate(entries) if not reachable(e, rule)}
        for e in (e for e in entries if reachable(e, rule)):
            bare = re.sub(r" ?([,.;:?!`]) ?", r"\1", e)
            assert pattern(e, rule) in spacing(bare), e
    assert not reachable("U.S.") and not reachable(", ,") and reachable(", a") and not reachable("a\tb")


def test_how_texts_are_batched_changes_nothing(monkeypatch):
    entries, texts = made(n_texts=300)
    whole = pairs(Matcher(entries), texts)
    for size in (1, 40, 1000):
        monkeypatch.setattr(matching, "BATCH_BYTES", size)
        assert pairs(Matcher(entries), texts) == whole


def test_odd_texts_neither_match_by_accident_nor_stop_it():
    m = Matcher(["a", "b"], "scripts")
    assert pairs(m, []) == []
    assert pairs(m, ["", "\ud800 a", "a\0b", "b" * 100_000, "x " * 100_000 + "b"]) == [(1, 0), (4, 1)]
    assert pairs(Matcher([]), ["a"]) == []


def test_a_hash_never_decides(monkeypatch):
    monkeypatch.setattr(phrases, "_BASES", (1,))  # every anagram has one hash
    entries = ["ab cd", "stone horse", "ten", "conversation", "a bc"]
    texts = ["ba cd ab cd", "horse stone", "stone horse", "net ten", "cd ab", "voices rant on conservation conversation", "ab c a cb"]
    assert pairs(Matcher(entries), texts) == list(scan(texts, entries)) == [(0, 0), (2, 1), (3, 2), (5, 3)]


def test_two_phrases_of_one_hash_get_another_base(monkeypatch):
    monkeypatch.setattr(phrases, "_BASES", (1, *phrases._BASES))
    entries = ["stop pots", "pots stop", "conservation", "conversation"]
    texts = ["stop pots", "tops stop", "a conservation", "in conversation"]
    m = Matcher(entries)
    assert pairs(m, texts) == list(scan(texts, entries)) and m._words.powers._base != 1
    with pytest.raises(AssertionError):
        Matcher(["twice", "twice"])


def test_tables_stay_small_with_many_long_entries():
    rng = np.random.default_rng(0)
    entries = list(dict.fromkeys(" ".join(map(str, row)) for row in rng.integers(0, 5000, (20_000, 3))))
    m = Matcher(entries)
    assert m.nbytes < 200 * len(entries)
    texts = [" ".join(entries[i : i + 3]) for i in range(0, 300, 3)]
    t, e = m.match(texts)
    assert set(zip(t.tolist(), e.tolist(), strict=True)) >= {(i // 3, i) for i in range(300)}
