"""The report: statistics by arithmetic, and a page that shows what it is given and can be injected by nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from pipelines.media import images
from trainer.report import caveats, differences, language, loss_curves, tokens, types
from trainer.report.compare.difference import Difference
from trainer.report.evidence import Evidence, RunEvidence, curves
from trainer.report.markup import Markup, joined, table, tag, text
from trainer.report.page import SECTIONS, render
from trainer.report.resampling import Scores
from trainer.report.statistics import difference, holm, interval

ARMS = {"vqa20": (0.43, {"vqa": 20}), "vqa20+video80": (0.52, {"vqa": 20, "video": 80}), "vqa20+image_text80": (0.55, {"vqa": 20, "image_text": 80})}
ARMS |= {"vqa20+text80": (0.46, {"vqa": 20, "text": 80}), "vqa20x5": (0.56, {"vqa": 100}), "vqa100": (0.6, {"vqa": 100})}
JPEG = images.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
TYPES = ("colour", "shape", "count", "where", "yes_no")


def answers(skill: float, seed: int, n: int = 600, types: tuple[str, ...] = TYPES) -> pa.Table:
    """Answers of a made-up model that knows every type but the last, which it guesses."""
    random = np.random.default_rng([seed, round(skill * 1000)])
    kind = np.arange(n) % len(types)
    chance = np.where(kind == len(types) - 1, 0.5, 0.28)
    fixed = np.random.default_rng(7).random(n)
    right = np.where(kind == len(types) - 1, random.random(n) < 0.45, fixed < skill + 0.05 * random.standard_normal())
    columns = {"type": [types[k] for k in kind], "correct": right, "correct_constant": np.random.default_rng(8).random(n) < chance}
    return pa.table(columns | {"correct_shuffled": random.random(n) < chance, "correct_blind": random.random(n) < chance})


def result(arm: str, seed: int, metric: str, split: str, value: float, n: int = 300) -> dict:
    return {"arm": arm, "seed": seed, "metric": metric, "split": split, "value": value, "n": n, "chance": None}


def evidence(seeds: tuple[int, ...] = (0, 1), types: tuple[str, ...] = TYPES, sources: dict[str, str] | None = None) -> Evidence:
    """A whole made-up ablation."""
    rename, results, runs = sources or {}, [], {}
    for arm, (skill, budget) in ARMS.items():
        for seed in seeds:
            table_ = answers(skill, seed, types=types)
            kinds = np.array(table_["type"].to_pylist(), dtype=object)
            measured = {"vqa": "correct", "vqa.constant": "correct_constant", "vqa.shuffled": "correct_shuffled", "vqa.blind": "correct_blind"}
            for metric, column in measured.items():
                right = table_[column].to_numpy(zero_copy_only=False)
                rows = [("held_out", right), *((f"held_out:{k}", right[kinds == k]) for k in types)]
                results += [result(arm, seed, metric, s, float(v.mean()), len(v)) for s, v in rows]
            results += [result(arm, seed, "vqa.attributes", s, 0.47) for s in ("held_out", "held_out:with_bag")]
            results.append(result(arm, seed, "vqa", "held_out:with_bag", skill))
            for metric, value in (("text_perplexity", 3 + skill), ("bits_per_byte", 0.6 + skill / 9), ("flow_loss", 0.9 - skill / 3)):
                results += [result(arm, seed, metric, s, value + seed / 100) for s in ("held_out", "held_out:text")]
            counted = {rename.get(s, s): {"payload": 6000 * n, "structure": 300 * n, "loss": 2000 * n} for s, n in budget.items()}
            steps = max(10, 12 * sum(budget.values()))
            x = np.linspace(1, 6000 * sum(budget.values()), 200)
            drawn = {("text", s): (x, 3 * np.exp(-x / 9e4) + 1 + 0.1 * np.sin(x)) for s in counted}
            drawn |= {("flow", s): (x, np.exp(-x / 2e5) + 0.6) for s in counted if s in ("video", "image_text")}
            lineage = (("plan", "ab" * 32), ("vqa", "cd" * 32))
            runs[arm, seed] = RunEvidence(arm, seed, steps, counted, counted, 5000, 1e13, 40.0 + seed, 395_000, drawn, table_, lineage)
    budgets = {arm: {rename.get(s, s): 6000 * n for s, n in b.items()} for arm, (_, b) in ARMS.items()}
    return Evidence("world_synergy", list(ARMS), list(seeds), results, runs, budgets, {"vqa20x5": 5.0}, 6e-6, {"fingerprint": "12" * 32})


class Seen(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def scores(values: list[list[float]] | np.ndarray, names: tuple[str, ...] = ()) -> Scores:
    """Equal weights."""
    return Scores(np.array(values, float), np.ones(np.shape(values)[1]), names)


def test_a_difference_is_paired_by_question():
    found = difference(scores([[1, 1, 0, 1]]), scores([[0, 1, 0, 1]]))
    assert found.mean == pytest.approx(0.25)
    assert found.error == pytest.approx(np.std([1, 0, 0, 0], ddof=1) / 2)
    assert found.seeds == (0.25,) and found.n == 4


def test_an_arm_does_not_differ_from_itself():
    a = scores(np.random.default_rng(0).random((2, 50)))
    found = difference(a, a)
    assert (found.mean, found.error, found.low, found.high, found.errors) == (0, 0, 0, 0, 0)


def test_questions_on_one_image_are_one_in_error_and_interval():
    d, names = np.random.default_rng(0).random((1, 40)).repeat(5, axis=1), tuple(f"image{i // 5}/{i % 5}" for i in range(200))
    nothing = np.zeros((1, 200))
    one, alone = difference(scores(d, names), scores(nothing, names)), difference(scores(d), scores(nothing))
    assert one.error == pytest.approx(alone.error * np.sqrt(5), rel=0.02)
    assert one.high - one.low == pytest.approx((alone.high - alone.low) * np.sqrt(5), rel=0.1)


def named(e: Evidence) -> Evidence:
    """With three questions on each image, said in the answers."""
    runs = {}
    for key, run in e.runs.items():
        n = run.answers.num_rows
        ids, turns = pa.array([f"image{i // 3}" for i in range(n)]), pa.array([i % 3 for i in range(n)])
        runs[key] = replace(run, answers=run.answers.append_column("id", ids).append_column("turn", turns))
    return replace(e, runs=runs)


def test_differences_and_types_join_questions_by_name_whatever_their_order():
    e = named(evidence())
    turned = {k: replace(r, answers=r.answers.take(list(range(r.answers.num_rows))[::-1])) if k[0] == "vqa100" else r for k, r in e.runs.items()}
    other = replace(e, runs=turned)
    assert differences.between(other, "vqa100", "vqa20") == differences.between(e, "vqa100", "vqa20")
    assert differences.against(other, "vqa100", "shuffled") == differences.against(e, "vqa100", "shuffled")
    assert types.section(other) == types.section(e) and differences.section(other) == differences.section(e)


def test_the_default_differences_are_those_that_a_document_would_ask_for():
    e = named(evidence())
    (row,) = Difference(metric="vqa", of=["vqa100"], against="vqa20").rows(e)
    found = differences.between(e, "vqa100", "vqa20")
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((row["mean"], row["low"], row["high"], row["n"]))


def test_one_seed_promises_no_smallest_difference():
    said = str(differences.section(evidence(seeds=(0,))))
    assert "what another start would move is not in them" in said and "would be found in 4 of 5" not in said


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = [low <= 0.3 <= high for _ in range(60) for low, high in [interval((random.random((1, 400)) < 0.3).astype(float))]]
    assert 0.85 <= np.mean(held) <= 1


def test_the_interval_is_the_same_each_time():
    d = np.random.default_rng(1).random((2, 90))
    assert interval(d) == interval(d)


def test_seeds_that_disagree_widen_the_interval():
    agree, differ = np.tile(np.arange(100) % 2, (2, 1)).astype(float), np.stack([np.zeros(100), np.ones(100)])
    assert np.ptp(interval(differ)) > np.ptp(interval(agree))


def test_holm_multiplies_the_smallest_most_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_every_string_is_escaped_unless_it_is_markup():
    assert text("<b>") == "&lt;b&gt;"
    assert tag("p", "<i>", tag("b", "&")) == "<p>&lt;i&gt;<b>&amp;</b></p>"
    assert joined([Markup("<hr>"), None, "<"]) == "<hr>&lt;"
    assert tag("td", "x", title='" onload="x') == '<td title="&quot; onload=&quot;x">x</td>'
    assert "\x1b" not in tag("p", "\x1b[2J")


def test_a_table_shows_a_dash_for_what_was_not_measured():
    assert "<td class=\"n\">–</td>" in table(["a", "b"], [["x", None]])


PAYLOADS = ["<script>alert(1)</script>"]
PAYLOADS += ["\"><img src=x onerror=alert(1)>", "</text></svg><script>1</script>", "javascript:alert(1)", "$\\frac{1}{0", "]]><!--"]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_names_out_of_datasets_stay_text(payload):
    page = render(evidence(seeds=(0,), types=(payload, "shape"), sources={"video": payload, "vqa": payload + "2"}))
    seen = Seen(page)
    assert not {"script", "img", "iframe", "object", "foreignobject"} & set(seen.tags)
    assert not [n for n, _ in seen.attributes if n.startswith("on")]
    assert all((v or "").startswith("#") for n, v in seen.attributes if n in ("href", "xlink:href", "src"))
    assert any(payload in word for word in seen.words)


def test_the_page_is_one_file_without_network_or_script():
    page = render(evidence())
    addresses = {w for n, w in Seen(page).attributes if w and "//" in w and not n.startswith("xmlns")}
    assert not addresses and "@import" not in page and "<script" not in page
    assert "default-src 'none'" in page


def test_every_link_of_the_navigation_has_its_section():
    found = evidence()
    first = (next(iter(ARMS)), 0)
    painted = pa.table({"caption": ["a red square"], "held_out": [JPEG], "sampled": [JPEG]})
    run = replace(found.runs[first], pictures=painted, place="arms/vqa20/seed-0")
    card = {"diff": {"base": "vqa20", "arms": {"vqa20": []}, "undeclared": 0}}
    seen = Seen(render(replace(found, runs={**found.runs, first: run}, card=card)))
    ids = {v for n, v in seen.attributes if n == "id"}
    assert {v[1:] for n, v in seen.attributes if n == "href" and v} >= {anchor for anchor, _, _ in SECTIONS}
    assert {v[1:] for n, v in seen.attributes if n in ("href", "xlink:href") and v} <= ids


def test_ids_of_two_drawings_do_not_meet():
    ids = [v for n, v in Seen(render(evidence())).attributes if n == "id"]
    assert len(ids) == len(set(ids))


def test_the_same_evidence_gives_the_same_bytes():
    assert render(evidence()) == render(evidence())


def test_a_type_guessed_by_all_arms_is_named_as_not_learned():
    assert types.unlearned(evidence()) == ["yes_no"]
    assert "Not learned at this size, by any arm (within two standard errors of the constant answer): yes_no." in render(evidence())


def test_the_confound_of_steps_is_said_and_its_control_named():
    said = caveats.section(evidence())
    assert "vqa20 gets 240 optimiser steps" in said and "vqa20x5, the same data repeated, is the control for that" in said
    assert "fewer than 300 optimiser steps in vqa20;" in said


def test_what_an_arm_never_trained_on_is_grey():
    page = language.section(evidence())
    assert page.count('class="weak"') == 3 * 5  # three metrics, five arms without text


def test_a_set_from_outside_is_nobodys_source_and_leaves_the_whole_in_place():
    e = evidence()
    whole = [r for r in e.results if r["split"] == "held_out" and r["metric"] == "text_perplexity"]
    page = language.section(replace(e, results=[*whole, *({**r, "split": "set:text"} for r in whole)]))
    assert ">all together</th>" in page and ">text (outside)</th>" in page
    assert 'class="weak"' not in page and "never trained" not in page


def test_arms_that_hold_the_target_alone_are_found_by_their_budgets():
    assert differences.alone(evidence()) == ["vqa20", "vqa20x5", "vqa100"]


def test_a_token_consumed_beside_the_plan_is_shown():
    e = evidence(seeds=(0,))
    run = e.runs["vqa100", 0]
    run.planned["vqa"] = {"payload": 1}
    e.runs["vqa100", 0] = RunEvidence(**{**{f: getattr(run, f) for f in run.__slots__}, "tokens": {"vqa": {"payload": 2}}})
    assert tokens.mismatches(e) == ["vqa100, seed 0, vqa: planned 1, consumed 2"]
    assert "Consumed differs from the plan" in tokens.section(e)


def test_a_running_mean_begins_with_what_there_is():
    assert loss_curves.smooth(np.array([4.0, 2.0, 6.0]), 2).tolist() == [4.0, 3.0, 4.0]


def test_curves_come_from_the_logged_keys():
    found = curves([{"step": 1, "tokens": 10, "text/vqa": 3.0, "loss": 3.0}, {"step": 2, "tokens": 20, "text/vqa": 2.0, "flow/video": 1.5}])
    assert {k: [list(v[0]), list(v[1])] for k, v in found.items()} == {("text", "vqa"): [[10, 20], [3, 2]], ("flow", "video"): [[20], [1.5]]}


def test_a_difference_is_bold_just_when_its_interval_leaves_out_0():
    row = re.compile(r"<(strong|span)>[+-][\d.]+</\1>.*?([+-][\d.]+) … ([+-][\d.]+)")
    seen = [(kind == "strong", float(low) > 0 or float(high) < 0) for kind, low, high in row.findall(differences.section(evidence()))]
    assert seen and all(bold == outside for bold, outside in seen) and {bold for bold, _ in seen} == {True, False}


def test_an_ablation_without_answers_still_makes_a_page():
    e = evidence(seeds=(0,))
    bare = {k: RunEvidence(r.arm, r.seed, r.steps, r.tokens, r.planned) for k, r in e.runs.items()}
    page = render(Evidence(e.name, e.arms, e.seeds, [r for r in e.results if not r["metric"].startswith("vqa")], bare, e.budgets))
    assert "perplexity" in page and "Accuracy on held-out questions" not in page
