"""What must hold of every plan, over random datasets and mixtures, by public doors alone: documents in, rows of a plan out."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from mixtures.check import check
from mixtures.layout import atom_ranges, span_segments
from mixtures.plan import Plan, make_plan
from pipelines.format.chance import draw
from pipelines.format.document import exact
from pipelines.format.errors import BudgetError
from pipelines.format.record import Record
from tests.mixtures.sets import dataset, image, mixture, shape, text
from tests.mixtures.worlds import Rows, of_records, records, worlds

ROW = 64  # the longest sequence, and so what a budget may miss by
KINDS = ("text", "image-text", "video", "vqa", "action-video")
rules = st.fixed_dictionaries(
    {"turns": st.sampled_from(["chained", "isolated"]), "history": st.sampled_from(["noised", "clean_copy"])}
    | {"loss": st.sampled_from(["role", "text", "all"]), "both": st.booleans(), "image_first": st.sampled_from([0, 0.3, 1])}
)
chosen = st.dictionaries(st.sampled_from(KINDS), st.integers(0, 3000), min_size=1)
few = settings(max_examples=20, deadline=None, phases=(Phase.reuse, Phase.generate), suppress_health_check=[HealthCheck.too_slow])
numbers = itertools.count()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("properties")


def plan_of(root: Path, sources: dict[str, dict[str, Any]], **keys: Any) -> Plan:
    return Plan.open(make_plan(mixture(sources, root / f"plan{next(numbers)}", **{"sequence_length": ROW, **keys})))


def sets(root: Path, seed: int) -> dict[str, str]:
    return worlds(str(root), seed)


def h_of(plan: Plan, source: int, record: np.ndarray) -> np.ndarray:
    """The hashes of records numbered by shard and row."""
    data = plan.datasets[plan.card["sources"][plan.sources[source]]["dataset"]]
    by_shard = [np.asarray(data.index(i, ["h"])["h"].combine_chunks(), np.uint64) for i in range(len(data.shards))]
    return np.array([by_shard[r >> 32][r & 0xFFFFFFFF] for r in record.tolist()], np.uint64)


# ---- budgets ---------------------------------------------------------------------------------------------------------------------------


@few
@given(st.integers(0, 5), chosen, rules, st.sampled_from(["all", "text", "visual", "loss", "records"]), st.sampled_from([1, 0.37, "1e-1"]))
def test_every_source_gives_its_budget_to_within_a_sequence_and_the_whole_numbers_add_up(root, seed, tokens, rules, count, scale):
    data = sets(root, seed)
    scarce = {"text": ("visual",), "image-text": (), "video": ("text",)}
    entries = {k: {"dataset": data[k], "tokens": n if count not in scarce.get(k, ()) else 0, "max_epochs": 900, **rules} for k, n in tokens.items()}
    entries["text"] = {"dataset": data["text"], "tokens": 0 if count == "visual" else 333, "max_epochs": 900}
    if count == "records":
        entries = {k: e | {"tokens": e["tokens"] // 20} for k, e in entries.items()}
    try:
        plan = plan_of(root, entries, count=count, scale=scale, seed=seed)
    except BudgetError:
        assume(False)  # nothing of this kind to count, such as loss on images that are only looked at
    asked = [Fraction(e["tokens"]) * exact(float(scale)) for e in entries.values()]
    card = plan.card["sources"]
    assert sum(card[k]["wanted"] for k in entries) == int(sum(asked))
    for name, exactly in zip(entries, asked, strict=True):
        assert abs(card[name]["wanted"] - exactly) < 1
        assert abs(card[name]["taken"] - card[name]["wanted"]) <= (1 if count == "records" else ROW)
    if count in ("all", "text"):
        assert card["text"]["taken"] == card["text"]["wanted"]  # texts are cut where the budget ends
    rows = Rows(plan)
    for i, name in enumerate(plan.sources):
        assert int(rows.of(i)["payload"].sum()) == card[name]["tokens"]["all"]


@few
@given(st.integers(0, 5), st.lists(st.integers(1, 40), min_size=2, max_size=5), st.integers(100, 20_000), st.sampled_from([1, 0.3]))
def test_shares_of_a_total_come_to_the_total_exactly(root, seed, parts, total, scale):
    data = sets(root, seed)
    shares = [Fraction(p, 1000) for p in parts[1:]]
    shares = [1 - sum(shares), *shares]
    entries = {k: {"dataset": data[k], "share": float(s), "max_epochs": 900} for k, s in zip(KINDS, shares, strict=False)}
    card = plan_of(root, entries, total=total, scale=scale).card["sources"]
    assert sum(e["wanted"] for e in card.values()) == int(total * exact(scale))
    assert all(abs(card[k]["wanted"] - s * total * exact(scale)) < 1 for k, s in zip(entries, shares, strict=True))


# ---- passes ----------------------------------------------------------------------------------------------------------------------------


@few
@given(st.integers(0, 5), st.sampled_from(KINDS), st.floats(0.1, 4), st.integers(0, 50), rules)
def test_repeats_are_spread_evenly(root, seed, kind, epochs, training_seed, rules):
    data = sets(root, seed)
    plan = plan_of(root, {"x": {"dataset": data[kind], "epochs": epochs, "max_epochs": epochs, **rules}}, seed=training_seed)
    mine = Rows(plan).of(0)
    assume(len(mine["record"]))
    uses = {(r, e) for r, e in zip(mine["record"].tolist(), mine["epoch"].tolist(), strict=True)}
    last = max(e for _, e in uses)
    assert last < np.ceil(epochs)
    everyone = {r for r, _ in uses}
    for epoch in range(last):  # whole passes: a record comes again only after all others
        assert {r for r, e in uses if e == epoch} == everyone
    times = [sum((r, e) in uses for e in range(last + 1)) for r in everyone]
    assert max(times) <= np.ceil(epochs) and max(times) - min(times) <= 1


def test_passes_follow_one_another_and_overlap_by_a_few_packing_windows(root):
    lengths = np.random.default_rng(1).integers(5, 40, 6000).tolist()
    data = dataset(root / "long", "text", lengths, "long", parts=3)
    plan = plan_of(root, {"x": {"dataset": data, "epochs": 3, "max_epochs": 3}})
    mine = Rows(plan).of(0)
    window = max(3 * len(lengths) // 32, 256) / (3 * len(lengths))  # as a share of all units, and so of all rows
    for epoch in range(2):
        before, after = (mine["at"][mine["epoch"] == e] for e in (epoch, epoch + 1))
        assert np.quantile(before, 0.99) - np.quantile(after, 0.01) <= 5 * window * plan.sequences()
        assert np.median(before) < np.quantile(after, 0.001)


# ---- what may be cut -------------------------------------------------------------------------------------------------------------------


@few
@given(st.integers(0, 5), rules, st.floats(0.2, 2.2))
def test_only_texts_are_cut_and_without_loss(root, seed, rules, epochs):
    data = sets(root, seed)
    plan = plan_of(root, {k: {"dataset": data[k], "epochs": epochs, "max_epochs": 3, **rules} for k in KINDS}, held_out={"fraction": 0.2})
    for split in ("train", "heldout"):
        pieces: dict[tuple[int, ...], list[Any]] = {}
        for i in range(plan.sequences(split)):
            for s in plan.row(i, split).spans:
                pieces.setdefault((s.source, s.epoch, s.shard, s.row), []).append(s)
        torn = dict.fromkeys(plan.sources, 0)
        for spans in pieces.values():
            record, name = plan.record(spans[0]), plan.sources[spans[0].source]
            segments, atoms = record.segments, atom_ranges(record.segments)
            for s in spans:
                used = span_segments(s, segments, atoms)
                if record.data != "text":
                    assert s.start == 0 and s.stop == sum(segments[k].tokens for k in used)  # no image, frame, answer or caption is cut
                if record.data == "image-text":
                    assert len(spans) == 1 and sum(segments[k].kind == "tokens" for k in used) == 1 and len(used) == 2
                if record.data in ("vqa", "action-video"):
                    assert len(spans) == 1 and used == list(range(len(segments)))
            spans.sort(key=lambda s: (s.first, s.start))
            if record.data == "text":
                edges = [0, *(s.stop for s in spans)]
                assert [s.start for s in spans] == edges[:-1]  # the pieces one after another are the text
                torn[name] += edges[-1] != segments[0].tokens
            if record.data == "video":
                edges = [0, *(s.first + s.count for s in spans)]
                assert [s.first for s in spans] == edges[:-1]
                torn[name] += edges[-1] != len(atoms)
        assert all(n <= (split == "train") for n in torn.values())  # but for the one that the budget's end falls into


# ---- draws -----------------------------------------------------------------------------------------------------------------------------


def taken(plan: Plan, name: str) -> dict[tuple[Any, ...], int]:
    """What a source's budget takes: {(pass, record, caption, image first): payload}."""
    mine = Rows(plan).of(plan.sources.index(name))
    out: dict[tuple[Any, ...], int] = {}
    for *key, n in zip(*(mine[k].tolist() for k in ("epoch", "record", "caption", "image_first", "payload")), strict=True):
        out[tuple(key)] = out.get(tuple(key), 0) + n
    return out


