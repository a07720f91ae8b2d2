"""Latents on reading: by channel, by position, by named statistics or as they are, and the same way back into what the model paints."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from asked import COLOURS, HeldOut, subject, tokenizer
from test_evaluate import Painter

from encode.fit_tokenizer import STAGE as FIT
from encode.fit_tokenizer import FitTokenizer
from encode.latent_stats import STAGE as STATS
from encode.latent_stats import LatentStats
from encode.recipe import EncodeRecipe
from encode.stage import STAGE as ENCODE
from mixtures.estimate import estimate
from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from pipelines.commands import main
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import dump, parse
from pipelines.format.errors import InputError, RecipeError
from tests import toys
from trainer.evaluate.samples import Samples
from trainer.normalise import VARIANCE_FLOOR, Normaliser
from trainer.stream import Reader, Stream

TOKENS, WIDTH = 4, 768


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two encoded datasets of pictures, one of text, one of other pictures, and statistics from elsewhere as a published file."""
    root = tmp_path_factory.mktemp("world")
    with open_job("local") as job:
        toys.curated(str(root / "c-pairs"), "image-text", n=40, source="pairs")
        toys.curated(str(root / "c-vqa"), "vqa", n=25, source="vqa")
        toys.curated(str(root / "c-text"), "text", n=8)
        FIT.run(parse(FitTokenizer, {"datasets": [str(root / "c-pairs")], "vocab": 300, "output": str(root / "tokenizer")}), job)
        for name, patch in (("pairs", 16), ("vqa", 16), ("text", 16), ("other", 8)):
            of = root / f"c-{'pairs' if name == 'other' else name}"
            images = {"pixels": {"size": 32, "patch": patch}} if name != "text" else None
            text = {"text_tokens": {"tokenizer": str(root / "tokenizer")}}
            recipe = {"dataset": str(of), "text": text, "images": images, "storage": "f32", "output": str(root / name)}
            ENCODE.run(parse(EncodeRecipe, {k: v for k, v in recipe.items() if v is not None}), job)
        g = torch.Generator().manual_seed(0)
        torch.save({"mean": torch.randn(WIDTH, 2, 2, generator=g), "var": torch.rand(WIDTH, 2, 2, generator=g)}, root / "stats.pt")
        STATS.run(parse(LatentStats, {"file": str(root / "stats.pt"), "output": str(root / "fixed")}), job)
    return root


def planned(world, out, names=("pairs", "vqa"), **keys):
    sources = {name: {"dataset": str(world / name), "epochs": 1} for name in names}
    mixture = parse(Mixture, {"sequence_length": 64, "sources": sources, "output": str(out), **keys})
    return Plan.open(make_plan(mixture))


def trained_on(plan):
    """Every image of the plan as batches have it, [images, tokens, width]."""
    found = [batch.latents.numpy() for batch, _ in Stream(plan, 3)]
    return np.concatenate(found).reshape(-1, TOKENS, WIDTH).astype(np.float64)


def test_by_position_every_value_has_mean_0_and_variance_1_over_what_is_trained_on(world, tmp_path):
    plan = planned(world, tmp_path, normalise="position")
    n, mean, variance = plan.latent_stats()
    assert n == 65 and mean.shape == (TOKENS, WIDTH)
    z = trained_on(plan)
    assert len(z) == 65
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(z.var(axis=0), variance / (variance + VARIANCE_FLOOR), rtol=1e-5)
    assert np.abs(z.var(axis=0) - 1).max() < 2e-3, "nowhere does the floor weigh much"


def test_by_channel_only_all_positions_together_have(world, tmp_path):
    plan = planned(world, tmp_path)
    z = trained_on(plan)
    np.testing.assert_allclose(z.mean(axis=(0, 1)), 0, atol=1e-6)
    np.testing.assert_allclose(z.var(axis=(0, 1)), 1, atol=2e-3)
    assert np.abs(z.mean(axis=0)).max() > 0.05


def test_latents_may_be_trained_on_as_they_are_stored(world, tmp_path):
    plan = planned(world, tmp_path, normalise="none")
    assert plan.latent_stats() is None and not list(tmp_path.glob("stats*")) and Reader(plan).width == WIDTH
    stored = sum(d.latents.sum(dtype=np.float64) for i in range(plan.sequences()) for d in Reader(plan).sequence(i))
    np.testing.assert_allclose(trained_on(plan).sum(), stored, rtol=1e-9)


