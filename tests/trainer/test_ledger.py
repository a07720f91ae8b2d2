"""The ledger: what a plan says was consumed by a step is what streams yielded and what a run's account counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import toyplan

from mixtures.plan import Plan
from pipelines.format import storage
from pipelines.format.manifest import publish_card
from trainer import check as checks
from trainer import ledger, losses
from trainer.batch import Batch
from trainer.ledger import Seen, check, consumed
from trainer.loop import train
from trainer.stream import Stream


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return Plan.open(toyplan.make(tmp_path_factory.mktemp("toyplan"), tokens=900, n=60))


@pytest.mark.parametrize("batch", [1, 5, 1000])
def test_tokens_by_source_at_every_step_are_those_that_streams_yield(plan: Plan, batch: int) -> None:
    total = 0
    for made, position in Stream(plan, batch):
        total = total + losses.counts(made, len(plan.sources))[:, :2].sum(axis=1)
        assert list(ledger.tokens(plan, position, batch).values()) == total.tolist() == list(consumed(plan, position, batch).tokens.values())
    assert consumed(plan, 0, batch).tokens == dict.fromkeys(plan.sources, 0)
    assert consumed(plan, 10**6, batch).tokens == {name: plan.card["sources"][name]["taken"] for name in plan.sources}


def test_records_are_counted_as_often_as_they_were_read(plan: Plan) -> None:
    found = consumed(plan, 7, 3)
    spans = [span for seq in range(21) for span in plan.row(seq).spans]
    counted = Counter(dict(zip(map(tuple, found.record.tolist()), found.spans.tolist(), strict=True)))
    assert counted == Counter((s.dataset, s.shard, s.row) for s in spans)
    assert Counter(dict(found.ids(plan))) == Counter(plan.record(s).id for s in spans)
    assert found.payload.sum() == sum(s.payload for s in spans) and found.sequences == 21
    heldout = consumed(plan, 10**6, 1, "heldout")
    assert heldout.sequences == plan.sequences("heldout") and sum(heldout.tokens.values()) > 0


def yielded(plan: Plan, batch: int, world: int) -> tuple[Seen, list[tuple[Batch, int]]]:
    seen = Seen(len(plan.sources))
    items = [item for rank in range(world) for item in Stream(plan, batch, rank, world)]
    for made, position in items:
        seen.add(made, position)
    return seen, items


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_the_union_of_all_ranks_is_the_plan(plan: Plan, world: int) -> None:
    seen, _ = yielded(plan, 6, world)
    assert check(plan, seen, 6, 0, -(-plan.sequences() // 6)) == []


def test_what_is_missing_double_early_or_changed_is_named(plan: Plan) -> None:
    last = -(-plan.sequences() // 4)
    seen, items = yielded(plan, 4, 1)
    lost = Seen(len(plan.sources))
    for made, position in items[:2] + items[3:]:
        lost.add(made, position)
    assert check(plan, lost, 4, 0, last) == [f"sequence {seq} was read in steps [], not once in step 2" for seq in range(8, 12)]
    seen.add(*items[1])
    assert "sequence 4 was read in steps [1, 1], not once in step 1" in check(plan, seen, 4, 0, last)
    early = Seen(len(plan.sources))
    for made, position in items:
        early.add(made, position - 1)
    assert len(check(plan, early, 4, 0, last)) == plan.sequences()
    changed, (made, position) = Seen(len(plan.sources)), items[0]
    made.source[0, 0:64] = (made.source[0, 0:64] + 1) % len(plan.sources)
    changed.add(made, position)
    assert len(check(plan, changed, 4, 0, 1)) == 2 and "documents of sources" in check(plan, changed, 4, 0, 1)[0]
    assert check(plan, changed, 4, 1, 1) == [f"sequence {seq} is not of these steps" for seq in range(4)]


def test_a_runs_account_is_checked_against_the_ledger_even_when_it_ended_early(plan: Plan, tmp_path: Path) -> None:
    card = train(toyplan.run(plan.path, tmp_path / "run", steps=5))
    assert {name: s["tokens"]["all"] for name, s in card["sources"].items()} == ledger.tokens(plan, 5, 4)
    assert checks.check(card["path"]) == []
    name = plan.sources[0]
    wrong = storage.read_json(f"{card['path']}/run.json")
    wrong["sources"][name]["tokens"]["all"] += 1
    publish_card(card["path"], "run.json", wrong)
    assert [p["what"] for p in checks.check(card["path"])] == [f"{name}: {ledger.tokens(plan, 5, 4)[name] + 1:,} tokens consumed, "
                                                              f"{ledger.tokens(plan, 5, 4)[name]:,} planned"]  # fmt: skip
