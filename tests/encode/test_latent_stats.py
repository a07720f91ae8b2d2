"""Statistics that stand alone: files as RAE releases them come in and go out unchanged, and nothing in a file is ever run."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_position_stats import CHANNELS, TOKENS, encode, stored, world  # noqa: F401

from encode.latent_stats import STAGE, LatentStats
from encode.published_stats import read, write
from encode.stats import Statistics
from pipelines.commands import main
from pipelines.engine import open_job
from pipelines.format import moments
from pipelines.format.document import parse
from pipelines.format.errors import ConflictError, InputError, RecipeError
from pipelines.format.manifest import read_card


def run(**keys):
    with open_job("local") as job:
        return STAGE.run(parse(LatentStats, keys), job)


def file(path, found):
    torch.save(found, path)
    return str(path)


def rae(shape=(6, 2, 3), seed=0):
    """A released file: float32 mean and variance of some shape."""
    g = torch.Generator().manual_seed(seed)
    return {"mean": torch.randn(shape, generator=g), "var": torch.rand(shape, generator=g)}


@pytest.mark.parametrize("shape", [(6, 2, 3), (1, 6, 2, 3)])
def test_token_t_of_an_imported_grid_is_its_row_times_the_width_plus_its_column(tmp_path, shape):
    found = rae(shape)
    path = run(file=file(tmp_path / "stats.pt", found), output=str(tmp_path / "out"))
    card = read_card(path)
    assert (card["kind"], card["grid"], card["channels"]) == ("latent-stats", [2, 3], 6)
    kept = moments.read(path, card["stats"], "position")
    assert kept.n == 0 and kept.mean.shape == (6, 6)
    mean, var = (found[k].reshape(6, 2, 3).numpy() for k in ("mean", "var"))
    for row in range(2):
        for column in range(3):
            np.testing.assert_array_equal(kept.mean[row * 3 + column], mean[:, row, column])
            np.testing.assert_array_equal(kept.variance[row * 3 + column], var[:, row, column])


@pytest.mark.parametrize("shape", [(6,), (6, 1, 1), (1, 6, 1, 1)])
def test_a_file_without_positions_is_by_channel_alone(tmp_path, shape):
    found = rae(shape)
    path = run(file=file(tmp_path / "stats.pt", found), output=str(tmp_path / "out"))
    said = read_card(path)["stats"]
    np.testing.assert_array_equal(moments.read(path, said).variance, found["var"].reshape(6).numpy())
    with pytest.raises(InputError, match="by channel alone"):
        moments.read(path, said, "position")


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(2, 4), st.integers(0, 99))
def test_what_is_imported_is_exported_bit_by_bit(channels, rows, columns, seed):
    found = rae((channels, rows, columns), seed)
    out = io.BytesIO()
    torch.save(found, out)
    again = torch.load(io.BytesIO(write(*read(out.getvalue(), "stats.pt"))), weights_only=True)
    assert list(again) == ["mean", "var"]
    assert all(again[k].dtype == torch.float32 and torch.equal(again[k], found[k]) for k in again)


def test_by_channel_an_imported_grid_has_the_moments_of_all_its_positions():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 6, 4)) * np.arange(1, 25).reshape(6, 4) + np.arange(24).reshape(6, 4)
    data = write(Statistics(moments.Moments.of(x).by_channel(), moments.Moments.of(x)), (2, 3))
    found, grid = read(data, "")
    assert grid == (2, 3)
    np.testing.assert_allclose(found.channel.mean, x.mean(axis=(0, 1)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.channel.variance, x.var(axis=(0, 1)), rtol=1e-6)


def test_a_datasets_statistics_are_exported_as_float32_of_its_own(world, tmp_path):  # noqa: F811
    encoded = encode(world, tmp_path / "e")
    path = run(datasets=[encoded.path], output=str(tmp_path / "out"))
    _, mean, variance = encoded.latent_stats("position")
    found = torch.load(f"{path}/stats.pt", weights_only=True)
    assert found["mean"].shape == (CHANNELS, 2, 2)
    np.testing.assert_array_equal(found["mean"].numpy(), mean.T.reshape(CHANNELS, 2, 2).astype(np.float32))
    np.testing.assert_array_equal(found["var"].numpy(), variance.T.reshape(CHANNELS, 2, 2).astype(np.float32))
    card = read_card(path)
    assert card["stats"] == encoded.encoding["stats"] and [p["fingerprint"] for p in card["parents"]] == [encoded.fingerprint]
    assert main(["verify", path, "--deep"]) == 0
    (Path(path) / "stats.pt").write_bytes(b"x")
    assert main(["verify", path]) == 4


def test_several_datasets_have_the_statistics_of_all_their_images_whatever_their_order(world, tmp_path):  # noqa: F811
    a = encode(world, tmp_path / "a")
    b = encode(world, tmp_path / "b", "pictures")
    one = run(datasets=[a.path, b.path, a.path], output=str(tmp_path / "one"))
    other = run(datasets=[b.path, a.path], output=str(tmp_path / "other"))
    assert read_card(one)["stats"] == read_card(other)["stats"]
    x = np.concatenate([stored(a), stored(b)])
    found = moments.read(one, read_card(one)["stats"], "position")
    assert found.n == len(x)
    np.testing.assert_allclose(found.mean, x.mean(axis=0).astype(float), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.variance, x.var(axis=0).astype(float), rtol=1e-12, atol=1e-18)


def test_a_dataset_without_positions_is_read_and_comes_to_what_its_encoding_would_have_said(world, tmp_path):  # noqa: F811
    encoded = encode(world, tmp_path / "e")
    _, mean, variance = encoded.latent_stats("position")
    card = json.loads((tmp_path / "e/manifest.json").read_text())
    del card["encoding"]["stats"]["position"]
    (tmp_path / "e/manifest.json").write_text(json.dumps(card))
    path = run(datasets=[encoded.path], output=str(tmp_path / "out"))
    found = moments.read(path, read_card(path)["stats"], "position")
    assert found.mean.shape == (TOKENS, CHANNELS) and found.n == encoded.latent_moments("position")[0]
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-12, atol=1e-18)


def test_stats_shows_what_they_are(tmp_path, capfd):
    path = run(file=file(tmp_path / "stats.pt", rae()), output=str(tmp_path / "out"))
    capfd.readouterr()
    assert main(["stats", path, "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)["figures"]["latent_stats"]
    assert {by: (f["values"], f["counted"]) for by, f in shown.items()} == {"by channel": (6, "unknown"), "by position": (36, "unknown")}
    assert shown["by position"]["highest deviation"] == pytest.approx(float(rae()["var"].max()) ** 0.5)
    assert main(["stats", path]) == 0 and "highest deviation" in capfd.readouterr().out


def test_the_same_again_writes_nothing_and_another_file_at_the_same_place_is_a_conflict(tmp_path):
    first = file(tmp_path / "a.pt", rae())
    path = Path(run(file=first, output=str(tmp_path / "out")))
    before = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    run(file=first, output=str(path))
    assert before == {p: p.stat().st_mtime_ns for p in path.iterdir()}
    with pytest.raises(ConflictError):
        run(file=file(tmp_path / "b.pt", rae(seed=1)), output=str(path))


# ---- files that are not what they say ---------------------------------------------------------------------------------------------------


class Runs:
    """What a malicious pickle does: it makes a file when it is opened."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "inside"])
