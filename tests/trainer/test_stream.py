"""The stream: every sequence once, in the plan's order, at any world size, from any step; and what a batch says of its documents."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import toyplan

from mixtures.plan import Plan
from pipelines.format import storage
from pipelines.format.manifest import file_entry, publish_card
from trainer import losses
from trainer.batch import IGNORED
from trainer.stream import Reader, Stream, ahead


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return Plan.open(toyplan.make(tmp_path_factory.mktemp("toyplan"), tokens=900, n=60))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_every_sequence_is_read_once_and_in_order_by_any_number_of_ranks(plan: Plan, world: int, batch: int) -> None:
    streams = [Stream(plan, batch, rank, world) for rank in range(world)]
    steps = {s.steps for s in streams}
    assert steps == {-(-plan.sequences() // batch)}
    read = []
    for step in range(steps.pop()):
        by_rank = [s.numbers(step) for s in streams]
        assert all(n == list(range(step * batch + r, min((step + 1) * batch, plan.sequences()), world)) for r, n in enumerate(by_rank))
        read += sorted(n for numbers in by_rank for n in numbers)
    assert read == list(range(plan.sequences()))


def test_ranks_get_equal_shapes_and_empty_rows_where_the_plan_has_run_out(plan: Plan) -> None:
    batch = plan.sequences() - 1  # the last step has one sequence
    for rank in range(3):
        last = Stream(plan, batch, rank, 3).at(1)
        assert last.shape == (-(-batch // 3), plan.sequence_length)
        assert last.seq.tolist() == ([batch] if rank == 0 else [-1]) + [-1] * (len(last.seq) - 1)
        assert rank == 0 or (last.kind == 3).all()


def test_a_stream_goes_on_where_another_stopped(plan: Plan) -> None:
    whole = [(b, at) for b, at in Stream(plan, 4)]
    later = [(b, at) for b, at in Stream(plan, 4, start_step=3)]
    assert [at for _, at in later] == [at for _, at in whole[3:]]
    for (a, _), (b, _) in zip(whole[3:], later, strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.latents, b.latents) and torch.equal(a.image_h, b.image_h)


def test_what_is_consumed_is_what_the_plan_says_it_takes(plan: Plan) -> None:
    total = sum(losses.counts(batch, len(plan.sources)) for batch, _ in Stream(plan, 5))
    for i, name in enumerate(plan.sources):
        assert total[i, :2].sum() == plan.card["sources"][name]["taken"]


def test_targets_are_the_next_token_of_the_same_turn(plan: Plan) -> None:
    checked = 0
    for batch, _ in Stream(plan, 4):
        rows, at = np.nonzero(batch.text_target.numpy() != IGNORED)
        assert np.array_equal(batch.text_target.numpy()[rows, at], batch.tokens.numpy()[rows, at + 1])
        for name in ("doc", "turn"):
            values = getattr(batch, name).numpy()
            assert np.array_equal(values[rows, at], values[rows, at + 1])
        checked += len(rows)
    assert checked > 500


def test_latents_are_normalised_by_the_plans_statistics_and_belong_to_their_records(plan: Plan) -> None:
    reader = Reader(plan)
    _, mean, variance = plan.latent_stats()
    for seq in range(3):
        documents = reader.sequence(seq)
        batch = reader.batch([documents])
        raw = np.concatenate([d.latents for d in documents])
        assert np.allclose(batch.latents.numpy(), (raw - mean) / np.sqrt(variance + 1e-5), atol=1e-5)
        expected = [plan.record(span).h for span in plan.row(seq).spans for s in plan.record(span).segments if s.kind == "latents"]
        assert batch.image_h.numpy().tolist() == expected


def test_held_out_rows_are_read_like_any_other(plan: Plan) -> None:
    trained = {plan.record(s).id for i in range(plan.sequences()) for s in plan.row(i).spans}
    held = {plan.record(s).id for i in range(plan.sequences("heldout")) for s in plan.row(i, "heldout").spans}
    batches = list(Stream(plan, 4, split="heldout"))
    assert batches and held and not held & trained


@pytest.mark.parametrize("depth", [0, 2])
def test_reading_ahead_keeps_order_and_hands_over_errors(depth: int) -> None:
    def items():
        yield from range(5)
        raise RuntimeError("at the end")

    got = []
    with pytest.raises(RuntimeError, match="at the end"):
        for item in ahead(items(), depth):
            got.append(item)
    assert got == [0, 1, 2, 3, 4]


def test_a_reader_that_leaves_early_stops_the_thread() -> None:
    made = []

    def items():
        for i in range(1000):
            made.append(i)
            yield i

    reading = ahead(items(), 2)
    assert next(reading) == 0
    reading.close()
    time.sleep(0.5)
    count = len(made)
    time.sleep(0.3)
    assert len(made) == count < 10


def test_the_place_of_a_record_forgotten_after_planning_is_taken_or_left_empty(tmp_path: Path) -> None:
    plan = Plan.open(toyplan.make(tmp_path, tokens=300, n=30))
    span = plan.row(1).spans[0]
    victim, where = plan.record(span), plan.datasets[span.dataset].path
    before = Reader(plan).sequence(1)
    stones = pa.table({"id": [victim.id], "url": pa.nulls(1, pa.string())})
    sink = pa.BufferOutputStream()
    pq.write_table(stones, sink)
    entry = file_entry(where, "tombstones-0.parquet", sink.getvalue().to_pybytes())
    card = storage.read_json(f"{where}/manifest.json") | {"tombstones": {"file": entry["path"], "sha256": entry["sha256"], "n": 1}}
    publish_card(where, "manifest.json", card)
    reader = Reader(Plan.open(plan.path))
    after = reader.sequence(1)
    gone = sum(plan.record(s).id == victim.id for s in plan.row(1).spans)
    taken = len({r.id for r in reader.stand_ins.replaced if r.seq == 1} - {None})
    assert gone and len(after) == len(before) - gone + taken and reader.left_out == gone - taken
    assert victim.h not in [d.h for d in after] and sum(len(d.tokens) for d in after) <= plan.sequence_length
