"""Latents made while training are those that the encode stage would have stored, and a run by them is the run by stored ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pixelplan
import pytest
import torch

from encode.fit_tokenizer import STAGE as FIT
from encode.fit_tokenizer import FitTokenizer
from encode.recipe import EncodeRecipe
from encode.stage import STAGE
from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import ErrorBudgetSpent, InputError
from tests import toys
from tests.encode.models import save_siglip
from trainer import pictures
from trainer.loop import train
from trainer.models.load import read_weights
from trainer.pictures import Encoding
from trainer.stream import Reader, Reading, Stream

FOLLOWS = ("step", "loss", "text", "flow", "tokens", "step_tokens", "lr", "grad_norm")  # from document and plan, and not from the clock


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixelplan.curated(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def stored(world: Path) -> str:
    return pixelplan.plan(world, "f32", storage="f32")


@pytest.fixture(scope="module")
def by_stored(stored: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return train(pixelplan.run(stored, tmp_path_factory.mktemp("stored")))


def losses(card: dict) -> list[dict]:
    read = [json.loads(line) for line in storage.read(storage.join(card["path"], "metrics.jsonl")).splitlines()]
    return [{k: v for k, v in line.items() if k.partition("/")[0] in FOLLOWS} for line in read]


def largest_difference(a: dict, b: dict) -> float:
    mine, theirs = losses(a), losses(b)
    assert len(mine) == len(theirs)
    return max(abs(x["loss"] - y["loss"]) / abs(y["loss"]) for x, y in zip(mine, theirs, strict=True))


def same_weights(a: dict, b: dict) -> bool:
    mine, theirs = read_weights(a["path"]), read_weights(b["path"])
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_plan_gives_the_same_numbers_whether_latents_are_read_or_made(stored: str, by_stored: dict, tmp_path: Path, workers: int) -> None:
    made = train(pixelplan.run(stored, tmp_path / "run", latents="encode", workers=workers))
    assert losses(made) == losses(by_stored) and same_weights(made, by_stored)
    assert made["encoded"]["encoder"] == "pixels" and made["encoded"]["exact"]
    read = [json.loads(line) for line in storage.read(storage.join(made["path"], "metrics.jsonl")).splitlines()]
    assert all(0 <= line["encode"] <= 1 for line in read) and any(line["encode"] > 0 for line in read)
    assert made["fingerprint"] != by_stored["fingerprint"]


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_by_a_codec_s_round_trip_they_are_those_that_it_stores_and_without_it_within_its_error(world: Path, tmp_path: Path, codec: str) -> None:
    plan = pixelplan.plan(world, codec, storage=codec)
    read = train(pixelplan.run(plan, tmp_path / "read"))
    exact = train(pixelplan.run(plan, tmp_path / "exact", latents={"codec": codec}))
    near = train(pixelplan.run(plan, tmp_path / "near", latents="encode"))
    assert losses(exact) == losses(read) and same_weights(exact, read)
    assert 0 < largest_difference(near, read) < 0.01


def test_a_plan_of_nothing_stored_trains_as_one_of_stored_latents(world: Path, by_stored: dict, tmp_path: Path) -> None:
    """Same records, same sequences; only the statistics are those of a sample, which here is everything that there is."""
    plan = pixelplan.plan(world, "none", storage="none")
    for dataset in Plan.open(plan).datasets:
        own = [p for p, _, _ in storage.listing(dataset.path) if p.startswith("latents-") or p.endswith(".tar")]
        assert own == [] and dataset.encoding is not None and dataset.encoding["stats"]["n"] > 0
    made = train(pixelplan.run(plan, tmp_path / "run", latents="encode"))
    assert made["tokens"] == by_stored["tokens"] and largest_difference(made, by_stored) < 1e-5
    with pytest.raises(InputError, match="not stored"):
        train(pixelplan.run(plan, tmp_path / "read"))


def test_sampled_statistics_are_those_of_all_pictures_when_all_are_sampled(world: Path) -> None:
    for kind in pixelplan.KINDS:
        whole = Dataset.open(pixelplan.encoded(world, "f32", kind, storage="f32")).latent_stats("position")
        some = Dataset.open(pixelplan.encoded(world, "none", kind, storage="none")).latent_stats("position")
        assert some[0] == whole[0]
        np.testing.assert_allclose(some[1], whole[1], atol=1e-12)
        np.testing.assert_allclose(some[2], whole[2], atol=1e-12)


def test_fewer_sampled_pictures_are_as_many_as_asked_for_and_the_same_every_time(world: Path, tmp_path: Path) -> None:
    made = [Dataset.open(pixelplan.encoded(world, f"few{i}", "video", storage="none", statistics=10)) for i in range(2)]
    assert made[0].latent_stats("position")[0] == 10 and made[0].encoding == made[1].encoding
    without = Dataset.open(pixelplan.encoded(world, "without", "video", storage="none", statistics=0))
    assert "stats" not in (without.encoding or {})


def test_a_network_of_published_weights_gives_the_same_losses_both_ways(world: Path, tmp_path: Path) -> None:
    save_siglip(str(tmp_path / "siglip"))
    images = {"siglip2": {"weights": str(tmp_path / "siglip"), "batch": 4}}
    plan = pixelplan.plan(world, "siglip", tokens=400, kinds=("image-text", "video"), storage="f32", images=images)
    read, made = (train(pixelplan.run(plan, tmp_path / str(latents), latents=latents)) for latents in ("stored", "encode"))
    assert largest_difference(made, read) < 1e-5 and made["encoded"]["encoder"] == "siglip2"
    moved = {"encode": {"siglip2": {"weights": str(tmp_path / "siglip"), "batch": 7}}}  # another batch changes last bits at most
    assert largest_difference(train(pixelplan.run(plan, tmp_path / "batch7", latents=moved)), read) < 1e-4
    save_siglip(str(tmp_path / "other"), seed=1)
    with pytest.raises(InputError, match="does not make the latents") as caught:
        train(pixelplan.run(plan, tmp_path / "no", latents={"encode": {"siglip2": {"weights": str(tmp_path / "other")}}}))
    assert "weights" in str(caught.value)


def test_another_encoder_or_another_setting_is_refused_and_says_which(stored: str, tmp_path: Path) -> None:
    for asked in ({"pixels": {"size": 32, "patch": 16}}, {"pixels": {"size": 64, "patch": 16}}):
        with pytest.raises(InputError, match="config"):
            train(pixelplan.run(stored, tmp_path / "run", latents={"encode": asked}))
    with pytest.raises(InputError, match="no part 'pixel'"):
        train(pixelplan.run(stored, tmp_path / "run", latents={"encode": {"pixel": {}}}))
    with pytest.raises(InputError, match="no installed package offers") as caught:
        train(pixelplan.run(stored, tmp_path / "run", latents={"service": "nobody"}))
    assert "latents" in str(caught.value.allowed)


def test_where_weights_lie_is_no_part_of_a_run_s_identity_and_how_latents_are_made_is(stored: str, tmp_path: Path) -> None:
    named = pixelplan.run(stored, tmp_path / "a", latents={"encode": pixelplan.PIXELS})
    asked = pixelplan.run(stored, tmp_path / "b", latents="encode")
    coded = pixelplan.run(stored, tmp_path / "b", latents={"codec": "bf16"})
    said = [run.identity("p", None, "e") for run in (named, asked, coded, pixelplan.run(stored, tmp_path / "c"))]
    assert said[0] == said[1] and len(set(said)) == 3


def test_each_distinct_picture_of_a_batch_is_decoded_and_encoded_once(stored: str) -> None:
    stream = Stream(Plan.open(stored), 4, reading=Reading(encode=Encoding()))
    whole = Stream(Plan.open(stored), 4)
    shared = False
    for step in range(min(stream.steps, 5)):
        arrays = stream.arrays(step)
        places = [p for n in stream.numbers(step) for d in stream.reader.sequence(n) for p in d.pictures]
        assert len(arrays["picture"]) == len(places)
        assert len(arrays["pictures"]) == len({(d, k, int(stream.reader.shard(d, k).offset[i])) for d, k, i in places})
        shared |= len(arrays["pictures"]) < len(places)
        batch = stream.at(step)
        assert torch.equal(batch.latents, whole.at(step).latents)
        assert all(torch.equal(getattr(batch, n), getattr(whole.at(step), n)) for n in ("tokens", "image", "image_loss", "latent_slot", "doc"))
    assert shared  # frames of a clip appear noised and clean, those of a trajectory in several samples


def test_a_run_that_encodes_is_stopped_and_goes_on_to_the_same_numbers(stored: str, by_stored: dict, tmp_path: Path) -> None:
    from test_train import StopAt

    from pipelines.format.errors import Stopped

    run = pixelplan.run(stored, tmp_path / "run", latents="encode", prefetch=2)
    with pytest.raises(Stopped):
        train(run, stop=StopAt(5))
    assert losses(train(run)) == losses(by_stored)


def test_pictures_are_found_by_id_past_records_that_encoding_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third picture is damaged: rows of the encoded dataset no longer are rows of the parent."""
    whole = toys.jpeg
    monkeypatch.setattr(toys, "jpeg", lambda seed, side=32: b"no picture" if seed % 3 == 1 else whole(seed, side))
    world = pixelplan.curated(tmp_path, n=30)
    plan = pixelplan.plan(world, "f32", tokens=400, kinds=("image-text", "vqa"), storage="f32")
    assert Plan.open(plan).datasets[0].card["rejected"]
    read, made = Reader(Plan.open(plan)), Reader(Plan.open(plan), Reading(encode=Encoding()))
    for seq in range(Plan.open(plan).sequences()):
        assert torch.equal(read.batch([read.sequence(seq)]).latents, made.batch([made.sequence(seq)]).latents)

    # Nothing was looked at when nothing is stored: such a picture then costs itself, and is counted.
    plan = pixelplan.plan(world, "none", tokens=400, kinds=("image-text", "vqa"), storage="none")
    card = train(pixelplan.run(plan, tmp_path / "run", latents="encode", steps=2))
    assert 0 < card["encoded"]["unreadable"] < pictures.UNREADABLE
    assert all(np.isfinite(line["loss"]) for line in losses(card))
    monkeypatch.setattr(pictures, "UNREADABLE", 0)
    with pytest.raises(ErrorBudgetSpent, match="cannot be decoded"):
        train(pixelplan.run(plan, tmp_path / "strict", latents="encode", steps=2))


