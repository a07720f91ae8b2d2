"""The machine's diff of arms, on cards by hand: every seed, one key more in a source, the shape of the model's ends, how arms were evaluated."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from compared import compared

import trainer
from pipelines.format.document import dump, load
from tests.trainer.test_ablation import ARMS, made
from trainer.ablate_diff import Cards, difference, held_fixed, resolved
from trainer.ablation import Ablation, arm_runs, mixture_of
from trainer.report import config_diff

PACKAGED = sorted((Path(trainer.__file__).parent / "ablations").glob("*.yaml"))
TWO = {"few": ARMS["few"], "with_text": ARMS["with_text"]}
ENCODED = {"dataset": "x/vqa_vae"}
VAE = {"few": ARMS["few"], "vae": {"extends": "few", "sources": {"vqa": ENCODED}}}


def cards_of(config: Ablation, widths: dict[str, int] | None = None) -> Cards:
    """What plans and runs would say of themselves; a dataset's fingerprint is its path. `widths`: arm → channels of its latents (16 unless said)."""
    out: Cards = {}
    for arm in config.arms:
        mixture, width = dump(mixture_of(config, arm)), (widths or {}).get(arm, 16)
        of = {n: s["dataset"] if isinstance(s["dataset"], dict) else {"dataset": s["dataset"]} for n, s in mixture["sources"].items()}
        places = sorted({place for sides in of.values() for place in sides.values()})
        plan = {
            "mixture": mixture,
            "parents": [{"path": p, "fingerprint": p} for p in places],
            "sources": {n: {("target" if k == "target" else "dataset"): places.index(p) for k, p in sides.items()} for n, sides in of.items()},
            "encoding": {"text": {"vocab": 90, "specials": {"bos": 99}}, "image": {"width": width, "tokens": 4}},
        }
        shape = {"vocab": 100, "channels": width, "patches": 4}
        code = {"version": "1", "stages": {"train": 1}}
        out[arm] = (plan, *({"recipe": r.run.recipe(), "code": code, "shape": shape} for r in arm_runs(config) if r.arm == arm))
    return copy.deepcopy(out)


def undeclared(config: Ablation, cards: Cards) -> list[tuple[Any, ...]]:
    found = difference(config, cards)
    rows = [(arm, row["key"], row.get("seed")) for arm, rows in found["arms"].items() for row in rows if not row["declared"]]
    assert len(rows) == found["undeclared"]
    return rows


# ---- seeds -----------------------------------------------------------------------------------------------------------------------------------


def test_seeds_that_differ_in_their_seed_alone_are_no_difference():
    config = made(arms=TWO, seeds=[0, 1, 2])
    assert undeclared(config, cards_of(config)) == [] and "code.version" in held_fixed(config, cards_of(config))


@pytest.mark.parametrize("arm", ["few", "with_text"])
def test_a_seed_run_with_other_code_is_named_and_the_code_is_not_held_fixed(arm):
    config = made(arms=TWO, seeds=[3, 5, 8])
    cards = cards_of(config)
    cards[arm][2]["code"] = {"version": "2", "stages": {"train": 9}}
    assert undeclared(config, cards) == [(arm, "code.train", 5), (arm, "code.version", 5)]
    (row,) = [r for r in difference(config, cards)["arms"][arm] if r["key"] == "code.version"]
    assert (row["base"], row["here"]) == ("1", "2")
    held = held_fixed(config, cards)
    assert not {"code.version", "code.train"} & set(held) and "run.batch" in held


def test_an_arm_does_not_declare_for_its_own_seeds():
    config = made(arms={"few": ARMS["few"], "fast": {"extends": "few", "run": {"optim": {"lr": 0.1}}}}, seeds=[0, 1])
    cards = cards_of(config)
    cards["fast"][2]["recipe"]["optim"]["lr"] = 0.2
    assert undeclared(config, cards) == [("fast", "run.optim.lr", 1)]


def test_seeds_of_one_arm_that_differ_stand_in_red_with_the_seed_in_a_table_and_on_top():
    rows = [{"key": "code.version", "base": "1", "here": "<2>", "declared": False, "seed": 4}]
    e = compared({"a": 0.4, "b": 0.5})
    e.card.update(diff={"base": "a", "undeclared": 1, "arms": {"a": rows, "b": []}, "held": {"run.batch": 8, "code.version": "1"}})
    section, top = config_diff.section(e), config_diff.warning(e)
    assert "Runs differ in keys that the document does not declare: code.version (a, seed 4)" in top and 'class="bad"' in top
    assert "Seeds of one arm that differ" in section and '<span class="bad">&lt;2&gt; (undeclared)</span>' in section
    assert "1 differences are declared by no arm" in section and "; the code" not in section


