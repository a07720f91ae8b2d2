"""The packaged mixtures: each is read, says which experiment it is, and asks for the paper's budgets to the token."""

import json
import os
from fractions import Fraction
from pathlib import Path

import pytest

import mixtures
from mixtures.budget import budgets
from mixtures.mixture import Mixture, Source
from pipelines.format.document import dump, load, parse
from pipelines.format.errors import RecipeError

FOLDER = Path(mixtures.__file__).parent / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
B = 10**9
PAIRED = {"text": 520, "pairs": 520}
EVERYTHING = {"text": 520, "video": 240, "pairs": 260, "action": 20}
HALVES = {"text": 28.5, "pairs": 28.5}
ENCODERS = ("webssl", "dinov2", "sd_vae", "flux_vae", "pixels")


def share(percent: str) -> dict[str, float]:
    rest = 100 - Fraction(percent)
    return {"action": Fraction(percent) * 2, "text": rest, "video": rest / 2, "pairs": rest / 2}


# Billions of tokens by source, experiment by experiment (arXiv 2603.03276). E3: text_only, text_video, text_image, all_kinds; E4: all_kinds and
# without_pairs; E5: text_image, recaptions, text_photos, pairs_per_direction.
BILLIONS = {
    "E1": {"text_only": {"text": 520}},
    "visual": {"image_only": {"video": 520}, "text_to_image_only": {"pairs": 520}},
    "E2": {f"encoder_{e}": EVERYTHING for e in ("siglip2", *ENCODERS)},
    "E3": {"text_video": {"text": 520, "video": 520}, "text_image": PAIRED, "all_kinds": EVERYTHING},
    "E4": {"without_pairs": {"text": 520, "video": 500, "action": 20}},
    "E5": {"recaptions": PAIRED, "text_photos": PAIRED, "pairs_per_direction": {"text": 520, "image_to_text": 260, "text_to_image": 260}},
    "E6": {"text_image_grid": {"pairs": 25, "text": 100}}
    | {f"grid_image{i}_text{t}": {"pairs": i, "text": t} for i in (25, 50, 75, 100) for t in (0, 25, 50, 75, 100)},
    "E7": {"vqa20": {"vqa": 20}, "vqa100": {"vqa": 100}, "vqa20x5": {"vqa": 100}}
    | {f"vqa20_{other}80": {"vqa": 20, other: 80} for other in ("text", "video", "image_text")},
    "E8": {"world_model_alone": {"action": 50}, "world_model_alone100": {"action": 100}}
    | {f"world_model_{other}": {"action": 50, other: 50} for other in ("text", "video", "pairs")},
    "E9": {"world_model_ratio": share("1")} | {f"world_share_{p}": share(p) for p in ("0.1", "0.5", "1", "10", "15", "25")},
    "E10": {"text_photos_57b": HALVES},
    "E11": {"trillion": {"text": 500, "video": 230, "pairs": 250, "action": 20}},
    "E12": {f"stacking_{e}": HALVES for e in ("siglip2", "sd_vae", "flux_vae", "dual")},
    "E13": {"isoflop_dense": {"text": 100, "pairs": 100}, "isoflop_moe": {"text": 170, "pairs": 170}},
}
NOT_THE_PAPER_S = {"example", "world_demo"}


def recipe(name: str, *overrides: str) -> Mixture:
    return load(Mixture, name, overrides, [FOLDER])


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_packaged_mixture_is_read_has_a_place_of_its_own_and_reads_back_from_what_is_saved(path):
    m = load(Mixture, str(path))
    assert m.name == path.stem and m.output == f"out/plans/{path.stem}" and m.held_out is not None
    assert parse(Mixture, dump(m)) == m and "extends" not in dump(m)


@pytest.mark.parametrize(("experiment", "name"), [(e, n) for e, arms in BILLIONS.items() for n in arms])
def test_the_paper_s_budgets_are_what_the_files_say_to_the_token(experiment, name):
    wanted = {source: int(Fraction(billions) * B) for source, billions in BILLIONS[experiment][name].items()}
    assert budgets(recipe(name), {}) == [wanted]
    opening = (FOLDER / f"{name}.yaml").read_text().partition("\n")[0]
    assert opening.startswith("# ") and (experiment in opening or experiment == "visual" or name == "vqa20x5")


def test_the_table_above_and_the_folder_hold_the_same_names():
    assert {p.stem for p in RECIPES} - NOT_THE_PAPER_S == {n for arms in BILLIONS.values() for n in arms}


@pytest.mark.parametrize("name", [f"encoder_{e}" for e in ENCODERS] + ["stacking_sd_vae", "stacking_flux_vae"])
def test_an_encoder_s_arm_differs_from_its_base_in_the_data_sets_with_images_and_takes_its_records(name):
    base = recipe("encoder_siglip2" if name.startswith("encoder") else "stacking_siglip2")
    arm = recipe(name)
    assert arm.records_from == base.output
    encoder = name.partition("_")[2]
    assert {n: s.main for n, s in arm.sources.items()} == {n: s.main.replace("siglip2", encoder) for n, s in base.sources.items()}

    def rest(m: Mixture) -> dict:
        plain = {k: v for k, v in dump(m).items() if k not in ("name", "output", "records_from")}
        return plain | {"sources": {n: {k: v for k, v in s.items() if k != "dataset"} for n, s in plain["sources"].items()}}

    assert rest(arm) == rest(base)


