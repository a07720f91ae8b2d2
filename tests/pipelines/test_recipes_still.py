"""The recipes for text, captions and questions, from files to shards: every item is accounted for, and the WebDataset library reads what we write."""

import os
from pathlib import Path

import pytest

import pipelines
from pipelines.curate import IMAGE_TEXT, TEXT, VQA
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import load
from pipelines.recipe import Recipe
from tests.toys import jpeg

PACKAGED = Path(pipelines.__file__).parent / "recipes"
REAL = Path(pipelines.__file__).parents[1] / "examples" / "real"
ASKED = ["vqa_json", "vqa_v2", "vqa_table", "vqa_choices", "vqa_chat"]
MINE = ["text_jsonl", "text_parquet", "captions", "captions_tar", "captions_parquet", "web_pairs", *ASKED]


def made(stage, recipe, output, *overrides):
    config = load(Recipe, str(recipe), [f"output={output}", "engine=local", *overrides], packaged=[PACKAGED])
    with open_job("local") as job:
        return Dataset.open(stage.run(config, job))


def lawful(card):
    assert card["in"] == card["written"] + sum(card["filtered"].values()) + sum(card["rejected"].values())
    return card["written"], card["filtered"], card["rejected"]


@pytest.mark.parametrize("name", MINE)
def test_each_packaged_recipe_is_a_valid_document(name):
    recipe = load(Recipe, name, [], packaged=[PACKAGED])
    assert recipe.name == name and recipe.source.data in ("text", "image-text", "vqa")


def test_a_folder_of_photos_with_broken_ones_among_them_is_accounted_for(tmp_path):
    photos = {"a.jpg": jpeg(1, 96), "b.jpg": jpeg(2, 96), "small.jpg": jpeg(3, 32)}
    photos |= {"empty.jpg": b"", "page.jpg": b"<html>", "cut.jpg": jpeg(4, 96)[:-99]}
    for name, data in photos.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).with_suffix(".txt").write_text("a caption" if name != "b.jpg" else "one")
    where = [f"source.image_folder.path={tmp_path}", "source.image_folder.captions=null"]
    data = made(IMAGE_TEXT, "captions", tmp_path / "out", *where)
    assert lawful(data.card) == (1, {"caption_length.min_words": 1, "image_size.min_side": 1}, {"invalid_image": 1, "truncated": 2})
    (record,) = data.records(0, payloads=True)
    assert record.origin == "a.jpg" and record.segments[0].shape == (224, 224, 3)


def test_the_webdataset_library_reads_what_a_recipe_writes(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i, 96))
        (tmp_path / f"{i}.txt").write_text(f"picture number {i}")
    where = [f"source.image_folder.path={tmp_path}", "source.image_folder.captions=null"]
    data = made(IMAGE_TEXT, "captions", tmp_path / "out", *where)
    tars = [str(t) for t in sorted((tmp_path / "out").glob("data-*.tar"))]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    payloads = [r.segments[0].payload for r in data.records(0, payloads=True)]
    assert [s["0.jpg"] for s in samples] == payloads and len(samples) == data.card["records"] == 3


DATA = os.environ.get("HEADWATER_DATA")


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA is not set")
@pytest.mark.parametrize(
    ("stage", "name", "part", "where", "written", "filtered"),
    [
        (TEXT, "text", "jsonl", "text/jsonl/c4", 20, 0),
        (IMAGE_TEXT, "image_text", "image_folder", "image_text/coco_captions", 80, 0),
        (IMAGE_TEXT, "alt_text", "image_folder", "image_text/us_gov_alt_18f", 164, 50),
        (VQA, "vqa_rad", "vqa_table", "vqa/vqa_rad", 110, 0),
    ],
)
def test_the_real_examples_account_for_every_item(tmp_path, stage, name, part, where, written, filtered):
    data = made(stage, REAL / f"{name}.yaml", tmp_path / "out", f"source.{part}.path={DATA}/{where}")
    got, dropped, rejected = lawful(data.card)
    assert (got, sum(dropped.values()), rejected) == (written, filtered, {})
