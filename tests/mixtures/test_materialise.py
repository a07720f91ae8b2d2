"""A materialised plan: the same batches from files of its own, whatever became of the datasets that it was made from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from mixtures import own_dataset
from mixtures.check import check as check_plan
from mixtures.materialise import Materialise
from mixtures.own_dataset import make
from mixtures.plan import Plan, make_plan
from mixtures.stand_ins import stand_ins
from pipelines.check_dataset import check as check_dataset
from pipelines.commands import main
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.errors import Stopped
from pipelines.format.manifest import read_card
from tests.mixtures.sets import mixture
from tests.mixtures.worlds import mixed
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


def mix(document: Path, *more: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.commands", "run", "mix", "-c", str(document), "--json", *more], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_mix_writes_the_files_beside_the_plan_which_stays_the_same_plan(tmp_path: Path) -> None:
    document = tmp_path / "m.yaml"
    document.write_text(json.dumps({"sequence_length": 64, "sources": mixed(tmp_path, 20), "output": str(tmp_path / "plan")}))
    alone = mix(document)
    card = (tmp_path / "plan/plan.json").read_bytes()
    with_files = mix(document, "--materialize")
    assert mix(document, "--materialize", "webdataset")["fingerprint"] == with_files["fingerprint"] == alone["fingerprint"]
    assert (tmp_path / "plan/plan.json").read_bytes() == card
    assert same(batches(str(tmp_path / "plan/ours")), batches(str(tmp_path / "plan")))
    assert read_card(str(tmp_path / "plan/webdataset"))["kind"] == "webdataset"


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and p.name != "log.jsonl"}


def test_a_killed_job_goes_on_and_leaves_the_same_bytes(tmp_path: Path, plan: str) -> None:
    whole = ours(plan, tmp_path / "whole", shard_bytes=2000)
    config = Materialise(plan=plan, output=str(tmp_path / "again"), engine="local", shard_bytes=2000)
    with open_job("local") as job, pytest.raises(Stopped):
        write = own_dataset.write_part
        seen = []

        def stopping(item: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            seen.append(item["part"])
            if len(seen) == 7:
                job.stop.set()
            return write(item, **kwargs)

        own_dataset.write_part = stopping  # type: ignore[assignment]
        try:
            make(config, job)
        finally:
            own_dataset.write_part = write
    committed = sorted((tmp_path / "again/spans/parts").iterdir())
    assert len(committed) == 7 and not (tmp_path / "again/plan.json").exists()
    times = [p.stat().st_mtime_ns for p in committed]
    with open_job("local") as job:
        make(config, job)
    assert [p.stat().st_mtime_ns for p in committed] == times
    a, b = tree(Path(whole)), tree(tmp_path / "again")
    cards = {"plan.json", "spans/manifest.json"}  # these say `output`
    assert {k: v for k, v in a.items() if k not in cards} == {k: v for k, v in b.items() if k not in cards} and a.keys() == b.keys()
    assert read_card(whole)["fingerprint"] == read_card(str(tmp_path / "again"))["fingerprint"]


@pytest.mark.parametrize("named", ["held", "trained"])
def test_what_is_forgotten_is_left_out_as_the_stream_leaves_it_out(tmp_path: Path, plan: str, named: str) -> None:
    made = ours(plan, tmp_path / "files", shard_bytes=3000)
    parts = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "files/spans/parts").iterdir()}
    opened, split = Plan.open(plan), "train" if named == "trained" else "heldout"
    spans = [s for i in range(opened.sequences(split)) for s in opened.row(i, split).spans]
    victims = {spans[k].dataset: opened.record(spans[k]).id for k in (0, len(spans) // 2, len(spans) - 1)}
    for number, id in victims.items():
        forget(opened.datasets[number].path, id)
    wanted = {side: batches(plan, side) for side in ("train", "heldout")}
    assert not same(batches(made, split), wanted[split])
    again = ours(plan, tmp_path / "files", shard_bytes=3000)
    for side, found in wanted.items():
        assert same(batches(again, side), found)
    left = Dataset.open(again + "/spans")
    ids = {r.id for i in range(len(left.shards)) for r in left.records(i)}
    assert not ids & set(victims.values())
    assert check_plan(again, {"deep": True}) == check_dataset(again + "/spans", {"deep": True}) == []
    card, now = Plan.open(again).card, stand_ins(opened)
    row = lambda i, side: now.spans(i, opened.row(i, side).spans)[0] if side == "train" else opened.row(i, side).spans
    for side, said in (("train", card["sources"]), ("heldout", {n: e["heldout"] for n, e in card["sources"].items()})):
        for number, source in enumerate(opened.sources):
            shown = [s for i in range(opened.sequences(side)) for s in row(i, side) if s.source == number]
            shown = [s for s in shown if opened.record(s).id != victims.get(s.dataset)]
            assert said[source]["records"] == len({(s.shard, s.row) for s in shown}), (side, source)
            assert said[source]["tokens"]["all"] == sum(s.payload for s in shown)
            assert side == "heldout" or said[source]["spans"] == len(shown)
    for key in ("text", "visual", "loss", "all"):
        assert card["tokens"][key] == sum(e["tokens"][key] for e in card["sources"].values())
    untouched = [p for p in (tmp_path / "files/spans/parts").iterdir() if p.stat().st_mtime_ns == parts[p.name]]
    assert 0 < len(untouched) < len(parts)


def forget(dataset: str, id: str) -> None:
    assert main(["forget", "--id", id, "--reason", "asked", dataset]) == 0
