"""What an ablation's numbers are asked: known truths are found, unknown ones are not claimed, and every table can be made."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from compared import compared, items_table

from trainer.report.compare.difference import Difference, at_once
from trainer.report.compare.equivalence import Equivalence
from trainer.report.compare.exchange_rate import ExchangeRate, isotonic, log_linear, read_off
from trainer.report.compare.ordering import Ordering, luck, pairs_hold, tau
from trainer.report.measured import BOTH, SEEDS, measured, paired
from trainer.report.published import published, table

LADDER = {"vqa20": 20, "vqa40": 40, "vqa60": 60, "vqa80": 80, "vqa100": 100}
BUDGETS = {a: {"vqa": 6000 * n, "text": 0} for a, n in LADDER.items()} | {"vqa20+text80": {"vqa": 119_700, "text": 480_300}}
SIZES = {a: f"{n}B" for a, n in LADDER.items()}


def saturating(budget: float) -> float:
    return 0.3 + 0.1 * float(np.log(budget / 20))


def test_a_true_difference_is_found_and_a_false_one_is_not():
    rows = Difference(metric="vqa", against="base").rows(compared({"base": 0.4, "better": 0.5, "same": 0.4}))
    by = {r["of"]: r for r in rows}
    assert by["better"]["found"] and by["better"]["low"] > 0.05 and by["better"]["p"] == pytest.approx(2 / 10_000)
    assert not by["same"]["found"] and by["same"]["low"] < 0 < by["same"]["high"]
    assert by["better"]["p_signs"] == 2 / 64 and by["better"]["resampled"] == BOTH and by["better"]["n"] == 300


def test_holm_runs_over_the_arms_asked_about():
    one = Difference(metric="vqa", of=["b"], against="a").rows(compared({"a": 0.4, "b": 0.41, "c": 0.5}))
    two = Difference(metric="vqa", against="a").rows(compared({"a": 0.4, "b": 0.41, "c": 0.5}))
    assert one[0]["p_holm"] == one[0]["p"] and two[1]["p_holm"] == 2 * two[1]["p"]


def test_each_arm_of_against_is_a_family_of_its_own():
    rows = Difference(metric="vqa", of=["x"], against=["a", "b"]).rows(compared({"a": 0.4, "b": 0.5, "x": 0.45}))
    assert [(r["against"], r["holm_over"]) for r in rows] == [("a", 1), ("b", 1)]


def test_perplexity_is_compared_through_nats_and_shown_as_perplexity():
    e = compared({"a": 2.0, "b": 2.1}, metric="text_perplexity")
    (row,) = Difference(metric="text_perplexity", against="a").rows(e)
    assert row["resampled"] == BOTH
    assert row["mean"] == pytest.approx(e.mean("b", "text_perplexity", "held_out") - e.mean("a", "text_perplexity", "held_out"), rel=1e-6)


def test_a_metric_without_items_is_resampled_over_seeds_alone_and_says_so():
    e = compared({"a": 3.0, "b": 3.4}, metric="frechet", items=0, seed_sd=0.05)
    part = Difference(metric="frechet", against="a")
    (row,) = part.rows(e)
    assert row["resampled"] == SEEDS and row["n"] == 0 and row["found"]
    assert "over seeds alone" in part.section(e)


def test_items_whose_mean_is_not_the_row_are_not_believed():
    e = compared({"a": 0.4, "b": 0.5})
    wrong = [{**r, "value": r["value"] + 0.1} if r["arm"] == "a" else r for r in e.results]
    assert paired(replace(e, results=wrong), ["a", "b"], "vqa").resampled == SEEDS


def test_arms_are_compared_on_the_seeds_that_both_have():
    e = compared({"a": 0.4, "b": 0.5})
    some = replace(e, results=[r for r in e.results if r["arm"] == "a" or r["seed"] < 4])
    assert paired(some, ["a", "b"], "vqa").seeds == (0, 1, 2, 3)


def test_one_seed_without_items_has_no_interval_and_no_p():
    e = compared({"a": 3.0, "b": 3.4}, metric="frechet", items=0, seeds=1)
    (row,) = Difference(metric="frechet", against="a").rows(e)
    assert row["p"] is None and row["low"] is None and not row["found"]
    assert np.isnan(measured(e, "a", "frechet").low)


def test_flow_loss_is_never_compared_between_encoders():
    e = compared({"a": 0.4, "b": 0.5, "c": 0.5}, metric="flow_loss")
    made_by = {"a": "siglip2 12", "b": "sd_vae 34", "c": "siglip2 12"}
    e = replace(e, runs={k: replace(r, encoders=(made_by[k[0]],)) for k, r in e.runs.items()})
    part = Difference(metric="flow_loss", against="a")
    assert [r["of"] for r in part.rows(e)] == ["c"]
    assert "not compared between arms of different encoders (a: siglip2, b: sd_vae)" in part.section(e)
    assert ExchangeRate(metric="flow_loss", ladder={"a": "1B", "b": "2B"}, of=["c"]).rows(e) == []


@pytest.mark.parametrize(("nats", "noise", "verdict"), [(0.0005, 0.01, "equivalent"), (0.05, 0.01, "different"), (0.004, 0.2, "not decided")])
def test_equivalence_says_one_of_three_things(nats, noise, verdict):
    e = compared({"text": 2.0, "text+video": 2.0 + nats}, metric="text_perplexity", noise=noise)
    part = Equivalence(metric="text_perplexity", against="text")
    (row,) = part.rows(e)
    assert row["verdict"] == verdict and row["margin"] == 0.005
    assert verdict in part.section(e) and verdict in part.answers(e)[0]


def test_equivalent_means_the_90_percent_interval_lies_inside_the_margin():
    for nats in (0.001, 0.003, 0.0045, 0.006):
        e = compared({"a": 2.0, "b": 2.0 + nats}, metric="text_perplexity", noise=0.02)
        (row,) = Equivalence(metric="text_perplexity", against="a").rows(e)
        inside = row["low90"] > -0.005 / 1.005 and row["high90"] < 0.005
        assert inside == (row["verdict"] == "equivalent")


def test_few_right_answers_are_no_evidence_of_equivalence():
    """One right answer of thirty against two: most draws hold none, and a ratio of them is no number."""
    e, runs = compared({"a": 1 / 30, "b": 2 / 30}, metric="scene_match", items=30), {}
    for (arm, seed), run in e.runs.items():
        v = np.zeros(30)
        v[(np.arange({"a": 1, "b": 2}[arm]) * 7 + seed) % 30] = 1
        runs[arm, seed] = replace(run, items={"scene_match": items_table(v)})
    results = [{**r, "value": 1 / 30 if r["arm"] == "a" else 2 / 30} for r in e.results]
    e, part = replace(e, runs=runs, results=results), Equivalence(metric="scene_match", against="a")
    (row,) = part.rows(e)
    assert row["resampled"] == BOTH and row["verdict"] == "not decided" and row["mean"] == pytest.approx(1)
    assert [row[k] for k in ("p", "low", "high", "low90", "high90")] == [None] * 5
    assert "nan" not in part.section(e) and "some draws leave a score of 0" in part.section(e)


def test_seeds_that_differ_equally_are_not_found_different_for_that():
    e = compared({"a": 3.0, "b": 3.4, "c": 3.0}, metric="frechet", items=0, seeds=6, noise=0.0)
    part = Difference(metric="frechet", against="a")
    for row in part.rows(e):
        assert (row["p"], row["low"], row["high"], row["p_holm"], row["found"]) == (None, None, None, None, False)
    assert part.rows(e)[0]["p_signs"] == 2 / 64 and "<strong>" not in part.section(e)
    assert "not tested against a, since all seeds differ by the same and no items were kept: b (+0.4" in part.answers(e)[0]
    assert np.isnan(measured(e, "a", "frechet").low)
    (same, _) = Equivalence(metric="frechet", against="a").rows(e)
    assert same["verdict"] == "not decided" and same["low"] is None


def test_the_largest_family_on_a_metric_is_what_holm_runs_over():
    arms = ["a", "b", "c", "d"]
    parts = [Difference(metric="vqa", of=["b", "gone"], against=["a", "c"]), Difference(metric="flow_loss", against="a"), Ordering(metric="vqa")]
    assert at_once(parts, "vqa", arms) == 1 and at_once(parts, "flow_loss", arms) == 3 and at_once(parts, "commands", arms) == 1
    e, part = compared({"a": 0.4, "b": 0.41, "c": 0.5}), Difference(metric="vqa", against="a")
    assert max(r["holm_over"] for r in part.rows(e)) == at_once([part], "vqa", e.arms) == 2


def test_an_isotonic_curve_never_falls_and_keeps_what_never_fell():
    x, rng = np.log([1.0, 2, 4, 8, 16]), np.random.default_rng(0)
    fitted = isotonic(x, rng.random((5, 200)))
    assert (np.diff(fitted, axis=0) >= -1e-12).all()
    rising = np.sort(rng.random((5, 50)), axis=0)
    assert np.allclose(isotonic(x, rising), rising)
    assert isotonic(x[:3], np.array([[1.0], [3.0], [2.0]])).ravel() == pytest.approx([1, 2.5, 2.5])


def test_a_score_is_read_off_between_rungs_and_outside_said_to_be():
    x, curve = np.log([10.0, 100.0]), np.array([[0.0, 0, 0, 0], [1.0, 1, 1, 1]])
    assert read_off(x, curve, np.array([0.5, 0.0, 1.5, -0.5])) == pytest.approx([10**1.5, 10, np.inf, -np.inf])
    assert log_linear(x, np.array([[0.0], [1.0]])).ravel() == pytest.approx([0, 1])


@pytest.mark.parametrize("curve", ["isotonic", "log_linear"])
def test_data_of_a_known_worth_is_found_to_be_worth_it(curve):
    true = {a: saturating(n) for a, n in LADDER.items()} | {"vqa20+text80": saturating(50)}
    said = {a: {"tokens": {"vqa": n * 10**9}} for a, n in LADDER.items()} | {"vqa20+text80": {"tokens": {"vqa": 20 * 10**9, "text": 80 * 10**9}}}
    e = compared(true, noise=0.05, items=400, budgets=BUDGETS, recipe={"arms": said})
    part = ExchangeRate(metric="vqa", ladder=SIZES, curve=curve)
    (row,) = part.rows(e)
    assert (row["of"], row["source"], row["own"], row["added"]) == ("vqa20+text80", "vqa", 20e9, {"text": 80e9})
    assert row["low"] <= 50e9 <= row["high"] and row["stands_at"] == pytest.approx(50e9, rel=0.15)
    assert row["stands_at_worth"] == row["stands_at"] - 20e9
    assert part.answers(e)[0].startswith("VQA accuracy — 80B text is worth ")


def test_what_an_arm_holds_itself_is_taken_off_to_the_token():
    held = {"a": {"vqa": 25_000}, "b": {"vqa": 125_000}, "x": {"vqa": 12_490, "text": 80_000}}
    e = compared({"a": 0.3, "b": 0.5, "x": 0.4}, budgets=held)
    (row,) = ExchangeRate(metric="vqa", ladder={"a": "25B", "b": "125B"}).rows(e)
    assert row["own"] == pytest.approx(12.49e9) and row["stands_at_worth"] == pytest.approx(row["stands_at"] - 12.49e9)


def test_seeds_that_differ_equally_give_a_rate_without_an_interval():
    held = {"a": {"vqa": 25}, "b": {"vqa": 125}, "x": {"vqa": 25, "text": 80}}
    e = compared({"a": 0.3, "b": 0.5, "x": 0.4}, items=0, seeds=3, noise=0.0, budgets=held)
    part = ExchangeRate(metric="vqa", ladder={"a": "25B", "b": "125B"})
    (row,) = part.rows(e)
    assert "low" not in row and row["stands_at_worth"] > 0 and "95 %:" not in part.answers(e)[0] and part.section(e)


def test_an_arm_above_the_ladder_is_beyond_it():
    true = {a: saturating(n) for a, n in LADDER.items()} | {"vqa20+text80": 0.9}
    e = compared(true, budgets=BUDGETS)
    part = ExchangeRate(metric="vqa", ladder=SIZES, of=["vqa20+text80"])
    (row,) = part.rows(e)
    assert row["stands_at"] is None and row["stands_at_side"] == 1 and row["share_beyond"] == 1
    assert "beyond the ladder" in part.section(e)


def test_where_less_is_better_the_ladder_falls():
    true = {a: 1 - saturating(n) for a, n in LADDER.items()} | {"vqa20+text80": 1 - saturating(50)}
    (row,) = ExchangeRate(metric="flow_loss", ladder=SIZES).rows(compared(true, metric="flow_loss", noise=0.05, budgets=BUDGETS))
    assert row["stands_at"] == pytest.approx(50e9, rel=0.15)


PAPER = {"vqa20": 0.346, "vqa20+video80": 0.361, "vqa20+image_text80": 0.369, "vqa20+text80": 0.379, "vqa100": 0.357}


def test_the_papers_order_holds_where_ours_is_the_same():
    (row,) = Ordering(metric="vqa").rows(compared(PAPER, noise=0.02, recipe={"experiment": "E7"}))
    assert row["order"] == row["ours"] == ["vqa20+text80", "vqa20+image_text80", "vqa20+video80", "vqa100", "vqa20"]
    assert row["tau"] == 1 and row["probability"] > 0.8 and row["luck"] == pytest.approx(1 / 120)


def test_a_reversed_order_does_not_hold():
    reverse = {a: -v for a, v in PAPER.items()}
    part = Ordering(metric="vqa")
    (row,) = part.rows(compared(reverse, noise=0.02, recipe={"experiment": "E7"}))
    assert row["tau"] == -1 and row["probability"] == 0
    assert "another scale" in part.section(compared(reverse, recipe={"experiment": "E7"}))


def test_arms_that_do_not_differ_hold_an_order_as_often_as_luck_does():
    found = [Ordering(metric="vqa").rows(compared(dict.fromkeys(PAPER, 0.4), random=k, recipe={"experiment": "E7"}))[0] for k in range(12)]
    assert np.mean([r["probability"] for r in found]) < 0.1
    assert 0.3 < np.mean([p["probability"] for r in found for p in r["pairs"]]) < 0.7


def test_ties_of_the_paper_are_in_either_order():
    theirs = np.array([3.0, 2, 2, 1])
    draws = np.array([[4.0, 4], [3, 2], [2, 3], [1, 1]])
    assert all(h.all() for h in pairs_hold(theirs, draws).values())
    assert luck(theirs) == pytest.approx(2 / 24)
    assert tau(theirs, np.array([4.0, 3, 2, 1])) == tau(theirs, np.array([4.0, 2, 3, 1])) == 1
    assert tau(theirs, np.array([4.0, 3, 3, 3])) == pytest.approx(3 / 5) and tau(theirs, -theirs) == -1


def test_an_order_with_ties_in_the_paper_can_be_ours():
    """E6 on the paper's own values, with its equal arms a hair apart: nothing of its order is broken."""
    arms = [a for entry in table()["experiments"]["E6"] if entry["metric"] == "flow_loss" for names in entry["values"] for a in names.split("|")[:1]]
    known = published("E6", list(dict.fromkeys(arms)), "flow_loss")[0]
    apart = {arm: v + 1e-5 * i for i, (arm, v) in enumerate(known.values.items())}
    part = Ordering(metric="flow_loss")
    e = compared(apart, metric="flow_loss", noise=1e-9, recipe={"experiment": "E6"})
    row = next(r for r in part.rows(e) if r["paper"] == known.name)
    assert len(set(known.values.values())) < len(known.values) and row["tau"] == 1 and row["holds"] and row["probability"] == 1
    assert any("is also ours: τ = 1.00" in s for s in part.answers(e))
    shown = part.section(e)
    assert all(f"over {p['worse']}" in shown for p in row["pairs"]) and len(row["pairs"]) > len(row["order"])