def test_a_file_with_code_in_it_is_refused_and_nothing_runs(tmp_path, form):
    mark, path = tmp_path / "mark", tmp_path / "stats.pt"
    bad = Runs(str(mark))
    if form == "pickle":
        path.write_bytes(pickle.dumps({"mean": bad, "var": bad}))
    else:
        content = {**rae(), "more": bad} if form == "inside" else bad
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(InputError, match="nothing in it was run"):
        run(file=str(path), output=str(tmp_path / "out"))
    assert not mark.exists() and not (tmp_path / "out").exists()
    pickle.loads(pickle.dumps(bad))
    assert mark.exists(), "the test's own code would have run"


def with_value(value, name="mean"):
    found = rae()
    found[name][1, 1, 1] = value
    return found


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (with_value(float("nan")), "not finite"),
        (with_value(float("inf"), "var"), "not finite"),
        (with_value(-1e-6, "var"), "negative variances"),
        ({"mean": rae()["mean"]}, "a mean and a variance"),
        ({**rae(), "n": torch.ones(1)}, "a mean and a variance"),
        ({"mean": rae()["mean"], "std": rae()["var"]}, "a mean and a variance"),
        ([rae()["mean"], rae()["var"]], "a mean and a variance"),
        ({"mean": rae()["mean"], "var": rae((6, 3, 2))["var"]}, "two shapes"),
        (rae((2, 6, 2, 3)), "a shape that statistics do not have"),
        (rae((6, 4)), "a shape that statistics do not have"),
        (rae((6, 0, 3)), "a shape that statistics do not have"),
        ({"mean": torch.zeros(()), "var": torch.zeros(())}, "a shape that statistics do not have"),
        ({"mean": torch.ones(1).expand(1 << 30), "var": torch.ones(1).expand(1 << 30)}, "a shape that statistics do not have"),
        ({"mean": torch.ones(6, dtype=torch.int64), "var": torch.ones(6)}, "not a tensor of floating point"),
        ({"mean": torch.ones(6, 6).to_sparse(), "var": torch.ones(6)}, "not a tensor of floating point"),
        ({"mean": 0.0, "var": 1.0}, "not a tensor of floating point"),
    ],
)
def test_what_is_no_mean_and_variance_is_refused_with_the_reason(tmp_path, found, said):
    with pytest.raises(InputError, match=said):
        run(file=file(tmp_path / "stats.pt", found), output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", [b"", b"not a file of torch", b"PK\x03\x04" + bytes(100)])
def test_what_torch_never_wrote_is_refused(tmp_path, data):
    (tmp_path / "stats.pt").write_bytes(data)
    with pytest.raises(InputError, match="not a file of tensors"):
        run(file=str(tmp_path / "stats.pt"), output=str(tmp_path / "out"))


def test_half_precision_is_taken_as_it_is(tmp_path):
    found = {k: v.to(torch.bfloat16) for k, v in rae().items()}
    path = run(file=file(tmp_path / "stats.pt", found), output=str(tmp_path / "out"))
    again = torch.load(f"{path}/stats.pt", weights_only=True)
    assert all(torch.equal(again[k], found[k].float()) for k in found)


def test_a_grid_that_is_not_one_is_refused(world, tmp_path):  # noqa: F811
    encoded = encode(world, tmp_path / "e")
    with pytest.raises(RecipeError, match="not the grid"):
        run(datasets=[encoded.path], grid=[3, 2], output=str(tmp_path / "out"))
    path = run(datasets=[encoded.path], grid=[1, 4], output=str(tmp_path / "wide"))
    assert torch.load(f"{path}/stats.pt", weights_only=True)["mean"].shape == (CHANNELS, 1, 4)


def test_a_curated_dataset_and_images_of_two_shapes_are_refused(world, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match="no latent statistics"):
        run(datasets=[str(world / "video")], output=str(tmp_path / "out"))
    a, b = encode(world, tmp_path / "a"), encode(world, tmp_path / "b", images={"pixels": {"size": 32, "patch": 8}})
    with pytest.raises(RecipeError, match="several shapes"):
        run(datasets=[a.path, b.path], output=str(tmp_path / "out"))
