"""A plan is the same however it is made: in memory or spilled, in runs and buckets of any size, by workers that answer in any order."""

import pickle
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mixtures.budget
import mixtures.sweep
from mixtures.plan import Plan, make_plan
from pipelines import check_dataset
from pipelines.format.dataset import Dataset
from pipelines.format.document import sha256_hex
from tests.mixtures.sets import dataset, mixture
from tests.mixtures.test_plan import KINDS, SIZES

HELD = {"fraction": "5%", "seed": 3, "max_tokens": 400}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    long = [(4, *[(1, 1)] * int(n)) for n in np.random.default_rng(1).integers(1, 60, 120)]  # up to 119 segments
    made = {data: dataset(root / data, data, sizes, data, parts=7) for data, sizes in SIZES.items()}
    return made | {"long": dataset(root / "long", "vqa", long, "long", parts=5)}


def plans(sets):
    """Mixtures that end in every way: budgets of all counts, passes, pools, stages, a held-out split cut short."""
    source = {k: {"dataset": sets[k], "max_epochs": 50} for k in [*KINDS, "long"]}
    yield {"sources": {k: {**s, "tokens": 2500} for k, s in source.items()}, "held_out": HELD, "seed": 1, "sequence_length": 160}
    yield {"sources": {k: {**s, "tokens": 1777, "pool": 901} for k, s in source.items()}, "held_out": {"fraction": 0.3}, "sequence_length": 200}
    yield {"sources": {k: {**s, "epochs": 2.37} for k, s in source.items()}, "sequence_length": 128}
    yield {"sources": {k: {**s, "tokens": 150} for k, s in source.items()}, "count": "records", "sequence_length": 160}
    yield {"sources": {k: {**source[k], "tokens": 501} for k in ("vqa", "long", "text")}, "count": "loss", "sequence_length": 160}
    shares = [{"until": "40%", "share": {"text": "50%", "vqa": "50%"}}, {"until": 1, "share": {"video": "30%", "text": "70%"}}]
    yield {"sources": {k: source[k] for k in ("text", "vqa", "video")}, "stages": shares, "total": 9000}


def content(path):
    """Every byte of a plan but the names of what it was made from."""
    return {p.name: sha256_hex(p.read_bytes()) for p in sorted(Path(path).glob("*.*"))}


class Anyhow:
    """An engine whose workers share nothing, and answer in any order."""

    where = "ray"

    def __init__(self, seed):
        self.random, self.stop = random.Random(seed), SimpleNamespace(is_set=lambda: False)

    def map(self, chain, items):
        answers = []
        for item in items:
            for step in chain:
                item = step(pickle.loads(pickle.dumps(item)))
            answers.append(pickle.dumps(item))
        self.random.shuffle(answers)
        yield from map(pickle.loads, answers)


@settings(max_examples=12, deadline=None)
@given(which=st.integers(0, 5), run=st.sampled_from([1, 40, 1000]), bucket=st.sampled_from([1, 16, 256]), memory=st.sampled_from([0, 10**9]))
def test_runs_buckets_and_spills_of_any_size_change_no_byte(sets, tmp_path_factory, which, run, bucket, memory):
    document = list(plans(sets))[which]
    out = tmp_path_factory.mktemp("plans")
    make_plan(mixture(**document, output=out / "x", name="x"), str(out / "a"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixtures.sweep, "RECORDS", run)
        patch.setattr(mixtures.budget, "UNITS_IN_MEMORY", memory)
        patch.setattr(mixtures.budget, "UNITS_IN_A_BUCKET", bucket)
        make_plan(mixture(**document, output=out / "x", name="x"), str(out / "b"))
        job = Anyhow(which)
        make_plan(mixture(**document, output=out / "x", name="x"), str(out / "c"), job=job)
    assert content(out / "a") == content(out / "b") == content(out / "c")
    assert not (out / "c/.planning").exists()


def test_loss_bits_beyond_a_mask_come_through(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(mixtures.budget, "UNITS_IN_MEMORY", 0)
    monkeypatch.setattr(mixtures.sweep, "RECORDS", 1)
    entry = {"dataset": sets["long"], "epochs": 3, "max_epochs": 3}
    plan = Plan.open(make_plan(mixture({"x": entry}, tmp_path / "p", sequence_length=160, held_out={"fraction": 0.1})))
    seen = 0
    for split in ("train", "heldout"):
        for i in range(plan.sequences(split)):
            for span in plan.row(i, split).spans:
                segments = plan.record(span).segments
                assert span.loss == tuple(s.role == "target" for s in segments)
                seen += len(segments) > 64
    assert seen > 100


def test_records_of_another_plan_are_the_same_through_the_engine(sets, tmp_path):
    first = make_plan(mixture({k: {"dataset": sets[k], "tokens": 3000, "max_epochs": 9} for k in KINDS}, tmp_path / "first", seed=4))
    again = mixture({k: {"dataset": sets[k], "epochs": 1} for k in KINDS}, tmp_path / "x", seed=4, name="x")
    made = [make_plan(again, str(tmp_path / name), records_from=first, job=job) for name, job in (("a", None), ("b", Anyhow(1)))]
    assert content(made[0]) == content(made[1])
    used = []
    for plan in (Plan.open(first), Plan.open(made[0])):
        spans = [s for i in range(plan.sequences()) for s in plan.row(i).spans]
        texts = sorted((s.row, s.start, s.stop) for s in spans if plan.sources[s.source] == "text")
        used.append(({(s.source, s.epoch, s.shard, s.row) for s in spans}, texts))
    assert used[0][0] == used[1][0] and sum(b - a for _, a, b in used[0][1]) == sum(b - a for _, a, b in used[1][1])


def test_an_index_that_does_not_say_the_hash_of_groups_gives_the_same_plan(sets, tmp_path, monkeypatch):
    document = mixture({k: {"dataset": sets[k], "tokens": 900, "max_epochs": 9} for k in KINDS}, tmp_path / "x", held_out=HELD, name="x")
    make_plan(document, str(tmp_path / "a"))
    whole = Dataset.index

    def older(self, i, columns=None):
        table = whole(self, i, columns)
        return table.drop_columns("group_h") if "group_h" in table.column_names else table

    monkeypatch.setattr(Dataset, "index", older)
    make_plan(document, str(tmp_path / "b"))
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_verify_finds_a_hash_that_is_not_its_groups(sets, monkeypatch):
    opened = Dataset.open(sets["vqa"])
    assert not list(check_dataset._rows(opened, 0))
    whole = Dataset.index

    def other(self, i, columns=None):
        table = whole(self, i, columns)
        return table.set_column(table.column_names.index("group_h"), "group_h", pc.bit_wise_xor(table["group_h"], pa.scalar(1, pa.uint64())))

    monkeypatch.setattr(Dataset, "index", other)
    problems = list(check_dataset._rows(opened, 0))
    assert len(problems) == opened.shards[0].records and all("group_h" in str(p) for p in problems)