def test_values_too_long_to_stand_side_by_side_have_a_row_each():
    e, long = compared({"a": 0.4, "b": 0.5, "c": 0.5}), [{"benchmark": {"sets": {"gqa": "out/gqa-webssl", "ai2d": "out/ai2d-webssl"}}}]
    for here, columns in ((8, ["key", "a (base)", "b", "c"]), (long, ["arm", "key", "a (base)", "here"])):
        rows = [{"key": "evaluate.sft_vqa.evaluate", "base": 9, "here": here, "declared": True}]
        e.card.update(diff={"base": "a", "undeclared": 0, "arms": {"a": [], "b": rows, "c": rows}})
        section = config_diff.section(e)
        assert re.findall(r'<th scope="col"[^>]*>([^<]*)', section) == columns and "<details" not in section


# ---- what declares what ----------------------------------------------------------------------------------------------------------------------


def test_one_key_more_in_a_source_is_not_declared_by_the_source_s_tokens():
    config = made(arms=TWO, seeds=[0])
    for name in ("vqa", "text"):
        cards = cards_of(config)
        cards["with_text"][0]["mixture"]["sources"][name]["newkey"] = "different"
        assert undeclared(config, cards) == [("with_text", f"mixture.sources.{name}.newkey", None)]


def test_one_key_more_in_a_group_that_both_arms_have_is_not_declared_by_its_siblings():
    experts = lambda n: {"run": {"model": {"transfusion": {"ffn": "moe", "experts": {"count": n, "top_k": 2}}}}}
    config = made(arms={"few": {**ARMS["few"], **experts(8)}, "more": {"extends": "few", **experts(16)}}, seeds=[0])
    cards = cards_of(config)
    assert undeclared(config, cards) == []
    cards["more"][1]["recipe"]["model"]["transfusion"]["experts"]["newkey"] = 1
    cards["more"][1]["recipe"]["optim"]["newkey"] = 1
    assert {row[1] for row in undeclared(config, cards)} == {"run.model.transfusion.experts.newkey", "run.optim.newkey"}


def test_a_whole_group_that_an_arm_brings_or_takes_away_declares_its_defaults():
    groups = {"ema": {"decay": 0.5}, "model": {"transfusion": {"ffn": "moe", "experts": {"count": 8, "top_k": 2}}}}
    config = made(arms={"few": ARMS["few"], "more": {"extends": "few", "run": groups}}, seeds=[0])
    cards = cards_of(config)
    cards["more"][1]["recipe"]["ema"]["early"] = True  # a default of the group that came
    keys = {row["key"] for row in difference(config, cards)["arms"]["more"]}
    assert {"run.ema.early", "run.model.transfusion.experts.granularity"} <= keys and undeclared(config, cards) == []
    swapped = made(arms={"more": {**ARMS["few"], "run": groups}, "few": ARMS["few"]}, seeds=[0])
    assert undeclared(swapped, cards) == []


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_arms_of_every_packaged_ablation_differ_in_what_it_declares_at_the_paper_s_size(path):
    config = load(Ablation, str(path))
    found = difference(config, cards_of(config))
    assert undeclared(config, cards_of(config)) == [] and (any(found["arms"].values()) or len(config.arms) == 1)
    if path.stem == "encoders":  # each encoder has its own decoder and instruction data
        assert {r["key"] for r in found["arms"]["sd_vae"]} >= {"data.pairs", "evaluate.prompts#2.decoder.rae.weights", "evaluate.sft_vqa.dataset"}


# ---- the ends of the model -------------------------------------------------------------------------------------------------------------------


def test_ends_of_another_shape_are_found():
    config = made(arms=TWO, seeds=[0])
    cards = cards_of(config)
    cards["with_text"][1]["shape"]["channels"] = 999
    assert undeclared(config, cards) == [("with_text", "shape.channels", None)]


def test_a_shape_that_follows_from_a_declared_dataset_is_declared_and_one_that_does_not_is_not():
    config = made(arms=VAE, seeds=[0])
    cards = cards_of(config, {"vae": 64})
    rows = {row["key"]: (row["base"], row["here"]) for row in difference(config, cards)["arms"]["vae"]}
    assert rows["shape.channels"] == (16, 64) and "data.vqa" in rows and undeclared(config, cards) == []
    cards["vae"][1]["shape"]["channels"] = 999  # not what its plan's latents have
    assert undeclared(config, cards) == [("vae", "shape.channels", None)]


