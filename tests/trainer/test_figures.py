"""Figures of a report draw the numbers they are given, all of them, and say what is missing."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipelines.media import images
from tests.trainer.shown import ablation, words
from trainer.report import beside, pictures, tokens
from trainer.report.accuracy import section as accuracy
from trainer.report.figures.bars import Bars, grouped
from trainer.report.figures.grid import Grid
from trainer.report.figures.lines import Lines
from trainer.report.figures.progression import Progression
from trainer.report.figures.saturation import Saturation, saturated
from trainer.report.measured import paired
from trainer.report.measures import measure
from trainer.report.resampling import contrast, resample

ARMS = {"text_only": {"text": 100}, "with_video": {"text": 50, "video": 50}, "with_pairs": {"text": 50, "pairs": 50}}
PPL = {"text_only": 13.83, "with_video": 13.75, "with_pairs": 13.98}
VQA = {"text_only": 0.31, "with_video": 0.361, "with_pairs": 0.379}
JPEG = images.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
GRID = {f"p{p}t{t}": {"pairs": p * 1_000_000 + (7 * t if p else 0), "text": t * 1_000_000} for p in (0, 25, 100) for t in (0, 50, 100) if p + t}
FLOW = {a: 0.5 + 0.03 / (1 + b["text"] / 5e7) + 0.02 / (1 + b["pairs"] / 5e7) for a, b in GRID.items()}
SHARES = (0.1, 1, 10, 25)
ATE = dict(zip([f"nwm{s}" for s in SHARES], (1.8, 1.22, 1.2, 1.24), strict=True))
SWEEP = {f"moe{n}": {"model": {"transfusion": {"experts": {"count": n}}}} for n in (16, 64, 256, 1008)}


def world(seeds: tuple[int, ...] = (0, 1, 2)):
    arms = {f"nwm{s}": {"action": int(s * 1e6), "text": int(1e8 - s * 1e6)} for s in SHARES}
    return ablation(arms, {"planning.ate": ATE}, seeds, spread=0.0 if len(seeds) == 1 else 0.02)


def sweep(seeds: tuple[int, ...] = (0, 1)):
    values = {"moe16": 17.9, "moe64": 16.3, "moe256": 14.8, "moe1008": 14.0, "dense": 18.4}
    return ablation({a: {"text": 10} for a in values}, {"text_perplexity": values}, seeds, runs=SWEEP)


def steps():
    values = {"shared": (15.93, 0.45), "split": (15.13, 0.47), "siglip": (15.06, 0.57), "moe": (12.49, 0.63)}
    metrics = {"text_perplexity": {a: v[0] for a, v in values.items()}, "scene_match": {a: v[1] for a, v in values.items()}}
    chosen = [{"name": "feed-forward", "arms": ["shared", "split"]}, {"name": "encoder", "arms": ["split", "siglip"]}]
    part = Progression(metrics=list(metrics), steps=[*chosen, {"name": "capacity", "arms": ["siglip", "moe"]}])
    return part, ablation({a: {"text": 10} for a in values}, metrics)


def every():
    """All parts with evidence that they draw."""
    yield Bars(metric="vqa", baselines=["constant", "text_only"]), ablation(ARMS, {"vqa": VQA, "vqa.constant": dict.fromkeys(ARMS, 0.28)}, items=30)
    yield Bars(metric=["vqa", "text_perplexity"]), ablation(ARMS, {"vqa": VQA, "text_perplexity": PPL})
    yield Grid(metric="flow_loss", x="text", lines="pairs"), ablation(GRID, {"flow_loss": FLOW})
    yield Saturation(metric="planning.ate", x="action"), world()
    yield Lines(metric="text_perplexity", x="experts.count"), sweep()
    yield steps()


@pytest.mark.parametrize("k", range(6))
def test_a_figure_is_the_same_bytes_for_the_same_evidence_and_nothing_for_none(k):
    part, evidence = list(every())[k]
    page = part.section(evidence)
    assert page == part.section(evidence) and "<svg" in page and "<script" not in page and "&lt;" not in page
    assert part.section(replace(evidence, results=[])) is None


@pytest.mark.parametrize("k", range(6))
def test_every_axis_with_ticks_has_a_label_and_no_word_is_small(k):
    part, evidence = list(every())[k]
    page = part.section(evidence)
    assert not unlabelled(page)
    sizes = [float(s) for s in re.findall(r"font(?:-size)?: (?:\w+ )?([\d.]+)px", page)]
    assert sizes and min(sizes) * 4 / 3 >= 11  # a point of the drawing is 4/3 px on the page, at least


def unlabelled(page: str) -> list[str]:
    """Axes that have words at their ticks and no label; axes of names need none."""
    import xml.etree.ElementTree as ET

    svg = page[page.index("<svg") : page.index("</svg>") + 6].replace("xlink:href", "href").replace("<svg ", "<svg xmlns='s' ", 1)
    root, out = ET.fromstring(svg), []
    for axis in root.iter("{s}g"):
        if re.search(r"matplotlib\.axis_\d+$", axis.get("id", "")):
            ticks = [g for g in axis if re.search(r"[xy]tick_\d+$", g.get("id", ""))]
            said = [t.text or "" for g in ticks for t in g.iter("{s}text")]
            labels = [g for g in axis if re.search(r"text_\d+$", g.get("id", ""))]
            names = said and all(re.search(r"[A-Za-z_]{2}", s) for s in said)
            if said and not names and not labels:
                out.append(f"{axis.get('id')}: {said}")
    return out


def test_an_axis_without_a_label_would_be_found():
    from trainer.report.drawing import draw

    assert unlabelled(draw(lambda f: f.subplots().plot([1, 2], [3, 4])))


def test_bars_say_every_arms_value_and_its_unit():
    said = words(Bars(metric="vqa").section(ablation(ARMS, {"vqa": VQA})))
    assert {"31.0", "36.1", "37.9"} <= set(said) and measure("vqa").label in " ".join(said)


def test_an_arm_without_a_number_keeps_its_row_and_says_so():
    page = Bars(metric="vqa").section(ablation(ARMS, {"vqa": VQA | {"with_pairs": math.nan}}))
    assert "not measured" in words(page) and {"with_pairs", "31.0"} <= set(words(page)) and "nan" not in page.lower().replace("finan", "")


def test_a_control_that_is_not_a_number_draws_no_line():
    values = {"vqa": VQA, "vqa.constant": dict.fromkeys(ARMS, math.nan)}
    page = Bars(metric="vqa", baselines=["constant", "shuffled"]).section(ablation(ARMS, values))
    assert "constant" not in page and "NaN" not in page


def test_a_baseline_is_a_control_row_or_an_arms_value():
    values = {"vqa": VQA, "vqa.constant": dict.fromkeys(ARMS, 0.28)}
    said = words(Bars(metric="vqa", baselines=["constant", "text_only"]).section(ablation(ARMS, values)))
    assert any("constant" in w for w in said) and said.count("text_only") == 2  # its row, its line


def test_values_too_close_for_bars_are_points_and_the_caption_says_it():
    close = Bars(metric="text_perplexity").section(ablation(ARMS, {"text_perplexity": PPL}))
    assert "does not start at nothing" in close
    assert "does not start at nothing" not in Bars(metric="vqa").section(ablation(ARMS, {"vqa": {**VQA, "text_only": 0.1}}))


def test_whiskers_say_what_was_resampled():
    part = Bars(metric="vqa")
    assert "seeds and held-out items resampled" in part.section(ablation(ARMS, {"vqa": VQA}, items=40))
    assert "seeds" in part.section(ablation(ARMS, {"vqa": VQA})) and "no items" in part.section(ablation(ARMS, {"vqa": VQA}, seeds=(0,)))


def test_one_arm_with_one_seed_is_a_figure_too():
    assert "31.0" in words(Bars(metric="vqa").section(ablation({"text_only": {"text": 9}}, {"vqa": VQA}, seeds=(0,))))
    assert Lines(metric="vqa", x="text").section(ablation({"text_only": {"text": 9}}, {"vqa": VQA}, seeds=(0,)))


def test_several_splits_are_a_bar_each_or_a_panel_each_where_bars_would_hide_the_arms():
    values = {"text_perplexity|held_out:text": PPL, "text_perplexity|set:notes": {a: 11 + v for a, v in PPL.items()}}
    values |= {"vqa|held_out:colour": {**VQA, "text_only": 0.1}, "vqa|held_out:shape": {**VQA, "text_only": 0.2}}
    evidence = ablation(ARMS, values)
    said = words(Bars(metric="text_perplexity", split=["held_out:text", "set:notes"]).section(evidence))
    assert any("notes" in w for w in said) and any(w.startswith("24.8") for w in said) and any(w.startswith("13.8") for w in said)
    count = lambda metric, *splits: len(grouped(evidence, [metric], list(splits), evidence.arms, []))
    assert count("text_perplexity", "held_out:text", "set:notes") == 2 and count("vqa", "held_out:colour", "held_out:shape") == 1


def test_values_far_apart_stand_on_a_logarithmic_axis():
    said = words(Bars(metric="text_perplexity").section(ablation(ARMS, {"text_perplexity": {**PPL, "with_pairs": 2683.6}})))
    assert {"2,684", "100"} <= set(said)


def test_a_baseline_of_several_splits_is_that_of_each():
    values = {f"rollout.pixel{c}|horizon:{h}": dict.fromkeys(ARMS, v + h) for c, v in (("", 0.1), (".copy", 0.7)) for h in (1, 8)}
    (group, *others) = grouped(ablation(ARMS, values), ["rollout.pixel"], ["horizon:1", "horizon:8"], list(ARMS), ["copy"])
    lined = {split: v for g in (group, *others) for _, by_bar in g.lines for (_, split), v in by_bar.items()}
    assert lined == {"horizon:1": pytest.approx(1.7), "horizon:8": pytest.approx(8.7)}


def test_the_papers_values_stand_beside_ours_as_another_scale():
    arms = {a: {"vqa": 10} for a in ("vqa20", "vqa20+text80", "vqa20x5")}
    evidence = ablation(arms, {"vqa": dict(zip(arms, (0.41, 0.43, 0.42), strict=True))})
    evidence.card["recipe"]["experiment"] = "E7"
    page = accuracy(evidence)
    assert {"34.6", "37.9", "41.0"} <= set(words(page)) and "another scale" in page


@pytest.mark.parametrize(("metric", "split"), [("dpg", "all"), ("scene_match", "held_out")])
def test_beside_the_papers_benchmark_stands_ours_or_what_stands_for_it(metric, split):
    arms = {"siglip2": {"pairs": 10}, "sd_vae": {"pairs": 10}}
    evidence = ablation(arms, {f"{metric}|{split}": {"siglip2": 0.25, "sd_vae": 0.125}}, spread=0.0)
    evidence.card["recipe"]["experiment"] = "E2"
    shown = str(beside.section(evidence))
    assert all(f">{value}<" in shown for value in ("0.593", measure(metric).said(0.25), measure(metric).said(0.125)))
    evidence.card["recipe"]["compare"] = [{"ordering": {"metric": "dpg", "split": "all"}}]
    assert "0.593" not in str(beside.section(evidence))


def test_a_grid_has_a_line_a_budget_and_carries_its_unimodal_value_across():
    page = Grid(metric="flow_loss", x="text", lines="pairs").section(ablation(GRID, {"flow_loss": FLOW}))
    said = " ".join(words(page))
    gain = FLOW["p25t100"] - FLOW["p25t0"]
    assert f"25M  −{abs(gain):.3g}" in said.replace("25M −", "25M  −") and "none" in said and "no pairs" in said
    assert "budget of text, payload tokens" in said


def test_budgets_within_three_percent_are_one_line():
    found = Grid(metric="flow_loss", x="text", lines="pairs").of(ablation(GRID, {"flow_loss": FLOW}), "flow_loss")
    assert [len(v) for v in found.values()] == [2, 3, 3]


def shares(moved: dict[str, tuple[float, ...]], metric: str = "planning.ate"):
    """The world's arms, each seed's value moved by so much from what all arms of that seed share."""
    evidence = world((0, 1, 2, 3))
    for row in evidence.results:
        own, together = moved[row["arm"]][row["seed"]], (0.4, -0.3, 0.2, -0.3)[row["seed"]]
        row["metric"], row["value"] = metric, 2 + together + own
    part = Saturation(metric=metric, x="action")
    return part, evidence, saturated(evidence, metric, "held_out", part.of(evidence, metric))


EVEN, UNEVEN = (0.1, 0.11, 0.09, 0.1), (0.1, -0.09, 0.06, -0.05)


def test_saturation_is_the_first_share_from_which_none_is_told_apart_from_the_best():
    part, evidence, found = shares({"nwm0.1": EVEN, "nwm1": UNEVEN, "nwm10": (0.0,) * 4, "nwm25": UNEVEN})
    assert (found.best[1], found.first[1], found.beyond) == ("nwm10", "nwm1", ())
    assert found.gap == pytest.approx(0.005) and found.low < 0 < found.high
    page = part.section(evidence)
    assert "from 1 % action up to the best (10 %, nwm10) no share is told apart" in page and "nwm1 differs from the best by" in page
    assert any("not told apart from the best from 1 %" in w for w in words(page))


def test_a_difference_that_every_seed_shows_is_no_saturation_however_wide_the_intervals_of_means_are():
    part, evidence, found = shares({"nwm0.1": tuple(3 * x for x in EVEN), "nwm1": tuple(2 * x for x in EVEN), "nwm10": EVEN, "nwm25": (0.0,) * 4})
    assert part.of(evidence, "planning.ate")[2][2].low < part.of(evidence, "planning.ate")[3][2].mean  # the interval of its mean holds the best's
    assert found.first is found.best
    assert "is best at 25 % action (nwm25), and every smaller share is worse: not saturated here" in part.section(evidence)


def test_a_share_too_large_is_named_and_more_may_be_better():
    part, evidence, found = shares({"nwm0.1": EVEN, "nwm1": (0.0,) * 4, "nwm10": UNEVEN, "nwm25": EVEN})
    assert found.first is found.best and found.beyond == ("nwm25",)
    assert "every smaller share is worse; larger shares that are worse: nwm25." in part.section(evidence)
    down = {a: tuple(-x for x in v) for a, v in {"nwm0.1": EVEN, "nwm1": UNEVEN, "nwm10": (0.0,) * 4, "nwm25": EVEN}.items()}
    _, _, found = shares(down, "vqa")
    assert (found.best[1], found.first[1], found.beyond) == ("nwm10", "nwm1", ("nwm25",))


def test_an_arm_told_apart_only_because_three_were_tried_is_not_worse():
    """p of about 3 %: below 5 % alone, above it among three."""
    close = (0.1, 0.05, 0.16, 0.11)
    _, _, alone = shares({"nwm0.1": close, "nwm1": (0.0,) * 4, "nwm10": close, "nwm25": close})
    p = contrast(resample(paired(shares({"nwm0.1": close, "nwm1": (0.0,) * 4, "nwm10": close, "nwm25": close})[1], ["nwm0.1", "nwm1"], "planning.ate",
                                 "held_out").arms), [1, -1]).p()  # fmt: skip
    assert 0.05 / 3 < p < 0.05 and alone.first[1] == "nwm0.1" and alone.beyond == ()


def test_controls_are_lines_beside_the_curve():
    arms = {f"nwm{s}": {"action": int(s * 1e6), "text": int(1e8 - s * 1e6)} for s in SHARES}
    bounds = {f"planning.ate.{name}": dict.fromkeys(ATE, value) for name, value in (("uninformed", 2.5), ("simulator", 0.3))}
    evidence = ablation(arms, {"planning.ate": ATE, **bounds})
    said = words(Saturation(metric="planning.ate", x="action", baselines=["uninformed", "simulator", "copy"]).section(evidence))
    assert {"plans whose costs tell nothing", "the true simulator"} <= set(said) and "copy of the last frame" not in said


def test_one_seed_without_items_claims_no_saturation():
    page = Saturation(metric="planning.ate", x="action").section(world((0,)))
    assert "nothing says from which share" in page and "told apart from the best from" not in page


def test_seeds_that_differ_equally_claim_no_saturation():
    part, evidence, found = shares({"nwm0.1": (0.1,) * 4, "nwm1": (0.0,) * 4, "nwm10": (0.2,) * 4, "nwm25": (0.1,) * 4})
    assert found.best[1] == "nwm1" and found.first is None and "seeds do not differ" in part.section(evidence)


def test_a_sweep_finds_the_key_wherever_it_is_and_arms_without_it_are_baselines():
    page = Lines(metric="text_perplexity", x="experts.count", name="experts a layer").section(sweep())
    said = words(page)
    assert {"16", "64", "256", "1008", "dense"} <= set(said) and "experts a layer" in said


def test_words_on_an_axis_keep_the_order_of_the_arms():
    runs = {"a": {"flow": {"predict": "v"}}, "b": {"flow": {"predict": "x"}}}
    evidence = ablation({"a": {"text": 1}, "b": {"text": 1}}, {"flow_loss": {"a": 0.5, "b": 0.4}}, runs=runs)
    assert Lines(metric="flow_loss", x="flow.predict").places(evidence) == {"a": 0.0, "b": 1.0}


def test_a_progression_keeps_the_better_arm_and_counts_from_what_was_kept():
    part, evidence = steps()
    kept = [a for _, a, chosen in part.rows({("text_perplexity", a): m for a, m in measured(evidence)}) if chosen]
    assert kept == ["split", "siglip", "moe"]
    said = " ".join(words(part.section(evidence)))
    assert "−2.6" in said and "+10" in said and "capacity" in said


def measured(evidence):
    from trainer.report.measured import measured as of

    return [(a, of(evidence, a, "text_perplexity")) for a in evidence.arms]


def test_painted_pictures_need_no_question_and_stand_arm_by_arm():
    evidence = ablation(ARMS, {"flow_loss": PPL})
    kept = pa.table({"caption": ["a red square", "a red square"], "held_out": [JPEG, JPEG], "sampled": [JPEG, JPEG]})
    runs = {k: replace(r, pictures=kept) if k[1] == 0 and k[0] != "text_only" else r for k, r in evidence.runs.items()}
    page = pictures.section(replace(evidence, runs=runs))
    assert page.count("<img") == 6 and page.count("held out</figcaption>") == 2 and page.count("with_pairs</figcaption>") == 2
    assert pictures.section(evidence) is None


def test_tokens_are_drawn_by_source():
    said = words(tokens.section(ablation(ARMS, {"vqa": VQA})))
    assert {"text", "video", "pairs", "tokens of one run"} <= set(said)


@pytest.mark.parametrize("bad", ["<script>alert(1)</script>", "</text></svg><b>", "$\\frac{1}{0", "\x1b[2J\u202e"])
def test_names_out_of_data_stay_words(bad):
    arms = {a: {bad: n, "text": 100 - n} for a, n in (("a", 0), ("b", 50), ("c", 90))}
    values = {"vqa": {"a": 0.1, "b": 0.2, "c": 0.3}, f"vqa|set:{bad}": {"a": 0.1, "b": 0.2, "c": 0.3}}
    evidence = ablation(arms, values)
    parts = [Bars(metric="vqa", split=["held_out", f"set:{bad}"], title=bad), Grid(metric="vqa", x=bad, lines="text"), Lines(metric="vqa", x=bad)]
    for part in [*parts, Saturation(metric="vqa", x=bad)]:
        page = part.section(evidence)
        assert page and "<script" not in page and "<b>" not in page and "\x1b" not in page and "\u202e" not in page
