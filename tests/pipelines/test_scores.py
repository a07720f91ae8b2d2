"""Limits on scores hold where they say, as a mixture's `where` does; one caption of several is chosen by name or by score, and its score with it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.mixture import Where
from mixtures.where import keep as _where
from pipelines.captions import named, only
from pipelines.filters.score_range import ScoreRange
from pipelines.format.document import parse
from pipelines.format.errors import RecipeError
from pipelines.format.index import INDEX_SCHEMA
from pipelines.format.record import Image, Record, Text
from pipelines.recipe import Recipe
from pipelines.transforms.pick_caption import PickCaption
from tests import toys


def scored(scores, *captions, data="image-text"):
    """A record with captions by name and these scores."""
    texts = [Text(f"text {i}", atom=i, name=name) for i, name in enumerate(captions, 1)]
    return Record.make("t", "o", data, [Image(b"x", atom=0, shape=(9, 9, 3)), *texts], scores=scores, group="g")


def limits(**scores):
    return ScoreRange.model_validate({"scores": scores})


@pytest.mark.parametrize(
    ("scores", "reason"),
    [({"clip": 0.28, "nsfw": 0.1}, None), ({"clip": 0.27, "nsfw": 0.1}, "clip.min"), ({"clip": 0.28, "nsfw": 0.11}, "nsfw.max"),
     ({"nsfw": 0.1}, "clip.missing"), ({"clip": 0.5}, None), ({}, "clip.missing")],
)  # fmt: skip
def test_a_record_outside_a_limit_is_dropped_and_the_reason_names_score_and_limit(scores, reason):
    rule = limits(clip={"min": 0.28}, nsfw={"max": 0.1, "missing": "keep"})
    assert rule.reason(scored(scores, "original")) == (reason and f"score_range.{reason}")


@settings(deadline=None)
@given(st.floats(-2, 2, width=32), st.floats(-2, 2), st.floats(0, 2))
def test_the_filter_keeps_what_a_mixture_asks_for_to_the_last_bit(value, low, more):
    import pyarrow as pa

    for bound in (low, float(np.float32(low)), value, round(value, 3)):
        column = pa.table({"scores": pa.array([[("clip", value)]], INDEX_SCHEMA.field("scores").type)})
        keep = _where(column, Where.model_validate({"scores": {"clip": {"min": bound, "max": bound + more}}}))
        assert (limits(clip={"min": bound, "max": bound + more}).reason(scored({"clip": value})) is None) == bool(keep[0])


def test_a_limit_such_as_a_third_of_one_holds_for_the_float_that_is_stored():
    assert limits(clip={"min": 0.29}).reason(scored({"clip": float(np.float32(0.29))})) is None
    assert limits(clip={"max": 0.28}).reason(scored({"clip": float(np.float32(0.28))})) is None


def test_limits_that_nothing_could_meet_or_that_name_no_score_are_refused():
    recipe = {"name": "x", "source": {"world": {"kind": "text"}}, "output": "y"}
    for scores, said in (({"clip": {"min": 1, "max": 0}}, "nothing could stay"), ({}, "at least 1"), ({"clip": {"mim": 1}}, "mim")):
        with pytest.raises(RecipeError, match=said):
            parse(Recipe, {**recipe, "filters": [{"score_range": {"scores": scores}}]})


NAMES = ("original", "recaption", "caption2")
EACH = {"clip.original": 0.1, "clip.recaption": 0.3, "clip.caption2": 0.3, "clip": 0.3, "nsfw": 0.5}


def picked(record, **how):
    return list(PickCaption(**how).apply(record))


def texts(record):
    return [s.text for s in record.segments if s.kind == "text"]


def test_the_best_caption_stays_the_first_of_equal_ones_with_its_score_and_its_name():
    before = scored(EACH, *NAMES)
    (after,) = picked(before, best="clip")
    assert texts(after) == ["text 2"] and after.segments[1] == before.segments[2] and after.segments[0] == before.segments[0]
    assert after.scores == {"clip": 0.3, "nsfw": 0.5} and (after.id, after.group) == (before.id, before.group)
    assert picked(after, best="clip") == [after]


def test_a_caption_is_taken_by_name_in_the_order_asked_and_the_records_score_becomes_its_own():
    (after,) = picked(scored(EACH, *NAMES), name="original")
    assert texts(after) == ["text 1"] and after.scores == {"clip": 0.1, "nsfw": 0.5}
    (after,) = picked(scored(EACH, *NAMES), name=("long", "caption2", "original"))
    assert texts(after) == ["text 3"] and after.scores["clip"] == 0.3


def test_without_such_a_caption_or_any_score_a_record_is_dropped_or_kept_as_it_is():
    bare = scored({}, *NAMES)
    for how in ({"name": "long"}, {"best": "clip"}):
        assert picked(bare, **how) == [] and picked(bare, **how, missing="keep") == [bare]
    alone = scored({}, "original")
    assert picked(alone, best="clip") == [alone] and picked(scored({}), best="clip") == []


def test_a_score_of_captions_that_went_is_not_left_to_the_one_that_stayed():
    after = only(scored({"clip.original": 0.1, "clip.recaption": 0.2, "clip": 0.2}, *NAMES), "caption2")
    assert after.scores == {} and texts(after) == ["text 3"]


def test_captions_without_a_name_or_with_the_same_one_have_names_of_their_own():
    record = scored({}, None, None, "a", "a")
    assert [name for name, _ in named(record)] == ["original", "caption2", "a", "a~4"]
    assert [texts(only(record, name)) for name, _ in named(record)] == [[f"text {i}"] for i in range(1, 5)]


def test_records_of_other_kinds_pass_through():
    for kind in ("text", "video", "vqa"):
        record = toys.record(kind, 0)
        assert picked(record, best="clip") == [record]


def test_exactly_one_way_of_choosing_is_named():
    for how in ({}, {"name": "original", "best": "clip"}):
        with pytest.raises(ValueError, match="exactly one"):
            PickCaption(**how)
