"""Torch datasets over a plan: what a loader gives is what the stream gives, with any number of workers, and goes on anywhere."""

from __future__ import annotations

import pickle
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import toyplan
from torch.utils.data import DataLoader

from mixtures.plan import Plan
from mixtures.samples import Sample, Samples, position_of
from pipelines.format.errors import InputError
from trainer.batch import Batch
from trainer.stream import Reader, Stream
from trainer.torch_dataset import PlanBatches, PlanSamples, PlanSequences, collate


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return Plan.open(toyplan.make(tmp_path_factory.mktemp("toyplan"), tokens=900, n=60))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch))


def told(sample: Sample) -> tuple[Any, ...]:
    return sample.source, sample.id, tuple(bytes(memoryview(a).cast("B")) if a.size else b"" for a in sample.arrays)


def loader(dataset: Any, workers: int) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=None, num_workers=workers, collate_fn=lambda x: x)


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 3)])
def test_batches_of_a_loader_are_those_of_the_stream_in_its_order(plan: Plan, workers: int, rank: int, world: int) -> None:
    expected = list(Stream(plan, 4, rank, world))
    found = list(loader(PlanBatches(plan.path, 4, rank, world), workers))
    assert [p for _, p in found] == [p for _, p in expected] == list(range(1, len(PlanBatches(plan.path, 4, rank, world)) + 1))
    assert all(same(a, b) for (a, _), (b, _) in zip(found, expected, strict=True))


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 0), (2, 4), (4, 1)])
def test_batches_go_on_after_the_last_one_used_with_another_number_of_workers_and_ranks(plan: Plan, before: int, after: int) -> None:
    used = list(islice(loader(PlanBatches(plan.path, 6), before), 7))
    position = used[-1][1]
    seen = [n for b, _ in used for n in b.seq.tolist()]
    for rank in range(2):
        later = PlanBatches(plan.path, 6, rank, 2)
        later.load_state_dict({"position": position})
        expected = list(Stream(plan, 6, rank, 2, start_step=position))
        found = list(loader(later, after))
        assert all(same(a, b) for (a, _), (b, _) in zip(found, expected, strict=True))
        seen += [n for b, _ in found for n in b.seq.tolist() if n >= 0]
    assert sorted(seen) == list(range(plan.sequences()))


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_samples_of_a_loader_are_those_of_the_iterator_none_twice_and_none_lost(plan: Plan, workers: int, rank: int, world: int) -> None:
    expected = [(told(s), p) for s, p in Samples(plan.path).read(0, rank, world)]
    assert [(told(s), p) for s, p in loader(PlanSamples(plan.path, rank, world), workers)] == expected
    assert not workers or sum(1 for _ in loader(PlanSamples(plan.datasets[1].path), workers)) == 60


def test_samples_go_on_in_the_middle_of_a_sequence_with_other_workers_and_at_a_step_with_other_ranks(plan: Plan) -> None:
    whole = [(told(s), p) for s, p in Samples(plan.path).read()]
    position = whole[40][1]
    for workers in (0, 3):
        later = PlanSamples(plan.path)
        later.load_state_dict({"position": position})
        assert [(told(s), p) for s, p in loader(later, workers)] == whole[41:]
    found = []
    for rank in range(3):
        later = PlanSamples(plan.path, rank, 3, step=6)
        later.load_state_dict({"position": position_of(12)})
        found += [p for _, p in loader(later, 2)]
    assert sorted(found) == [p for _, p in whole if p > position_of(12)]


def test_each_workers_state_is_its_own_and_holds_for_as_many_workers(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a StatefulDataLoader does it: the state is asked of the dataset in the worker, and given to its successor there."""

    class Info:
        id, num_workers = 1, 3

    whole = [(told(s), p) for s, p in Samples(plan.path).read()]
    dataset = PlanSamples(plan.path)
    assert dataset.state_dict()["position"] == 0 and "worker" not in dataset.state_dict()
    monkeypatch.setattr("trainer.torch_dataset.get_worker_info", Info)
    assert [(told(s), p) for s, p in islice(dataset, 4)] == whole[1:12:3]
    state, later = dataset.state_dict(), PlanSamples(plan.path)
    later.load_state_dict(state)
    assert [(told(s), p) for s, p in later] == whole[13::3]
    Info.num_workers = 2
    later = PlanSamples(plan.path)
    later.load_state_dict(state)
    with pytest.raises(InputError, match="another number"):
        next(iter(later))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_data_loader_saves_and_goes_on(plan: Plan, workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    for make in (lambda: PlanSamples(plan.path), lambda: PlanBatches(plan.path, 4)):
        made = lambda: stateful(make(), batch_size=None, num_workers=workers, collate_fn=lambda x: x)  # noqa: B023
        whole = [p for _, p in made()]
        first, seen = made(), []
        for _, position in islice(iter(first), 9):
            seen.append(position)
        state, second = first.state_dict(), made()
        second.load_state_dict(state)
        assert seen + [p for _, p in second] == whole


def test_the_state_of_something_else_is_refused(plan: Plan, tmp_path: Path) -> None:
    state = PlanBatches(plan.path, 4).state_dict()
    for other in (PlanBatches(plan.path, 5), PlanBatches(plan.path, 4, split="heldout"), PlanBatches(toyplan.make(tmp_path, tokens=300, n=30), 4)):
        with pytest.raises(InputError, match="not one of this dataset"):
            other.load_state_dict(state)
    for wrong in ({}, {"position": "3"}, {"position": -1}):
        with pytest.raises(InputError, match="not one of this dataset"):
            PlanSamples(plan.path).load_state_dict(wrong)
    for arguments in ({"rank": 0}, {"rank": 2, "world": 2}, {"batch": 0}):
        with pytest.raises(InputError):
            PlanBatches(plan.path, **{"batch": 4, **arguments})


def test_a_dataset_pickles_as_its_arguments_and_its_position(plan: Plan) -> None:
    samples, batches, sequences = PlanSamples(plan.path), PlanBatches(plan.path, 4), PlanSequences(plan.path)
    assert len(list(islice(samples, 5))) == len(list(islice(batches, 2))) + 3 == 5 and sequences[0].shape[0] == 1
    for dataset in (samples, batches, sequences):
        assert len(pickle.dumps(dataset)) < 1000
    assert pickle.loads(pickle.dumps(batches)).state_dict() == batches.state_dict()
    assert same(pickle.loads(pickle.dumps(sequences))[3], sequences[3])


def test_sequences_can_be_asked_for_in_any_order(plan: Plan) -> None:
    dataset, reader = PlanSequences(plan.path), Reader(plan)
    assert len(dataset) == plan.sequences()
    assert same(dataset[5], reader.batch([reader.sequence(5)], [5])) and same(dataset[-1], dataset[len(dataset) - 1])
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    found = list(DataLoader(dataset, batch_size=5, sampler=order, num_workers=2, collate_fn=collate))
    assert [n for b in found for n in b.seq.tolist()] == order
    assert same(found[1], reader.batch([reader.sequence(n) for n in order[5:10]], order[5:10]))
