"""A document that extends another is that one with its own lines laid on; errors name the file whose line is wrong."""

from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from pipelines.format.document import At, Document, PartOf, Size, dump, load, parse
from pipelines.format.errors import InputError, RecipeError
from pipelines.format.extends import lay


class Leaf(Document):
    dataset: str
    tokens: Size | None = None
    weight: float = 0.5


class Toy(Document):
    name: str | None = None
    rows: int = 1
    every: Size | None = 1000
    leaves: dict[str, Leaf] = {}
    filters: list[Annotated[Any, PartOf("pipelines.filters")]] = []


class Outer(Document):
    blocks: ClassVar[dict[str, type[BaseModel]]] = {"inner": Toy}
    name: str | None = None
    inner: dict[str, Any]


BASE = "name: base\nrows: 3\nleaves:\n  a: {dataset: x, tokens: 5K}\n  b:\n    dataset: y\n    weight: 2\n"


@pytest.fixture
def write(tmp_path):
    def put(**files: str) -> str:
        for stem, text in files.items():
            path = tmp_path / f"{stem.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return str(path)

    return put


def test_one_line_makes_another_arm_and_the_name_is_its_own(write):
    toy = load(Toy, write(base=BASE, arm="extends: base.yaml\nleaves: {a: {tokens: 7K}}\n"))
    assert toy.name == "arm" and toy.rows == 3
    assert toy.leaves["a"] == Leaf(dataset="x", tokens=7000) and toy.leaves["b"].weight == 2


def test_what_is_saved_is_the_same_however_it_was_spelled(write):
    extended = dump(load(Toy, write(base=BASE, arm="extends: base.yaml\nleaves: {a: {tokens: 7K}, b: null}\n")))
    spelled = dump(load(Toy, write(arm="rows: 3\nleaves: {a: {dataset: x, tokens: 7000}}\n")))
    assert extended == spelled and "extends" not in extended


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("leaves: {b: null}", "leaves", {"a"}),
        ("leaves: {a: {tokens: null}}", "tokens", None),
        ("leaves: {b: {weight: null}}", "weight", 0.5),
        ("rows: null", "rows", 1),
        ("every: null", "every", None),  # null is a value of this key, and not its default
    ],
)
def test_null_takes_a_key_away_unless_null_is_what_the_key_can_be(write, line, key, value):
    base = BASE + "every: 500\n"
    toy = load(Toy, write(base=base, arm=f"extends: base.yaml\n{line}\n"))
    found = {"leaves": set(toy.leaves), "tokens": toy.leaves["a"].tokens, "rows": toy.rows, "every": toy.every}
    assert (found | {"weight": toy.leaves["b"].weight if "b" in toy.leaves else None})[key] == value


def test_a_null_override_takes_a_key_away_too_and_overrides_win_over_all_files(write):
    path = write(base=BASE, arm="extends: base.yaml\n")
    toy = load(Toy, path, ["leaves.b=null", "leaves.a.tokens=9", "rows=4"])
    assert set(toy.leaves) == {"a"} and toy.leaves["a"].tokens == 9 and toy.rows == 4
    assert load(Toy, write(other="rows: 9\n", third="{}"), ["extends=other.yaml"]).rows == 9
    assert "command line: leaves.c.tokens=1" in complaint(path, ["leaves.c.tokens=1"])


def complaint(path: str, overrides: tuple[str, ...] | list[str] = ()) -> str:
    with pytest.raises((RecipeError, InputError)) as e:
        load(Toy, path, overrides)
    assert e.value.exit == 2
    return str(e.value)


def test_errors_name_the_file_whose_line_is_wrong(write, tmp_path):
    bad_base, good = BASE.replace("weight: 2", "weight: heavy"), "extends: base.yaml\nrows: 2\n"
    assert f"{tmp_path}/base.yaml:7" in complaint(write(base=bad_base, arm=good))
    assert f"{tmp_path}/arm.yaml:3" in complaint(write(base=BASE, arm="extends: base.yaml\nleaves:\n  b: {wieght: 3}\n"))
    assert "'weight'" in complaint(write(base=BASE, arm="extends: base.yaml\nleaves: {b: {weihgt: 3}}\n"))
    # A list is replaced as a whole: no line of the old one answers for the new.
    filters = "filters:\n  - image_size:\n      min_side: 3\n"
    said = complaint(write(base=BASE + filters, arm="extends: base.yaml\n\nfilters: [{image_size: {min_side: x}}]\n"))
    assert f"{tmp_path}/arm.yaml:3" in said
    assert f"{tmp_path}/base.yaml:1" in complaint(write(base="rows: [", arm="extends: base.yaml\n"))