def test_seeds_that_differ_equally_say_nothing_of_the_chance_of_an_order():
    (row,) = Ordering(metric="vqa").rows(compared(PAPER, seeds=2, items=0, noise=0, recipe={"experiment": "E7"}))
    assert row["holds"] and row["tau"] == 1 and row["probability"] is None and row["pairs"] == []


def test_arms_that_all_score_the_same_have_no_order():
    part = Ordering(metric="vqa")
    (said,) = part.answers(compared(dict.fromkeys(PAPER, 0.4), seeds=1, items=0, noise=0, recipe={"experiment": "E7"}))
    assert "all arms are equal here" in said and "nan" not in said


def test_arms_that_are_asked_for_and_not_there_are_named():
    e = compared({"a": 0.4, "b": 0.5})
    assert "not among the arms: gone" in Difference(metric="vqa", of=["b", "gone"], against="a").section(e)
    assert Difference(metric="nothing", against="a").section(e) is None


PARTS = [
    Difference(metric="vqa", against=["a", "gone"]),
    Difference(metric="vqa", against="gone"),
    Difference(metric="gone", against="a"),
    Equivalence(metric="vqa", against="gone"),
    Equivalence(metric="vqa", of=["gone"], against="a"),
    ExchangeRate(metric="vqa", ladder={"a": "1B", "gone": "2B"}),
    ExchangeRate(metric="vqa", ladder={"a": "1B", "b": "2B"}, of=["gone"]),
    Ordering(metric="vqa"),
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("items", [0, 30])
def test_arms_metrics_and_seeds_that_are_not_there_stop_no_report(part, seeds, items):
    e = compared({"a": 0.4, "b": 0.5}, seeds=seeds, items=items)
    for given in (e, replace(e, results=[]), replace(e, results=[{**r, "value": float("nan")} for r in e.results]), replace(e, runs={})):
        assert all(isinstance(r, dict) for r in part.rows(given))
        assert all(isinstance(s, str) for s in part.answers(given))
        part.section(given)


def test_rows_are_plain_values():
    e = compared({**PAPER, "vqa20": 0.3}, recipe={"experiment": "E7"}, budgets=BUDGETS | {"vqa100": {"vqa": 600_000}})
    parts = [Difference(metric="vqa", against="vqa20"), Equivalence(metric="vqa", against="vqa20"), Ordering(metric="vqa")]
    parts.append(ExchangeRate(metric="vqa", ladder={"vqa20": "20B", "vqa100": "100B"}, of=["vqa20+text80"]))
    for part in parts:
        assert json.loads(json.dumps(part.rows(e), allow_nan=False)) == part.rows(e)


def test_arms_asked_about_other_items_are_compared_on_those_they_share():
    e = compared({"a": 0.4, "b": 0.5}, items=100, seed_sd=0.0)
    cut, rows = {}, [r for r in e.results if r["arm"] == "a"]
    for key, run in e.runs.items():
        table = run.items["vqa"].slice(0, 70) if key[0] == "b" else run.items["vqa"]
        cut[key] = replace(run, items={"vqa": table})
        if key[0] == "b":
            value = float(np.average(table["value"].to_numpy(), weights=table["weight"].to_numpy()))
            rows.append({**e.results[0], "arm": "b", "seed": key[1], "value": value})
    e = replace(e, runs=cut, results=rows)
    part = Difference(metric="vqa", against="a")
    (row,) = part.rows(e)
    assert row["n"] == 70 and row["shared"] == 0.7 and row["found"] and row["resampled"] == BOTH
    assert "those that they share, at the least 70 (70 %)" in part.section(e)


def test_what_cannot_be_tested_is_not_said_to_be_alike():
    e = compared({"a": 3.0, "b": 3.4}, metric="frechet", items=0, seeds=1)
    (said,) = Difference(metric="frechet", against="a").answers(e)
    assert "not tested against a, for want of seeds and shared items: b" in said and "told apart" not in said
