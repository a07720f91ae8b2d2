"""Settings: what is laid over what, what is passed over, and where errors point."""

import json

import pytest

from pipelines.format.document import dump, load
from pipelines.format.errors import HeadwaterError, InputError, RecipeError
from trainer.ablation import Ablation, arm_runs, mixture_of, plan_paths
from trainer.setting import FOLDER

TOY = {"transfusion": {"layers": 1, "width": 16, "heads": 2, "ffn": "shared", "norm": "layer", "activation": "relu2"}}
ABLATION = {
    "seeds": [0, 1, 2],
    "run": {"model": {"transfusion": {"size": "1.5b"}}, "batch": 512, "flow": {"predict": "x"}},
    "datasets": {"vqa": "out/vqa", "text": "out/text", "two": {"context": "out/c", "target": "out/t"}},
    "models": {"split": {"transfusion": {"ffn": "per_modality"}}, "shared": {"transfusion": {"ffn": "shared"}}},
    "mixture": {"sequence_length": 4096, "sources": {"vqa": {"dataset": "vqa", "max_epochs": 3}, "text": {"dataset": "text"}}},
    "arms": {
        "small": {"tokens": {"vqa": "20B"}, "run": {"model": "shared"}},
        "large": {"extends": "small", "tokens": {"text": "60B"}, "run": {"model": "split", "loss": {"flow": 1.0}}},
        "other": {"extends": "large", "sources": {"vqa": {"dataset": "two"}, "text": {"dataset": "elsewhere/text"}}},
    },
    "evaluate": [{"vqa": {"questions": 1000}}, "flow_loss"],
    "output": "out/ablations/{name}",
}
SETTING = f"""\
datasets: {{vqa: here/vqa}}
largest: 40K
seeds: [7]
sequence_length: 96
run: {{model: {json.dumps(TOY)}, batch: 2, flow: {{predict: v}}}}
sources: {{vqa: {{turns: isolated}}, video: {{max_epochs: 9}}}}
evaluate: {{vqa: {{questions: 5}}, samples: {{images: 2}}}}
output: made/{{name}}
"""


@pytest.fixture
def on(tmp_path):
    """Read the ablation `a.yaml` on the setting whose text is given."""

    def read(setting: str = SETTING, *overrides: str, **changes) -> Ablation:
        (tmp_path / "s.yaml").write_text(setting)
        (tmp_path / "a.yaml").write_text(json.dumps({**ABLATION, "on": "s.yaml", **changes}))
        return load(Ablation, str(tmp_path / "a.yaml"), overrides)

    return read


def test_without_a_setting_an_ablation_is_what_it_says(on):
    a = on(SETTING, on=None)
    assert (a.scale, a.seeds, a.output) == (1, [0, 1, 2], "out/ablations/a")
    assert {n: s.dataset for n, s in mixture_of(a, "small").sources.items()} == {"vqa": "out/vqa", "text": "out/text"}


def test_a_setting_says_where_how_large_and_on_what(on):
    a = on()
    assert (a.seeds, a.output, a.scale) == ([7], "made/a", 40e3 / 80e9)
    m = mixture_of(a, "large")
    assert m.sequence_length == 96 and m.sources["vqa"].turns == "isolated" and m.sources["vqa"].max_epochs == 3 and set(m.sources) == {"vqa", "text"}
    assert (m.sources["vqa"].dataset, m.sources["text"].dataset) == ("here/vqa", "out/text")
    assert [type(p).__name__ for p in a.evaluate] == ["Vqa", "FlowLoss"] and a.evaluate[0].questions == 5


def test_the_largest_arm_has_the_tokens_that_were_asked_for_to_the_token(on):
    a = on()
    assert [sum(int(s.tokens * a.scale) for s in mixture_of(a, arm).sources.values()) for arm in a.arms] == [10_000, 40_000, 40_000]


def test_a_dataset_s_name_may_be_two_and_what_is_no_name_is_a_path(on):
    sources = mixture_of(on(), "other").sources
    assert sources["vqa"].paths == ("out/c", "out/t") and sources["text"].paths == ("elsewhere/text",)


def test_a_run_with_a_model_stands_in_place_of_the_ablation_s_and_one_without_is_laid_over_it(on):
    whole = {r.arm: r.run for r in arm_runs(on())}
    assert {(r.batch, r.flow.predict, r.model.width) for r in whole.values()} == {(2, "v", 16)}
    assert (whole["small"].model.ffn, whole["large"].model.ffn, whole["large"].loss.flow) == ("shared", "per_modality", 1.0)
    part = {r.arm: r.run for r in arm_runs(on("run: {batch: 64}"))}
    assert {(r.batch, r.flow.predict, r.model.width) for r in part.values()} == {(64, "x", 2048)}


