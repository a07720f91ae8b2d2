"""docs/mixtures_yaml.md: every key is there, every example is read, every name exists."""

import re
from pathlib import Path

import pytest
import yaml

import mixtures
from mixtures.mixture import HeldOut, Mixture, Source
from mixtures.where import Where
from pipelines.format.document import load

DOC = (Path(__file__).parents[2] / "docs/mixtures_yaml.md").read_text()
FOLDER = Path(mixtures.__file__).parent / "recipes"
ROWS = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", DOC, re.M)


def test_every_key_has_a_line_with_an_example_of_itself():
    keys = [key for key, _ in ROWS]
    assert sorted(keys) == sorted(["extends", *Mixture.model_fields, *Source.model_fields])
    assert all(example.startswith(f"{key}: ") for key, example in ROWS)
    assert all(f"`{key}`" in DOC or f"{key}:" in DOC for key in (*Where.model_fields, *HeldOut.model_fields))


@pytest.mark.parametrize(("key", "example"), ROWS, ids=[key for key, _ in ROWS])
def test_every_example_line_is_read(tmp_path, key, example):
    said = yaml.safe_load(example.replace("2%", "'2%'"))
    document = {"sequence_length": 64, "sources": {"text": {"dataset": "d", "tokens": 9}, "vqa": {"dataset": "e", "tokens": 9}}}
    if key in Source.model_fields:
        budget = {} if key in ("tokens", "share", "epochs") else {"epochs": 1}
        document["sources"] = {"x": {"dataset": "d", **budget}}
        if key == "share":
            document |= {"total": "1K"}
            document["sources"]["rest"] = {"dataset": "e", "share": "50.5%"}
        if key == "max_share":
            document["sources"]["rest"] = {"dataset": "e", "epochs": 3}
        document["sources"]["x"] |= said
    elif key == "stages":
        document |= {"total": 100, "sources": {"text": {"dataset": "d"}, "vqa": {"dataset": "e"}}} | said
    elif key == "extends":
        document = said
    elif key == "total":
        document |= said | {"sources": {"text": {"dataset": "d", "tokens": "100B"}}}
    else:
        document |= said
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(document))
    m = load(Mixture, str(path), packaged=[FOLDER])
    assert key in ("extends", "name") or key in (m.model_fields_set | {k for s in m.sources.values() for k in s.model_fields_set})


def test_every_block_is_a_mixture(tmp_path):
    blocks = re.findall(r"```yaml\n(.+?)```", DOC, re.S)
    assert len(blocks) >= 3
    for block in blocks:
        (tmp_path / "m.yaml").write_text(block)
        assert load(Mixture, str(tmp_path / "m.yaml"), packaged=[FOLDER]).sources


def test_every_packaged_name_of_the_table_exists():
    names = set()
    for line in DOC[DOC.index("## The paper's mixtures") :].splitlines():
        if line.startswith("| E"):
            stem = ""
            for word in re.findall(r"`([^`]+)`", line):
                stem = word if word.endswith("_") else stem if (FOLDER / f"{stem}{word}.yaml").exists() else ""
                if not word.endswith("_"):
                    names.add(stem + word)
    names.discard("grid_image{25,50,75,100}_text{0,25,50,75,100}")
    assert names and not [n for n in names if not (FOLDER / f"{n}.yaml").exists()]
