"""Filters give a reason or None at exactly their limits; transforms change what they say and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.filters.caption_length import CaptionLength
from pipelines.filters.image_size import ImageSize
from pipelines.filters.repeated_lines import RepeatedLines
from pipelines.filters.symbol_ratio import SymbolRatio
from pipelines.filters.text_length import TextLength
from pipelines.format.document import parse
from pipelines.format.errors import RecipeError, Reject
from pipelines.format.record import Image, Record, Text
from pipelines.media import images, still
from pipelines.recipe import Recipe
from pipelines.transforms.cut_text import CutText, cut
from pipelines.transforms.resize_image import ResizeImage
from tests.toys import jpeg, record


def sized(*sizes):
    return Record.make("t", "o", "image-text", [Image(b"", atom=0, shape=(h, w, 3)) for h, w in sizes])


def document(text):
    return Record.make("t", "o", "text", [Text(text)], group="g", url="u", licence="CC0", fields={"a": 1})


def captioned(*texts):
    return Record.make("t", "o", "image-text", [Image(b"", atom=0, shape=(9, 9, 3)), *(Text(t, atom=i + 1) for i, t in enumerate(texts))])


@pytest.mark.parametrize(
    ("size", "reason"),
    [((64, 100), None), ((63, 100), "min_side"), ((100, 63), "min_side"), ((100, 100), None), ((100, 101), "max_pixels"),
     ((64, 128), None), ((64, 129), "max_aspect"), ((129, 64), "max_aspect")],
)  # fmt: skip
def test_image_size_has_its_limits_where_it_says(size, reason):
    rule = ImageSize(min_side=64, max_pixels=10_000, max_aspect=2.0)
    assert rule.reason(sized(size)) == (reason and f"image_size.{reason}")
    assert rule.reason(sized((70, 70), size)) == (reason and f"image_size.{reason}")


def test_captions_must_all_fit_unless_any_is_enough():
    assert CaptionLength(min_words=2).reason(captioned("two words", "also two")) is None
    assert CaptionLength(min_words=2).reason(captioned("two words", "one")) == "caption_length.min_words"
    assert CaptionLength(min_words=2, require="any").reason(captioned("two words", "one")) is None
    assert CaptionLength(min_words=2, require="any").reason(captioned("two", "one")) == "caption_length.min_words"
    assert CaptionLength(max_words=2).reason(captioned("one two three")) == "caption_length.max_words"
    assert CaptionLength(min_chars=4).reason(captioned(" abc ")) == "caption_length.min_chars"
    assert CaptionLength(max_chars=3).reason(captioned(" abc ")) is None
    assert CaptionLength(max_chars=2).reason(captioned(" abc ")) == "caption_length.max_chars"
    assert CaptionLength().reason(captioned()) == "caption_length.min_words"


def test_text_length_counts_characters_not_bytes():
    assert TextLength(min_chars=3, max_chars=3).reason(document(" 漢字語\n")) is None
    assert TextLength(min_chars=4).reason(document(" 漢字語\n")) == "text_length.min_chars"
    assert TextLength(max_chars=2).reason(document("abc")) == "text_length.max_chars"
    assert TextLength(min_words=3).reason(document("two words")) == "text_length.min_words"


def test_repeated_lines_counts_lines_and_characters_seen_before():
    fresh = [f"line {i}" for i in range(7)]
    assert RepeatedLines().reason(document("\n".join([*fresh, "line 0", "line 1", "line 2"]))) == "repeated_lines.max_chars"
    assert RepeatedLines(max_chars=1.0).reason(document("\n".join([*fresh, "line 0", "", "line 1", "line 2"]))) is None
    assert RepeatedLines(max_chars=1.0).reason(document("\n".join([*fresh, *fresh[:4]]))) == "repeated_lines.max_lines"
    assert RepeatedLines().reason(document("")) is None


def test_symbol_ratio_drops_hashes_dots_and_numbers_in_any_script():
    assert SymbolRatio().reason(document("ein Satz mit genug Wörtern und 5 Zahlen")) is None
    assert SymbolRatio().reason(document("слова без цифр 1")) == "symbol_ratio.min_letters"
    assert SymbolRatio().reason(document("漢字 かな 한글")) is None
    assert SymbolRatio().reason(document("more … and so on ...")) == "symbol_ratio.max_symbols"
    assert SymbolRatio().reason(document("")) == "symbol_ratio.min_letters"


def test_filters_and_transforms_are_named_in_recipes_by_their_files():
    data = {
        "name": "t", "source": {"jsonl": {"path": "x"}}, "output": "out",
        "filters": [{"image_size": {"max_pixels": "50M"}}, {"repeated_lines": {"max_lines": "30%"}}, "symbol_ratio"],
        "transforms": [{"resize_image": {"size": 64}}, "template", {"cut_text": {"chars": "2K"}}],
    }  # fmt: skip
    recipe = parse(Recipe, data)
    assert (recipe.filters[0].max_pixels, recipe.filters[1].max_lines, recipe.transforms[2].chars) == (50_000_000, 0.3, 2000)
    for wrong in ({"size": 0}, {"mode": "squash"}, {"quality": 101}):
        with pytest.raises(RecipeError):
            parse(Recipe, data | {"transforms": [{"resize_image": wrong}]})


def test_resizing_gives_a_jpeg_of_the_size_and_leaves_text_and_identity_alone():
    before = record("image-text", 3)
    (after,) = ResizeImage(size=16).apply(before)
    image = after.segments[0]
    assert (image.shape, image.dtype, images.probe(image.payload).format) == ((16, 16, 3), "jpeg", "jpeg")
    assert after.segments[1:] == before.segments[1:] and (after.id, after.group) == (before.id, before.group)


def test_a_jpeg_of_the_right_size_keeps_its_bytes_and_a_png_does_not():
    for mode, size in [("center_crop", 32), ("keep_ratio", 32), ("border", 32), ("no", 7)]:
        (after,) = ResizeImage(size=size, mode=mode).apply(record("image-text", 1))
        assert after.segments[0].payload == jpeg(1)
    png = images.encode_png(images.decode(jpeg(1)))
    pair = Record.make("t", "o", "image-text", [Image(png, atom=0, shape=(32, 32, 3), dtype="png")])
    (after,) = ResizeImage(size=32).apply(pair)
    assert images.probe(after.segments[0].payload).format == "jpeg" and after.segments[0].dtype == "jpeg"


def test_an_image_shared_by_neighbouring_records_is_resized_once(monkeypatch):
    calls = []
    real = still.resized
    monkeypatch.setattr(still, "resized", lambda *a: calls.append(1) or real(*a))
    for i in range(5):
        shared = Record.make("t", f"{i}", "vqa", [Image(jpeg(77), atom=0, shape=(32, 32, 3))])
        list(ResizeImage(size=9).apply(shared))
    assert len(calls) == 1


def test_damage_in_the_middle_of_a_photo_is_found_by_resizing():
    rng = np.random.default_rng(0)
    png = bytearray(images.encode_png(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)))
    png[len(png) // 2] ^= 0xFF
    assert images.verify(bytes(png)).width == 64
    damaged = Record.make("t", "o", "image-text", [Image(bytes(png), atom=0, shape=(64, 64, 3))])
    with pytest.raises(Reject) as caught:
        list(ResizeImage(size=32).apply(damaged))
    assert caught.value.reason in ("invalid_image", "truncated")


@given(st.text(alphabet="ab .\n", max_size=300), st.integers(1, 40))
def test_the_pieces_of_a_cut_text_are_short_and_joined_are_the_text(text, most):
    pieces = list(cut(text, most))
    assert "".join(pieces) == text and all(len(p) <= most for p in pieces)
    assert all(pieces) or text == ""


def test_text_is_cut_at_the_strongest_border_near_the_end():
    assert list(cut("one two.\n\nthree four. five six", 16)) == ["one two.\n\n", "three four. ", "five six"]


def test_cut_pieces_have_ids_of_their_own_and_the_documents_group():
    whole = document("para one\n\npara two\n\npara three")
    pieces = list(CutText(chars=12).apply(whole))
    assert [p.origin for p in pieces] == ["o~0", "o~1", "o~2"] and len({p.id for p in pieces}) == 3
    assert {(p.group, p.url, p.licence) for p in pieces} == {("g", "u", "CC0")}
    assert list(CutText(chars=1000).apply(whole)) == [whole]
