"""A dry run of an encode: the figures follow from counts, rates and prices; a codec's effect is measured and not drawn; and nothing is written."""

import numpy as np
import pytest

from encode import costs
from encode.linear_flow import flow_loss, times
from encode.recipe import Costs, EncodeRecipe
from encode.sample import losses, prepared
from encode.stage import STAGE
from pipelines.commands import main
from pipelines.format import codec
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.format.part import PartWriter
from pipelines.format.record import Image, Record, Text
from tests import toys
from tests.encode.models import jpeg
from tests.encode.test_encoders import small_tokenizer

PIXELS = {"pixels": {"size": 32, "patch": 16}}


def recipe(tmp_path, dataset, **keys):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    text = {"text_tokens": {"tokenizer": small_tokenizer(tokenizer)}}
    return parse(EncodeRecipe, {"dataset": dataset, "text": text, "images": PIXELS, "output": str(tmp_path / "out"), **keys})


def latents(n=24, tokens=16, channels=40, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((channels, channels)) / np.sqrt(channels)
    return (rng.standard_normal((n, tokens, channels)) @ mix + rng.standard_normal(channels)).astype(np.float32)


def test_the_closed_form_is_the_loss_of_a_denoiser_fitted_to_many_draws():
    x, held = np.split(latents(90), [60])
    flat, judged = (z.reshape(-1, z.shape[-1]).astype(np.float64) for z in (x, held))
    mean, deviation = flat.mean(axis=0), np.sqrt(flat.var(axis=0) + 1e-5)
    rng, found = np.random.default_rng(2), []
    for t in times(*x.shape[1:]):
        a, b = (np.tile((z - mean) / deviation, (40, 1)) for z in (flat, judged))
        noisy = [t * z + (1 - t) * rng.standard_normal(z.shape) for z in (a, b)]
        weights, *_ = np.linalg.lstsq(np.c_[noisy[0], np.ones(len(a))], a, rcond=None)
        found.append(np.square(np.c_[noisy[1], np.ones(len(b))] @ weights - b).mean() / max(1 - t, 0.05) ** 2)
    assert flow_loss(x, held, x) == pytest.approx(np.mean(found), rel=0.01)


def test_learning_from_noisier_latents_is_worse_and_from_the_same_ones_is_the_same():
    x, held = np.split(latents(60), [40])
    rng = np.random.default_rng(3)
    noisy = [x + rng.standard_normal(x.shape).astype(np.float32) * s for s in (0, 0.1, 0.5, 2)]
    found = [flow_loss(z, held, x) for z in noisy]
    assert found[0] == flow_loss(x.copy(), held, x) and found == sorted(found) and found[-1] > 1.1 * found[0]


def test_every_codec_has_its_cost_and_its_loss_and_only_the_exact_one_none():
    found = losses(latents())
    assert list(found) == list(codec.CODECS)
    assert found["f32"]["relative_l2"] == found["f32"]["flow_loss_change"] == 0
    assert found["f8e4m3"]["relative_l2"] > found["int8"]["relative_l2"] > found["bf16"]["relative_l2"] > 0
    assert all(abs(row["flow_loss_change"]) < 0.01 and row["worst_cosine"] <= row["mean_cosine"] <= 1 for row in found.values())
    assert losses(latents(3))["int8"]["flow_loss_change"] is None, "too few images to keep one apart"


def test_hours_and_money_are_plain_arithmetic():
    prices = Costs(gpu_hour=2, cpu_hour=0.1, tb_month=20, months=6)
    once = costs.encoding(7_200_000, rate=1000, prepared=100, workers=(4, 1.0), costs=prices)
    assert once == {"prepare_cpu_hours": 20.0, "gpu_hours": 2.0, "encode_cost": 20 * 0.1 + 2 * 2}
    on_cpu = costs.encoding(7_200_000, rate=10, prepared=100, workers=(4, 0.0), costs=prices)
    assert on_cpu == {"prepare_cpu_hours": 20.0, "cpu_hours": 800.0, "encode_cost": pytest.approx(20 * 0.1 + 800 * 0.1)}
    assert costs.keeping(5 * 10**12, prices) == 600
    two_on_one = costs.encoding(7_200_000, rate=1000, prepared=100, workers=(1, 0.5), costs=prices)
    assert two_on_one["gpu_hours"] == 1.0


def test_storing_pays_sooner_where_it_is_small_where_encoding_is_dear_and_where_images_are_shown_often():
    prices = Costs(tb_month=20, months=6)
    sizes = {"bf16": 10**12, "int8": 5 * 10**11}
    epochs = lambda references, once: {k: v["pays_from_epochs"] for k, v in costs.compared(1000, references, sizes, once, prices).items()}
    assert epochs(1000, 60.0) == {"bf16": 3.0, "int8": 2.0} and epochs(1000, 120.0) == {"bf16": 2.0, "int8": 1.5}
    assert epochs(4000, 60.0) == {"bf16": 0.75, "int8": 0.5}
    assert costs.pays_from(0.0, 1.0, 0.0) is None


def test_a_dry_run_says_what_each_codec_takes_and_loses_at_what_rate_and_writes_nothing(tmp_path):
    dataset = toys.curated(str(tmp_path / "c"), "image-text", n=12)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*")}
    config = recipe(tmp_path, dataset, estimate={"sample": 8, "months": 1})
    said = STAGE.plan(config).as_dict()
    assert said["sampled_images"] == 8 and said["images"] == 12 and said["images_per_second_and_worker"] > 0
    assert said["cpu_hours"] == pytest.approx(12 / said["images_per_second_and_worker"] / 3600) and "gpu_hours" not in said
    for name, row in said["codecs"].items():
        assert row["bytes"] == 12 * codec.nbytes(name, 4, 768) and row["bytes_per_token"] == row["bytes"] / 48
        assert {"relative_l2", "mean_cosine", "worst_cosine", "flow_loss_change", "storage_cost", "pays_from_epochs"} <= row.keys()
    assert [row["what"] for row in said["table"]] == ["text", "images, bf16 (chosen)", "images, f32", "images, int8", "images, f8e4m3"]
    assert said["latent_bytes"] == said["codecs"]["bf16"]["bytes"] == said["bytes"] - said["text_bytes_estimated"]
    assert not (tmp_path / "out").exists() and before == {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*")}


def test_without_a_sample_only_what_is_counted_is_said_and_no_torch_is_loaded(tmp_path):
    import subprocess
    import sys

    dataset = toys.curated(str(tmp_path / "c"), "image-text", n=4)
    said = STAGE.plan(recipe(tmp_path, dataset, estimate={"sample": 0}, storage="none")).as_dict()
    assert "images_per_second_and_worker" not in said and said["latent_bytes"] == 0
    assert said["codecs"]["int8"] == {"bytes": 4 * codec.nbytes("int8", 4, 768), "bytes_per_token": codec.nbytes("int8", 4, 768) / 4}
    code = "import encode.estimate, sys; print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_sample_is_spread_over_shards_takes_each_image_once_and_passes_over_unreadable_ones(tmp_path):
    commits = []
    for part in range(3):
        with PartWriter(str(tmp_path / "c"), part, fingerprint="f") as w:
            for i in range(6):
                payload = jpeg(0)[:99] if i == 1 else jpeg(part * 10 + i // 2)
                w.emit()
                w.add(Record.make("toy", f"{part}-{i}.jpg", "image-text", [Image(payload, atom=0, shape=(60, 44, 3)), Text("a word", atom=1)]))
            commits.append(w.commit())
    toys.seal(str(tmp_path / "c"), "toy", "image-text", commits, {})
    dataset = Dataset.open(str(tmp_path / "c"))
    encoder = recipe(tmp_path, dataset.path).images
    found = lambda count, until=1e18: [p.tobytes() for p in prepared(encoder, dataset, count, until)]
    assert len(set(found(9))) == len(found(9)) == 6, "three distinct places a shard, one of them unreadable"
    assert len(found(2)) == 2 and len(found(100)) == 3 * 3 and len(found(9, until=0.0)) == 3


def test_the_estimate_is_no_part_of_what_is_made(tmp_path):
    dataset = toys.curated(str(tmp_path / "c"), "image-text", n=4)
    from encode.parts import encode_parts

    several = [encode_parts(recipe(tmp_path, dataset, estimate=e), Dataset.open(dataset)) for e in ({}, {"sample": 3, "gpu_hour": 9})]
    assert several[0] == several[1]


def test_people_read_the_same_rows(tmp_path, capsys):
    import yaml

    dataset = toys.curated(str(tmp_path / "c"), "image-text", n=8)
    config = recipe(tmp_path, dataset)
    document = {"dataset": dataset, "text": {"text_tokens": {"tokenizer": config.text.tokenizer}}, "images": PIXELS, "output": str(tmp_path / "out")}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(document))
    assert main(["run", "encode", "-c", str(tmp_path / "e.yaml"), "--dry-run", "estimate.sample=8"]) == 0
    said = capsys.readouterr().out
    for word in ("images, f8e4m3", "relative L2", "flow loss", "pays from epoch", "images_per_second_and_worker", "a TB-month"):
        assert word in said, word