@few
@given(st.integers(0, 5), st.sampled_from(KINDS), st.integers(0, 4000), st.integers(0, 4000), st.integers(0, 99), rules, st.booleans())
def test_a_smaller_budget_takes_a_prefix_of_what_a_larger_one_takes(root, seed, kind, a, b, training_seed, rules, pooled):
    data, held = sets(root, seed), {"fraction": 0.1}
    source = {"dataset": data[kind], "max_epochs": 900, **rules, **({"pool": 700} if pooled else {})}
    small, large = (plan_of(root, {"x": {**source, "tokens": n}}, seed=training_seed, held_out=held) for n in sorted((a, b)))
    one, two = taken(small, "x"), taken(large, "x")
    assert all(n <= two.get(key, 0) for key, n in one.items())  # the same captions and orders too
    # By definition: within its last pass the records taken are those of the lowest draws among all that can be had.
    once = taken(plan_of(root, {"x": {"dataset": data[kind], "epochs": 1, **rules}}, held_out=held), "x")
    if one and not pooled:
        last = max(key[0] for key in one)
        everyone = np.array(sorted({key[1] for key in once}))
        order = draw(h_of(small, 0, everyone), training_seed, "order", last)
        mine = np.isin(everyone, [key[1] for key in one if key[0] == last])
        assert mine.all() or order[mine].max() < order[~mine].min()


