"""A document is read strictly, and every complaint names file, line and key."""

from typing import Annotated, Any

import pytest

from pipelines.format.document import Document, Part, PartOf, Percent, Size, canon, dump, exact, fingerprint, load, merge, parse, read_yaml
from pipelines.format.errors import InputError, RecipeError


class Inner(Document):
    depth: int = 1


class Toy(Document):
    name: str
    size: Size = 0
    share: Percent = 0.5
    inner: Inner = Inner()
    filters: list[Annotated[Any, PartOf("pipelines.filters")]] = []


def read(text: str, *overrides: str) -> Toy:
    return parse(Toy, *read_yaml(text, "toy.yaml"), name="toy.yaml", overrides=overrides, stem="toy")


def complaint(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as e:
        read(text, *overrides)
    assert e.value.exit == 2
    return str(e.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("no", "no"), ("True", "True"), ("true", True), ("null", None), ("", None), ("1_000", "1_000"), ("2020-01-01", "2020-01-01")],
        *[("3e-4", 3e-4), ("12", 12), ("0.5", 0.5)],
    ],
)
def test_scalars_are_those_of_the_yaml_core_schema(text, value):
    assert read_yaml(f"a: {text}")[0] == {"a": value}


@pytest.mark.parametrize(("text", "n"), [("20B", 20 * 10**9), ("1.5M", 1_500_000), ("7", 7), ("0.1K", 100)])
def test_sizes_are_powers_of_a_thousand(text, n):
    assert read(f"size: {text}").size == n


@pytest.mark.parametrize("text", ["1.0005K", "-3", "many", "true", "3k"])
def test_a_size_that_is_not_whole_is_refused(text):
    assert "toy.yaml:1" in complaint(f"size: {text}")


def test_percentages_and_numbers_are_one_type():
    assert read("share: 2%").share == read("share: 0.02").share == 0.02
    assert exact(0.1) * 10 == 1


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_key():
    assert (said := complaint("size: 1\nshrae: 2\n")) and "toy.yaml:2" in said and "'share'" in said


def test_a_wrong_type_is_named_with_what_was_found():
    assert (said := complaint("inner:\n  depth: deep\n")) and "toy.yaml:2" in said and "'deep'" in said


def test_a_number_in_quotes_is_a_string():
    complaint("inner: {depth: '3'}")


@pytest.mark.parametrize(
    "text", ["size: 1\nsize: 2\n", "name: &a x\n", "name: *a\n", "name: !!python/object:os.system x\n", "--- 1\n--- 2\n", "a: [\n"]
)
def test_duplicates_anchors_aliases_tags_and_second_documents_are_refused(text):
    assert "toy.yaml:" in complaint(text)


def test_nesting_and_size_are_bounded():
    complaint("a: " + "[" * 40 + "]" * 40)
    complaint("a: '" + "x" * (1 << 20) + "'")


def test_overrides_win_and_their_keys_must_exist():
    assert read("inner: {depth: 1}", "inner.depth=5", "size=2K") == Toy(name="toy", size=2000, inner=Inner(depth=5))
    assert "command line: inner.dpeth=5" in complaint("size: 1", "inner.dpeth=5")


def test_overrides_reach_into_lists_of_parts():
    toy = read("filters: [{image_size: {min_side: 8}}]", "filters.0.image_size.min_side=64")
    assert dump(toy)["filters"][0]["image_size"]["min_side"] == 64


def test_a_part_is_found_by_its_file_and_an_unknown_one_is_refused():
    (part,) = read("filters: [image_size]").filters
    assert isinstance(part, Part) and type(part).__name__ == "ImageSize"
    assert "image_size" in complaint("filters: [imagesize]")


def test_errors_inside_a_part_carry_the_line_of_the_key():
    said = complaint("filters:\n  - image_size:\n      min_sied: 3\n")
    assert "toy.yaml:3" in said and "min_sied" in said


def test_a_resolved_document_reads_back_as_itself():
    toy = read("filters: [image_size]\nshare: 3%")
    assert parse(Toy, dump(toy)) == toy


def test_a_missing_file_is_an_input_error_that_lists_the_packaged_ones(tmp_path):
    (tmp_path / "one.yaml").write_text("name: one")
    with pytest.raises(InputError, match="one") as e:
        load(Toy, "two", packaged=[tmp_path])
    assert e.value.exit == 2
    assert load(Toy, "one", packaged=[tmp_path]).name == "one"


def test_the_canonical_form_does_not_depend_on_key_order():
    assert canon({"b": 1.0, "a": "é"}) == '{"a":"é","b":1.0}'.encode()
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_merging_goes_mapping_by_mapping():
    assert merge({"a": {"x": 1, "y": 2}, "b": [1]}, {"a": {"y": 3}, "b": [2]}) == {"a": {"x": 1, "y": 3}, "b": [2]}