def test_a_shape_that_follows_from_a_dataset_made_anew_is_as_undeclared_as_the_dataset():
    config = made(arms=TWO, seeds=[0])
    cards = cards_of(config, {"with_text": 64})
    cards["with_text"][0]["parents"][0]["fingerprint"] = "another"
    assert [key for _, key, _ in undeclared(config, cards)] == ["data.text", "shape.channels"]


def test_a_second_encoder_s_ends_are_declared_by_the_datasets_that_bring_it():
    config = made(arms=VAE, seeds=[0])
    cards = cards_of(config)
    cards["vae"][0]["encoding"]["target"] = {"width": 32, "tokens": 1}
    cards["vae"][1]["shape"] |= {"made_channels": 32, "made_patches": 1}
    assert undeclared(config, cards) == []
    assert {r["key"] for r in difference(config, cards)["arms"]["vae"]} == {"data.vqa", "shape.made_channels", "shape.made_patches"}


# ---- how arms were evaluated -----------------------------------------------------------------------------------------------------------------


def asked(**of_arm: Any) -> Ablation:
    arms = {"few": ARMS["few"], "same": {"extends": "few", "evaluate": of_arm}}
    return made(arms=arms, seeds=[0], evaluate=[{"vqa": {"questions": 1000}}, {"prompts": {"set": "dpg", "path": "p"}}, "flow_loss"])


def test_what_an_arm_is_asked_otherwise_is_a_difference_that_it_declares():
    config = asked(vqa={"questions": 10})
    found = difference(config, cards_of(config))
    assert found["arms"]["same"] == [{"key": "evaluate.vqa.questions", "base": 1000, "here": 10, "declared": True}]
    held = held_fixed(config, cards_of(config))
    assert "evaluate.vqa.questions" not in held and held["evaluate.prompts.set"] == "dpg" and any(k.startswith("evaluate.flow_loss.") for k in held)


def test_a_decoder_that_an_arm_brings_declares_its_defaults_and_an_evaluation_nobody_asks_is_none():
    config = asked(prompts={"decoder": {"rae": {"weights": "w"}}}, samples={"images": 2})
    assert [r["key"] for r in difference(config, cards_of(config))["arms"]["same"]] == ["evaluate.prompts.decoder.rae.weights"]
    cards = cards_of(config)
    prompts = {"set": "dpg", "path": "p", "decoder": {"rae": {"weights": "w", "tile": 8}}, "newkey": 1}
    cards["same"][1]["evaluate"] = [{"prompts": prompts}]
    keys = {r["key"]: r["declared"] for r in difference(config, cards)["arms"]["same"] if r["here"] is not None}
    assert keys == {"evaluate.prompts.decoder.rae.weights": True, "evaluate.prompts.decoder.rae.tile": True, "evaluate.prompts.newkey": False}


def test_how_a_run_was_evaluated_is_what_it_says_itself():
    config = made(arms=TWO, seeds=[0, 1], evaluate=[{"vqa": {"questions": 5}}])
    cards = cards_of(config)
    for arm in TWO:
        for run in cards[arm][1:]:
            run["evaluate"] = [{"vqa": {"questions": 5}}]
    assert undeclared(config, cards) == []
    cards["with_text"][2]["evaluate"] = [{"vqa": {"questions": 4}}]
    assert undeclared(config, cards) == [("with_text", "evaluate.vqa.questions", 1)]


def test_two_evaluations_of_one_name_have_keys_of_their_own_and_an_arm_s_keys_hold_for_both():
    config = made(arms={"few": ARMS["few"], "same": {"extends": "few", "evaluate": {"vqa": {"questions": 2}}}}, seeds=[0],
                  evaluate=[{"vqa": {"questions": 5}}, {"vqa": {"questions": 6, "source": "text"}}])  # fmt: skip
    rows = difference(config, cards_of(config))["arms"]["same"]
    assert [(r["key"], r["base"], r["here"], r["declared"]) for r in rows] == [
        ("evaluate.vqa#2.questions", 6, 2, True),
        ("evaluate.vqa.questions", 5, 2, True),
    ]
    plan, run = cards_of(config)["few"]
    assert resolved(plan, run, ["flow_loss"])["evaluate.flow_loss"] == {}