def test_a_parent_that_is_gone_is_named(tmp_path: Path) -> None:
    import shutil

    world = pixelplan.curated(tmp_path, n=12)
    plan = pixelplan.plan(world, "f32", tokens=200, kinds=("video",), storage="f32")
    shutil.move(str(world / "video"), str(world / "moved"))
    with pytest.raises(InputError, match="not there") as caught:
        train(pixelplan.run(plan, tmp_path / "run", latents="encode"))
    assert str(world / "video") in str(caught.value)


def test_processes_that_decode_load_no_torch(stored: str) -> None:
    import subprocess

    code = (
        "import sys; from trainer.stream import Stream, Reading; from trainer.pictures import Encoding; from mixtures.plan import Plan\n"
        f"Stream(Plan.open({stored!r}), 4, reading=Reading(workers=1, encode=Encoding())).arrays(0)\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_evaluations_of_a_run_whose_latents_are_not_stored_give_the_rows_of_one_whose_are(world: Path, tmp_path: Path) -> None:
    from trainer.evaluate import evaluate_run
    from trainer.evaluate.flow_loss import FlowLoss
    from trainer.evaluate.samples import Samples
    from trainer.evaluate.text_perplexity import TextPerplexity
    from trainer.evaluate.vqa import Vqa

    rows = []
    for name, latents in (("none", "encode"), ("f32", "stored")):
        plan = pixelplan.plan(world, f"judged/{name}", storage=name, mixture={"held_out": {"fraction": 0.3, "seed": 0}}, kinds=("image-text", "vqa"))
        card = train(pixelplan.run(plan, tmp_path / name, latents=latents, steps=8))
        parts = [FlowLoss(), TextPerplexity(), Vqa(source="vqa", questions=4), Samples(source="image-text", images=2, steps=2, pictures=2)]
        rows.append(evaluate_run(card["path"], parts))
        made = Dataset.open(str(tmp_path / name / "samples"))
        assert made.encoding is not None and made.encoding["image"]["codec"] != "none" and made.card["records"] == 2
    assert len(rows[0]) == len(rows[1]) > 5
    for a, b in zip(*rows, strict=True):
        assert {k: v for k, v in a.items() if k != "value"} == {k: v for k, v in b.items() if k != "value"}
        assert a["value"] == pytest.approx(b["value"], rel=1e-3)


def test_pictures_in_an_object_store_are_fetched_through_the_cache_like_any_other_data(s3_bucket: str, tmp_path: Path) -> None:
    root = f"{s3_bucket}/onthefly"
    toys.curated(f"{root}/video", "video", n=16)
    pixelplan.carry_out(FIT, FitTokenizer, datasets=[toys.curated(str(tmp_path / "text"), "text")], vocab=300, output=str(tmp_path / "tokenizer"))
    text = {"text_tokens": {"tokenizer": str(tmp_path / "tokenizer")}}
    given = {"dataset": f"{root}/video", "text": text, "images": pixelplan.PIXELS}
    mixture = {"sequence_length": 128, "held_out": {"fraction": 0.1, "seed": 0}}
    cards = []
    for storage_, latents in (("none", "encode"), ("f32", "stored")):
        dataset = pixelplan.carry_out(STAGE, EncodeRecipe, **given, storage=storage_, output=f"{root}/{storage_}")
        sources = {"clips": {"dataset": dataset, "tokens": 800, "max_epochs": 10}}
        plan = make_plan(Mixture.model_validate({**mixture, "sources": sources}), str(tmp_path / storage_))
        for workers in (0, 1):
            cache = {"dir": str(tmp_path / f"cache-{storage_}-{workers}")}
            cards.append(train(pixelplan.run(plan, tmp_path / f"{storage_}{workers}", latents=latents, workers=workers, cache=cache)))
    assert losses(cards[0]) == losses(cards[1]) and largest_difference(cards[0], cards[2]) < 1e-5
    with pytest.raises(InputError, match="object store"):  # their parent's pictures are not fetched early, so that is refused
        train(pixelplan.run(str(tmp_path / "f32"), tmp_path / "no", latents="encode"))


def test_whoever_reads_a_plan_of_nothing_stored_without_an_encoder_is_told(world: Path) -> None:
    plan = pixelplan.plan(world, "none", storage="none")
    with pytest.raises(InputError, match="not stored"):
        Reader(Plan.open(plan))


def test_a_materialised_plan_of_nothing_stored_brings_its_pictures_along_in_order(tmp_path: Path) -> None:
    import shutil

    from trainer.materialise import STAGE as MATERIALISE

    world = pixelplan.curated(tmp_path, n=12)
    plan = pixelplan.plan(world, "none", tokens=300, kinds=("image-text", "video"), storage="none")
    whole = train(pixelplan.run(plan, tmp_path / "whole", latents="encode"))
    own = pixelplan.carry_out(MATERIALISE, MATERIALISE.config, plan=plan, output=str(tmp_path / "own"), engine="local")
    for kind in pixelplan.KINDS:
        shutil.rmtree(world / kind)  # neither its parent nor the curated pictures are needed any more
    assert losses(train(pixelplan.run(own, tmp_path / "run", latents="encode"))) == losses(whole)
