"""A sweep's evidence → the figure and the tables, and the law over mixtures, as a report shows them."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest

from pipelines.format.document import PartOf, parse
from trainer.report.compare.isoflop_law import IsoflopLaw
from trainer.report.compare.mixing_law import Loss, MixingLaw
from trainer.report.evidence import Evidence, RunEvidence
from trainer.report.figures.isoflop import Isoflop as Figure
from trainer.report.measures import KNOWN, measure
from trainer.report.page import render
from trainer.scaling import Isoflop
from trainer.scaling.parametric import Law

RUN = {"model": {"transfusion": {"size": "1.5b", "ffn": "per_modality"}}}
MIXTURE = {"sequence_length": 4096, "sources": {"text": {"dataset": "out/text"}, "pairs": {"dataset": "out/pairs"}}}
MOE = {"ffn": "moe", "experts": {"count": 256, "granularity": 16, "top_k": 16}}
SWEEP: dict[str, Any] = {
    "budgets": [6e18, 6e19, 3e20, 1e21],
    "share": {"text": 0.5, "pairs": 0.5},
    "sizes": {"widths": [640, 896, 1152, 1408, 1664, 1920, 2304, 2560, 2816, 3328, 4096, 4864, 6144, 7168], "aspect": 256},
    "near": {"points": 7},
    "families": {"dense": {}, "moe": {"budgets": [2e19, 6e19, 6e20], "model": MOE, "near": {"points": 7, "coefficient": 6}}},
}


def through(a: float, n: float, height: float, floor: float, alpha: float = 0.35, c: float = 6e20) -> Law:
    """The law with N_opt ~ C^a whose optimum at c is n, where the term of N is `height`."""
    beta = alpha * a / (1 - a)
    return Law(floor, height * n**alpha, alpha, alpha / beta * height * (c / 6 / n) ** beta, beta)


LAWS = {  # exponents and optima at 6e20 of arXiv 2603.03276, figure of E13
    ("dense", "language"): through(0.47, 2.41e9, 0.45, 1.9),
    ("dense", "vision"): through(0.37, 3.588e9, 0.08, 0.3),
    ("moe", "language"): through(0.41, 1.183e9, 0.42, 1.9),
    ("moe", "vision"): through(0.36, 1.827e9, 0.08, 0.3),
}


def evidence(seeds: int = 2, noise: float = 0.002, **changes: Any) -> Evidence:
    config = parse(Isoflop, {**SWEEP, **changes})
    points, random = config.points(RUN, MIXTURE), np.random.default_rng(0)
    results, runs, budgets = [], {}, {}
    for arm, p in points.items():
        d = p.steps * p.batch * 4096 * 0.98
        budgets[arm] = {"text": int(d / 2), "pairs": int(d / 2)}
        for seed in range(seeds):
            text = LAWS[p.family, "language"].loss(p.active, d) * math.exp(random.normal(0, noise))
            flow = LAWS[p.family, "vision"].loss(p.active, d) * math.exp(random.normal(0, noise))
            results += [{"arm": arm, "seed": seed, "metric": m, "split": "held_out", "value": v, "n": 9, "chance": None}
                        for m, v in (("text_perplexity", math.exp(text)), ("flow_loss", flow))]  # fmt: skip
            tokens = {s: {"payload": int(d / 2), "text": int(d / 2) if s == "text" else 0} for s in ("text", "pairs")}
            runs[arm, seed] = RunEvidence(arm, seed, p.steps, tokens, tokens, flops=p.budget * 1.01)
    card = {"recipe": {"isoflop": config.model_dump(mode="json"), "run": RUN, "mixture": MIXTURE}}
    return Evidence("isoflop", list(points), list(range(seeds)), results, runs, budgets, card=card)


@pytest.fixture(scope="module")
def seen() -> Evidence:
    return evidence()


def test_the_figure_draws_every_budget_and_marks_only_minima_inside(seen):
    shown = Figure().section(seen)
    assert shown is not None
    assert re.sub(r"<[^>]*>", " ", shown).count("dense: language") == 1 and shown.count("<svg") == 2
    for words in ("N, active parameters", "training FLOPs", "loss, nats a token", "loss, squared error", "6×10¹⁸ FLOPs", "Every budget has one"):
        assert words in shown, words


def test_a_budget_without_a_minimum_is_said_in_figure_and_table():
    short = evidence(budgets=[6e18, 6e19, 3e20, 4e23], families={"dense": {}})
    assert "dense language at 4e23" in (Figure().section(short) or "")
    (language, *_) = IsoflopLaw().rows(short)
    assert list(language["missing"]) == ["4e23"] and language["budgets"] == [6e18, 6e19, 3e20] and language["a"]["value"] > 0


def test_the_tables_hold_the_laws_that_made_the_losses(seen):
    rows = IsoflopLaw().rows(seen)
    for row in rows[:4]:
        law = LAWS[row["family"], row["modality"]]
        assert row["a"]["low"] - 0.02 < law.a < row["a"]["high"] + 0.02, row
        assert row["a"]["value"] == pytest.approx(law.a, abs=0.05) and row["parametric"]["alpha"]["value"] == pytest.approx(law.alpha, rel=0.35)
    dense = next(r for r in rows if r.get("gap") and r["family"] == "dense")
    assert dense["gap"]["value"] == pytest.approx(0.10, abs=0.05) and dense["language_above_vision"] > 0.9
    assert dense["growth"]["1000"]["value"] == pytest.approx(1000 ** dense["power"]["value"])
    sparse = [r for r in rows if "size" in r and r["modality"] == "language"]
    assert sparse and {r["family"] for r in sparse} == {"moe"} and sparse[0]["budget"] == 2e19


def test_the_plan_stands_in_the_report_with_what_was_spent(seen):
    shown = IsoflopLaw().section(seen)
    assert shown is not None and "1.010" in shown and "another scale" in shown
    assert all(arm in shown for arm in seen.arms)
    for word in ("N active", "embedding", "D planned", "C / 6N", "sparsity", "spent / C"):
        assert word in shown


def test_the_answers_say_in_a_sentence_what_was_found_and_what_was_not(seen):
    dense, sparse = IsoflopLaw().answers(seen)
    assert dense.startswith("dense: language N_opt ~ C^a with a = 0.4") and "vision's grows more slowly than language's in 100 %" in dense
    assert sparse.startswith("moe: ") and "from 3 budgets" in sparse
    few = evidence(budgets=[6e18, 4e23], families={"dense": {}})
    assert IsoflopLaw().answers(few) == ["dense: no law for language and vision: fewer than two budgets have a minimum inside the ladder."]
    (proposed,) = MixingLaw(draws=20).answers(mixtures())
    assert proposed.startswith("The next mixture to try: text ") and MixingLaw().answers(mixtures(4)) == []


def test_an_ablation_that_is_no_sweep_has_neither(seen):
    other = Evidence("x", seen.arms, seen.seeds, seen.results, seen.runs, seen.budgets, card={"recipe": {}})
    assert Figure().section(other) is None and IsoflopLaw().section(other) is None and IsoflopLaw().rows(other) == []


def test_both_parts_stand_on_the_page_where_the_document_names_them(seen):
    card = {**seen.card, "recipe": {**seen.card["recipe"], "report": ["isoflop"], "compare": ["isoflop_law"]}}
    page = render(Evidence("isoflop", seen.arms, seen.seeds, seen.results, seen.runs, seen.budgets, card=card))
    assert page.index("IsoFLOP curves") < page.index("Laws of the sweep") < page.index('id="arms"')


# ---- mixtures --------------------------------------------------------------------------------------------------------------------------


def mixtures(count: int = 16, seeds: int = 2) -> Evidence:
    random = np.random.default_rng(0)
    names = [f"arm{i}" for i in range(count)]
    results, budgets = [], {}
    for arm in names:
        share = random.dirichlet([0.7, 0.7, 0.7])
        budgets[arm] = dict(zip(("text", "pairs", "video"), (int(1e6 * s) for s in share), strict=True))
        for seed in range(seeds):
            text = 2 + 0.5 * (share @ [1, 0.2, 0.01]) ** -0.4 + random.normal(0, 0.004)
            flow = 0.4 + 0.1 * (share @ [0.01, 1, 0.5]) ** -0.4 + random.normal(0, 0.001)
            results += [{"arm": arm, "seed": seed, "metric": m, "split": "held_out", "value": v}
                        for m, v in (("text_perplexity", math.exp(text)), ("flow_loss", flow), ("vqa", 1 - flow))]  # fmt: skip
    return Evidence("mixtures", names, list(range(seeds)), results, {}, budgets)


def test_the_law_over_mixtures_names_what_each_loss_wants_and_a_next_mixture():
    text, flow, proposed = MixingLaw(draws=20).rows(mixtures())
    assert max(text["worth"], key=text["worth"].get) == "text" and max(flow["worth"], key=flow["worth"].get) == "pairs"
    assert text["rank"] > 0.9 and text["error"] < 0.3 * text["null"]
    assert sum(proposed["next"].values()) == pytest.approx(1) and proposed["next"]["video"] < 0.2 and proposed["inside"]
    assert "The next mixture" in (MixingLaw(draws=0).section(mixtures()) or "")


def test_scores_of_which_more_is_better_count_as_errors():
    part = parse(MixingLaw, {"losses": [{"metric": "vqa"}], "draws": 0})
    score, _ = part.rows(mixtures())
    flow, _ = parse(MixingLaw, {"losses": [{"metric": "flow_loss"}], "draws": 0}).rows(mixtures())
    assert score["worth"] == pytest.approx(flow["worth"], rel=1e-3)


def test_too_few_arms_are_answered_with_the_reason():
    assert "needs at least 5" in (MixingLaw().section(mixtures(4)) or "") and MixingLaw().rows(mixtures(4)) == []
    assert "no arm has all of vqa.choice" in (parse(MixingLaw, {"losses": [{"metric": "vqa.choice"}]}).section(mixtures()) or "")


def test_bounds_are_kept_and_unknown_sources_named():
    part = parse(MixingLaw, {"bounds": {"video": ["30%", "100%"]}, "draws": 0})
    assert part.rows(mixtures())[-1]["next"]["video"] == pytest.approx(0.3, abs=1e-4)
    assert "no arm trains on &#x27;sound&#x27;" in (parse(MixingLaw, {"bounds": {"sound": [0, 1]}}).section(mixtures()) or "")


def test_the_parts_are_found_by_their_file_names():
    assert PartOf("trainer.report.compare").find("mixing_law") is MixingLaw and PartOf("trainer.report.figures").find("isoflop") is Figure

@pytest.mark.parametrize("metric", [m for m in KNOWN if measure(m).sign])
def test_every_measure_is_sought_the_way_that_is_better(metric):
    """The source that makes it better gets all of the next mixture."""
    random, results, budgets = np.random.default_rng(1), [], {}
    for i in range(12):
        share = random.uniform(0.05, 0.95)
        budgets[f"a{i}"] = {"good": int(1e6 * share), "bad": int(1e6 * (1 - share))}
        value = 0.4 + 0.3 * measure(metric).sign * share**0.5
        results += [{"arm": f"a{i}", "seed": 0, "metric": metric, "split": "held_out", "value": value}]
    seen = Evidence("x", list(budgets), [0], results, {}, budgets)
    found = MixingLaw(losses=[Loss(metric=metric)], bounds={"good": (0.0, 1.0)}, draws=0).rows(seen)
    assert found[-1]["next"]["good"] > 0.9


def test_a_metric_neither_way_of_which_is_better_is_no_loss():
    with pytest.raises(ValueError, match="neither more nor less"):
        Loss(metric="experts.load")


def test_laws_that_predict_nothing_propose_nothing():
    seen = mixtures(seeds=1)
    random = np.random.default_rng(5)
    results = [{**r, "value": 2 + 0.1 * random.random()} for r in seen.results]
    noise = Evidence("x", seen.arms, seen.seeds, results, {}, seen.budgets)
    rows, (said,) = MixingLaw(draws=20).rows(noise), MixingLaw(draws=20).answers(noise)
    assert all(r["error"] >= r["null"] for r in rows[:-1]), "the draw of this test must be noise"
    assert rows[-1]["next"] is None and said.startswith("No next mixture") and "next mixture, at" not in str(MixingLaw(draws=20).section(noise))


def test_the_next_mixture_is_compared_with_an_arm_of_as_many_tokens():
    """Of arms of several totals, the best shares belong to a small one; a gain over that would be a gain by tokens."""
    results, budgets = [], {}
    for photos, text in itertools.product((20, 40, 80, 160), (20, 40, 80, 160)):
        arm, d = f"photos{photos}+text{text}", (photos * 1e4, text * 1e4)
        budgets[arm] = {"photos": int(d[0]), "text": int(d[1])}
        results += [{"arm": arm, "seed": 0, "metric": "flow_loss", "split": "held_out", "value": 0.4 + (d[0] / 1e5 + 0.05 * d[1] / 1e5) ** -0.5}]
    seen = Evidence("x", list(budgets), [0], results, {}, budgets)
    part = MixingLaw(losses=[Loss(metric="flow_loss")], draws=20)
    last, (said,) = part.rows(seen)[-1], part.answers(seen)
    assert last["trained"] and last["best_arm"] == "photos160+text160" and last["gain"]["value"] > 0 and last["chance"] > 0.9
    assert "over photos160+text160, the best arm of as many tokens" in said
    part = MixingLaw(losses=[Loss(metric="flow_loss")], draws=20, total=10_000_000)
    last, (said,) = part.rows(seen)[-1], part.answers(seen)
    assert not last["trained"] and last["chance"] is None and "has the shares of photos160+text20" in said


def test_weights_count_beside_the_spread_of_each_loss():
    part = lambda **w: MixingLaw(losses=[Loss(metric="text_perplexity"), Loss(metric="flow_loss", **w)], draws=0).rows(mixtures())[-1]["next"]
    assert part(weight=3) != part() == part(weight=1) and part(weight=3)["text"] < part()["text"] < part(weight=0.3)["text"]
