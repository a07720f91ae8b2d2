"""The world's own scorer against oracles: who paints the truth scores 1, who paints other captions scores the stated chance, and noise costs."""

from __future__ import annotations

import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.format.errors import InputError
from tests.trainer import scenes
from trainer.evaluate import _painting
from trainer.evaluate._items import item_path
from trainer.evaluate.scene_match import SceneMatch


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return scenes.Pairs(str(tmp_path_factory.mktemp("pairs") / "data"))


def scored(plan, out, **keys):
    rows = SceneMatch(images=40, **keys).run(scenes.subject(plan), str(out))
    return {(r["metric"], r["split"]): r for r in rows}


def test_who_paints_the_truth_scores_one_in_everything_and_so_does_the_truth(plan, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan)
    rows = scored(plan, tmp_path)
    for control in ("", ".truth"):
        assert {v["value"] for (m, _), v in rows.items() if m in ("scene_match" + control, "scene_match.all" + control)} == {1}
    assert {s for m, s in rows if m == "scene_match"} == {"held_out", *(f"held_out:{f}" for f in ("kind", "colour", "size", "place"))}
    assert rows["scene_match", "held_out"]["n"] == 40 and rows["scene_match", "held_out:kind"]["n"] > rows["scene_match", "held_out:place"]["n"] > 0


def test_the_page_shows_each_caption_with_both_pictures_and_what_holds(plan, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan, of=lambda i, n: i if i % 2 else i + 1)
    scored(plan, tmp_path, caption="recaption", shown=5)
    html = (tmp_path / "scene_match.html").read_text()
    assert html.count("<img") == 10 and "5 of 40" in html and "<script" not in html
    assert re.search("✓ (circle|square|triangle|cross)", html) and re.search("✗ (top|bottom) (left|right)", html)


def test_who_paints_other_captions_scores_the_stated_chance_and_so_do_shuffled_pictures(plan, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan, of=lambda i, n: i + 7)
    rows = scored(plan, tmp_path)
    chance = rows["scene_match", "held_out"]["chance"]
    assert 0.2 < chance < 0.6 and rows["scene_match.all", "held_out"]["chance"] < 0.1
    assert rows["scene_match", "held_out"]["value"] == pytest.approx(chance, abs=0.08)
    assert rows["scene_match.shuffled", "held_out"]["value"] == pytest.approx(chance, abs=0.08)
    assert rows["scene_match.truth", "held_out"]["value"] == 1


def test_noise_costs_and_the_more_the_more(plan, tmp_path, monkeypatch):
    found = []
    for amount in (0, 15, 90, 300):
        scenes.paints(monkeypatch, plan, scenes.noisy(amount))
        found.append(scored(plan, tmp_path / str(amount))["scene_match", "held_out"]["value"])
    assert found[:2] == [1, 1] and found[1] > found[2] > found[3] and found[3] < 0.2


def test_items_are_captions_whose_mean_is_the_row(plan, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan, scenes.noisy(80))
    rows = scored(plan, tmp_path)
    for metric in ("scene_match", "scene_match.all", "scene_match.truth", "scene_match.shuffled"):
        table = pq.read_table(item_path(str(tmp_path), metric))
        assert set(table["item"].to_pylist()) == {r.id for r in plan.records}
        assert np.mean(table["value"].to_pylist()) == pytest.approx(rows[metric, "held_out"]["value"])


def test_a_caption_can_be_named_and_then_all_facts_are_stated(plan, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan)
    full = scored(plan, tmp_path, caption="recaption")
    short = scored(plan, tmp_path, caption="original")
    assert full["scene_match", "held_out:place"]["n"] == full["scene_match", "held_out:kind"]["n"] and ("scene_match", "held_out:place") not in short
    with pytest.raises(InputError, match="no caption of this name"):
        scored(plan, tmp_path, caption="poem")


def test_a_stopped_evaluation_goes_on_and_pictures_are_painted_once(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(_painting, "CHUNK", 16)
    monkeypatch.setattr("trainer.evaluate.scene_match.CHUNK", 16)
    calls = scenes.paints(monkeypatch, plan, scenes.noisy(30))
    first = scored(plan, tmp_path)
    assert calls == [16, 16, 8]
    sorted((tmp_path / "painted").iterdir())[0].unlink()
    assert scored(plan, tmp_path) == first and len(calls) == 4
    scored(plan, tmp_path, guidance=1.0)
    assert calls[4:] == [16, 16, 8], "other settings are other pictures"


def test_a_real_model_is_scored_the_same_each_time_whatever_the_batch(plan, tmp_path):
    a = SceneMatch(images=6, steps=2).run(scenes.subject(plan), str(tmp_path / "a"))
    b = SceneMatch(images=6, steps=2, batch=2).run(scenes.subject(plan), str(tmp_path / "b"))
    assert a == b and len(list((tmp_path / "a/painted").iterdir())) == 1


def test_an_arm_without_the_source_passes_or_is_told(plan, tmp_path):
    plan.card["sources"]["image_text"]["taken"] = 0
    assert SceneMatch(required=False).run(scenes.subject(plan), str(tmp_path)) == []
    plan.card["sources"]["image_text"]["taken"] = 40
    with pytest.raises(InputError, match="no held-out captions"):
        SceneMatch(source="pairs").run(scenes.subject(plan), str(tmp_path))
