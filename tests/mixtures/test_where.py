"""`where`: what it keeps is what plain Python over the rows would keep; what it leaves out is counted; mistakes are named when read."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.mixture import Source
from mixtures.plan import Plan, make_plan
from mixtures.where import NUMBERS, STRINGS, Where, columns, keep
from pipelines.format.document import dump, parse
from pipelines.format.errors import BudgetError, RecipeError
from pipelines.format.index import INDEX_SCHEMA
from tests.mixtures.sets import dataset, mixture


def where(**keys) -> Where:
    return parse(Where, keys)


def table(rows: list[dict]) -> pa.Table:
    schema = pa.schema([INDEX_SCHEMA.field(c) for c in ("scores", *NUMBERS, *STRINGS)])
    return pa.Table.from_pylist([{"scores": [], **r} for r in rows], schema=schema)


def kept(rows: list[dict], **keys) -> list[bool]:
    return keep(table(rows), where(**keys)).tolist()


words = st.sampled_from(["cc-by", "cc0", "all-rights", None])
rows = st.fixed_dictionaries(
    {"text_tokens": st.integers(0, 9) | st.none(), "nbytes": st.integers(0, 1 << 40) | st.none(), "licence": words, "source": words}
)


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, max_size=12), st.integers(0, 9), st.integers(0, 9), st.lists(words, min_size=1, max_size=3), st.integers(1, 3))
def test_a_record_is_kept_when_all_conditions_hold_however_the_index_is_sliced(found, a, b, licences, slices):
    low, high = sorted((a, b))
    said = where(text_tokens={"min": low, "max": high}, licence=licences)
    expected = [r["text_tokens"] is not None and low <= r["text_tokens"] <= high and r["licence"] in licences for r in found]
    whole = table(found)
    assert keep(whole, said).tolist() == expected
    cuts = [i * len(found) // slices for i in range(slices + 1)]
    parts = [keep(whole.slice(a, b - a).select(columns(said)), said) for a, b in pairwise(cuts)]
    assert np.concatenate(parts).tolist() == expected


def test_bounds_hold_their_ends_as_they_are_written_and_a_missing_value_is_outside():
    scored = [{"scores": [("clip", x)]} for x in (0.7, 0.69999, 0.3, float("nan"))] + [{}, {"scores": [("other", 0.7)]}]
    assert kept(scored, scores={"clip": {"min": 0.7}}) == [True, False, False, False, False, False]
    assert kept(scored, scores={"clip": {"max": 0.3}}) == [False, False, True, False, False, False]
    assert kept(scored, scores={"clip": {}}) == [True, True, True, False, False, False]  # those that have the score
    assert kept([{"nbytes": 2000}, {"nbytes": 2001}, {}], nbytes={"max": "2K"}) == [True, False, False]
    assert kept([{"n_segments": 3}], n_segments={"min": 1 << 40}) == [False]


def test_a_list_has_null_for_records_without_the_value_and_only_then():
    found = [{"licence": "cc0"}, {"licence": None}, {"licence": "CC0"}]
    assert kept(found, licence=["cc0"]) == [True, False, False]
    assert kept(found, licence=[None]) == [False, True, False]
    assert kept(found, licence=["cc0", None]) == [True, True, False]


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        *[("https://a.org/x", True), ("http://B.A.org:80/x?y", True), ("https://a.org", True), ("https://u:p@a.org/", True)],
        *[("https://ba.org/x", False), ("https://a.org.evil.net/", False), ("https://evil.net/@a.org/", False), ("https://evil.net\\@a.org/", False)],
        *[("https://evil.net/?u=https://a.org/", False), ("a.org/x", False), (None, False), ("https://aXorg/", False)],
    ],
)
def test_a_host_stands_for_itself_and_its_subdomains_and_nothing_that_only_looks_like_it(url, inside):
    assert kept([{"url": url}], url=["a.org"]) == [inside]


def test_a_whole_url_is_that_url_and_null_stands_beside_hosts():
    found = [{"url": "https://x.net/1"}, {"url": "https://x.net/12"}, {"url": None}, {"url": "https://a.org/9"}]
    assert kept(found, url=["https://x.net/1", None, "a.org"]) == [True, False, True, True]


def test_nothing_asked_reads_nothing_and_an_empty_index_is_no_trouble():
    assert keep(table([]), where()) is None and columns(where()) == []
    assert keep(pa.table({"licence": [], "scores": []}), where(licence=["a"], scores={"x": {"min": 1}})).tolist() == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"licenses": ["cc0"]}, "did you mean 'licence'"),
        ({"text_tokens": {"min": 9, "max": 8}}, "nothing lies between min 9 and max 8"),
        ({"text_tokens": {}}, "min, max or both"),
        ({"nbytes": {"min": "-3"}}, "a size is"),
        ({"scores": {"clip": {"mim": 1}}}, "did you mean 'min'"),
        ({"scores": {"clip": {"min": 1, "max": 0}}}, "nothing lies between"),
        ({"licence": []}, "at least 1 item"),
        ({"id": [str(i) for i in range(257)]}, "at most 256 items"),
        ({"licence": "cc0"}, "array"),
        ({"licence": [3]}, "string"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused_by_name(keys, said):
    with pytest.raises(RecipeError) as e:
        mixture({"x": {"dataset": "d", "tokens": 5, "where": keys}})
    assert said in str(e.value) and "sources.x.where" in str(e.value)


def test_a_filter_is_written_down_in_one_way_and_old_ones_as_ever():
    assert dump(parse(Source, {"dataset": "d", "tokens": 1}))["where"] == {"scores": {}}
    one = dump(where(licence=["b", None, "a", "b"], text_tokens={"min": 8}))
    assert one == {"scores": {}, "licence": [None, "a", "b"], "text_tokens": {"min": 8, "max": None}}
    assert one == dump(where(text_tokens={"min": 8.0}, licence=["a", "b", None])) == dump(parse(Where, one))


def test_what_is_left_out_is_counted_and_the_held_out_set_is_not_filtered(tmp_path):
    sizes, licences = [5 + i % 7 for i in range(200)], [("cc0", "by", None)[i % 3] for i in range(200)]
    path = dataset(tmp_path / "d", "text", sizes, "s", licences=licences)
    said = {"licence": ["cc0", None], "text_tokens": {"min": 6, "max": 9}}
    plans = [
        Plan.open(make_plan(mixture({"x": {"dataset": path, "epochs": 1, **w}}, tmp_path / f"p{i}", held_out={"fraction": 0.1})))
        for i, w in enumerate(({}, {"where": said}))
    ]
    held = plans[0].card["sources"]["x"]["heldout"]
    assert held == plans[1].card["sources"]["x"]["heldout"]
    facts = plans[1].card["sources"]["x"]
    assert facts["records"] + facts["unfit"]["where"] + facts["unfit"]["held_out"] == 200
    for i in range(plans[1].sequences()):
        for span in plans[1].row(i).spans:
            record = plans[1].record(span)
            assert record.licence in ("cc0", None) and 6 <= span.payload <= 9
    with pytest.raises(BudgetError, match="cannot give"):
        make_plan(mixture({"x": {"dataset": path, "tokens": 9, "where": {"licence": ["none such"]}}}, tmp_path / "no"))