def test_files_are_found_beside_the_one_that_names_them_and_packaged_ones_by_name(write, tmp_path):
    path = write(sub__base="extends: ../root.yaml\n", root="rows: 8\n", far__arm="extends: ../sub/base.yaml\n")
    assert load(Toy, path).rows == 8
    (tmp_path / "packaged").mkdir()
    (tmp_path / "packaged/arm.yaml").write_text("extends: root\n")
    (tmp_path / "packaged/root.yaml").write_text("rows: 6\n")
    path = write(arm="extends: arm\n")  # its own name, packaged: another document
    assert load(Toy, path, packaged=[tmp_path / "packaged"]).rows == 6
    assert load(Toy, "arm", packaged=[tmp_path / "packaged"]).rows == 6


def test_a_missing_file_is_named_with_the_line_that_asks_for_it(write, tmp_path):
    said = complaint(write(arm="rows: 1\nextends: gone.yaml\n"))
    assert f"{tmp_path}/arm.yaml:2" in said and "gone.yaml" in said
    assert "a path from this file" in complaint(write(arm="extends: [a, b]\n"))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_circle_is_refused_and_drawn(write, tmp_path, n):
    files = {f"f{i}": f"rows: 2\nextends: f{(i + 1) % n}.yaml\n" for i in range(n)}
    said = complaint(write(**files))
    assert "circle" in said and ".yaml:2" in said and said.count("→") == n


def test_a_chain_of_documents_has_an_end(write):
    assert load(Toy, write(c0="rows: 7\n", **{f"c{i}": f"extends: c{i - 1}.yaml\n" for i in range(1, 30)})).rows == 7
    assert "too many" in complaint(write(**{f"c{i}": f"extends: c{i - 1}.yaml\n" for i in range(1, 50)}))


def test_a_block_that_is_a_document_of_another_kind_extends_from_its_own_folder(write, tmp_path):
    write(sub__inner="rows: 5\nevery: 7\nextends: deep.yaml\n", sub__deep="leaves: {a: {dataset: z}}\n")
    path = write(outer="inner:\n  extends: sub/inner.yaml\n  every: null\n")
    outer = load(Outer, path)
    assert outer.inner == {"rows": 5, "leaves": {"a": {"dataset": "z"}}, "every": None}
    assert load(Outer, path, ["inner.rows=1", "inner.extends=sub/deep.yaml"]).inner == {"rows": 1, "leaves": {"a": {"dataset": "z"}}, "every": None}
    both = write(sub__inner="rows: 5\n", outer="inner: {extends: sub/inner.yaml, every: 2}\n", top="extends: outer.yaml\ninner: {rows: 6}\n")
    assert load(Outer, both).inner == {"rows": 6, "every": 2}


def test_a_document_s_own_complaint_names_the_key_it_is_about():
    class Picky(Document):
        a: int = 1
        deep: dict[str, int] = {}

        def model_post_init(self, _: Any) -> None:
            if self.deep:
                raise At(("deep", "x"), "not that")

    with pytest.raises(RecipeError, match=r"deep\.x: not that"):
        parse(Picky, {"deep": {"x": 1}})


leaves = st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2)
values = st.recursive(leaves, lambda v: st.dictionaries(st.sampled_from("abc"), v, max_size=3), max_leaves=6)
mappings = st.dictionaries(st.sampled_from("abc"), values, max_size=3)


@given(mappings, mappings)
def test_what_is_laid_on_is_all_there_and_laying_it_on_again_changes_nothing(a, b):
    def on(x, y):
        return lay(x, y)[0]

    def within(x, y):  # every value of x stands in y
        return all(k in y and (within(v, y[k]) if isinstance(v, dict) and isinstance(y[k], dict) else v == y[k]) for k, v in x.items())

    assert within(b, on(a, b)) and on(on(a, b), b) == on(a, b)
    assert {k: v for k, v in on(a, b).items() if k not in b} == {k: v for k, v in a.items() if k not in b}
    assert on(a, {}) == on({}, a) == on(a, a) == a
