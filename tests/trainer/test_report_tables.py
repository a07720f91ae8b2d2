"""The tables of a report and its Markdown: right for any ablation, wrong about nothing, open to no injection."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from compared import compared

from trainer.report import arms, beside, caveats, config_diff, cost, results
from trainer.report.markdown import escaped, markdown
from trainer.report.measured import measured
from trainer.report.measures import KNOWN, is_control, measure, said_split
from trainer.report.page import answers, render, sections
from trainer.report.power import detectable
from trainer.report.published import BASIS, experiment, published, table

DIFF = {
    "base": "a",
    "undeclared": 1,
    "arms": {
        "a": [],
        "b": [
            {"key": "mixture.sources.vqa.tokens", "base": 20_000, "here": 100_000, "declared": True},
            {"key": "run.optim.lr", "base": 0.002, "here": 0.001, "declared": False},
        ],
    },
    "held": {"run.batch": 8, "data.text": "ab12", "mixture.held_out.fraction": 0.1, "mixture.held_out.seed": 0, "code.version": "1", "run.x": None},
}
ASKED = {"question": "Is b better?", "compare": [{"difference": {"metric": "vqa", "against": "a"}}]}


def carded(e, **card):
    return replace(e, card={**e.card, **card})


def two(**recipe):
    return compared({"a": 0.4, "b": 0.5}, recipe=recipe)


# ---- the opening -----------------------------------------------------------------------------------------------------------------------------


def test_the_page_opens_with_the_question_and_its_answer_in_words():
    e = two(**ASKED)
    page = render(e)
    assert page.index("Is b better?") < page.index('class="answer"') < page.index("<nav>") < page.index("<table")
    assert answers(e)[0].startswith("VQA accuracy — better than a: b (+")


def test_an_undeclared_difference_stands_in_red_on_top_and_in_the_table():
    page = render(carded(two(**ASKED), diff=DIFF))
    assert re.search(r'<p class="bad">Arms differ in keys that the document does not declare: run.optim.lr \(b\)', page[: page.index("<nav>")])
    section = config_diff.section(carded(two(), diff=DIFF))
    assert '<span class="bad">0.001 (undeclared)</span>' in section and "100,000</td>" in section


def test_declared_differences_alone_are_no_warning():
    rows = [r for r in DIFF["arms"]["b"] if r["declared"]]
    e = carded(two(**ASKED), diff={**DIFF, "arms": {"a": [], "b": rows}, "undeclared": 0})
    assert config_diff.warning(e) is None and "All 1 keys that differ are declared" in config_diff.section(e)


def test_what_was_held_fixed_is_said_with_seeds_data_and_code():
    section = config_diff.section(carded(two(), diff=DIFF))
    assert "seeds 0, 1, 2, 3, 4, 5 (paired)" in section and "the data of text" in section and "the code" in section and "the held-out set" in section
    assert "run.batch" in section


def test_each_comparison_has_its_place_in_the_navigation():
    made = {anchor: section for anchor, _, section in sections(two(**ASKED))}
    assert 'id="difference-0"' in made["difference-0"] and "differences" not in made


# ---- ablations of any kind -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["planning.ate", "text_perplexity", "flow_loss", "frechet", "rollout.latent", "some_new_thing"])
def test_an_ablation_without_questions_has_a_page_and_markdown(metric):
    e = compared({"share1": 1.2, "share10": 1.0}, metric=metric, seeds=2, items=40)
    page, text = render(e), markdown(e)
    for made in (page, text):
        assert "Results" in made and measure(metric).name in made
    assert "Accuracy on held-out questions" not in page and "constant answer" not in page
    assert caveats.section(e)


def test_an_ablation_of_one_arm_and_seed_has_a_page():
    page = render(compared({"only": 0.4}, seeds=1, items=0))
    assert "One seed: nothing here says what another start would give" in page


def test_arms_of_many_sizes_are_said_to_be_of_many_sizes():
    e = compared({"a": 2.0, "b": 2.1}, metric="text_perplexity")
    runs = {k: replace(r, parameters=100 if k[0] == "a" else 900) for k, r in e.runs.items()}
    assert "100 to 900 parameters" in caveats.section(replace(e, runs=runs))


def test_flow_loss_of_two_encoders_is_shown_and_not_ranked():
    e = compared({"siglip2": 0.4, "sd_vae": 0.5}, metric="flow_loss")
    e = replace(e, runs={k: replace(r, encoders=(f"{k[0]} 12ab",)) for k, r in e.runs.items()})
    assert "not compared between arms of different encoders" in results.section(e)
    assert "Arms have 2 encoders (siglip2, sd_vae): flow loss cannot be compared between them." in caveats.section(e)
    assert detectable(e, "flow_loss") is None


def test_an_arm_with_fewer_steps_is_named_with_its_control_or_without():
    e = compared({"few": 0.4, "many": 0.5}, budgets={"few": {"vqa": 10}, "many": {"vqa": 50}})
    runs = {k: replace(r, steps=100 if k[0] == "few" else 500) for k, r in e.runs.items()}
    assert "few gets 100 optimiser steps, many 500" in caveats.section(replace(e, runs=runs))
    assert "No arm controls for that" in caveats.section(replace(e, runs=runs))
    assert "many, the same data repeated, is the control" in caveats.section(replace(e, runs=runs, repeats={"many": 5.0}))
    sweep = {"few": 1.12, "many": 1.12}  # a larger budget of the same plan: more data and more steps, no control
    assert "No arm controls for that" in caveats.section(replace(e, runs=runs, repeats=sweep))
    large = replace(e, runs=runs, repeats={"many": 2.0})  # 2 epochs of 2.5 times the data
    assert "No arm controls for that" in caveats.section(large)


def test_few_seeds_are_said_to_be_few():
    assert "degrees of freedom" in caveats.section(compared({"a": 0.4, "b": 0.5}, seeds=4))
    assert "of freedom" not in caveats.section(compared({"a": 0.4, "b": 0.5}, seeds=6))


# ---- tables ----------------------------------------------------------------------------------------------------------------------------------


def test_results_hold_mean_interval_seeds_items_and_chance():
    e = two()
    e = replace(e, results=[{**r, "chance": 0.25} for r in e.results])
    m, section = measured(e, "a", "vqa"), results.section(e)
    assert f"{100 * m.mean:.1f}</td>" in section and f"{100 * m.low:.1f} … {100 * m.high:.1f}" in section
    assert ">300</td>" in section and ">25.0</td>" in section and "seed 5" in section


def test_an_interval_of_perplexity_stays_above_0():
    e = compared({"a": 2.0}, metric="text_perplexity", items=0, seeds=2, seed_sd=2.0)
    assert measured(e, "a", "text_perplexity").low > 0


def test_controls_and_parts_are_folded_under_their_metric():
    e = two()
    more = [{"arm": "a", "seed": 0, "metric": m, "split": s, "value": 0.3, "n": 9, "chance": None}
            for m, s in (("vqa.blind", "held_out"), ("vqa", "held_out:colour"))]  # fmt: skip
    section = results.section(replace(e, results=e.results + more))
    folded = section[section.index("<details>") :]
    assert "no image" in folded and "colour" in folded and section.count("<h3>") == 1


def test_the_arms_table_has_what_confounds():
    section = arms.section(compared({"a": 0.4}, budgets={"a": {"vqa": 6000, "text": 2_000_000}}))
    assert all(h in section for h in arms.HEADER)
    assert "vqa 6K + text 2M" in section and "2,006,000" in section and "1,003,000" in section


def test_cost_is_summed_over_seeds_and_processes():
    e = compared({"a": 0.4, "b": 0.5}, seeds=2)
    e = replace(e, runs={k: replace(r, seconds=1800.0, processes=4) for k, r in e.runs.items()})
    assert cost.hours(e) == pytest.approx(8)
    assert "<strong>all</strong>" in cost.section(e) and ">8</td>" in cost.section(e)


def test_samples_are_named_by_folder_and_linked_nowhere_outside():
    e = two(evaluate=["samples"])
    e = replace(e, runs={k: replace(r, place=f"arms/{k[0]}/seed-{k[1]}") for k, r in e.runs.items()})
    assert "arms/a/seed-0/samples" in cost.samples(e) and "href" not in cost.samples(e)
    assert cost.samples(two()) is None


def test_the_smallest_difference_is_about_what_its_formula_says():
    e = compared({"a": 0.4, "b": 0.4}, noise=0.3, items=400)
    said = detectable(e, "vqa")
    assert said is not None and 3 < float(said.split()[0]) < 9 and said.endswith("points")


def test_the_smallest_difference_is_that_of_as_many_arms_as_the_document_compares_at_once():
    three = {"a": 0.4, "b": 0.4, "c": 0.4}
    one, two = (compared(three, noise=0.3, recipe={"compare": [{"difference": {"metric": "vqa", "of": of, "against": "a"}}, "isoflop_law"]})
                for of in (["b"], ["b", "c"]))  # fmt: skip
    assert detectable(two, "vqa").endswith(" points (2 arms compared at once)")
    assert float(detectable(two, "vqa").split()[0]) > float(detectable(one, "vqa").split()[0])
    assert detectable(compared(three, seeds=1), "vqa") is None


# ---- measures and the paper --------------------------------------------------------------------------------------------------------------------


def test_a_control_is_said_with_its_metric_and_better_the_same_way():
    assert measure("vqa.blind").name == "VQA accuracy: no image" and measure("vqa.blind").sign == 1
    assert is_control("rollout.pixel.copy") and is_control("vqa.choice.shuffled") and not is_control("vqa.choice") and not is_control("flow_loss.bin")
    assert measure("unheard.of").sign == 0 and measure("unheard.of").name == "unheard of"


def test_every_measure_can_write_a_value_and_a_difference():
    for m in KNOWN.values():
        assert m.said(0.5) and m.signed(0.5).startswith("+") and m.signed(-0.5).startswith("-") and m.said(float("nan")) is None


def test_splits_are_said_in_words():
    said = {"held_out": "held out", "held_out:text": "text", "set:notes": "notes (outside)", "horizon:4": "horizon 4", "all": "all"}
    assert {s: said_split(s) for s in said} == said


def test_every_published_value_has_its_basis_and_place():
    for entries in table()["experiments"].values():
        for entry in entries:
            assert entry["basis"] in BASIS and entry["where"] and entry["better"] in ("higher", "lower")
            assert len(entry["values"]) > 1 and all(np.isfinite(v) for v in entry["values"].values())


def test_published_values_are_those_of_the_reference_file(real_data):
    reference = json.loads((real_data / "reference/beyond_language_modeling/values.json").read_text())
    (known,) = published("E7", ["vqa20", "vqa20+text80", "vqa100"], "vqa")
    assert known.values == {a: reference["vqa_synergy_E7"][a] for a in known.values}
    (ate,) = published("E9", [f"share{s:g}" for s in reference["world_share_E9"]["share_percent"]], "planning.ate")
    assert list(ate.values.values()) == reference["world_share_E9"]["ate"]
    grid = published("E6", ["image25+text100", "image100"], "flow_loss")[0]
    assert grid.values == {"image25+text100": 0.512, "image100": 0.507}


def test_arms_meet_the_papers_by_name_spelling_apart():
    assert published("E7", ["VQA-20", "vqa20+pairs80"], "vqa")[0].values == {"VQA-20": 34.6, "vqa20+pairs80": 36.9}
    assert published("E7", ["vqa20", "else"], "vqa") == [] and published(None, ["vqa20"]) == []
    assert published("E10", ["dense", "granularity16"], "text_perplexity")[0].values["granularity16"] == 14.81


def test_a_benchmark_run_by_its_own_scorer_meets_the_papers_values_of_it():
    (known,) = published("E2", ["siglip2", "flux_vae"], "geneval", "all")
    assert known.values == {"siglip2": 0.328, "flux_vae": 0.211} and known.name == "GenEval score"


def test_an_ablation_named_by_its_document_is_set_beside_that_experiment():
    e = compared({"share1": 1.2, "share10": 1.0}, metric="planning.ate", recipe={"experiment": "E9"})
    assert experiment(e) == "E9" and "another scale" in beside.section(e) and ">1.258</td>" in beside.section(e)
    assert beside.section(two()) is None


# ---- Markdown ----------------------------------------------------------------------------------------------------------------------------------


def test_markdown_holds_the_pages_tables_cell_by_cell():
    e = carded(two(**ASKED), diff=DIFF)
    text, page = markdown(e), render(e)
    assert text.startswith("# made\n") and "Is b better?" in text and "**0.001 (undeclared)**" in text
    assert text.count("| --- |") + text.count("| ---: |") > 0
    assert len(re.findall(r"^\| ---", text, re.M)) == page.count("<table")
    for line in text.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) >= 3


def test_every_table_of_markdown_has_as_many_cells_in_each_row():
    for block in markdown(carded(two(**ASKED), diff=DIFF)).split("\n\n"):
        if block.startswith("| "):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "[x](javascript:alert)", "a|b", "`code`", "**bold**", "![x](http://e)"])
def test_names_mean_themselves_in_markdown(name):
    e = two()
    row = {"arm": "a", "seed": 0, "metric": "vqa", "split": f"held_out:{name}", "value": 1.0, "n": 1, "chance": None}
    text = markdown(replace(e, results=[*e.results, row]))
    assert escaped(name) in text and "<script" not in text and not re.search(r"(?<!\\)\]\(", text)


def test_markdown_is_the_same_each_time():
    assert markdown(two(**ASKED)) == markdown(two(**ASKED))


def test_the_diff_of_many_arms_is_a_row_a_difference():
    names = [f"arm{i}" for i in range(20)]
    rows = [{"key": "run.steps", "base": 1, "here": 2, "declared": True}]
    e = carded(compared(dict.fromkeys(names, 0.4)), diff={"base": "arm0", "arms": {n: rows if n != "arm0" else [] for n in names}, "undeclared": 0})
    section = config_diff.section(e)
    assert "19 differences in 19 arms" in section and section.count('scope="col"') == 4


def test_an_ablation_of_thirty_arms_names_a_few_of_them_in_a_sentence():
    e = compared({f"arm{i}": 0.4 for i in range(30)})
    runs = {k: replace(r, steps=20) for k, r in e.runs.items()}
    assert "fewer than 300 optimiser steps in arm0, arm1, arm2, arm3, arm4, arm5 and 24 more" in caveats.section(replace(e, runs=runs))
