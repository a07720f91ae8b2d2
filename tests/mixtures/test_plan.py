"""Plans by arithmetic: budgets, passes, nesting, held-out groups, order, and equal bytes from equal inputs."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.budget import draft
from mixtures.check import check
from mixtures.mixture import largest_remainder
from mixtures.plan import Plan, make_plan
from mixtures.stage import STAGE
from pipelines.format import storage
from pipelines.format.errors import BudgetError, ConflictError, InputError, RecipeError
from tests.mixtures.sets import counted, dataset, mixture

rng = np.random.default_rng(7)
SIZES = {
    "text": [int(n) for n in rng.integers(1, 300, 200)],
    "image-text": [(4, int(a), int(b)) for a, b in rng.integers(1, 30, (200, 2))],
    "video": [int(n) for n in rng.integers(1, 30, 80)],
    "action-video": [int(n) for n in rng.integers(2, 20, 80)],
    "vqa": [(4, *((int(q), int(a)) for q, a in rng.integers(1, 6, (int(k), 2)))) for k in rng.integers(1, 6, 200)],
}
KINDS = sorted(SIZES)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return {data: dataset(root / data, data, sizes, data) for data, sizes in SIZES.items()}


def spans(plan, split="train"):
    return [s for i in range(plan.sequences(split)) for s in plan.row(i, split).spans]


def covered(drafted, source):
    """{(epoch, record, first, start): stop or count} of what a budget takes."""
    d = next(x for x in drafted.sources if x.name == source)
    u = d.taken
    ends = np.where(u.cut, u.stop, u.count)
    keys = zip(d.epoch.tolist(), u.record.tolist(), u.first.tolist(), u.start.tolist(), strict=True)
    return dict(zip(keys, ends.tolist(), strict=True))


@settings(max_examples=40, deadline=None)
@given(wanted=st.dictionaries(st.sampled_from(KINDS), st.integers(0, 4000), min_size=1), seed=st.integers(0, 99))
def test_each_source_gives_its_budget_to_within_one_sequence_and_texts_to_the_token(sets, wanted, seed):
    entries = {k: {"dataset": sets[k], "tokens": n, "max_epochs": 50} for k, n in wanted.items()}
    for d in draft(mixture(entries, seed=seed, held_out={"fraction": 0.1})).sources:
        taken = int(d.taken.payload.sum())
        assert abs(taken - wanted[d.name]) <= (0 if d.name == "text" else 32)
        assert d.wanted == wanted[d.name]


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), small=st.integers(0, 9000), large=st.integers(0, 9000), seed=st.integers(0, 99))
def test_a_smaller_budget_takes_a_prefix_of_a_larger_ones_draws(sets, kind, small, large, seed):
    small, large = sorted((small, large))
    held = {"fraction": 0.05}
    taken = [
        covered(draft(mixture({"x": {"dataset": sets[kind], "tokens": n, "max_epochs": 100}}, seed=seed, held_out=held)), "x")
        for n in (small, large)
    ]
    assert list(taken[1])[: len(taken[0])] == list(taken[0])
    assert all(end <= taken[1][key] for key, end in taken[0].items())


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(KINDS), epochs=st.floats(0.1, 4.5))
def test_no_record_is_used_more_often_than_the_passes_and_repeats_are_even(sets, kind, epochs):
    d = draft(mixture({"x": {"dataset": sets[kind], "epochs": epochs, "max_epochs": 5}})).sources[0]
    records = np.unique(np.stack([d.epoch, d.taken.record]), axis=1)[1]
    times = np.bincount(records, minlength=len(SIZES[kind]))
    assert times.max() <= np.ceil(epochs)
    assert times.min() >= np.floor(epochs)


@pytest.mark.parametrize("count", ["all", "text", "visual", "loss", "records"])
def test_a_budget_counts_what_the_mixture_says(tmp_path, sets, count):
    kind = {"text": "text", "visual": "video"}.get(count, "vqa")
    m = mixture({"x": {"dataset": sets[kind], "tokens": 150}}, tmp_path / "p", count=count)
    card = Plan.open(make_plan(m)).card
    found = card["sources"]["x"]["records"] if count == "records" else card["sources"]["x"]["tokens"][count]
    assert abs(found - 150) <= {"text": 0, "records": 0}.get(count, 32)
    assert card["sources"]["x"]["taken"] == found


def test_shares_and_scale_are_exact_fractions(sets):
    entries = {"text": {"dataset": sets["text"], "share": "33.3%"}, "video": {"dataset": sets["video"], "share": 0.667}}
    d = draft(mixture(entries, total="3M", scale=1e-3)).sources
    assert [x.wanted for x in d] == [999, 2001]


@given(st.lists(st.fractions(0, 1000), min_size=1, max_size=8))
def test_largest_remainder_adds_up_and_moves_no_part_by_one(parts):
    whole = largest_remainder(parts)
    assert sum(whole) == int(sum(parts))
    assert all(abs(a - b) < 1 for a, b in zip(whole, parts, strict=True))


def test_an_impossible_budget_names_the_limit_and_two_ways_out(sets):
    entries = {"text": {"dataset": sets["text"], "tokens": 1000}, "vqa": {"dataset": sets["vqa"], "tokens": "1M"}}
    with pytest.raises(BudgetError) as e:
        draft(mixture(entries))
    have = counted(sets["vqa"])
    assert e.value.exit == 3 and "sources.vqa" in str(e.value.where) and f"{have:,}" in str(e.value.found)
    assert f"max_epochs={-(-1_000_000 // have)}" in str(e.value.next) and "scale=" in str(e.value.next)
    scale = float(str(e.value.next).split("scale=")[1].split(";")[0])
    assert draft(mixture(entries, scale=scale)).sources[1].wanted <= have  # the way out leads out
    entries["vqa"]["max_epochs"] = -(-1_000_000 // have)
    assert draft(mixture(entries)).sources[1].wanted == 1_000_000


def test_a_pool_holds_the_first_draws_and_its_repeats_stay_inside(sets):
    x = {"dataset": sets["vqa"], "pool": 600}
    once = draft(mixture({"x": {**x, "tokens": 600}})).sources[0]
    five = draft(mixture({"x": {**x, "tokens": 3000, "max_epochs": 5}})).sources[0]
    assert set(once.taken.record.tolist()) <= set(five.taken.record.tolist())
    assert len(set(five.taken.record.tolist()) - set(once.taken.record.tolist())) <= 1
    assert abs(int(five.taken.payload.sum()) - 3000) <= 32 and five.passes == 5
    free = draft(mixture({"x": {"dataset": sets["vqa"], "tokens": 600}})).sources[0]
    assert free.taken.record.tolist() == once.taken.record.tolist()


def test_held_out_groups_stand_on_one_side_across_sources_and_the_set_is_the_same_for_all_arms_and_seeds(tmp_path):
    groups = [f"scene{i // 3}" for i in range(150)]
    a = dataset(tmp_path / "a", "vqa", SIZES["vqa"][:150], "a", groups=groups)
    b = dataset(tmp_path / "b", "image-text", SIZES["image-text"][:150], "b", groups=groups)
    held = {"fraction": "20%", "seed": 3, "max_tokens": 400}
    found = []
    for i, (tokens, seed) in enumerate(((500, 0), (0, 5))):
        entries = {"a": {"dataset": a, "tokens": 700}, "b": {"dataset": b, "tokens": tokens}}
        plan = Plan.open(make_plan(mixture(entries, tmp_path / f"p{i}", seed=seed, held_out=held)))
        sides = {split: {plan.record(s).group for s in spans(plan, split)} for split in ("train", "heldout")}
        assert sides["heldout"] and not sides["train"] & sides["heldout"]
        found.append([(s.source, s.shard, s.row, s.caption, s.image_first) for s in spans(plan, "heldout")])
        for name in plan.sources:
            rows = plan.held_out(name)
            assert {s.source for i in rows for s in plan.row(i, "heldout").spans} == {plan.sources.index(name)}
            assert plan.card["sources"][name]["heldout"]["tokens"]["all"] <= 400
    assert found[0] == found[1]


def test_where_keeps_to_scores_in_training_and_leaves_the_held_out_set_alone(tmp_path):
    scores = [{"clip": 0.1 * (i % 10)} if i % 7 else {} for i in range(200)]
    data = dataset(tmp_path / "d", "image-text", SIZES["image-text"], "s", scores=scores)
    held = {"fraction": 0.1}
    plans = [
        Plan.open(make_plan(mixture({"x": {"dataset": data, "epochs": 1, **w}}, tmp_path / f"p{i}", held_out=held)))
        for i, w in enumerate(({}, {"where": {"scores": {"clip": {"min": 0.35, "max": 0.75}}}}))
    ]
    assert all(0.35 <= plans[1].record(s).scores["clip"] <= 0.75 for s in spans(plans[1]))
    assert 0 < len(spans(plans[1])) < len(spans(plans[0]))
    assert [s.row for s in spans(plans[0], "heldout")] == [s.row for s in spans(plans[1], "heldout")]


def test_sources_are_mixed_evenly_over_the_run_and_passes_follow_one_another(tmp_path, sets):
    entries = {"text": {"dataset": sets["text"], "tokens": 20000}, "vqa": {"dataset": sets["vqa"], "tokens": 12000, "max_epochs": 9}}
    plan = Plan.open(make_plan(mixture(entries, tmp_path / "p")))
    n = plan.sequences()
    share = np.zeros((4, 2))
    place = {e: [] for e in range(9)}
    for i in range(n):
        for s in plan.row(i).spans:
            share[4 * i // n, s.source] += s.payload
            if s.source == 1:
                place[s.epoch].append(i)
    assert np.ptp(share[:, 1] / share.sum(axis=1)) < 0.12
    middles = [np.mean(v) for v in place.values() if v]
    assert middles == sorted(middles)


def test_stages_follow_one_another_and_each_holds_its_shares(tmp_path, sets):
    stages = [{"until": "50%", "share": {"text": 1}}, {"until": "100%", "share": {"text": 0.25, "video": 0.75}}]
    entries = {"text": {"dataset": sets["text"]}, "video": {"dataset": sets["video"]}}
    plan = Plan.open(make_plan(mixture(entries, tmp_path / "p", total=8000, stages=stages)))
    rows = [plan.row(i) for i in range(plan.sequences())]
    assert [r.stage for r in rows] == sorted(r.stage for r in rows)
    tokens = np.zeros((2, 2))
    for r in rows:
        for s in r.spans:
            tokens[r.stage, s.source] += s.payload
    assert np.abs(tokens - [[4000, 0], [1000, 3000]]).max() <= 300  # a document is not torn where a stage ends
    assert tokens.sum(axis=0)[0] == 5000


def test_equal_mixtures_give_equal_bytes_whatever_the_order_of_their_lines(tmp_path, sets):
    entries = {k: {"dataset": sets[k], "tokens": 1500} for k in ("vqa", "text", "video")}
    a, b = (make_plan(mixture(dict(e), tmp_path / n)) for n, e in (("a", entries.items()), ("b", reversed(entries.items()))))
    assert Plan.open(a).card["files"] == Plan.open(b).card["files"]
    assert Plan.open(a).card["fingerprint"] == Plan.open(b).card["fingerprint"]


def test_a_plan_in_an_object_store_has_the_bytes_of_a_local_one_and_travels_between_processes(tmp_path, sets):
    entries = {k: {"dataset": sets[k], "tokens": 700} for k in ("vqa", "text")}
    local = make_plan(mixture(entries, tmp_path / "p", held_out={"fraction": 0.1}))
    far = make_plan(mixture(entries, "memory://plans/p", held_out={"fraction": 0.1}))
    a, b = Plan.open(local), pickle.loads(pickle.dumps(Plan.open(far)))
    assert a.card["files"] == b.card["files"] and a.card["fingerprint"] == b.card["fingerprint"]
    assert a.row(3) == b.row(3) and a.record(a.row(3).spans[0]) == b.record(b.row(3).spans[0])
    assert check(far, {"deep": True}) == []


def test_a_finished_plan_is_left_as_it_is_and_another_is_refused(tmp_path, sets):
    first = {"text": {"dataset": sets["text"], "tokens": 500}}
    path = make_plan(mixture(first, tmp_path / "p"))
    before = storage.read(f"{path}/plan.json")
    assert make_plan(mixture(first, tmp_path / "p")) == path
    with pytest.raises(ConflictError):
        make_plan(mixture({"text": {"dataset": sets["text"], "tokens": 501}}, tmp_path / "p"))
    assert storage.read(f"{path}/plan.json") == before


@pytest.mark.parametrize("what", ["tokenizer", "encoder"])
def test_datasets_of_two_tokenizers_or_encoders_are_refused(tmp_path, sets, what):
    other = dataset(tmp_path / "o", "vqa", [(4, (1, 1))], "o", **{what: "9"})
    with pytest.raises(RecipeError, match=f"disagree on the .*{what}"):
        draft(mixture({"a": {"dataset": sets["video"], "tokens": 5}, "b": {"dataset": other, "tokens": 5}}))


def test_arms_share_latent_statistics_over_all_datasets_of_the_ablation(tmp_path, sets):
    a = dataset(tmp_path / "a", "video", [3] * 5, "a", mean=[1.0, 2.0])
    b = dataset(tmp_path / "b", "video", [3] * 15, "b", mean=[5.0, 2.0])
    arms = [
        Plan.open(make_plan(mixture({"x": {"dataset": d, "tokens": 8}}, tmp_path / f"p{i}"), latent_stats_over=[a, b])).latent_stats()
        for i, d in enumerate((a, b))
    ]
    n, mean, var = arms[0]
    assert n == 20 and mean.tolist() == [4.0, 2.0]
    assert np.allclose(var, np.array([8.0 + 16 * 5 * 15 / 20, 6.0]) / 20)
    assert all(np.array_equal(x, y) for x, y in zip(arms[0], arms[1], strict=True))


def test_an_encoder_arm_trains_on_the_records_of_another_plan(tmp_path, sets):
    wide = dataset(tmp_path / "w", "image-text", [(9, a, b) for _, a, b in SIZES["image-text"]], "image-text", encoder="wide")
    held = {"fraction": 0.1}
    first = make_plan(mixture({"x": {"dataset": sets["image-text"], "tokens": 2500}}, tmp_path / "a", held_out=held))
    again = mixture({"x": {"dataset": wide, "tokens": 2500}}, tmp_path / "b", held_out=held)
    second = make_plan(again, records_from=first)
    seen = [sorted((p.record(s).id, s.caption, s.image_first, s.epoch) for s in spans(p)) for p in map(Plan.open, (first, second))]
    assert seen[0] == seen[1]
    assert Plan.open(second).card["tokens"]["text"] == Plan.open(first).card["tokens"]["text"]
    small = dataset(tmp_path / "s", "image-text", [(9, 2, 2)] * 20, "image-text", encoder="wide")
    with pytest.raises(InputError, match="lacks records"):
        make_plan(mixture({"x": {"dataset": small, "tokens": 2500}}, tmp_path / "c", held_out=held), records_from=first)


def test_what_a_tombstone_names_is_replaced_by_the_next_draws(tmp_path, sets):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.format.manifest import file_entry, publish_card, read_card

    data = dataset(tmp_path / "d", "vqa", SIZES["vqa"], "vqa")
    entries = {"x": {"dataset": data, "tokens": 900}}
    before = Plan.open(make_plan(mixture(entries, tmp_path / "a")))
    gone = [before.record(s).id for s in spans(before)[:3]]
    sink = pa.BufferOutputStream()
    columns = {"id": gone, "url": [None] * 3, "sha256": [None] * 3, "phash": [None] * 3, "reason": ["asked"] * 3}
    types = {"url": pa.string(), "sha256": pa.string(), "phash": pa.uint64()}
    pq.write_table(pa.table({k: pa.array(v, types.get(k)) for k, v in columns.items()}), sink)
    entry = file_entry(data, "tombstones-0.parquet", sink.getvalue().to_pybytes())
    card = {k: v for k, v in read_card(data).items() if k not in ("path", "card_file")}
    publish_card(data, "manifest.json", card | {"tombstones": {"file": entry["path"], "sha256": entry["sha256"], "n": 3}})
    after = Plan.open(make_plan(mixture(entries, tmp_path / "b")))
    ids = [{p.record(s).id for s in spans(p)} for p in (before, after)]
    assert not ids[1] & set(gone) and len(ids[0] & ids[1]) >= len(ids[0]) - 4
    assert abs(after.card["tokens"]["all"] - 900) <= 32
    assert after.card["sources"]["x"]["unfit"]["forgotten"] == 3


def test_a_dry_run_says_what_the_plan_then_holds(tmp_path, sets):
    m = mixture({k: {"dataset": sets[k], "tokens": 1200} for k in KINDS}, tmp_path / "p", held_out={"fraction": 0.1})
    said = STAGE.plan(m)
    assert not storage.exists(str(tmp_path / "p"))
    card = Plan.open(STAGE.run(m, None)).card
    assert said.facts["sequences"] == card["records"] and said.facts["fill"] == card["fill"]
    assert {r["source"]: r["taken"] for r in said.table} == {n: s["taken"] for n, s in card["sources"].items()}


def test_a_dry_run_of_datasets_too_large_to_count_expects_about_what_the_plan_then_holds(tmp_path, sets, monkeypatch):
    entries = {k: {"dataset": sets[k], "tokens": 1200} for k in KINDS}
    m = mixture(entries, tmp_path / "p", held_out={"fraction": 0.1})
    monkeypatch.setattr("mixtures.estimate.COUNTED", 0)
    said, card = STAGE.plan(m), Plan.open(make_plan(m)).card
    assert said.facts["sequences"] == pytest.approx(card["records"], rel=0.1)
    assert said.facts["structure"] == pytest.approx(card["structure"], rel=0.3)  # how often frames share a document is not on a card
    for row in said.table:
        have = card["sources"][row["source"]]["available"]
        if row["data"] == "image-text":
            assert row["available"] >= have  # a card counts all captions of a pair
        else:
            assert row["available"] == pytest.approx(have, rel=0.25)  # 80 records, a tenth of them held out by chance
    with pytest.raises(BudgetError):
        STAGE.plan(mixture({"x": {"dataset": sets["text"], "tokens": "1B"}}))


def test_a_plan_of_many_files_names_them_in_a_table_that_is_checked_too(tmp_path, sets, monkeypatch):
    monkeypatch.setattr("mixtures.plan_file.FILES_IN_CARD", 2)
    monkeypatch.setattr("mixtures.plan_file.ROWS_PER_FILE", 16)
    for module in ("plan", "used"):
        monkeypatch.setattr(f"mixtures.{module}.ROWS_PER_FILE", 16)
    path = make_plan(mixture({"text": {"dataset": sets["text"], "tokens": 9000}}, tmp_path / "p"))
    plan = Plan.open(path)
    assert plan.card["row_files"]["n"] == -(-plan.sequences() // 16) > 2
    assert sum(s.payload for s in spans(plan)) == 9000 and check(path, {"deep": True}) == []
    (tmp_path / "p" / "sequences-00002.parquet").unlink()
    assert [p["file"] for p in check(path, {})] == ["sequences-00002.parquet"]


def test_a_check_passes_a_good_plan_and_names_what_was_changed(tmp_path, sets):
    m = mixture({k: {"dataset": sets[k], "tokens": 1200, "max_epochs": 2} for k in KINDS}, tmp_path / "p", held_out={"fraction": 0.1})
    path = make_plan(m)
    assert check(path, {"deep": True}) == []
    rows = tmp_path / "p" / "sequences-00000.parquet"
    whole = rows.read_bytes()
    rows.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    assert [p["file"] for p in check(path, {"deep": True})] == [rows.name]
    rows.write_bytes(whole[:-1])
    assert [p["file"] for p in check(path, {})] == [rows.name]
    rows.write_bytes(whole)
    card = tmp_path / "p" / "plan.json"
    card.write_text(card.read_text().replace(f'"structure": {Plan.open(path).card["structure"]}', '"structure": 7', 1))
    assert check(path, {}) and check(path, {})[0]["file"] == "plan.json"