def test_a_setting_s_model_stands_in_place_of_the_ablation_s_of_that_name(on):
    models = "models: {split: {transfusion: {ffn: mot}}, unused: {transfusion: {ffn: moe}}}"
    runs = {r.arm: r.run.model.ffn for r in arm_runs(on(f"{SETTING}{models}"))}
    assert runs == {"small": "shared", "large": "mot", "other": "mot"}
    with pytest.raises(RecipeError, match="no model 'spilt'; known: split, shared"):
        on(SETTING, "arms.small.run.model=spilt")


def test_what_is_saved_names_no_setting_and_reads_back_as_itself(on):
    a = on()
    saved = dump(a)
    assert "on" not in saved and dump(Ablation.model_validate(saved)) == saved
    assert plan_paths(Ablation.model_validate(saved)) == plan_paths(a)


def test_overrides_come_last_and_one_may_name_the_setting(on, tmp_path):
    assert on(SETTING, "seeds=[1]", "evaluate.0.vqa.questions=9", "datasets.vqa=x").evaluate[0].questions == 9
    assert on(SETTING, "seeds=[1]").seeds == [1]
    (tmp_path / "t.yaml").write_text("seeds: [5]\n")
    assert on(SETTING, "on=t.yaml").seeds == [5] and on(SETTING, "on=null").seeds == [0, 1, 2]


def test_a_setting_extends_another_and_says_more_of_one_ablation(on, tmp_path):
    (tmp_path / "base.yaml").write_text(SETTING)
    more = "extends: base.yaml\nscale: 1e-9\nlargest: null\nablations: {a: {seeds: [8], sources: {vqa: {max_epochs: 4}}}, b: {seeds: [9]}}\n"
    a = on(more)
    assert (a.seeds, a.scale, mixture_of(a, "small").sources["vqa"].max_epochs) == ([8], 1e-9, 4)
    assert on(SETTING + "ablations: {a: {scale: 1e-8}}\n").scale == 1e-8  # of one ablation, `scale` takes the place of `largest`


def test_arms_are_left_out_with_a_reason_and_what_extends_them_stays_whole(on):
    a = on(SETTING + "left_out: {large: no such data here, unheard: of}\n")
    assert list(a.arms) == ["small", "other"] and a.left_out == {"large": "no such data here"}
    assert {n: s.tokens for n, s in mixture_of(a, "other").sources.items()} == {"vqa": 20 * 10**9, "text": 60 * 10**9}
    assert [r.run.model.ffn for r in arm_runs(a)] == ["shared", "per_modality"]
    with pytest.raises(RecipeError, match=r"no other arm 'small'.*and small is left out"):
        on(SETTING + "left_out: {small: gone}\n", arms={**ABLATION["arms"], "other": {"tokens": {"vqa": 1}, "records_from": "small"}})
    with pytest.raises(RecipeError, match="at least one arm"):
        on(SETTING + "left_out: {small: x, large: x, other: x}\n")


def test_another_evaluation_is_asked_instead_with_the_same_source(on):
    asked = on(
        SETTING + "instead: {vqa: [{samples: {steps: 3}}], flow_loss: []}\n", evaluate=[{"vqa": {"source": "qa"}}, "flow_loss", {"vqa": {}}]
    ).evaluate
    assert [(type(p).__name__, p.source, p.steps, p.images) for p in asked] == [("Samples", "qa", 3, 2), ("Samples", "image_text", 3, 2)]


COMPARE = [
    {"difference": {"metric": "geneval", "split": "all", "against": "small"}},
    {"difference": {"metric": "dpg", "split": "all", "against": "small"}},
    {"ordering": {"metric": "sft_vqa"}},
    "isoflop_law",
    {"difference": {"metric": "vqa", "against": "large"}},
]
REPORT = [
    {"bars": {"metric": ["geneval", "dpg"], "split": "all"}},
    {"bars": {"metric": ["vqa", "sft_vqa", "dpg"], "split": ["held_out", "all"]}},
    {"progression": {"metrics": ["dpg"], "split": "all", "steps": [{"name": "size", "arms": ["small", "large"]}]}},
    {"bars": {"metric": "frechet", "split": "inception"}},
    {"bars": {"metric": ["sft_vqa"]}},
]
METRICS = """\
metrics:
  geneval: {metric: scene_match, split: held_out, baselines: [truth]}
  dpg: {metric: scene_match, split: held_out, baselines: [truth]}
  sft_vqa: null
  frechet: {split: pixels}
"""