def test_a_named_statistic_is_applied_as_it_is(world, tmp_path):
    plan = planned(world, tmp_path, normalise={"stats": str(world / "fixed")})
    published = torch.load(world / "stats.pt", weights_only=True)
    mean, var = (published[k].reshape(WIDTH, TOKENS).T.numpy() for k in ("mean", "var"))
    reader = Reader(plan)
    for i in range(plan.sequences()):
        documents = reader.sequence(i)
        raw = np.concatenate([d.latents for d in documents]).reshape(-1, TOKENS, WIDTH)
        expected = (raw - mean) / np.sqrt(var + 1e-5)
        np.testing.assert_allclose(reader.batch([documents]).latents.numpy(), expected.reshape(-1, WIDTH), rtol=1e-5, atol=1e-5)
    card = plan.card
    assert card["encoding"]["stats"]["n"] == 0 and len(card["parents"]) == len(card["datasets"]) + 1
    assert card["recipe"]["normalise"] == {"stats": str(world / "fixed"), "by": None}
    assert main(["verify", str(tmp_path), "--deep"]) == 0


def test_a_dataset_may_lend_its_statistics(world, tmp_path):
    plan = planned(world, tmp_path / "a", ["pairs"], normalise={"stats": str(world / "vqa"), "by": "channel"})
    for ours, theirs in zip(plan.latent_stats(), Dataset.open(str(world / "vqa")).latent_stats(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert planned(world, tmp_path / "b", ["pairs"], normalise={"stats": str(world / "vqa")}).latent_stats()[1].shape == (TOKENS, WIDTH)


def test_the_merge_is_that_of_all_image_datasets_of_the_ablation(world, tmp_path):
    datasets = [str(world / name) for name in ("pairs", "vqa")]
    plans = []
    for name in ("pairs", "vqa", "text"):
        sources = {name: {"dataset": str(world / name), "epochs": 1}}
        mixture = parse(Mixture, {"sequence_length": 64, "sources": sources, "output": str(tmp_path / name), "normalise": "position"})
        plans.append(Plan.open(make_plan(mixture, latent_stats_over=datasets)))
    stats = [plan.latent_stats() for plan in plans]
    assert {s[0] for s in stats} == {65} and len({s[1].tobytes() for s in stats}) == 1 and len({s[2].tobytes() for s in stats}) == 1
    x = np.concatenate([d.latents for plan in plans[:2] for i in range(plan.sequences()) for d in Reader(plan).sequence(i)])
    x = x.reshape(-1, TOKENS, WIDTH).astype(np.longdouble)
    np.testing.assert_allclose(stats[0][1], x.mean(axis=0).astype(float), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(stats[0][2], x.var(axis=0).astype(float), rtol=1e-12, atol=1e-18)


def test_the_key_enters_the_fingerprint_and_its_default_leaves_every_byte_as_it_was(world, tmp_path):
    said = {"sequence_length": 64, "sources": {"pairs": {"dataset": str(world / "pairs"), "epochs": 1}}}
    assert dump(parse(Mixture, said)) == dump(parse(Mixture, {**said, "normalise": "channel"})) and "normalise" not in dump(parse(Mixture, said))
    fixed = {"stats": str(world / "fixed")}
    plans = [planned(world, tmp_path / str(i), **k) for i, k in enumerate(({}, {"normalise": "channel"}, {"normalise": "position"}))]
    plans += [planned(world, tmp_path / f"n{i}", normalise=value) for i, value in enumerate(("none", fixed))]
    prints = [p.card["fingerprint"] for p in plans]
    assert prints[0] == prints[1] and len(set(prints)) == 4
    (tmp_path / "moved").symlink_to(world / "fixed")
    assert planned(world, tmp_path / "m", normalise={"stats": str(tmp_path / "moved")}).card["fingerprint"] == prints[-1]
    n, mean, _ = plans[0].latent_stats()
    columns = {"channel": np.arange(len(mean), dtype=np.int32), "n": np.full(len(mean), n, np.int64), "mean": mean}
    file = plans[0].card["encoding"]["stats"]["file"]
    columns["m2"] = pq.read_table(tmp_path / "0" / file)["m2"].to_numpy()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", compression_level=3)
    assert sink.getvalue().to_pybytes() == (tmp_path / "0" / file).read_bytes()


def test_statistics_of_other_images_are_refused_before_anything_is_planned(world, tmp_path):
    said = {"sequence_length": 64, "sources": {"other": {"dataset": str(world / "other"), "epochs": 1}}}
    with pytest.raises(RecipeError, match="not those of the images"):
        planned(world, tmp_path, ["other"], normalise={"stats": str(world / "fixed")})
    with pytest.raises(RecipeError, match="not those of the images"):
        planned(world, tmp_path, ["other"], normalise={"stats": str(world / "fixed"), "by": "channel"})
    with pytest.raises(RecipeError, match="not those of the images"):
        estimate(parse(Mixture, {**said, "normalise": {"stats": str(world / "fixed")}}))
    assert not list(tmp_path.iterdir()), "refused before a row is written"
    with pytest.raises(RecipeError, match="two shapes"):
        sources = {"pairs": {"dataset": str(world / "pairs"), "epochs": 1}}
        mixture = parse(Mixture, {"sequence_length": 64, "sources": sources, "output": str(tmp_path), "normalise": "position"})
        make_plan(mixture, latent_stats_over=[str(world / "other")])


@pytest.mark.parametrize("named", ["text", "c-pairs", "tokenizer"])
def test_what_has_no_statistics_cannot_lend_them(world, tmp_path, named):
    with pytest.raises(InputError, match="no latent statistics are here"):
        planned(world, tmp_path, normalise={"stats": str(world / named)})


def test_a_dataset_without_positions_cannot_be_normalised_by_them_and_the_error_says_what_to_do(world, tmp_path):
    import shutil

    shutil.copytree(world / "pairs", tmp_path / "pairs")
    card = json.loads((tmp_path / "pairs/manifest.json").read_text())
    del card["encoding"]["stats"]["position"]
    (tmp_path / "pairs/manifest.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="latent-stats"):
        planned(tmp_path, tmp_path / "plan", ["pairs"], normalise="position")
    planned(tmp_path, tmp_path / "plan", ["pairs"])


def test_text_alone_needs_no_statistics(world, tmp_path):
    assert planned(world, tmp_path, ["text"], normalise="position").latent_stats() is None


@pytest.mark.parametrize("shape", [(WIDTH,), (TOKENS, WIDTH)])
def test_what_was_normalised_comes_back(shape):
    rng = np.random.default_rng(0)
    variance = np.geomspace(1e-12, 1e4, int(np.prod(shape))).reshape(shape)
    normaliser = Normaliser(rng.standard_normal(shape) * 30, variance)
    stored = (rng.standard_normal((5, TOKENS, WIDTH)) * np.sqrt(variance) + normaliser.mean).astype(np.float32).reshape(-1, WIDTH)
    z = normaliser.apply(stored)
    assert z.shape == stored.shape and z.dtype == np.float32
    np.testing.assert_allclose(normaliser.undo(z), stored, rtol=1e-5, atol=1e-4)


def test_a_piece_of_an_image_is_never_normalised_by_position():
    normaliser = Normaliser(np.zeros((TOKENS, WIDTH)), np.ones((TOKENS, WIDTH)))
    with pytest.raises(AssertionError, match="whole images"):
        normaliser.apply(np.zeros((TOKENS + 1, WIDTH), np.float32))


def test_what_a_model_paints_is_stored_as_the_encoder_would_have_each_position_undone_by_its_own(tmp_path):
    plan = HeldOut(str(tmp_path / "data"))
    mean, variance = np.arange(16.0).reshape(2, 8), np.geomspace(0.01, 100, 16).reshape(2, 8)
    plan.latent_stats = lambda: (9, mean, variance)
    Samples(images=8, steps=4, guidance=3.0).run(subject(plan, Painter()), str(tmp_path))
    dataset = Dataset.open(str(tmp_path / "samples"))
    for r in dataset.records(0):
        painted = COLOURS.index(tokenizer().decode(dataset.array(0, r.segments[1]).tolist()).split()[1])
        expected = painted * np.sqrt(variance + 1e-5) + mean
        np.testing.assert_allclose(dataset.array(0, r.segments[0]), expected, rtol=0.01, atol=0.05)
