"""Decontamination: shared runs of words are found in any typography, the set is named, and nothing else leaves."""

import gzip
import json

import pytest

pytest.importorskip("datatrove")

from pipelines.across.decontaminate import Decontaminate, ReferenceSet
from pipelines.format.chance import held_out
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from tests.pipelines.test_across import recipe, run

QUESTION = "A train leaves the station at noon and travels 60 miles an hour toward the coast. When does it arrive?"
SHORT = "Name the capital city of the largest country there is."


@pytest.fixture
def sets(tmp_path):
    (tmp_path / "math.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "At five."}) + "\n")
    with gzip.open(tmp_path / "facts.jsonl.gz", "wt") as f:
        f.write(json.dumps({"q": [SHORT, "Who?"]}) + "\n")
    return {
        "math": {"path": str(tmp_path / "math.jsonl"), "text_fields": ["question", "answer"]},
        "facts": {"path": str(tmp_path / "facts.jsonl.gz"), "text_fields": ["q"]},
    }


def stage(sets, **more):
    return Decontaminate(against={k: ReferenceSet(**{**v, "text_fields": tuple(v["text_fields"])}) for k, v in sets.items()}, **more)


def test_a_run_of_thirteen_words_is_found_in_any_typography(sets):
    words = QUESTION.split()
    d = stage(sets)
    assert d.hit("Before it. " + " ".join(words[2:15]).upper().replace(" ", "  ") + ", and after") == "math"
    assert d.hit("Before it. " + " ".join(words[2:14]) + " yet something else") is None
    assert d.hit("a train leaves, the station: at noon — and travels 75 miles an hour!") == "math"  # numbers are folded


def test_a_short_item_counts_whole_from_min_words_on(sets):
    assert stage(sets).hit("They said: name the capital city of the largest country there is") == "facts"
    assert stage({"facts": sets["facts"]}, min_words=10).hit("name the capital city of the largest country there is") == "facts"
    with pytest.raises(InputError, match="no text to compare"):
        stage({"facts": sets["facts"]}, min_words=11).hit("anything")


def test_the_first_set_in_the_recipe_is_named(sets):
    both = QUESTION + " " + SHORT
    assert stage(sets).hit(both) == "math"
    assert stage({"facts": sets["facts"], "math": sets["math"]}).hit(both) == "facts"


def test_what_was_hit_is_counted_by_set(tmp_path, sets):
    source = tmp_path / "in"
    source.mkdir()
    texts = ["clean text about rivers and stones in the hills", f"forum: {QUESTION} thanks", f"quiz {SHORT}", f"again {QUESTION}", "x"]
    (source / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    left = set()
    for buckets in (1, 16):
        out = tmp_path / f"d{buckets}"
        run(recipe(source, out, across=[{"decontaminate": {"against": sets, "buckets": buckets}}]))
        card = json.loads((out / "manifest.json").read_text())
        assert card["filtered"] == {"decontaminate.facts": 1, "decontaminate.math": 2} and card["written"] == 2
        left.add(Dataset.open(str(out)).fingerprint)
    assert len(left) == 1


def test_the_held_out_side_of_a_dataset_is_a_set_and_its_own_records_stay(tmp_path):
    words = [" ".join(f"word{i}x{j}" for j in range(20)) for i in range(40)]
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_text("".join(json.dumps({"text": w}) + "\n" for w in words))
    run(recipe(source, tmp_path / "first"))
    side = {"fraction": 0.3, "seed": 1}
    again = tmp_path / "again"
    again.mkdir()
    (again / "a.jsonl").write_text("".join(json.dumps({"text": w}) + "\n" for w in words))  # same origins, so the same ids and groups
    (again / "copies.jsonl").write_text("".join(json.dumps({"text": w + " copied"}) + "\n" for w in words))
    sets = {"held_out": {"path": str(tmp_path / "first"), "held_out": side}}
    run(recipe(again, tmp_path / "second", across=[{"decontaminate": {"against": sets, "buckets": 2}}]))
    first, second = Dataset.open(str(tmp_path / "first")), Dataset.open(str(tmp_path / "second"))
    apart = [r for r in first.records(0) if held_out(r.group, **side)]
    assert 5 < len(apart) < 25
    records = [r for i in range(len(second.shards)) for r in second.records(i)]
    kept_copies = [r for r in records if r.origin.startswith("copies")]
    assert {r.id for r in apart} <= {r.id for r in records}
    secret = {r.segments[0].text for r in apart}
    for r in kept_copies:
        assert held_out(r.group, **side) or r.segments[0].text.removesuffix(" copied") not in secret
    assert len(kept_copies) < len(words)


def test_a_set_that_cannot_be_read_is_an_error_not_a_hole(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a b c d e f g h i j k l m n"}\n{broken\n')
    with pytest.raises(InputError, match="cannot be read"):
        stage({"bad": {"path": str(tmp_path / "bad.jsonl"), "text_fields": ["text"]}}).hit("x")
    (tmp_path / "plain.txt").write_text(QUESTION)
    with pytest.raises(InputError, match="held-out side"):
        Decontaminate(against={"p": ReferenceSet(path=str(tmp_path / "plain.txt"), held_out={"fraction": 0.1})}).hit("x")
    assert Decontaminate(against={"p": ReferenceSet(path=str(tmp_path / "plain.txt"))}).hit(QUESTION) == "p"
