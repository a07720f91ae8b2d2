"""The Fréchet distance against closed forms, and as an evaluation: nothing between a set and itself, more the more noise, and a floor beside it."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.format.document import parse
from pipelines.format.errors import InputError
from tests.trainer import scenes
from trainer.evaluate import Evaluations
from trainer.evaluate.frechet import Frechet, distance, extrapolated, small

RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return scenes.Pairs(str(tmp_path_factory.mktemp("pairs") / "data"))


def run(plan, out, **keys):
    rows = Frechet(images=40, **keys).run(scenes.subject(plan), str(out))
    return {r["metric"]: r["value"] for r in rows}


@pytest.mark.parametrize(("n", "d"), [(2, 3), (50, 8), (40, 200), (300, 1)])
def test_a_set_is_at_distance_nothing_from_itself_in_any_order(n, d):
    x = RNG.standard_normal((n, d)) * np.geomspace(1e-4, 1e3, d)
    scale = x.var(axis=0).sum()
    assert distance(x, x) <= 1e-6 * max(scale, 1) and distance(x, RNG.permutation(x)) <= 1e-6 * max(scale, 1)


def test_distances_are_those_of_gaussians_with_known_answers():
    x = RNG.standard_normal((2000, 5))
    assert distance(x, x + np.array([3, 0, 0, 4, 0])) == pytest.approx(25)
    assert distance(x, 3 * x - 2 * x.mean(axis=0)) == pytest.approx(4 * np.cov(x.T).trace())  # (3σ - σ)² a dimension
    a, b = (RNG.standard_normal((60, 6)) @ RNG.standard_normal((6, 6)) for _ in range(2))
    root = lambda m: np.linalg.eigh(m)[1] * np.sqrt(np.clip(np.linalg.eigvalsh(m), 0, None)) @ np.linalg.eigh(m)[1].T
    c, d = np.cov(a.T), np.cov(b.T)
    plain = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c + d - 2 * root(root(c) @ d @ root(c)))
    assert distance(a, b) == pytest.approx(plain) == pytest.approx(distance(b, a))


def test_turning_both_sets_changes_nothing_and_scaling_both_scales_the_distance():
    a, b = RNG.standard_normal((80, 7)), RNG.standard_normal((90, 7)) * 2 + 1
    turn = np.linalg.qr(RNG.standard_normal((7, 7)))[0]
    assert distance(a @ turn, b @ turn) == pytest.approx(distance(a, b)) and distance(5 * a, 5 * b) == pytest.approx(25 * distance(a, b))


def test_the_distance_of_small_sets_is_too_large_and_the_line_through_them_ends_near_the_truth():
    found = []
    for _ in range(8):
        a, b = RNG.standard_normal((400, 20)), RNG.standard_normal((400, 20))
        found.append((distance(a[:80], b[:80]), distance(a, b), extrapolated(a, b)))
    few, many, end = np.mean(found, axis=0)
    assert few > 3 * many and abs(end) < many / 3  # the truth is 0


def test_blocks_of_a_picture_are_means_of_whole_pixels_whatever_its_sides():
    picture = RNG.integers(0, 256, (10, 13, 3), dtype=np.uint8)
    assert small(np.full((9, 31, 3), 51, np.uint8)) == pytest.approx(np.full(48, 0.2))
    assert small(picture)[:3] == pytest.approx(picture[:2, :3].mean(axis=(0, 1)) / 255)


@pytest.mark.filterwarnings("ignore:frechet")
@pytest.mark.parametrize("space", ["latents", "pixels", {"pixels": {"size": 8, "patch": 4}}])
def test_true_pictures_are_at_distance_nothing_and_noise_moves_them_away_ever_further(plan, tmp_path, monkeypatch, space):
    found = []
    for amount in (0, 20, 60, 150):
        scenes.paints(monkeypatch, plan, scenes.noisy(amount))
        found.append(run(plan, tmp_path / str(amount), space=space))
    values = [f["frechet"] for f in found]
    assert values[0] < 0.01 * found[0]["frechet.held_out"] and values == sorted(values) and values[-1] > values[1]
    assert len({f["frechet.held_out"] for f in found}) == 1, "the floor belongs to the held-out pictures alone"


@pytest.mark.parametrize("n", [2, 3])
def test_too_few_pictures_are_said_before_any_is_painted(tmp_path, monkeypatch, n):
    few = scenes.Pairs(str(tmp_path / "data"), n=n)
    monkeypatch.setattr("trainer.evaluate.frechet.painted", lambda *a, **k: pytest.fail("painted"))
    with pytest.raises(InputError, match="too few held-out pictures"):
        run(few, tmp_path)


@pytest.mark.filterwarnings("ignore:frechet")
def test_four_pictures_have_a_distance_and_halves(tmp_path, monkeypatch):
    few = scenes.Pairs(str(tmp_path / "data"), n=4)
    scenes.paints(monkeypatch, few)
    assert set(run(few, tmp_path)) == {"frechet", "frechet.held_out"}


@pytest.mark.filterwarnings("ignore:frechet")
def test_pictures_of_other_captions_are_no_further_for_a_distance_that_reads_no_caption(plan, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan, of=lambda i, n: i + 1)
    assert run(plan, tmp_path)["frechet"] < 1e-4  # the same set: this is what scene_match is for


def test_few_pictures_for_the_dimension_are_warned_of_and_enough_give_an_extrapolated_row(plan, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan)
    with pytest.warns(UserWarning, match="40 pictures in 192 dimensions"):
        assert "frechet.extrapolated" not in run(plan, tmp_path)
    monkeypatch.setattr(Frechet, "features", lambda self, data, x: x.astype(np.float64).mean(axis=1)[:, :3])
    assert abs(run(plan, tmp_path)["frechet.extrapolated"]) < 1e-3


def test_the_space_is_named_in_yaml_and_in_the_rows():
    said = parse(Evaluations, {"evaluate": [{"frechet": {}}, {"frechet": {"space": "pixels"}}, {"frechet": {"space": {"dinov2": {"weights": "x"}}}}]})
    assert [e.split for e in said.evaluate] == ["latents", "pixels", "dinov2"]
    assert Frechet(space={"pixels": {"size": 8}}).split == "encoder:pixels"
    for wrong in ("inception", {}, {"a": {}, "b": {}}):
        with pytest.raises(ValueError, match="one encoder"):
            Frechet(space=wrong)
