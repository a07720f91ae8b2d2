"""What the packaged ablations ask of their numbers is what their evaluations write: at the paper's size and under every packaged setting."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import trainer
from pipelines.format.document import Part, dump, load, part_name
from tests.trainer.shown import ablation
from trainer.ablation import Ablation, evaluations_of
from trainer.report.published import published, table
from trainer.scaling.published import FLOPS, OPTIMA
from trainer.setting import FOLDER as SETTINGS

FOLDER = Path(trainer.__path__[0]) / "ablations"
NAMES = sorted(p.stem for p in FOLDER.glob("*.yaml"))
WHERE = [None, *sorted(p.stem for p in SETTINGS.glob("*.yaml"))]
SOURCES = ("held_out", "held_out:*")
PLANNING = [f"planning.{m}" for m in ("ate", "rpe", "position", "yaw")]
ROLLOUT = ("rollout.pixel", "rollout.latent", "rollout.psnr", "rollout.follows")
# Evaluation → metrics, splits, and the control rows beside them. What depends on the evaluation's keys is in `written`.
WRITTEN: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "flow_loss": (("flow_loss",), SOURCES, ()),
    "vqa": (("vqa",), SOURCES, ("constant", "shuffled", "blind", "attributes")),
    "scene_match": (("scene_match", "scene_match.all"), SOURCES, ("truth", "shuffled")),
    "planning": (tuple(PLANNING), ("held_out",), ("random", "uninformed", "simulator")),
    "rollout": (ROLLOUT, ("horizon:*",), ("copy", "zero_action", "counterfactual")),
    "commands": (("commands",), SOURCES, ()),
    "experts": (("experts.*",), ("layer:*", "threshold:*"), ()),
    "samples": ((), (), ()),
}
PASSED = ("samples", "scene_match", "frechet")  # have a key `required`


class Asked(NamedTuple):
    """One number that a comparison or a figure wants; arms: of whom (none: of any)."""

    part: str
    metric: str
    split: str
    arms: tuple[str, ...]


def read(name: str, setting: str | None = None) -> Ablation:
    return load(Ablation, name, [] if setting is None else [f"on={setting}"], [FOLDER])


def written(part: Part) -> Iterator[tuple[str, str]]:
    """(metric, split) that an evaluation can write, * for any."""
    name = part_name(part)
    if name in WRITTEN:
        metrics, splits, controls = WRITTEN[name]
    elif name == "text_perplexity":
        splits = tuple(s for one in part.sets for s in (SOURCES if one == "held_out" else (f"set:{one.name}",)))
        metrics, controls = ("text_perplexity", "bits_per_byte"), ()
    elif name == "prompts":  # no row without what a scorer wrote
        metrics, splits, controls = (part.set,) if part.results else (), ("all", "*"), ()
    elif name == "frechet":
        metrics, splits, controls = ("frechet",), (part.split,), ("held_out", "extrapolated")
    elif name == "benchmark":
        yield from ((f"benchmark.choice{c}", s) for c in ("", ".shuffled", ".blind") for s in ("all", *part.sets))
        metrics, splits, controls = ("benchmark",), ("all", *part.sets), ("constant", "shuffled", "blind")
    else:
        assert name == "sft_vqa", f"{name}: say here what it writes"
        yield from (("sft_vqa" + m[m.index(".") :] if "." in m else "sft_vqa", s) for inner in part.evaluate for m, s in written(inner))
        return
    yield from ((m + c, s) for m in metrics for c in ("", *(f".{c}" for c in controls)) for s in splits)


def writes(a: Ablation, arm: str) -> list[tuple[str, str]]:
    """What an arm can have a number of; an evaluation that lets arms pass says nothing of those that lack its source."""
    asked = [p for p in evaluations_of(a, arm) if part_name(p) not in PASSED or p.required or a.settled(arm).tokens.get(p.source)]
    return [row for part in asked for row in written(part)]


def asked_of(a: Ablation) -> Iterator[Asked]:
    """Every number that `compare` and `report` want, controls among them."""
    told = dump(a)
    for part in [*told["compare"], *told["report"]]:
        name, keys = next(iter(part.items())) if isinstance(part, dict) else (part, {})
        losses = [(one["metric"], one.get("split") or "held_out") for one in keys.get("losses") or []]
        metrics = keys.get("metrics") or keys.get("metric") or []
        splits = keys.get("split") or "held_out"
        each = [(m, s) for m in listed(metrics) for s in listed(splits)]
        arms = [*(keys.get("of") or []), *listed(keys.get("against") or []), *(keys.get("arms") or []), *(keys.get("ladder") or {})]
        arms += [arm for step in keys.get("steps") or [] for arm in step["arms"]]
        there = tuple(dict.fromkeys(arm for arm in arms if arm in a.arms))
        yield from (Asked(name, m, s, there) for m, s in [*each, *losses])
        for control in keys.get("baselines") or []:
            yield from (Asked(name, m if control in a.arms else f"{m}.{control}", s, ()) for m, s in each)


def listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value)


def missing(a: Ablation) -> list[str]:
    """What is asked and nothing writes, in words."""
    by_arm = {arm: writes(a, arm) for arm in a.arms}
    out = []
    for one in asked_of(a):
        has = {arm: any(fnmatchcase(one.metric, m) and fnmatchcase(one.split, s) for m, s in rows) for arm, rows in by_arm.items()}
        without = [arm for arm in one.arms if not has[arm]] if any(has.values()) else ["any arm"]
        out += [f"{one.part}: {one.metric} ({one.split}) of {arm}" for arm in without]
    return out


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", NAMES)
def test_every_comparison_and_figure_is_about_what_the_ablation_s_own_evaluations_write(name, where):
    assert missing(read(name, where)) == []


def test_a_question_about_what_nothing_writes_is_noticed():
    a = read("text_image_grid")
    asks = {"compare": [{"difference": {"metric": "scene_match", "of": ["image50"], "against": "image25"}}], "report": []}
    assert missing(Ablation.model_validate({**dump(a), **asks})) == ["difference: scene_match (held_out) of any arm"]
    unscored = [{"prompts": {"set": "geneval", "path": "p"}}, "flow_loss", {"text_perplexity": {"sets": ["held_out"]}}]
    assert any("geneval" in m for m in missing(Ablation.model_validate({**dump(a), "evaluate": unscored})))
    passed = [{"scene_match": {"source": "photos", "required": False}}]
    only = {"evaluate": passed, "compare": [{"difference": {"metric": "scene_match", "of": ["unified"], "against": "text"}}], "report": []}
    assert missing(Ablation.model_validate({**dump(read("unified")), **only})) == ["difference: scene_match (held_out) of text"]


def test_every_value_of_the_paper_is_set_beside_ours_at_its_size():
    orders: dict[str, set[tuple[str, str]]] = {}
    for name in NAMES:
        a = read(name)
        for part in a.compare:
            if part_name(part) == "ordering":
                orders.setdefault(str(a.experiment), set()).add((part.metric, part.split.partition(":")[0]))
    for experiment, entries in table()["experiments"].items():
        for entry in entries:
            metrics = {entry.get("also") or entry["metric"], f"sft_{entry['metric']}"}  # the paper asks questions after instruction data, E7 ours
            asked = {split for metric, split in orders[experiment] if metric in metrics}
            assert asked and ("set" not in str(entry["split"]) or "set" in asked), (experiment, entry["name"])


@pytest.mark.parametrize("where", ["world_smoke", "world_inference"])
@pytest.mark.parametrize("name", ["specialists", "pairs_needed", "pair_sources", "text_image_grid", "experts_design", "unified"])
def test_on_the_little_world_its_own_oracle_stands_where_published_prompts_stood(name, where):
    paper, here = read(name), read(name, where)
    about = lambda a: [(o.part, o.metric) for o in asked_of(a)]
    assert {m for _, m in about(paper)} & {"geneval", "dpg"} and not any("scene_match" in m for _, m in about(paper))
    assert not {m for _, m in about(here)} & {"geneval", "dpg", "sft_vqa"}
    drawn = {"text_image_grid": "grid"}.get(name, "bars")
    assert (drawn, "scene_match") in about(here) and ("difference", "scene_match") in about(here)


@pytest.mark.parametrize("name", ["encoders", "pair_sources", "text_image_grid", "experts_design", "stacking", "unified"])
def test_where_all_is_measured_every_comparison_is_answered_and_every_figure_drawn(name):
    a = read(name)
    budgets = {arm: {s: int(n) for s, n in a.settled(arm).tokens.items()} for arm in a.arms}
    values: dict[str, dict[str, float]] = {}
    for one in asked_of(a):
        values[f"{one.metric}|{one.split}"] = {arm: 0.3 + 0.01 * i for i, arm in enumerate(a.arms)}
    e = ablation(budgets, values)
    e.card["recipe"] |= dump(a)
    parts = [p for p in (*a.compare, *a.report) if part_name(p) != "mixing_law"]
    for part in parts:
        section = part.section(e)
        assert section is not None and "not measured" not in section, part
        if part_name(part) in ("difference", "ordering") and (part_name(part), part.metric) != ("ordering", "sft_vqa"):
            assert part.rows(e), part


def test_the_paper_s_orders_of_prompts_meet_the_oracle_s_too():
    for name in ("encoders", "text_image_grid", "stacking", "unified"):
        a = read(name)
        official = {p.metric for p in a.compare if part_name(p) == "ordering"} & {"geneval", "dpg"}
        assert official and all(published(a.experiment, list(a.arms), m, "all") for m in official)
        assert published(a.experiment, list(a.arms), "scene_match", "held_out")


def test_no_arm_s_text_is_tested_that_reads_none():
    for name in NAMES:
        a = read(name)
        for part in a.compare:
            if part_name(part) in ("equivalence", "difference") and part.metric == "text_perplexity":
                arms = [arm for arm in (*(part.of or a.arms), *listed(part.against)) if arm in a.arms]
                assert all(a.settled(arm).tokens.get("text") for arm in arms), (name, arms)


@pytest.mark.parametrize("key", OPTIMA)
def test_sizes_are_planned_on_both_sides_of_every_optimum_of_the_paper(key):
    """A minimum next to the ladder's end is thrown out where that end has the lowest loss: the size nearest to it must not be the end."""
    family, _ = key
    a = read("isoflop")
    points = a.isoflop.points(a.run, a.mixture).values()
    for budget, millions in zip(FLOPS[family], OPTIMA[key][0], strict=True):
        sizes = np.sort([p.active for p in points if (p.family, p.budget) == (family, budget)])
        best = millions * 1e6
        assert len(sizes) >= 5 and sizes[0] < best < sizes[-1], (key, budget)
        assert 0 < np.abs(np.log(sizes / best)).argmin() < len(sizes) - 1, (key, budget, sizes)


def test_equal_compute_is_equal_to_one_per_cent_by_the_trainer_s_own_count():
    """Photographs with captions of 30 tokens, documents isolated: 300 and 150 positions before a mean query."""
    import torch

    from trainer.ablation import arm_runs
    from trainer.models.flops import training_flops
    from trainer.models.load import build

    a = read("unified")
    with torch.device("meta"):
        model = build(arm_runs(a)[0].run, {"vocab": 128_256, "channels": 1152, "patches": 256})
    spent = {}
    for arm in a.arms:
        text, photos = (a.settled(arm).tokens.get(s, 0) // 1000 for s in ("text", "photos"))
        n = photos // 286
        spent[arm] = training_flops(model, text + 34 * n, 256 * n, text + 31 * n, 300 * text + 150 * 290 * n)
    assert max(spent.values()) < 1.01 * min(spent.values()), spent