@few
@given(st.integers(0, 5), chosen, st.sampled_from(KINDS), st.integers(1, 2000), st.integers(0, 9))
def test_other_sources_change_no_draw_and_scale_is_a_smaller_budget(root, seed, others, kind, tokens, training_seed):
    data = sets(root, seed)
    x = {"dataset": data[kind], "max_epochs": 900}
    alone = taken(plan_of(root, {"x": {**x, "tokens": tokens}}, seed=training_seed), "x")
    more = {k: {"dataset": data[k], "tokens": n, "max_epochs": 900} for k, n in others.items()}
    assert taken(plan_of(root, {**more, "x": {**x, "tokens": tokens}}, seed=training_seed), "x") == alone
    assert taken(plan_of(root, {"x": {**x, "tokens": 10 * tokens}}, seed=training_seed, scale="10%"), "x") == alone
    once = {"dataset": data[kind], "pool": 300, "epochs": 2, "max_epochs": 2}
    pool, scaled = (plan_of(root, {"x": {**once, "pool": p}}, seed=training_seed, scale=s) for p, s in ((300, 1), (600, 0.5)))
    assert taken(pool, "x") == taken(scaled, "x")


@few
@given(st.integers(0, 5), st.floats(0.05, 0.5), st.integers(0, 9), st.integers(0, 9), st.dictionaries(st.sampled_from(KINDS), st.integers(0, 900)))
def test_held_out_groups_are_never_trained_on_and_are_the_same_for_every_seed_and_budget(root, seed, fraction, held_seed, training_seed, tokens):
    data, held = sets(root, seed), {"fraction": round(fraction, 3), "seed": held_seed}
    plans = (
        [
            plan_of(root, {k: {"dataset": data[k], "epochs": 1} for k in KINDS}, held_out=held),
            plan_of(root, {k: {"dataset": data[k], "tokens": tokens.get(k, 7), "max_epochs": 900} for k in KINDS}, seed=training_seed, held_out=held),
        ]
        if min(_left(data, held).values())
        else []
    )
    assume(plans)
    shown = []
    for plan in plans:
        groups = {}
        for split in ("train", "heldout"):
            groups[split] = {plan.record(s).group for i in range(plan.sequences(split)) for s in plan.row(i, split).spans}
        assert not groups["train"] & groups["heldout"]
        shown.append([plan.row(i, "heldout").spans for i in range(plan.sequences("heldout"))])
    assert shown[0] == shown[1]


