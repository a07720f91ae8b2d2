"""A compacted encoded dataset is the same to whoever reads it: arrays, statistics, tokenizer, and the records that a mixture takes."""

import json
from pathlib import Path

import numpy as np
import pytest

from encode.decode import STAGE as DECODE
from encode.decode import DecodeRecipe
from encode.fit_tokenizer import STAGE as FIT
from encode.fit_tokenizer import FitTokenizer
from encode.recipe import EncodeRecipe
from encode.stage import STAGE as ENCODE
from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from pipelines.check_dataset import check
from pipelines.compact import STAGE, Compact
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.format.errors import InputError
from tests import toys

KINDS = ("text", "image-text", "video", "action-video", "vqa")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Five curated datasets of twelve records in six parts, encoded with a tokenizer of their own."""
    root = tmp_path_factory.mktemp("world")
    for kind in KINDS:
        toys.curated(str(root / kind), kind, n=12, parts=6)
    run(FIT, FitTokenizer, datasets=[str(root / k) for k in KINDS if k != "video"], vocab=300, output=str(root / "tokenizer"))
    for kind in KINDS:
        encode(root, root / f"{kind}-e", kind)
    return root


def run(stage, config, **keys):
    with open_job("local") as job:
        return stage.run(parse(config, keys), job)


def encode(root, out, kind, **more):
    text = {"text_tokens": {"tokenizer": str(root / "tokenizer")}}
    given = {"dataset": str(root / kind), "text": text, "images": {"pixels": {"size": 32, "patch": 16}}, "output": str(out), **more}
    return Dataset.open(run(ENCODE, EncodeRecipe, **given))


def compact(dataset, out, **more):
    return Dataset.open(run(STAGE, Compact, dataset=str(dataset), output=str(out), engine="local", **more))


def arrays(dataset):
    """(id, place in the record, values) of every segment, in order."""
    for i in range(len(dataset.shards)):
        for r in dataset.records(i):
            for k, s in enumerate(r.segments):
                yield r.id, k, bytes(dataset.payload(i, s))


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_statistics_and_tokenizer_come_along(world, tmp_path, kind):
    before = Dataset.open(str(world / f"{kind}-e"))
    after = compact(before.path, tmp_path / "c")
    assert len(before.shards) == 6 and len(after.shards) == 1
    assert list(arrays(after)) == list(arrays(before)) and check(after.path, {"deep": True}) == []
    assert after.encoding == before.encoding and after.card["encoders"] == before.card["encoders"]
    assert (tmp_path / "c" / "tokenizer.json").read_bytes() == (Path(before.path) / "tokenizer.json").read_bytes()
    named = {f["path"] for f in after.card["files"]}
    assert {p.name for p in (tmp_path / "c").glob("*.json")} == {"manifest.json", "tokenizer.json"} and "tokenizer.json" in named
    if kind != "text":
        both = [(after.latent_moments(by), before.latent_moments(by)) for by in ("channel", "position")]
        for ours, theirs in [pair for a, b in both for pair in zip(a, b, strict=True)]:
            np.testing.assert_array_equal(ours, theirs)


def test_a_mixture_takes_the_same_records_and_decoding_gives_the_same_pictures(world, tmp_path):
    before = Dataset.open(str(world / "vqa-e"))
    after = compact(before.path, tmp_path / "c")
    taken, pictures = [], []
    for name, ds in (("b", before), ("a", after)):
        mixture = {"sequence_length": 64, "sources": {"x": {"dataset": ds.path, "tokens": 90}}, "output": str(tmp_path / f"plan-{name}")}
        plan = Plan.open(make_plan(parse(Mixture, mixture)))
        ids = [[r["id"] for r in ds.rows(i)] for i in range(len(ds.shards))]
        taken.append(sorted((ids[s.shard][s.row], s.start, s.stop) for k in range(plan.sequences()) for s in plan.row(k).spans))
        decoded = Dataset.open(run(DECODE, DecodeRecipe, dataset=ds.path, output=str(tmp_path / f"d-{name}"), engine="local"))
        pictures.append([s.payload for i in range(len(decoded.shards)) for r in decoded.records(i, payloads=True) for s in r.segments])
    assert taken[0] == taken[1] and len(taken[0]) > 2 and pictures[0] == pictures[1]


@pytest.mark.parametrize("how", ["reuse", "none"])
def test_files_of_another_dataset_are_pointed_at_and_only_their_own_shards_are_joined(world, tmp_path, how):
    """Six files stand elsewhere, so six shards are the fewest; those that split one of them are joined."""
    place = tmp_path / "deep" / "er" / "e"
    more = {"images": {"reuse": str(world / "vqa-e")}} if how == "reuse" else {"storage": "none"}
    before = encode(world, place, "vqa", shard_bytes=1, **more)
    after = compact(before.path, tmp_path / "c")
    assert len(before.shards) == 12 and len(after.shards) == 6
    assert list(arrays(after)) == list(arrays(before)) and check(after.path, {"deep": True}) == []
    assert not list(Path(after.path).glob("latents-*")) and all(s.foreign for s in after.shards)
    assert [row["sha256"] for i in range(6) for row in after.rows(i)] == [row["sha256"] for i in range(12) for row in before.rows(i)]
    assert json.loads((tmp_path / "c" / "manifest.json").read_text())["parents"][0]["path"] == "../deep/er/e"


def test_latents_of_a_compacted_dataset_are_not_reused_since_its_shards_are_no_longer_the_parents(world, tmp_path):
    after = compact(world / "video-e", tmp_path / "c")
    with pytest.raises(InputError, match="encoded from the same curated one"):
        encode(world, tmp_path / "again", "video", images={"reuse": after.path})
