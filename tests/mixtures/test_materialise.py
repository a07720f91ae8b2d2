"""A materialised plan: the same batches from files of its own, whatever became of the datasets that it was made from."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from sets import mixed, mixture

from mixtures.check import check as check_plan
from mixtures.materialise import Materialise
from mixtures.own_dataset import make
from mixtures.plan import Plan, make_plan
from pipelines.check_dataset import check as check_dataset
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from trainer.batch import Batch
from trainer.stream import Stream


def ours(plan: str, output: Path, **keys: Any) -> str:
    with open_job("local") as job:
        return make(Materialise(plan=plan, output=str(output), engine="local", **keys), job)


def batches(plan: str, split: str = "train") -> list[Batch]:
    return [batch for batch, _ in Stream(Plan.open(plan), 5, split=split)]


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(torch.equal(getattr(x, f.name), getattr(y, f.name)) for x, y in zip(a, b, strict=True) for f in fields(x))


@pytest.fixture
def plan(tmp_path: Path) -> str:
    sources = mixed(tmp_path)
    return make_plan(mixture(sources, tmp_path / "plan", held_out={"fraction": 0.1}))


@pytest.mark.parametrize("shard_bytes", [1, 3000, 256 << 20])
def test_batches_are_the_same_bit_for_bit_without_the_datasets(tmp_path: Path, plan: str, shard_bytes: int) -> None:
    before = {split: batches(plan, split) for split in ("train", "heldout")}
    assert all(before.values())
    made = ours(plan, tmp_path / "files", shard_bytes=shard_bytes)
    rows = [Plan.open(plan).row(i) for i in range(Plan.open(plan).sequences())]
    for name in ("text", "pairs", "clips", "acts", "asked", "plan"):
        shutil.rmtree(tmp_path / name)
    for split, wanted in before.items():
        assert same(batches(made, split), wanted)
    again = Plan.open(made)
    assert [(r.seq, r.stage, r.length, r.payload, r.cost) for r in map(again.row, range(len(rows)))] == [
        (r.seq, r.stage, r.length, r.payload, r.cost) for r in rows
    ]


def test_every_check_passes_and_the_records_are_the_plan_in_its_order(tmp_path: Path, plan: str) -> None:
    made = ours(plan, tmp_path / "files", shard_bytes=4000)
    assert check_plan(made, {"deep": True}) == []
    assert check_dataset(made + "/spans", {"deep": True}) == []
    first, spans = Plan.open(plan), Dataset.open(made + "/spans")
    wanted = [
        (first.record(span).id, span.payload)
        for split in ("train", "heldout")
        for i in range(first.sequences(split))
        for span in first.row(i, split).spans
    ]
    found = [(r.id, sum(s.tokens for s in r.segments)) for i in range(len(spans.shards)) for r in spans.records(i)]
    assert found == wanted
    assert len(spans.shards) > 10
    assert Plan.open(made).card["sources"].keys() == first.card["sources"].keys()
    for key in ("tokens", "structure", "padding", "fill", "records", "heldout"):
        assert Plan.open(made).card[key] == first.card[key]
