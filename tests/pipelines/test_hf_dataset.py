"""Folders laid out as Hugging Face datasets: the files of a configuration and split, and no code."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.format.errors import InputError
from pipelines.format.record import Record
from pipelines.sources.hf_dataset import HfDataset


def shard(folder, name, texts):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": texts}), path)
        return
    data = "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def texts(folder, **options):
    source = HfDataset(path=str(folder), **options)
    found = [x for p in source.parts() for x in source.read(p.spec, "t")]
    assert all(isinstance(x, Record) for x in found)
    return [x.segments[0].text for x in found]


def card(folder, configs):
    (folder / "README.md").write_text(f"---\nlicense: mit\nconfigs:\n{configs}---\n# Card\n")


def test_files_that_name_their_split_are_its_shards(tmp_path):
    shard(tmp_path, "data/train-00000-of-00002.parquet", ["a", "b"])
    shard(tmp_path, "data/train-00001-of-00002.parquet", ["c"])
    shard(tmp_path, "data/test-00000-of-00001.parquet", ["t"])
    shard(tmp_path, "dev.jsonl.gz", ["v"])
    (tmp_path / "loader.py").write_text("raise SystemExit")
    assert texts(tmp_path) == ["a", "b", "c"]
    assert texts(tmp_path, split="test") == ["t"] and texts(tmp_path, split="validation") == ["v"]
    with pytest.raises(InputError, match="no shard of this split"):
        texts(tmp_path, split="extra")


def test_without_a_split_in_any_name_all_is_train(tmp_path):
    shard(tmp_path, "b.jsonl", ["b"])
    shard(tmp_path, "sub/a.parquet", ["a"])
    assert texts(tmp_path) == ["b", "a"]
    with pytest.raises(InputError, match="lists no configurations"):
        texts(tmp_path, config="en")


@pytest.mark.parametrize(
    "files",
    ["    data_files: en/*.jsonl\n", "    data_files:\n    - split: train\n      path: [en/*.jsonl]\n", "    data_files:\n      train: en\n"],
)
def test_the_card_decides_in_every_form_it_is_written(tmp_path, files):
    shard(tmp_path, "en/x.jsonl", ["english"])
    shard(tmp_path, "de/x.jsonl", ["deutsch"])
    card(tmp_path, f"  - config_name: en\n{files}  - config_name: de\n    data_files: '**/de/*'\n")
    assert texts(tmp_path) == ["english"] and texts(tmp_path, config="de") == ["deutsch"]
    with pytest.raises(InputError, match="no such configuration"):
        texts(tmp_path, config="fr")


def test_the_default_configuration_is_the_one_marked(tmp_path):
    shard(tmp_path, "a.jsonl", ["a"])
    shard(tmp_path, "b.jsonl", ["b"])
    card(tmp_path, "  - config_name: one\n    data_files: a.jsonl\n  - config_name: two\n    default: true\n    data_files: b.jsonl\n")
    assert texts(tmp_path) == ["b"]


def test_a_star_stays_in_its_folder_and_two_cross_folders(tmp_path):
    shard(tmp_path, "data/a.jsonl", ["a"])
    shard(tmp_path, "data/deep/b.jsonl", ["b"])
    card(tmp_path, "  - config_name: near\n    data_files: data/*.jsonl\n  - config_name: far\n    data_files: data/**.jsonl\n")
    assert texts(tmp_path, config="near") == ["a"] and texts(tmp_path, config="far") == ["a", "b"]


def test_a_card_that_cannot_be_read_is_told(tmp_path):
    shard(tmp_path, "a.jsonl", ["a"])
    (tmp_path / "README.md").write_text("---\nconfigs: [a: b: c\n---\n")
    with pytest.raises(InputError, match="cannot be read"):
        texts(tmp_path)
