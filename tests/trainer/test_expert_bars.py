"""The figures of experts: everything that was measured is shown, nothing where nothing was, and words of the data stay words."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from test_report import Seen, evidence, result

from pipelines.format.document import PartOf
from trainer.report.evidence import Evidence
from trainer.report.figures.expert_bars import PAPER_LAYERS, ExpertBars, by_layer
from trainer.report.page import render
from trainer.report.reading import _tables

SHARES = {"text": 0.5, "multimodal": 0.3, "vision": 0.2, "idle": 0.0}


def routed(arms: dict[str, float], layers: int = 4, facts: bool = True) -> Evidence:
    """`arms` have experts; the number is the r of their first layer, which falls by a tenth a layer."""
    base = evidence()
    results, runs = list(base.results), dict(base.runs)
    for arm, r in arms.items():
        for seed in base.seeds:
            by_fact = {name: [share] * layers for name, share in SHARES.items()} | {"specialisation": [0.4] * layers, "load": [2.5] * layers}
            if facts:
                rs = [r - 0.1 * k + 0.01 * seed for k in range(layers)]
                by_fact |= {"correlation": rs, "correlation.low": [x - 0.05 for x in rs], "correlation.high": [x + 0.05 for x in rs]}
                by_fact |= {"correlation.ceiling": [0.99] * layers, "correlation.untrained": [0.7] * layers}
                by_fact |= {"time_cv": [0.3] * layers, "time_cv.null": [0.12] * layers, "time_cv.null_95": [0.15] * layers}
            for fact, values in by_fact.items():
                splits = [*((f"layer:{k}", v) for k, v in enumerate(values)), ("layer:all", float(np.mean(values)))]
                results += [result(arm, seed, f"experts.{fact}", s, v) for s, v in splits]
            results += [result(arm, seed, f"experts.{name}", "threshold:0.8", share) for name, share in SHARES.items()]
            table = pa.table({"score": [-1.0, None, 0.2, 0.9]}).replace_schema_metadata({"threshold": "0.4"})
            runs[arm, seed] = replace(runs[arm, seed], tables={"experts": table})
    return replace(base, results=results, runs=runs)


def test_an_ablation_without_experts_has_no_such_section():
    assert ExpertBars().section(evidence()) is None and ExpertBars(arms=["vqa100"]).section(routed({"vqa20": 0.9})) is None


def test_every_arm_with_experts_has_its_panel_and_its_row():
    section = str(ExpertBars().section(routed({"vqa20": 0.9, "vqa100": 0.8})))
    words = Seen(section).words
    assert words.count("vqa20") >= 4 and words.count("vqa100") >= 4 and "vqa20x5" not in words
    assert section.count("<svg") == 4 and "of at least 0.4" in section
    for axis in ("layer", "experts, %", "r over experts", "variation", "S, from images alone (-1) to text alone (1)"):
        assert axis in words
    assert "66" in words and "at least 0.90 in every layer" in words


def test_the_papers_own_figure_stands_below_ours_where_it_is_the_same_question():
    found = replace(routed({"vqa20": 0.9}), card={"recipe": {"experiment": "E11"}})
    words = Seen(str(ExpertBars().section(found))).words
    assert "the paper: another scale, its own thresholds" in words
    assert "the paper: another scale, its own thresholds" not in Seen(str(ExpertBars().section(routed({"vqa20": 0.9})))).words
    counts = np.array(PAPER_LAYERS)
    assert set(counts.sum(axis=1)) <= {252, 253, 254, 255} and np.allclose(counts.mean(axis=0) / 254, [0.66, 0.17, 0.16], atol=0.01)


def test_numbers_are_means_over_seeds_and_the_lowest_layer_is_named():
    found = routed({"vqa20": 0.9})
    assert np.allclose(by_layer(found, "vqa20", "correlation")[1], [0.905, 0.805, 0.705, 0.605])
    words = Seen(str(ExpertBars().section(found))).words
    row = words[words.index("ceiling of r") :]
    row = row[row.index("vqa20") :]
    assert row[1:5] == ["50", "30", "20", "0"] and {"0.60", "0.76 (0.70)", "0.30 (0.12)"} <= set(row[:14])


def test_layers_stand_in_the_order_of_numbers():
    assert by_layer(routed({"vqa20": 2.0}, layers=12), "vqa20", "correlation")[0] == list(range(12))


def test_what_was_not_measured_is_left_out():
    section = str(ExpertBars().section(routed({"vqa20": 0.9}, facts=False)))
    assert section.count("<svg") == 2 and not re.search(r"\bnan\b", section)


def test_the_page_has_it_where_the_document_asks():
    found = replace(routed({"vqa20": 0.9}), card={"recipe": {"report": ["expert_bars"]}})
    page = render(found)
    assert "expert_bars" in PartOf("trainer.report.figures").names()
    ids = [v for k, v in Seen(page).attributes if k == "id"]
    assert "experts" in ids and len(ids) == len(set(ids))


def test_names_of_arms_cannot_inject():
    bad = "<img onerror=x>"
    found = routed({"vqa20": 0.9})
    results = [{**r, "arm": bad} if r["arm"] == "vqa20" else r for r in found.results]
    runs = {(bad if a == "vqa20" else a, s): r for (a, s), r in found.runs.items()}
    section = ExpertBars().section(replace(found, results=results, runs=runs, arms=[bad, *found.arms[1:]]))
    assert "<img" not in str(section)


def test_tables_are_those_that_evaluations_left_under_their_own_names(tmp_path):
    """Only what eval.json names is read: no folder is listed."""
    for name in ("experts", "stranger"):
        pq.write_table(pa.table({"score": [0.5]}), tmp_path / f"{name}.parquet")
    assert _tables(str(tmp_path)) == {}
    asked = [{"experts": {"bins": 10}}, {"flow_loss": None}, "text_perplexity"]
    (tmp_path / "eval.json").write_text(json.dumps({"rows": [], "evaluate": asked}))
    assert {k: t.to_pylist() for k, t in _tables(str(tmp_path)).items()} == {"experts": [{"score": 0.5}]}
