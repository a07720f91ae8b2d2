"""Perplexity over windows, cut texts and other sets: each id counted once, and a model that knows nothing scores the size of its vocabulary."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from pipelines.format.dataset import Dataset
from pipelines.format.document import fingerprint
from pipelines.format.errors import InputError
from pipelines.format.part import PartWriter
from pipelines.format.record import Record
from pipelines.tombstones import add
from tests import toys
from tests.trainer.asked import SPECIALS, Ran, ids, tokenizer
from tests.trainer.test_evaluate import Uniform, tiny, values
from trainer.evaluate._subject import Subject
from trainer.evaluate._windows import windows
from trainer.evaluate.text_perplexity import TextPerplexity
from trainer.stream import Reader


def texts(root, name: str, n: int = 40, tokenizer_sha: str = "0" * 64) -> str:
    """Encoded texts of 5 to 90 bytes."""
    random = np.random.default_rng(len(name))
    path = str(root / name)
    words = ["".join(random.choice(list("abcde "), random.integers(5, 90))) for _ in range(n)]
    records = [Record.make(name, f"{i}.txt", "text", [ids(w, "target")]) for i, w in enumerate(words)]
    with PartWriter(path, 0, fingerprint=fingerprint(name), encoded=True) as w:
        for r in records:
            w.emit()
            w.add(r)
        text = {"tokenizer_sha256": tokenizer_sha, "vocab": 261, "specials": SPECIALS._asdict()}
        toys.seal(path, name, "text", [w.commit()], {}, {"text": text})
    tokenizer().save(f"{path}/tokenizer.json")
    return path


def planned(root, dataset: str, length: int) -> Plan:
    sources = {"prose": {"dataset": dataset, "tokens": 400, "max_epochs": 9}}
    mixture = {"sequence_length": length, "held_out": {"fraction": 0.4, "seed": 0}, "sources": sources}
    return Plan.open(make_plan(Mixture.model_validate(mixture), str(root / f"plan-{length}")))


def subject(plan: Plan, model) -> Subject:
    return Subject(model, Ran(), Reader(plan))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("texts")


@pytest.fixture(scope="module")
def dataset(root):
    return texts(root, "prose")


@pytest.mark.parametrize(("n", "window", "stride"), [(1, 4, 2), (2, 4, 2), (4, 4, 3), (5, 4, 1), (9, 4, 3), (50, 7, 6), (64, 16, 8), (65, 16, 5)])
def test_every_counted_id_is_asked_for_once_with_enough_before_it(n, window, stride):
    tokens, counted = np.arange(100, 100 + n), np.arange(n) % 5 != 0
    asked: dict[int, int] = {}
    for here, target in windows(tokens, counted, window, stride):
        assert len(here) <= window
        for place in np.flatnonzero(target >= 0):
            assert target[place] == here[place] + 1 and target[place] not in asked
            asked[int(target[place])] = int(place) + 1
    assert set(asked) == {100 + i for i in range(1, n) if counted[i]}
    assert all(before >= min(token - 100, window - stride) for token, before in asked.items())


@pytest.mark.parametrize("part", [TextPerplexity(), TextPerplexity(window=16), TextPerplexity(window=24, stride=1), TextPerplexity(window=2)])
@pytest.mark.parametrize("length", [24, 128])
def test_a_uniform_model_has_the_vocabulary_as_its_perplexity_however_texts_are_read(root, dataset, tmp_path, part, length):
    plan = planned(root, dataset, length)
    rows = part.run(subject(plan, Uniform()), str(tmp_path))
    assert values(rows, "text_perplexity") == dict.fromkeys(("held_out", "held_out:prose"), pytest.approx(261))
    assert values(rows, "bits_per_byte")["held_out"] == pytest.approx(np.log2(261))
    held = {s.row: plan.record(s) for i in plan.held_out("prose") for s in plan.row(i, "heldout").spans}
    whole = sum(s.tokens for r in held.values() for s in r.segments)
    assert {r["n"] for r in rows} == {whole}  # also the first id of each piece that the plan cut off


def test_texts_that_the_plan_cut_are_read_as_if_it_had_not(root, dataset, tmp_path):
    model = tiny(1, 1)
    found = []
    for length in (24, 128):
        out = str(tmp_path / str(length))
        TextPerplexity(window=128).run(subject(planned(root, dataset, length), model), out)
        found.append(pq.read_table(f"{out}/items/text_nats.parquet").to_pydict())
    assert found[0]["item"] == found[1]["item"] and found[0]["weight"] == found[1]["weight"]
    assert np.allclose(found[0]["value"], found[1]["value"], rtol=1e-4)


def test_other_sets_stand_beside_the_plans_own_and_items_give_the_rows_back(root, dataset, tmp_path):
    plan, notes = planned(root, dataset, 64), texts(root, "notes", 9)
    sets = ["held_out", {"name": "notes", "dataset": notes}, {"name": "again", "dataset": dataset, "records": "held_out"}]
    rows = TextPerplexity.model_validate({"sets": sets, "window": 32}).run(subject(plan, tiny(1, 1)), str(tmp_path))
    found = values(rows, "text_perplexity")
    assert list(found) == ["held_out", "held_out:prose", "set:notes", "set:again"]
    assert found["set:again"] == pytest.approx(found["held_out"])  # the plan's rule, on the plan's own dataset
    for metric, of in (("text_nats", lambda x: np.exp(x)), ("bits_per_byte", lambda x: x)):
        table = pq.read_table(tmp_path / f"items/{metric}.parquet").to_pandas()
        for split in ("held_out:prose", "set:notes", "set:again"):
            mine = table[table.split == split]
            name = "text_perplexity" if metric == "text_nats" else metric
            assert of(np.average(mine.value, weights=mine.weight)) == pytest.approx(values(rows, name)[split])
    assert len(mine) == len(set(mine.item)) and sum(table.split == "set:notes") == 9


def test_a_set_of_other_words_or_one_that_was_trained_on_is_refused(root, dataset, tmp_path):
    s = subject(planned(root, dataset, 64), Uniform())
    other = texts(root, "other", 3, tokenizer_sha="1" * 64)
    for entry, said in (({"dataset": other}, "another tokenizer"), ({"dataset": dataset}, "trained on")):
        with pytest.raises(InputError, match=said):
            TextPerplexity.model_validate({"sets": [{"name": "x", **entry}]}).run(s, str(tmp_path))


def test_a_stride_that_passes_ids_over_and_two_sets_of_one_name_are_refused():
    with pytest.raises(ValidationError, match="must be less than window"):
        TextPerplexity(window=8, stride=8)
    with pytest.raises(ValidationError, match="a name stands twice"):
        TextPerplexity.model_validate({"sets": ["held_out", {"name": "held_out", "dataset": "x"}]})


def test_the_token_limit_holds_for_each_set(root, dataset, tmp_path):
    sets = ["held_out", {"name": "notes", "dataset": texts(root, "notes", 9)}]
    rows = TextPerplexity.model_validate({"sets": sets, "max_tokens": 60}).run(subject(planned(root, dataset, 128), Uniform()), str(tmp_path))
    counted = {r["split"]: r["n"] for r in rows if r["metric"] == "text_perplexity"}
    assert all(60 <= n < 150 for n in counted.values())


def test_what_must_be_forgotten_is_not_read(root, dataset, tmp_path):
    plan, path = planned(root, dataset, 64), texts(root, "letters", 12)
    ask = TextPerplexity.model_validate({"sets": [{"name": "x", "dataset": path}]})
    ask.run(subject(plan, Uniform()), str(tmp_path))
    before = pq.read_table(tmp_path / "items/text_nats.parquet")["item"].to_pylist()
    add(Dataset.open(path), {"id": before[:2]}, "asked")
    ask.run(subject(plan, Uniform()), str(tmp_path))
    assert pq.read_table(tmp_path / "items/text_nats.parquet")["item"].to_pylist() == before[2:]
