"""Stand-ins: what takes the place of a record that was forgotten after planning, as properties over all kinds of data."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.layout import layout
from mixtures.plan import Plan, make_plan
from mixtures.stand_ins import StandIns, stand_ins
from pipelines.format.dataset import Dataset
from pipelines.tombstones import add
from tests.mixtures.sets import dataset, mixture

rng = np.random.default_rng(11)
SIZES = {
    "text": [int(n) for n in rng.integers(1, 150, 150)],
    "image-text": [(4, int(a), int(b)) for a, b in rng.integers(1, 30, (150, 2))],
    "video": [int(n) for n in rng.integers(1, 30, 60)],
    "action-video": [int(n) for n in rng.integers(2, 20, 60)],
    "vqa": [(4, *((int(q), int(a)) for q, a in rng.integers(1, 6, (int(k), 2)))) for k in rng.integers(1, 6, 150)],
}
KINDS = sorted(SIZES)


class Shelf:
    """One plan over all kinds, whose datasets can be made to forget and to remember again."""

    def __init__(self, root: Path, **more: dict) -> None:
        self.paths = {data: dataset(root / data, data, sizes, data, parts=3) for data, sizes in SIZES.items()}
        entries = {k: {"dataset": self.paths[k], "tokens": 500, **more.get(k, {})} for k in KINDS}
        self.plan = Plan.open(make_plan(mixture(entries, root / "plan", held_out={"fraction": 0.1}, seed=3)))
        self.cards = {k: (Path(p) / "manifest.json").read_bytes() for k, p in self.paths.items()}

    def remember(self) -> None:
        for k, path in self.paths.items():
            (Path(path) / "manifest.json").write_bytes(self.cards[k])

    def forget(self, ids: list[str]) -> StandIns:
        for path in self.paths.values():
            found = Dataset.open(path)
            mine = {r for i in range(len(found.shards)) for r in found.index(i, ["id"])["id"].to_pylist()}
            if here := [i for i in ids if i in mine]:
                add(found, {"id": here}, "asked")
        return stand_ins(Plan.open(self.plan.path))

    def rows(self, made: StandIns, split: str = "train") -> list[tuple]:
        planned = [self.plan.row(i, split).spans for i in range(self.plan.sequences(split))]
        return [made.spans(i, spans)[0] for i, spans in enumerate(planned)] if split == "train" else planned

    def used(self, split: str = "train") -> list[str]:
        return list(dict.fromkeys(self.plan.record(s).id for row in self.rows(StandIns(), split) for s in row))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return Shelf(tmp_path_factory.mktemp("shelf"))


def chosen(shelf: Shelf, data) -> list[str]:
    return data.draw(st.lists(st.sampled_from(shelf.used()), min_size=1, max_size=25, unique=True))


def positions(plan: Plan, spans) -> int:
    return sum(len(layout(s, plan.record(s), plan.rules(s.source), plan.specials)) for s in spans)


def outside(plan: Plan) -> set[str]:
    """Records that no training row may hold: those of held-out groups."""
    from pipelines.format.chance import held_out

    out = set()
    for d in plan.datasets:
        for i in range(len(d.shards)):
            rows = d.index(i, ["id", "group"])
            out |= {a for a, h in zip(rows["id"].to_pylist(), held_out(rows["group"].to_pylist(), 0.1, 0).tolist(), strict=True) if h}
    return out


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_no_row_holds_a_forgotten_record_and_every_row_still_fits(shelf, data):
    shelf.remember()
    gone = chosen(shelf, data)
    made, never = shelf.forget(gone), outside(shelf.plan)
    for seq, spans in enumerate(shelf.rows(made)):
        assert not {shelf.plan.record(s).id for s in spans} & ({*gone} | never)
        assert positions(shelf.plan, spans) <= shelf.plan.sequence_length
        kept = [s for s in shelf.plan.row(seq).spans if shelf.plan.record(s).id not in gone]
        assert [s for s in spans if s in kept] == kept, "what was not forgotten stands as it stood, in its order"


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_stand_in_is_of_the_same_source_and_used_nowhere_else(shelf, data):
    shelf.remember()
    gone, before = chosen(shelf, data), set(shelf.used())
    made = shelf.forget(gone)
    taken = [(r.source, r.id, r.epoch) for r in made.replaced if r.id is not None]
    assert len({(source, id) for source, id, _ in taken if source != "video"}) == len([t for t in taken if t[0] != "video"])
    assert not {id for _, id, _ in taken} & before, "each pass uses a record once"
    for row in made.rows:
        sources = Counter(s.source for s in shelf.plan.row(row).spans)
        assert {s.source for s in made.rows[row][0]} <= set(sources)
    units = [(s.dataset, s.shard, s.row, s.first, s.start) for row in shelf.rows(made) for s in row]
    assert len(units) == len(set(units))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_later_tombstones_change_no_stand_in_but_those_they_name(shelf, data):
    shelf.remember()
    gone = chosen(shelf, data)
    first = shelf.forget(gone)
    more = data.draw(st.lists(st.sampled_from(shelf.used() + [r.id for r in first.replaced if r.id]), min_size=1, max_size=15, unique=True))
    second = shelf.forget(more)
    for row, (spans, _) in first.rows.items():
        kept = [s for s in spans if shelf.plan.record(s).id not in more]
        assert [s for s in second.rows[row][0] if s in kept] == kept
        assert not {shelf.plan.record(s).id for s in second.rows[row][0]} & {*gone, *more}


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_the_same_tombstones_give_the_same_stand_ins(shelf, data):
    shelf.remember()
    made = shelf.forget(chosen(shelf, data))
    again = stand_ins(Plan.open(shelf.plan.path))
    assert made == again and made.table().equals(again.table())


def test_stand_ins_are_the_next_draws_a_larger_budget_would_take(tmp_path):
    """One text after another of the same length: what comes in is what a budget of so many texts more would have added."""
    data = dataset(tmp_path / "d", "text", [30] * 120, "toy")
    plan = lambda n, name: Plan.open(make_plan(mixture({"x": {"dataset": data, "tokens": 30 * n}}, tmp_path / name, seed=5)))
    small, large = plan(40, "small"), plan(47, "large")
    ids = lambda p: {p.record(s).id for i in range(p.sequences()) for s in p.row(i).spans}
    gone = sorted(ids(small))[:7]
    add(Dataset.open(data), {"id": gone}, "asked")
    made = stand_ins(Plan.open(small.path))
    assert {r.id for r in made.replaced} == ids(large) - ids(small) and made.empty == 0


def test_the_budget_is_kept_to_within_what_fits(shelf):
    shelf.remember()
    gone = shelf.used()[::5]
    made = shelf.forget(gone)
    for kind in KINDS:
        n = shelf.plan.sources.index(kind)
        lost = sum(s.payload for row in shelf.rows(StandIns()) for s in row if s.source == n and shelf.plan.record(s).id in gone)
        came = sum(r.tokens for r in made.replaced if r.source == kind)
        assert came >= 0.5 * lost, (kind, came, lost)


def test_nothing_left_to_draw_leaves_places_empty_and_says_so(tmp_path):
    data = dataset(tmp_path / "d", "vqa", SIZES["vqa"], "toy")
    plan = Plan.open(make_plan(mixture({"x": {"dataset": data, "epochs": 1}}, tmp_path / "p")))
    gone = plan.record(plan.row(0).spans[0]).id
    add(Dataset.open(data), {"id": [gone]}, "asked")
    made = stand_ins(Plan.open(plan.path))
    assert made.empty == 1 and [r.id for r in made.replaced] == [None] and len(made.rows[0][0]) == len(plan.row(0).spans) - 1


def test_a_second_pass_is_drawn_from_where_it_ended_and_max_epochs_is_the_end(tmp_path):
    data = dataset(tmp_path / "d", "text", [30] * 40, "toy")
    plan = lambda most, name: Plan.open(make_plan(mixture({"x": {"dataset": data, "tokens": 30 * 60, "max_epochs": most}}, tmp_path / name)))
    open_end, closed = plan(2, "a"), plan(1.5, "b")
    add(Dataset.open(data), {"id": [open_end.record(open_end.row(0).spans[0]).id]}, "asked")
    made = stand_ins(Plan.open(open_end.path))
    assert made.empty == 0 and {r.epoch for r in made.replaced} == {1}
    second = {open_end.record(s).id for i in range(open_end.sequences()) for s in open_end.row(i).spans if s.epoch == 1}
    assert not {r.id for r in made.replaced} & second
    assert {r.id for r in stand_ins(Plan.open(closed.path)).replaced} == {None}


def test_where_and_pool_hold_for_stand_ins(tmp_path):
    scores = [{"clip": i / 100} for i in range(100)]
    data = dataset(tmp_path / "d", "image-text", [(4, 5)] * 100, "toy", scores=scores)
    entry = {"dataset": data, "tokens": 9 * 20, "where": {"scores": {"clip": {"min": 0.5}}}}
    plan = Plan.open(make_plan(mixture({"x": entry}, tmp_path / "a")))
    pooled = Plan.open(make_plan(mixture({"x": {**entry, "pool": 9 * 22}}, tmp_path / "b")))
    used = list({plan.record(s).id for i in range(plan.sequences()) for s in plan.row(i).spans})
    add(Dataset.open(data), {"id": used[:8]}, "asked")
    made = stand_ins(Plan.open(plan.path))
    scored = {s: v for i in range(2) for s, v in zip(*(Dataset.open(data).index(i)[c].to_pylist() for c in ("id", "scores")), strict=True)}
    assert made.empty == 0 and all(dict(scored[r.id])["clip"] >= 0.5 for r in made.replaced)
    kept = stand_ins(Plan.open(pooled.path))
    assert kept.empty == 6 and {r.id for r in kept.replaced if r.id} <= {r.id for r in made.replaced}, "two records of the pool were not used"


def test_held_out_rows_get_no_stand_ins_and_a_plan_without_tombstones_reads_no_index(shelf, monkeypatch):
    shelf.remember()
    held = shelf.used("heldout")[:2]
    assert shelf.forget(held).rows == {}
    shelf.remember()
    monkeypatch.setattr(Dataset, "index", lambda *a, **k: pytest.fail("an index was read"))
    assert stand_ins(Plan.open(shelf.plan.path)) == StandIns()


def test_a_plan_made_after_forgetting_draws_the_next_and_keeps_all_others(tmp_path):
    data = dataset(tmp_path / "d", "text", [30] * 120, "toy")
    m = {"x": {"dataset": data, "tokens": 30 * 40}}
    before = Plan.open(make_plan(mixture(m, tmp_path / "a")))
    ids = lambda p: {p.record(s).id for i in range(p.sequences()) for s in p.row(i).spans}
    gone = sorted(ids(before))[:5]
    add(Dataset.open(data), {"id": gone}, "asked")
    after = Plan.open(make_plan(mixture(m, tmp_path / "b")))
    assert ids(after) == (ids(before) - {*gone}) | {r.id for r in stand_ins(Plan.open(before.path)).replaced}
    assert stand_ins(after) == StandIns()
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("kind", ["image-text", "vqa", "video"])
def test_of_two_datasets_either_may_forget_and_images_that_are_made_fit_too(tmp_path, kind):
    sizes = SIZES[kind]
    target = dataset(tmp_path / "t", kind, sizes, kind, image=lambda n: n + 1, encoder="1")
    paths = {"context": dataset(tmp_path / "c", kind, sizes, kind), "target": target}
    plan = Plan.open(make_plan(mixture({"x": {"dataset": paths, "tokens": 400}}, tmp_path / "p")))
    used = list(dict.fromkeys(plan.record(s).id for i in range(plan.sequences()) for s in plan.row(i).spans))
    add(Dataset.open(paths["context"]), {"id": used[:2]}, "asked")
    add(Dataset.open(paths["target"]), {"id": used[2:4]}, "asked")
    again = Plan.open(plan.path)
    made = stand_ins(again)
    assert {r.forgotten for r in made.replaced} == {*used[:4]} and any(r.id for r in made.replaced)
    for seq in range(again.sequences()):
        spans, _ = made.spans(seq, again.row(seq).spans)
        assert not {again.record(s).id for s in spans} & {*used[:4]} and positions(again, spans) <= again.sequence_length
