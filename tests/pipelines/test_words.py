"""Words found chunk by chunk are those that datatrove's tokenizers find in the whole text."""

import random

import pytest

pytest.importorskip("datatrove")

from pipelines import words
from pipelines.format.errors import Reject
from pipelines.words import Lexicon, lexicon, powers, words_of
from tests.pipelines.real_text import generated, real

SIGNS = [*"ab1:;)(-=.,'\"PpDx83o_*/\\[]<>!?#…é ", "  ", "\n", " ) ", " :", "e.g.", "a.m.", " ", " "]


def whole(text, language="eng"):
    from datatrove.utils.text import split_into_words

    return split_into_words(text, language)


def smileys(seed, n):
    """Special cases beside and inside one another, where matching across white space could hide one."""
    draw = random.Random(seed)
    rules = list(lexicon()._whole.tokenizer.tokenizer.rules)
    return ["".join(draw.choice(SIGNS) if draw.random() < 0.7 else draw.choice(rules) for _ in range(draw.randint(0, 25))) for _ in range(n)]


def test_words_are_those_of_the_whole_text():
    for text in [*smileys(0, 400), *generated(0, 40), *real()]:
        assert words_of(text).texts == whole(text), text[:200]


@pytest.mark.parametrize("language", ["deu", "fra", "rus"])
def test_other_languages_agree_too(language):
    for text in [*generated(1, 15), *real()[-5:]]:
        assert words_of(text, language).texts == whole(text, language), text[:200]


def test_a_language_without_spaces_is_given_to_its_tokenizer_whole():
    tokenizer = Lexicon("eng")
    tokenizer._chunks = None
    assert tokenizer.of("x:) ) don't").texts == whole("x:) ) don't")


def test_a_match_across_white_space_that_hides_a_special_case_is_noticed():
    assert lexicon()._pieces(["x:)", ")"]) is None and lexicon()._pieces(["x:)", "yes"]) is not None
    assert words_of("x:) )").texts == ["x", ":", ")", ")"] and words_of("x:) yes").texts == ["x", ":)", "yes"]


def test_the_word_that_breaks_spacy_is_always_left_out():
    assert [words_of(f"so IS_ALPHA said {n}").texts for n in (1, 2)] == [["so", "said", "1"], ["so", "said", "2"]]


def test_sentences_are_counted_as_datatrove_splits_them():
    from datatrove.utils.text import split_into_sentences

    for text in [*smileys(2, 300), *(line for t in [*generated(2, 10), *real()[:10]] for line in t.splitlines())]:
        assert lexicon().sentences(text) == len(split_into_sentences(text, "eng")), text


def test_a_chain_of_filters_searches_a_text_once(monkeypatch):
    searched = []
    find = Lexicon._find

    def counted(self, text):
        searched.append(text)
        return find(self, text)

    monkeypatch.setattr(Lexicon, "_find", counted)
    text = "a text that several filters look at"
    first = words_of(text)
    assert words_of(text) is first and len(searched) == 1
    words_of(text, "deu")
    assert len(searched) == 2


def test_a_full_lexicon_is_begun_anew_and_old_words_stay_readable(monkeypatch):
    monkeypatch.setattr(words, "CHUNKS", 3)
    old = words_of("one two three four five")
    assert words_of("six seven").lexicon is not old.lexicon
    assert old.texts == ["one", "two", "three", "four", "five"]


def test_arrays_grow_with_the_words_and_hashes_are_of_the_string_that_words_make():
    lex = Lexicon("eng")
    for n in (10, 3_000):
        ids = lex.of(" ".join(f"w{i}" for i in range(n))).ids  # words must be known before their arrays are asked for
        assert lex.length[ids].tolist() == [len(f"w{i}") for i in range(n)]
    ab, c, a, bc = (int(lex.mix[i]) for i in lex.of("ab c a bc").ids)
    mask, base = (1 << 64) - 1, powers(8).tolist()
    assert (ab + c * base[2]) & mask == (a + bc * base[1]) & mask


def test_a_text_of_too_many_different_words_is_refused_whatever_was_read_before(monkeypatch):
    monkeypatch.setattr(words, "MOST", 50)
    many, few = " ".join(f"w{i}" for i in range(51)), " ".join(["again"] * 500)
    for _ in range(2):
        with pytest.raises(Reject, match="different words"):
            words_of(many)
        assert len(words_of(few)) == 500
        words_of(" ".join(f"w{i}" for i in range(40)))
