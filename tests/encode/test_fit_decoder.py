"""A fit follows from its recipe, goes on where it was stopped to the same bytes, holds out by group, and what it writes is what decode loads."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from encode.decode import STAGE as DECODE
from encode.decode import DecodeRecipe
from encode.encoders.pixels import Pixels
from encode.fit_decoder import STAGE as FIT
from encode.fit_decoder import identity, opened
from encode.reconstruction import checkpoint, fidelity
from encode.reconstruction.frames import open_frames
from encode.reconstruction.recipe import FitDecoder
from pipelines.commands import main
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import load, parse
from pipelines.format.errors import ConflictError, InputError, RecipeError, Stopped
from pipelines.format.manifest import read_card
from pipelines.media import images
from tests.encode.decoders import encoded_toys, run

torch = pytest.importorskip("torch")
SIZE = {"depth": 1, "width": 32, "heads": 2, "mlp": 48}
HELD = {"fraction": 0.3, "seed": 0}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """Twelve clips of three frames, frames shared between neighbours, as raw pixels."""
    return encoded_toys(tmp_path_factory.mktemp("clips"), size=32, patch=8, n=12, data="video")


def recipe(encoded, out, **keys):
    given = {"dataset": encoded.path, "size": SIZE, "steps": 12, "batch": 4, "lr": 1e-3, "noise": 0.1, "held_out": HELD, "output": str(out)}
    return {**given, **keys}


def fit(encoded, out, **keys):
    return Path(run(FIT, FitDecoder, **recipe(encoded, out, **keys)))


def artifact(folder):
    """All files but the card, which names the paths of its parents, and the log, which has a clock."""
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.is_file() and p.name not in ("manifest.json", "log.jsonl")}


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(encoded, tmp_path):
    one, two, other = fit(encoded, tmp_path / "a"), fit(encoded, tmp_path / "b"), fit(encoded, tmp_path / "c", seed=1)
    assert set(artifact(one)) == {"config.json", "model.safetensors", "frames.parquet", "losses.parquet", "sheet.png"}
    assert artifact(one) == artifact(two) and read_card(str(one))["fingerprint"] == read_card(str(two))["fingerprint"]
    assert artifact(one)["model.safetensors"] != artifact(other)["model.safetensors"]


class StopsAt:
    """A job that is asked to stop once a fit has looked `n` times."""

    def __init__(self, job, n):
        self.job, self.left, self.stop = job, n, self

    def is_set(self):
        self.left -= 1
        return self.left < 0

    def log(self, event, **fields):
        self.job.log(event, **fields)


@pytest.mark.parametrize("adversarial", [None, {"patch": {"width": 8, "layers": 2}, "learn": 0.25, "start": 0.5}])
def test_a_fit_stopped_and_taken_up_ends_in_the_bytes_of_one_that_was_not(encoded, tmp_path, adversarial):
    keys = {"adversarial": adversarial, "clip": 1.0}
    whole = fit(encoded, tmp_path / "whole", **keys)
    for at in (3, 4):
        with open_job("local") as job, pytest.raises(Stopped):
            FIT.run(parse(FitDecoder, recipe(encoded, tmp_path / "cut", **keys)), StopsAt(job, at))
    assert checkpoint.found(str(tmp_path / "cut"))[0][0] == 9
    assert artifact(fit(encoded, tmp_path / "cut", **keys)) == artifact(whole)
    assert not (tmp_path / "cut" / "checkpoints").exists(), "a finished decoder keeps no state of its fit"


def test_a_fit_killed_at_any_step_of_writing_goes_on_to_the_same_bytes(encoded, tmp_path):
    whole = fit(encoded, tmp_path / "whole", checkpoint_every=3)
    document = tmp_path / "fit.yaml"
    document.write_text(json.dumps(recipe(encoded, tmp_path / "killed", checkpoint_every=3)))
    code = "import sys; from pipelines.commands import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", code, "run", "fit-decoder", "-c", str(document), "--json"]
    for k in (9, 17):
        killed = subprocess.run(argv, env={**os.environ, "HEADWATER_FAIL_AT": f"{k}:kill"}, capture_output=True, timeout=200)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-500:]
        assert not (tmp_path / "killed" / "manifest.json").exists()
    assert artifact(fit(encoded, tmp_path / "killed", checkpoint_every=3)) == artifact(whole)


def test_a_damaged_checkpoint_is_passed_over_and_one_of_another_fit_is_a_conflict(encoded, tmp_path):
    config = parse(FitDecoder, recipe(encoded, tmp_path / "x"))
    mark = identity(config, opened(config))
    for step in (1, 2):
        checkpoint.save(str(tmp_path / "x"), step, {"a": torch.full((2,), float(step))}, mark)
    newest = tmp_path / "x" / "checkpoints" / checkpoint.found(str(tmp_path / "x"))[0][1]
    newest.write_bytes(newest.read_bytes()[:-1] + b"!")
    step, state, passed = checkpoint.newest(str(tmp_path / "x"), mark)
    assert step == 1 and state["a"].tolist() == [1, 1] and passed == [str(newest)]
    with pytest.raises(ConflictError):
        fit(encoded, tmp_path / "x", seed=5)


def test_at_most_two_checkpoints_are_kept(tmp_path):
    for step in range(1, 6):
        checkpoint.save(str(tmp_path), step, {"a": torch.zeros(1)}, "r")
    assert [step for step, _ in checkpoint.found(str(tmp_path))] == [5, 4]


def pictures_of(dataset):
    """(id, place) -> uint8 picture, of a curated dataset."""
    records = [(i, r) for i in range(len(dataset.shards)) for r in dataset.records(i)]
    return {(r.id, k): images.decode(bytes(dataset.payload(i, s))) for i, r in records for k, s in enumerate(r.segments)}


def test_decode_loads_what_was_fitted_and_shows_what_the_card_says(encoded, tmp_path):
    out = fit(encoded, tmp_path / "dec", steps=150)
    decoded = Dataset.open(run(DECODE, DecodeRecipe, dataset=encoded.path, decoder={"rae": {"weights": str(out)}}, output=str(tmp_path / "d")))
    card, frames = read_card(str(out)), open_frames(encoded.path, None)
    before, shown = pictures_of(frames.curated), pictures_of(decoded)
    by_id = {}
    for (id, k), picture in shown.items():
        by_id.setdefault(id, set()).add(round(fidelity.psnr(before[id, k], picture), 9))
    held = pq.read_table(str(out / "frames.parquet")).to_pylist()
    assert held and all(round(row["psnr"], 9) in by_id[row["id"]] for row in held)
    mean = card["figures"]["psnr"]["frames"]["mean"]
    assert mean == pytest.approx(np.mean([row["psnr"] for row in held]), abs=1e-4) and mean > 15
    assert decoded.card["parents"][1]["fingerprint"] == card["fingerprint"]
    assert [p["fingerprint"] for p in card["parents"]] == [encoded.fingerprint, frames.curated.fingerprint]


def test_frames_of_a_held_out_group_are_never_trained_on(encoded):
    frames = open_frames(encoded.path, None)
    train, held = frames.split(0.3, 0, 1000)
    of = lambda numbers: {frames.groups[frames.pixels.record[i]] for i in numbers}
    assert of(train) | of(held) <= set(frames.groups) and not of(train) & of(held) and len(train) + len(held) == len(frames)
    assert len(frames.split(0.3, 0, 2)[1]) == 2
    with pytest.raises(InputError, match="no frame is held out"):
        frames.split(1e-9, 0, 10)


def test_stored_latents_belong_to_the_pixels_beside_them(encoded):
    frames = open_frames(encoded.path, None)
    frames.reach((32, 32))
    numbers = np.arange(len(frames))
    np.testing.assert_array_equal(Pixels(size=32, patch=8).patches(frames.pictures(numbers)), frames.latents(numbers))
    references = sum(len(r.segments) for i in range(len(frames.curated.shards)) for r in frames.curated.records(i))
    assert 12 < len(frames) < references, "clips that follow one another share frames, and each is counted once a shard"


def test_latents_made_on_the_way_are_those_that_would_be_stored(encoded):
    stored = open_frames(encoded.path, None)
    made = open_frames(stored.curated.path, Pixels(size=32, patch=8))
    for frames in (stored, made):
        frames.reach((32, 32))
    np.testing.assert_array_equal(stored.latents(range(5)), made.latents(range(5)))
    np.testing.assert_array_equal(stored.pictures(range(5)), made.pictures(range(5)))


def test_every_frame_is_seen_once_before_any_is_seen_again(encoded):
    from encode.encoder import machine_for
    from encode.fit_decoder import started

    config = parse(FitDecoder, recipe(encoded, "x"))
    frames = opened(config)
    train, _ = frames.split(0.3, 0, 1000)
    f = started(config, frames, train, machine_for("f32", "cpu"))
    seen = np.concatenate([f.numbers(step) for step in range(3 * len(train))])[: 4 * len(train)].reshape(4, -1)
    assert all(sorted(epoch) == train.tolist() for epoch in seen) and len({tuple(epoch) for epoch in seen}) == 4


def test_the_normalisation_inside_a_fit_is_folded_into_what_is_written(encoded):
    from encode.encoder import machine_for
    from encode.fit_decoder import started

    config = parse(FitDecoder, recipe(encoded, "x"))
    frames = opened(config)
    f = started(config, frames, np.arange(len(frames)), machine_for("f32", "cpu"))
    z = torch.from_numpy(frames.latents(range(3)))
    with torch.no_grad():
        assert torch.allclose(f.finished()(z) * f.std + f.mean, f.rebuilt(z), atol=1e-4)
        quiet, loud = f.noised(z, 0) - z, f.noised(z, 1) - z
    assert not torch.equal(quiet, loud) and 0 < quiet.std() <= 0.1 * f.loudness * 1.2


def test_the_generic_commands_know_a_decoder(encoded, tmp_path, capsys, monkeypatch):
    out = fit(encoded, tmp_path / "dec")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["verify", str(out), "--deep"]) == 0 and main(["verify", str(out)]) == 0
    assert main(["stats", str(out)]) == 0 and "psnr" in capsys.readouterr().out
    assert main(["inspect", str(out)]) == 0 and "decoder" in capsys.readouterr().out
    assert main(["view", str(out)]) == 0 and "index.html" in capsys.readouterr().out
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "model.safetensors").write_bytes(data)
    assert main(["verify", str(out), "--deep"]) == 4


def test_a_dry_run_counts_the_parameters_that_the_network_has(encoded, tmp_path):
    from encode.reconstruction.vit import Shape, VitDecoder

    facts = FIT.plan(parse(FitDecoder, recipe(encoded, tmp_path / "x"))).facts
    model = VitDecoder(Shape(192, 8, 4, 4, 1, 32, 2, 48))
    assert facts["parameters"] == sum(p.numel() for p in model.parameters()) and not (tmp_path / "x").exists()
    tokens = FIT.plan(parse(FitDecoder, recipe(encoded, tmp_path / "x", steps=None, tokens=1000))).facts
    assert tokens["steps"] == 16, "1,000 tokens are 62.5 images of 16, and a batch is 4"


def test_a_finished_decoder_is_left_alone_and_another_recipe_is_a_conflict(encoded, tmp_path):
    out = fit(encoded, tmp_path / "dec")
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    fit(encoded, tmp_path / "dec")
    assert before == {p: p.stat().st_mtime_ns for p in out.iterdir()}
    with pytest.raises(ConflictError):
        fit(encoded, tmp_path / "dec", lr=2e-3)


def test_recipes_that_do_not_add_up_are_refused(encoded, tmp_path):
    for keys, said in (({"tokens": 10}, "say how long"), ({"adversarial": {}}, "name one critic"), ({"size": {**SIZE, "heads": 5}}, "multiple")):
        with pytest.raises(RecipeError, match=said):
            parse(FitDecoder, recipe(encoded, tmp_path, **keys))
    curated = open_frames(encoded.path, None).curated.path
    with pytest.raises(InputError, match="says nothing about latents"):
        fit(encoded, tmp_path / "x", dataset=curated)
    with pytest.raises(InputError, match="names its own encoder"):
        fit(encoded, tmp_path / "x", encoder={"pixels": {"size": 32, "patch": 8}})


def test_a_picture_of_another_size_is_prepared_from_the_frame_and_not_from_the_encoders_view(encoded):
    frames = open_frames(encoded.path, None)
    frames.reach((64, 64))
    at = frames.pixels
    frame = images.decode(bytes(frames.curated.slice(int(at.shard[0]), "image", int(at.offset[0]), int(at.nbytes[0]))))
    np.testing.assert_array_equal(frames.picture(0), Pixels(size=64, patch=8).picture(frame))


HERE = Path(__file__).parents[2]


def test_the_rate_warms_up_and_falls_and_the_average_follows_short_runs():
    config = parse(FitDecoder, {"dataset": "x", "steps": 1000, "output": "y"})
    rates = [config.rate(s, 1000) for s in range(1000)]
    assert rates[0] == pytest.approx(1 / 62) and max(rates) == 1 and rates[-1] == pytest.approx(0.1, abs=0.001)
    assert config.decay(0, 1000) == pytest.approx(0.1) and config.decay(999, 1000) == pytest.approx(0.95) and config.decay(10**6, 10**7) == 0.9978


def test_the_recipe_that_ships_is_valid():
    assert load(FitDecoder, str(HERE / "encode/recipes/world_decoder.yaml")).output.startswith("out/")