def _left(data: dict[str, str], held: dict[str, Any]) -> dict[str, int]:
    """Records that may be trained on, by source."""
    from pipelines.format.chance import held_out
    from pipelines.format.dataset import Dataset

    out = {}
    for name, path in data.items():
        d = Dataset.open(path)
        rows = [r for i in range(len(d.shards)) for r in d.index(i, ["group", "text_tokens", "visual_tokens"]).to_pylist()]
        there = ~held_out([r["group"] for r in rows], held["fraction"], held["seed"])
        out[name] = sum(bool(ok) and r["text_tokens"] + r["visual_tokens"] > 0 for ok, r in zip(there, rows, strict=True))
    return out


# ---- rows and cards --------------------------------------------------------------------------------------------------------------------


@few
@given(st.integers(0, 5), rules, st.floats(0.2, 2.2), st.sampled_from([64, 97, 300]), st.booleans())
def test_no_row_is_too_long_and_the_card_is_the_sum_of_its_rows(root, seed, rules, epochs, row, staged):
    data = sets(root, seed)
    entries: dict[str, Any] = {k: {"dataset": data[k], "max_epochs": 900, **rules} for k in KINDS}
    keys: dict[str, Any] = {"sequence_length": row, "held_out": {"fraction": 0.15}}
    if staged:
        share = dict.fromkeys(KINDS, 0.2)
        keys |= {"total": 6000, "stages": [{"until": "30%", "share": share}, {"until": 1, "share": {"text": 0.5, "vqa": 0.5}}]}
    else:
        entries = {k: e | {"epochs": epochs} for k, e in entries.items()}
    plan = plan_of(root, entries, **keys)
    assert check(plan.path, {"deep": True}) == []
    rows, card = Rows(plan), plan.card
    assert rows.length.max(initial=0) <= row
    assert (np.diff(rows.stage) >= 0).all() and len(rows.length) == card["records"]
    assert int(rows.length.sum()) == card["tokens"]["all"] + card["structure"] == card["records"] * row - card["padding"]
    for key in ("text", "visual", "loss", "all"):
        assert card["tokens"][key] == sum(s["tokens"][key] for s in card["sources"].values())
    assert card["fill"] == (round(int(rows.length.sum()) / (card["records"] * row), 6) if card["records"] else 0)