def test_comparisons_and_figures_are_about_what_the_setting_measures_in_place_of_their_metrics(on):
    asked = dump(on(SETTING + METRICS, compare=COMPARE, report=REPORT))
    assert dump(on(SETTING, compare=COMPARE, report=REPORT))["compare"] != asked["compare"]
    differences = [(p["difference"]["metric"], p["difference"]["split"], p["difference"]["against"]) for p in asked["compare"] if "difference" in p]
    assert differences == [("scene_match", "held_out", "small"), ("vqa", "held_out", "large")], "once where two are the same then, none where null"
    assert [next(iter(p)) if isinstance(p, dict) else p for p in asked["compare"]] == ["difference", "isoflop_law", "difference"]
    told = [(k["metric"] if "metric" in k else k["metrics"], k["split"], k.get("baselines")) for p in asked["report"] for k in p.values()]
    assert told == [
        (["scene_match"], "held_out", ["truth"]),
        (["vqa", "scene_match"], ["held_out", "all"], []),  # not all of it is about something else: its keys stay
        (["scene_match"], "held_out", None),
        ("frechet", "pixels", []),
    ]


def test_what_stands_for_a_metric_in_general_may_be_nothing_in_one_ablation(on):
    more = METRICS + "ablations: {a: {metrics: {geneval: null, dpg: {split: none}}}}\n"
    asked = dump(on(SETTING + more, compare=COMPARE[:2]))["compare"]
    assert [(p["difference"]["metric"], p["difference"]["split"]) for p in asked] == [("scene_match", "none")]


def test_a_mistake_after_a_comparison_that_fell_away_is_named_at_its_own_line(on, tmp_path):
    (tmp_path / "s.yaml").write_text(SETTING + METRICS)
    head = json.dumps({**ABLATION, "on": "s.yaml"})[:-1]
    (tmp_path / "b.yaml").write_text(f'{head}, "compare": [\n{{"ordering": {{"metric": "sft_vqa"}}}},\n{{"ordering": {{"metrik": "vqa"}}}}\n]}}')
    with pytest.raises(RecipeError, match="metrik") as caught:
        load(Ablation, str(tmp_path / "b.yaml"))
    assert "b.yaml:3" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        ("seeds: [0]\nsede: 1\n", "unknown key 'sede'", 2),
        ("scale: 1\nlargest: 3K\n", "say `scale` or `largest`, not both", None),
        ("datasets:\n  vqa: 3\n", "datasets.vqa", 2),
        ("evaluate:\n  vqa: {questoins: 3}\n", "unknown key 'questoins'", 2),
        ("evaluate:\n  vqa: {questions: none}\n", "evaluate.0.vqa.questions", 2),
        ("evaluate:\n  vqua: {}\n", "did you mean 'vqa'", 2),
        ("seeds: [0]\nmetrics:\n  dpg: {metrik: vqa}\n", "unknown key 'metrik'", 3),
        ("seeds: [0]\nsequence_length: 7\n", "greater than or equal to 8", 2),
        ("output: o\nablations:\n  a: {seeds: []}\n", "ablations.a.seeds", 3),
    ],
)
def test_a_mistake_in_a_setting_is_named_with_its_file_and_line(on, text, says, line):
    with pytest.raises(RecipeError, match=says) as caught:
        on(text)
    where = str(caught.value)
    assert f"s.yaml:{line}" in where if line else "s.yaml" in where


def test_what_a_setting_makes_wrong_in_the_ablation_is_named_at_the_setting_s_line(on):
    with pytest.raises(RecipeError, match="hardware") as caught:
        on("seeds: [0]\nhardware: {cards: 3}\n")
    assert "s.yaml:2" in str(caught.value)
    with pytest.raises(HeadwaterError, match="seeds: a seed stands twice"):
        on("seeds: [0, 0]\n")


def test_a_setting_that_is_not_there_is_named_with_those_that_are(on):
    with pytest.raises(InputError, match="there is no such setting") as caught:
        on(SETTING, "on=wrold_smoke")
    assert "world_smoke" in str(caught.value) and "on=wrold_smoke" in str(caught.value)


def test_packaged_settings_are_found_by_name(on):
    assert on(SETTING, "on=world_smoke").output == "ablations/a"
    assert {p.stem for p in FOLDER.glob("*.yaml")} >= {"world_smoke", "world_inference"}
