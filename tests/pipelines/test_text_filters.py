"""Every text filter drops the documents that datatrove's filter drops, for the same reason, and leaves the same text."""

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("datatrove")

from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter

from pipelines.filters.c4 import C4
from pipelines.filters.fineweb_quality import FinewebQuality
from pipelines.filters.gopher_quality import GopherQuality
from pipelines.filters.gopher_repetition import GopherRepetition, _covered, _duplicated, _hashes, _prefix_hashes, _repeated, _top
from pipelines.format.record import Record, Text
from pipelines.words import words_of
from tests.pipelines.real_text import generated, real


def record(text, **more):
    return Record.make("t", f"#{hash(text)}", "text", [Text(text)], **more)


def theirs(step, text):
    """datatrove's (reason or None, text left)."""
    document = Document(text=text, id="0", metadata={})
    found = step.filter(document)
    kept, reason = found if isinstance(found, tuple) else (found, "")
    return (None if kept else reason), document.text


def texts():
    return [t for t in [*generated(3, 250), *real()] if t.strip()]


def agree(ours, step, name, some):
    """Both on every text; returns how many were dropped for each reason."""
    seen = {}
    for text in some:
        reason, left = theirs(step, text)
        r = record(text)
        said = ours.reason(r)
        assert said == (None if reason is None else f"{name}.{reason}"), text[:300]
        if reason is None:
            assert ours.kept(r).segments[0].text == left
        seen[reason] = seen.get(reason, 0) + 1
    return seen


@pytest.mark.parametrize(
    "options",
    [{}, {"min_doc_words": 5, "min_stop_words": 1, "max_symbol_word_ratio": 0.02, "max_ellipsis_lines_ratio": 0.05, "max_bullet_lines_ratio": 0.2}],
)
def test_gopher_quality(options):
    ours = GopherQuality(**options)
    seen = agree(ours, GopherQualityFilter(**options), "gopher_quality", texts())
    assert len(seen) >= 2, seen


def test_gopher_quality_of_extremes():
    for limits in ({"max_doc_words": 60, "min_avg_word_length": 4}, {"max_avg_word_length": 3}):
        tight = {"min_doc_words": 1, "min_stop_words": 0, **limits}
        seen = agree(GopherQuality(**tight), GopherQualityFilter(**tight), "gopher_quality", texts())
        assert seen.keys() & {"gopher_long_doc", "gopher_above_avg_threshold"}, seen


def test_gopher_quality_in_another_language():
    options = {"language": "deu", "stop_words": ["der", "und"], "min_doc_words": 5}
    agree(GopherQuality(**{**options, "stop_words": ("der", "und")}), GopherQualityFilter(**options), "gopher_quality", real()[-27:] or texts()[:20])


@pytest.mark.parametrize("scale", [1.0, 0.2, 0.05])
def test_gopher_repetition(scale):
    grams = {
        "top_n_grams": tuple((n, f * scale) for n, f in ((2, 0.2), (3, 0.18), (4, 0.16))),
        "dup_n_grams": tuple((n, f * scale) for n, f in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))),
        "dup_line_frac": None if scale < 1 else 0.3,
        "dup_para_frac": None if scale < 1 else 0.3,
        "dup_line_char_frac": None if scale < 1 else 0.2,
        "dup_para_char_frac": None if scale < 1 else 0.2,
    }
    some = texts() if scale == 1 else texts()[::3]
    seen = agree(GopherRepetition(**grams), GopherRepetitionFilter(**grams), "gopher_repetition", some)
    assert len(seen) >= (2 if scale > 0.1 else 1), seen


def hashed(text, n):
    """A text's words, where each ends, and the hashes of its windows of n."""
    words = words_of(text)
    ends = np.concatenate([[0], np.cumsum(words.lexicon.length[words.ids])])
    return words.texts, ends, _hashes(_prefix_hashes(words, ends), ends, n)


def plainly_top(words, n):
    """datatrove's: every n-gram counted; of the most frequent ones the first."""
    grams = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    gram, count = max(grams.items(), key=lambda item: item[1])
    return (sum(map(len, gram)) + n - 1) * count


def plainly_duplicated(words, n):
    """datatrove's: every window looked at."""
    seen, chars, i = set(), 0, 0
    while i < len(words) - n + 1:
        gram = "".join(words[i : i + n])
        if gram in seen:
            chars += len(gram)
            i += n
        else:
            seen.add(gram)
            i += 1
    return chars


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10])
def test_looking_only_at_windows_met_more_than_once_counts_what_looking_at_all_does(n):
    some = [*texts()[::5], "a bc ab c a bc ab c x y", "x x x x x x x x", "one two three one two four one two", "a b " * 50 + "c"]
    for text in (t for t in some if len(words_of(t)) >= n):
        words, ends, hashes = hashed(text, n)
        first, later = _repeated(hashes)
        assert _duplicated(words, n, np.union1d(first, later)) == plainly_duplicated(words, n), text[:80]
        assert _top(words, n, hashes) == _top(words, n) == plainly_top(words, n), text[:80]
        assert _covered(later, ends, n) >= plainly_duplicated(words, n)


def test_words_that_join_to_the_same_string_count_as_repeated():
    """datatrove compares windows as joined strings: "ab c" repeats "a bc"."""
    text = "ab c d e f a bc d e f"
    options = {"dup_n_grams": [(5, 0.1)], "top_n_grams": []}
    agree(GopherRepetition(dup_n_grams=((5, 0.1),), top_n_grams=()), GopherRepetitionFilter(**options), "gopher_repetition", [text])


@pytest.mark.parametrize(
    "options", [{}, {"min_num_sentences": 2}, {"min_num_sentences": -1, "filter_no_terminal_punct": False}, {"split_paragraph": False}]
)
def test_c4(options):
    some = texts() if not options else texts()[::2]
    seen = agree(C4(**options), C4QualityFilter(**options), "c4", some)
    assert None in seen and len(seen) >= 2, seen


def test_c4_leaves_the_rest_of_the_record_alone():
    text = "\n".join(["The river ran down to the sea. It was wide. It was long. It was deep. So it went.", "menu"])
    r = record(text, url="http://a/b", licence="CC0-1.0", fields={"n": 1})
    c4 = C4()
    assert c4.reason(r) is None
    kept = c4.kept(r)
    assert (kept.id, kept.url, kept.licence, kept.fields) == (r.id, r.url, r.licence, r.fields)
    assert kept.segments[0].text == text.splitlines()[0] and C4().kept(r) == kept


STRICT = {"line_punct_thr": 0.5, "line_punct_exclude_zero": True, "stop_chars": (".",)}


@pytest.mark.parametrize("options", [{}, STRICT, {"char_duplicates_ratio": 0.3, "line_punct_thr": 0}])
def test_fineweb_quality(options):
    seen = agree(FinewebQuality(**options), FineWebQualityFilter(**options), "fineweb_quality", texts())
    assert len(seen) >= 2, seen


def test_a_text_without_a_word_is_dropped_where_datatrove_breaks():
    off = GopherQuality(min_doc_words=None)
    assert off.reason(record(" \n ")) == "gopher_quality.empty"
    with pytest.raises(ZeroDivisionError):
        GopherQualityFilter(min_doc_words=None).filter(Document(text=" \n ", id="0"))