def test_image_first_and_captions_come_as_often_as_wished(root):
    data = of_records(root / "wishes", "image-text", records("image-text", [(4, 3, 5)] * 3000))
    for share in (0, 0.2, 1):
        plan = plan_of(root, {"x": {"dataset": data, "epochs": 1, "image_first": share, "captions": {"original": 3, "recaption": 1}}})
        mine = Rows(plan).of(0)
        n = len(mine["caption"])
        assert n == 3000
        assert abs(mine["image_first"].mean() - share) <= 5 * np.sqrt(share * (1 - share) / n)
        assert abs((mine["caption"] == 1).mean() - 0.75) <= 5 * np.sqrt(0.75 * 0.25 / n)


# ---- sameness --------------------------------------------------------------------------------------------------------------------------


def said(plan: Plan) -> tuple[str, list[dict[str, Any]]]:
    return plan.card["fingerprint"], plan.card["files"]


def test_the_order_of_lines_and_the_places_of_datasets_change_no_byte(root, tmp_path):
    data = sets(root, 1)
    keys = {"held_out": {"fraction": 0.1}, "seed": 3}
    entries = {k: {"dataset": data[k], "tokens": 301, "max_epochs": 900} for k in KINDS}
    first = plan_of(root, entries, **keys)
    shutil.copytree(Path(data["text"]).parent, tmp_path / "elsewhere")
    moved = {k: {**e, "dataset": str(tmp_path / "elsewhere" / k)} for k, e in reversed(entries.items())}
    assert said(plan_of(root, moved, **keys)) == said(first)


