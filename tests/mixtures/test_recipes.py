"""The packaged mixtures: each is read, adds up, and names its place."""

from pathlib import Path

import pytest

import mixtures
from mixtures.mixture import Mixture, wanted
from pipelines.format.document import load
from pipelines.format.errors import RecipeError

RECIPES = sorted((Path(mixtures.__file__).parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_packaged_mixture_is_read_and_has_a_place(path):
    m = load(Mixture, str(path))
    assert m.name == path.stem and m.output is not None and m.held_out is not None
    assert sum(wanted(s, m.total) for s in m.sources.values()) > 0


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        *(("text_only", 520), ("text_video", 1040), ("text_image", 1040), ("all_kinds", 1040), ("vqa20", 20), ("vqa20_text80", 100)),
        *(("vqa20x5", 100), ("vqa100", 100), ("world_model_video", 100), ("world_model_ratio", 200), ("text_photos_57b", 57)),
    ],
)
def test_the_paper_s_budgets_are_what_the_files_say(name, billions):
    m = load(Mixture, name, packaged=[RECIPES[0].parent])
    assert sum(wanted(s, m.total) for s in m.sources.values()) == billions * 10**9


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("total=90B", "total is 90,000,000,000"),
        ("sources.vqa.share=20%", "exactly one of tokens, share, epochs"),
        ("sources.vqa.turn=isolated", "unknown key 'turn'"),
        ("sources.pairs.image_first=2", "less than or equal to 1"),
        ("sources.pairs.captions={original: 0}", "at least one of them more than 0"),
        ("held_out.fraction=70%", "less than or equal to 0.5"),
        ("scale=0", "greater than 0"),
        ("count=words", "'all', 'text', 'visual', 'loss' or 'records'"),
    ],
)
def test_a_mixture_that_cannot_be_meant_is_refused_with_its_line(override, said):
    with pytest.raises(RecipeError) as e:
        load(Mixture, "example", [override], [RECIPES[0].parent])
    assert said in str(e.value) and e.value.exit == 2 and e.value.where


def test_stages_need_rising_ends_and_shares_of_one(tmp_path):
    file = tmp_path / "m.yaml"
    text = "sequence_length: 64\ntotal: 1K\nsources: {a: {dataset: x}}\nstages:\n  - {until: 60%%, share: {a: 1}}\n  - {until: %s, share: {a: %s}}\n"
    for until, share, said in (("50%", "1", "rising"), ("100%", "0.5", "add up to 1"), ("90%", "1", "the last at 100%")):
        file.write_text(text % (until, share))
        with pytest.raises(RecipeError, match=said):
            load(Mixture, str(file))
