"""What two plans have in common, against sets made the plain way from their rows."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.diff import diff, keys
from mixtures.plan import Plan, make_plan
from pipelines.commands import main
from tests.mixtures.sets import dataset, mixture

rng = np.random.default_rng(5)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return {
        "text": dataset(root / "text", "text", [int(n) for n in rng.integers(1, 200, 150)], "text"),
        "pairs": dataset(root / "pairs", "image-text", [(4, int(n)) for n in rng.integers(1, 30, 150)], "pairs"),
        "smaller": dataset(root / "smaller", "image-text", [(4, int(n)) for n in rng.integers(1, 30, 90)], "pairs", encoder="1"),
    }


def by_record(path, split="train"):
    """{source: {record id: tokens}} and {source: ids in order of first use}."""
    plan = Plan.open(path)
    tokens, order = {}, {}
    for i in range(plan.sequences(split)):
        for s in plan.row(i, split).spans:
            name, id = plan.sources[s.source], plan.record(s).id
            held = tokens.setdefault(name, {})
            held[id] = held.get(id, 0) + s.payload
            order.setdefault(name, []).append(id)
    return tokens, {name: list(dict.fromkeys(ids)) for name, ids in order.items()}


@settings(max_examples=25, deadline=None)
@given(
    budgets=st.tuples(*(st.integers(0, 2500) for _ in range(4))), seeds=st.tuples(st.integers(0, 2), st.integers(0, 2)), out=st.sampled_from([0, 0.2])
)
def test_every_figure_is_that_of_plain_sets(sets, tmp_path_factory, budgets, seeds, out):
    root = tmp_path_factory.mktemp("plans")
    paths = []
    for side, (text, pairs), seed in zip("ab", (budgets[:2], budgets[2:]), seeds, strict=True):
        entries = {n: {"dataset": sets[n], "tokens": k, "max_epochs": 9} for n, k in (("text", text), ("pairs", pairs))}
        paths.append(make_plan(mixture(entries, seed=seed, held_out={"fraction": out}), str(root / side)))
    found = diff(*paths)
    (ta, oa), (tb, ob) = map(by_record, paths)
    for name in ("text", "pairs"):
        a, b = ta.get(name, {}), tb.get(name, {})
        if not a and not b:
            assert name not in found["sources"]
            continue
        row = found["sources"][name]
        assert (row["a"], row["b"], row["both"]) == (len(a), len(b), len(a.keys() & b.keys()))
        assert (row["tokens_a"], row["tokens_b"]) == (sum(a.values()), sum(b.values()))
        assert row["tokens_both"] == sum(min(a[k], b[k]) for k in a.keys() & b.keys())
        sides = [[id for id in order.get(name, []) if id in a and id in b] for order in (oa, ob)]
        if len(sides[0]) > 1:
            assert (row["same_order"] == 1) == (sides[0] == sides[1])
        assert (row["sets"] == "equal") == (a.keys() == b.keys())
    rows = [[plan.row(i) for i in range(plan.sequences())] for plan in map(Plan.open, paths)]
    same = next((i for i, (x, y) in enumerate(zip(*rows, strict=False)) if x != y), None)
    assert found["first_difference"] == (min(map(len, rows)) if same is None and len(rows[0]) != len(rows[1]) else same)
    assert all(row["sets"] == "equal" for row in found["held_out"].values())


def test_a_smaller_budget_lies_within_a_larger_one_and_the_key_that_differs_is_named(sets, tmp_path, capfd):
    files = []
    for side, budget in (("small", 500), ("large", 2000)):
        file = tmp_path / f"{side}.yaml"
        file.write_text(f"sequence_length: 64\nsources:\n  prose: {{dataset: {sets['text']}, tokens: {budget}, max_epochs: 1}}\n")
        files.append(str(file))
    assert main(["run", "mix", "--diff", *files, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    row = found["sources"]["prose"]
    assert row["sets"] == "A within B" and row["only_a"] == 0 and row["tokens_both"] == row["tokens_a"] == 500
    assert found["mixture"] == [{"key": "sources.prose.tokens", "a": 500, "b": 2000}]
    assert not found["same"] and found["datasets"] == []
    assert main(["run", "mix", "--diff", *files]) == 0
    assert "Records A within B: prose." in capfd.readouterr().out


def test_records_of_another_encoding_are_told_by_their_ids(sets, tmp_path):
    paths = [make_plan(mixture({"p": {"dataset": sets[n], "epochs": 1}}), str(tmp_path / n)) for n in ("pairs", "smaller")]
    found = diff(*paths)
    assert (found["sources"]["p"]["both"], found["sources"]["p"]["only_a"], found["sources"]["p"]["sets"]) == (90, 60, "B within A")
    assert [d["source"] for d in found["datasets"]] == ["p"]


def test_a_source_under_another_name_is_compared_with_the_one_of_its_dataset(sets, tmp_path):
    entry = {"dataset": sets["text"], "tokens": 900}
    a = make_plan(mixture({"prose": entry}), str(tmp_path / "a"))
    b = make_plan(mixture({"books": entry, "pairs": {"dataset": sets["pairs"], "tokens": 100}}), str(tmp_path / "b"))
    found = diff(a, b)["sources"]
    assert found["prose | books"]["sets"] == "equal" and found["pairs"]["a"] == 0
    assert diff(a, a)["same"] and diff(a, a)["first_difference"] is None


def test_keys_that_one_side_lacks_are_told():
    assert keys({"a": {"b": 1, "c": None}}, {"a": {"b": 2}}) == [{"key": "a.b", "a": 1, "b": 2}, {"key": "a.c", "a": "null", "b": "—"}]


def test_diff_is_refused_where_it_means_nothing(tmp_path, capfd):
    assert main(["run", "mix", "--diff", "a", "b", "seed=1"]) == 2
    assert main(["run", "compact", "--diff", "a", "b"]) == 2 and main(["run", "mix"]) == 2
    assert "cannot compare" in capfd.readouterr().err