def test_another_process_with_another_hash_seed_locale_and_timezone_writes_the_same_bytes(root, tmp_path):
    data = sets(root, 2)
    entries = {k: {"dataset": data[k], "epochs": 1.2, "max_epochs": 2} for k in KINDS}
    keys = {"sequence_length": ROW, "held_out": {"fraction": 0.1, "seed": 1}, "seed": 5}
    (tmp_path / "m.yaml").write_text(json.dumps({**keys, "sources": entries}))
    here = Plan.open(make_plan(mixture(entries, tmp_path / "here", **keys)))
    for name, env in (("a", {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "Asia/Kolkata"}), ("b", {"PYTHONHASHSEED": "77", "LC_ALL": "C.UTF-8"})):
        command = [sys.executable, "-m", "pipelines.commands", "run", "mix", "-c", str(tmp_path / "m.yaml"), f"output={tmp_path / name}", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
        assert done.returncode == 0, done.stdout + done.stderr
        there = Plan.open(str(tmp_path / name))
        assert said(there) == said(here)
        for entry in there.card["files"]:
            assert (tmp_path / name / entry["path"]).read_bytes() == (tmp_path / "here" / entry["path"]).read_bytes()


@pytest.mark.ray
def test_ray_and_this_process_plan_the_same(root):
    from pipelines.engine import open_job

    data = sets(root, 3)
    document = mixture({k: {"dataset": data[k], "epochs": 1} for k in KINDS})
    found = []
    for where, cpus in (("local", 1), ("ray", 2)):
        with open_job(where, cpus=cpus) as job:
            found.append(said(Plan.open(make_plan(document, str(root / f"by-{where}"), job=job))))
    assert found[0] == found[1]


# ---- refusals --------------------------------------------------------------------------------------------------------------------------


@few
@given(st.integers(0, 5), st.sets(st.sampled_from(KINDS), min_size=1), st.floats(1.2, 6), st.sampled_from([1, 1.5, 2]), st.data())
def test_an_impossible_budget_names_the_source_and_both_ways_out_lead_out(root, seed, kinds, times, most, drawn):
    data = sets(root, seed)
    whole = plan_of(root, {k: {"dataset": data[k], "epochs": 1} for k in sorted(kinds)}).card["sources"]
    assume(all(whole[k]["available"] > 2 * ROW for k in kinds))
    over = drawn.draw(st.sampled_from(sorted(kinds - {"image-text"}) or ["image-text"]))
    assume(over != "image-text")  # whose passes hold now more, now less, as captions are drawn anew
    tokens = {k: int(whole[k]["available"] * (most * times if k == over else most / 2)) for k in kinds}
    entries = {k: {"dataset": data[k], "tokens": n, "max_epochs": most} for k, n in tokens.items()}
    with pytest.raises(BudgetError) as e:
        plan_of(root, entries)
    assert e.value.exit == 3 and f"sources.{over}" in str(e.value.where) and repr(over) in e.value.what
    epochs = re.search(rf"sources\.{over}\.max_epochs=(\d+)", str(e.value.next))
    scale = re.search(r"scale=([\d.e-]+)", str(e.value.next))
    assert epochs and scale
    more = entries | {over: {**entries[over], "max_epochs": int(epochs[1])}}
    assert abs(plan_of(root, more).card["sources"][over]["taken"] - tokens[over]) <= ROW
    assert plan_of(root, entries, scale=float(scale[1])).card["records"] > 0


@few
@given(st.integers(0, 5), st.sampled_from([("text", "vqa"), ("text", "video"), ("vqa", "image-text"), ("action-video", "text")]), st.integers(1, 3))
def test_the_best_reachable_size_is_reachable_and_a_sequence_more_is_not(root, seed, pair, most):
    data = sets(root, seed)
    entries = {k: {"dataset": data[k], "share": 0.5, "max_epochs": most} for k in pair}
    with pytest.raises(BudgetError) as e:
        plan_of(root, entries, total=10**7)
    best = int(re.search(r"at most ([\d,]+) tokens", str(e.value.allowed))[1].replace(",", ""))
    assume(best > 4 * ROW)
    assert abs(sum(s["taken"] for s in plan_of(root, entries, total=best).card["sources"].values()) - best) <= 2 * ROW
    with pytest.raises(BudgetError):
        plan_of(root, entries, total=best + 2 * ROW + 2)


# ---- fill ------------------------------------------------------------------------------------------------------------------------------


def field_mix(root: Path, n: int, cut: bool) -> dict[str, dict[str, Any]]:
    """The synthetic mix that packers are measured on: a quarter each of texts (log-normal), pairs, clips of 4 to 15 frames and questions, images
    of 256 tokens and two marks. Texts as such, or, where nothing may be cut, as questions without an image."""
    rng, q = np.random.default_rng(0), n // 4
    words = np.clip(rng.lognormal(6.2, 1, q), 8, 40_000 if cut else 4094).astype(int)
    pair = lambda size: shape("image-text", size)
    made: dict[str, tuple[str, list[Any]]] = {
        "pairs": ("image-text", [pair((256, int(c))) for c in rng.integers(8, 80, q)]),
        "clips": ("video", [[image(256, atom=k) for k in range(int(f))] for f in rng.integers(4, 16, q)]),
        "asked": ("vqa", [shape("vqa", (256, (int(a), 5))) for a in rng.integers(20, 300, q)]),
        "words": ("text", [[text(int(w))] for w in words]) if cut else ("vqa", [[text(int(w), atom=0, turn=0)] for w in words]),
    }
    entries = {}
    for name, (data, segments) in made.items():
        path = of_records(root / name, data, [Record.make(name, f"{i}", data, s) for i, s in enumerate(segments)])
        entries[name] = {"dataset": path, "epochs": 1}
    return entries


@pytest.mark.parametrize("cut, least", [(False, 0.975), (True, 0.99)])
def test_rows_of_the_fields_mix_are_full(tmp_path, cut, least, capsys):
    plan = plan_of(tmp_path, field_mix(tmp_path, 40_000, cut), sequence_length=4096)
    with capsys.disabled():
        print(f"\nfill of 40,000 samples in rows of 4,096, texts {'cut' if cut else 'whole'}: {plan.card['fill']:.4f}, {plan.card['records']:,} rows")
    assert plan.card["fill"] >= least