def test_cells_of_the_grid_differ_in_their_two_budgets_and_nothing_else():
    def rest(m: Mixture) -> dict:
        plain = {k: v for k, v in dump(m).items() if k not in ("name", "output")}
        return plain | {"sources": {n: {k: v for k, v in s.items() if k != "tokens"} for n, s in plain["sources"].items()}}

    assert len({json.dumps(rest(recipe(n)), sort_keys=True) for n in BILLIONS["E6"]}) == 1


def test_both_isoflop_plans_reach_a_quarter_of_the_best_size_at_the_largest_budget():
    values = Path(os.environ.get("HEADWATER_DATA", "/nonexistent")) / "reference/beyond_language_modeling/values.json"
    best = {"isoflop_dense": (1e21, 3385e6), "isoflop_moe": (6e20, 1183e6)}  # FLOPs, language's optimum: digitised, printed in no table
    for name, (flops, size) in best.items():
        assert recipe(name).total >= flops / (6 * size / 4)
    if values.exists():  # and the table of this file is the paper's, as far as that was written down apart
        grid = json.loads(values.read_text())["grid_E6"]
        assert [len(grid["image_billion"]) * len(grid["text_billion"]), grid["image_billion"][0]] == [len(BILLIONS["E6"]) - 1, 25]
        assert [f"world_share_{p}" for p in json.loads(values.read_text())["world_share_E9"]["share_percent"]] == list(BILLIONS["E9"])[1:]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("total=90B", "total is 90,000,000,000"),
        ("sources.vqa.share=20%", "exactly one of tokens, share, epochs"),
        ("sources.vqa.turn=isolated", "unknown key 'turn'; did you mean 'turns'?"),
        ("sources.pairs.image_first=2", "less than or equal to 1"),
        ("sources.pairs.captions={original: 0}", "at least one of them more than 0"),
        ("sources.video.max_share=49%", "video has 50,000,000,000 of 100,000,000,000 (50.0000%) of the total, and max_share is 49.0000%"),
        ("sources.video.max_share=0", "greater than 0"),
        ("held_out.fraction=70%", "less than or equal to 0.5"),
        ("scale=0", "greater than 0"),
        ("count=words", "'all', 'text', 'visual', 'loss' or 'records'"),
        ("balance=1", "greater than or equal to 2"),
        ("balance=512.5", "integer"),
        ("records_from=[a]", "string"),
    ],
)
def test_a_mixture_that_cannot_be_meant_is_refused_with_its_line(override, said):
    with pytest.raises(RecipeError) as e:
        recipe("example", override)
    assert said in str(e.value) and e.value.exit == 2 and e.value.where


def test_a_complaint_about_a_source_names_its_line_in_the_file_that_has_it(tmp_path):
    (tmp_path / "base.yaml").write_text("sequence_length: 64\nsources:\n  a: {dataset: x, tokens: 5}\n  b: {dataset: y, tokens: 6}\n")
    (tmp_path / "arm.yaml").write_text("extends: base.yaml\nsources:\n\n  b: {share: 3%}\n")
    with pytest.raises(RecipeError, match=r"(?s)tokens: null.*arm\.yaml:4"):
        load(Mixture, str(tmp_path / "arm.yaml"))
    (tmp_path / "base.yaml").write_text("sequence_length: 64\nsources:\n  a: {dataset: x}\n  b: {dataset: y, tokens: 6}\n")
    (tmp_path / "arm.yaml").write_text("extends: base.yaml\nseed: 3\n")
    with pytest.raises(RecipeError, match=r"(?s)found none.*base\.yaml:3"):
        load(Mixture, str(tmp_path / "arm.yaml"))


def test_stages_need_rising_ends_and_shares_of_one(tmp_path):
    file = tmp_path / "m.yaml"
    text = "sequence_length: 64\ntotal: 1K\nsources: {a: {dataset: x}}\nstages:\n  - {until: 60%%, share: {a: 1}}\n  - {until: %s, share: {a: %s}}\n"
    for until, share_, said in (("50%", "1", "rising"), ("100%", "0.5", "add up to 1"), ("90%", "1", "the last at 100%")):
        file.write_text(text % (until, share_))
        with pytest.raises(RecipeError, match=said):
            load(Mixture, str(file))


def test_with_stages_a_largest_share_is_of_the_whole_run():
    stages = [{"until": "50%", "share": {"a": 1}}, {"until": "100%", "share": {"a": 0.2, "b": 0.8}}]
    document = {"sequence_length": 64, "total": 1000, "stages": stages, "sources": {"a": {"dataset": "x", "max_share": 0.6}, "b": {"dataset": "y"}}}
    assert parse(Mixture, document).sources["a"].max_share == 0.6
    document["sources"]["a"]["max_share"] = 0.59
    with pytest.raises(RecipeError, match="a has 600 of 1,000"):
        parse(Mixture, document)


def test_keys_of_later_days_leave_no_trace_where_they_are_not_set():
    plain = dump(parse(Mixture, {"sequence_length": 64, "sources": {"a": {"dataset": "x", "tokens": 5}}}))
    assert not {"records_from", "balance", "normalise", "extends"} & set(plain) and "max_share" not in plain["sources"]["a"]
    said = {"sequence_length": 64, "records_from": "p", "balance": 8, "sources": {"a": {"dataset": "x", "tokens": 5, "max_share": "100%"}}}
    again = dump(parse(Mixture, said))
    assert (again["records_from"], again["balance"], again["sources"]["a"]["max_share"]) == ("p", 8, 1.0)
    assert set(Source.model_fields) - {"max_share"} == set(plain["sources"]["a"])
