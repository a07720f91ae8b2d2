"""Latent statistics are exact, and the same whatever the order and the split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encode.coding import coded
from encode.encoder import Grid
from encode.stats import BLOCK_ROWS, Moments, merge, publish
from pipelines.format.errors import VerifyError
from pipelines.format.moments import from_parquet, joined, to_parquet


def latents(n: int, channels: int = 6, seed: int = 0) -> np.ndarray:
    """Means and spreads that differ by channel, one of them a thousand standard deviations from 0."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, channels)) * np.linspace(0.1, 5, channels) + np.linspace(-3, 1000, channels)).astype(np.float32)


def same(a: Moments, mean: np.ndarray, variance: np.ndarray) -> None:
    np.testing.assert_allclose(a.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(a.variance, variance, rtol=1e-10)


def test_moments_equal_numpy_on_the_whole():
    x = latents(3 * BLOCK_ROWS + 17)
    same(Moments.of(x), x.mean(axis=0, dtype=np.float64), x.astype(np.float64).var(axis=0))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_any_split_gives_the_statistics_of_the_whole(sizes):
    x = latents(sum(sizes) + 1)
    cuts = np.split(x, np.cumsum(sizes))
    found = merge(list(enumerate(map(Moments.of, cuts))))
    assert found is not None and found.n == len(x)
    same(found, x.mean(axis=0, dtype=np.float64), x.astype(np.float64).var(axis=0))


def test_parts_that_arrive_in_another_order_give_the_same_bits():
    parts = [(i, Moments.of(latents(10 + i, seed=i))) for i in range(9)]
    one, other = merge(parts), merge(parts[::-1])
    assert one is not None and other is not None
    assert one.mean.tobytes() == other.mean.tobytes() and one.m2.tobytes() == other.m2.tobytes()


def test_no_part_has_no_statistics_and_an_empty_one_changes_nothing():
    assert merge([]) is None
    some = Moments.of(latents(5))
    assert merge([(0, Moments.none(6)), (1, some)]) is some


def test_a_commit_record_keeps_every_bit():
    some = Moments.of(latents(5))
    back = Moments.from_json(some.as_json())
    assert (back.n, back.mean.tobytes(), back.m2.tobytes()) == (5, some.mean.tobytes(), some.m2.tobytes())


def test_published_statistics_name_their_file_by_content(tmp_path):
    import hashlib

    import pyarrow.parquet as pq

    some = Moments.of(latents(5))
    said, entry = publish(str(tmp_path), some)
    data = (tmp_path / entry["path"]).read_bytes()
    assert entry == {"path": f"stats-{entry['sha256'][:16]}.parquet", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert said == {"file": entry["path"], "sha256": entry["sha256"], "n": 5}
    table = pq.read_table(tmp_path / entry["path"])
    assert table.column_names == ["channel", "n", "mean", "m2"]
    assert table["mean"].to_pylist() == pytest.approx(some.mean.tolist(), rel=0)


def exact(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance over the first axis, in 80-bit floats."""
    wide = x.astype(np.longdouble)
    mean = wide.mean(axis=0)
    return mean, np.square(wide - mean).mean(axis=0)


def images(n: int, seed: int = 0, tokens: int = 5, channels: int = 4) -> np.ndarray:
    """float32 [n, tokens, channels], every value of an image with a mean and a deviation of its own; some are 1,000 deviations from 0."""
    rng = np.random.default_rng(seed)
    deviation = np.geomspace(1e-3, 1e3, tokens * channels).reshape(tokens, channels)
    far = np.where(np.arange(tokens * channels) % 3, 1, 1000).reshape(tokens, channels)
    return ((rng.standard_normal((n, tokens, channels)) + far) * deviation).astype(np.float32)


def close(found: Moments, x: np.ndarray) -> None:
    mean, variance = exact(x)
    assert found.n == len(x) and found.mean.shape == x.shape[1:]
    deviation = np.sqrt(variance)
    assert (np.abs(found.mean - mean) <= 1e-12 * deviation).all()
    assert (np.abs(found.variance - variance) <= 1e-12 * variance).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.randoms())
def test_by_position_any_split_and_any_order_of_arrival_are_twelve_digits_of_the_truth_and_the_same_bits(sizes, random):
    x = images(sum(sizes))
    parts = list(enumerate(map(Moments.of, np.split(x, np.cumsum(sizes)[:-1]))))
    one = merge(parts)
    random.shuffle(parts)
    other = merge(parts)
    assert one is not None and other is not None
    assert one.mean.tobytes() == other.mean.tobytes() and one.m2.tobytes() == other.m2.tobytes()
    if sum(sizes) > 1:
        close(one, x)
        close(one.by_channel(), x.reshape(-1, x.shape[-1]))


def test_a_thousand_parts_lose_nothing():
    x = images(20_000, tokens=2, channels=3)
    found = merge(list(enumerate(map(Moments.of, np.array_split(x, 1000)))))
    assert found is not None
    close(found, x)


def test_a_value_that_never_changes_has_no_variance():
    found = Moments.of(np.full((333, 2, 3), 0.1, np.float32))
    assert not found.m2.any() and (found.mean == np.float32(0.1)).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 70), st.sampled_from([1, 2, 4, 8, 16]))
def test_runs_of_a_power_of_two_merge_to_the_bits_of_one_run(parts, size):
    found = [Moments.of(images(3, seed=i)) for i in range(parts)]
    whole = joined(found)
    in_runs = joined(some for k in range(0, parts, size) if (some := joined(found[k : k + size])) is not None)
    assert whole is not None and in_runs is not None
    assert whole.mean.tobytes() == in_runs.mean.tobytes() and whole.m2.tobytes() == in_runs.m2.tobytes()


@pytest.mark.parametrize("shape", [(7,), (5, 4)])
def test_a_file_of_statistics_gives_back_every_bit(shape):
    rng = np.random.default_rng(0)
    some = Moments(9, rng.standard_normal(shape), rng.random(shape))
    back = from_parquet(to_parquet(some))
    assert (back.n, back.mean.tobytes(), back.m2.tobytes(), back.mean.shape) == (9, some.mean.tobytes(), some.m2.tobytes(), shape)


@pytest.mark.parametrize("data", [b"", b"PAR1 and no more PAR1"])
def test_a_file_that_is_none_is_refused(data):
    with pytest.raises(VerifyError, match="not a file of latent statistics"):
        from_parquet(data)


class Given:
    """An encoding that has computed its latents already."""

    fingerprint, network = "given", None

    def __init__(self, latents: np.ndarray) -> None:
        self.latents, self.grid = latents, Grid(1, 1, *latents.shape[1:])

    def raw(self, pictures: np.ndarray):
        return (self.latents[k : k + 32] for k in range(0, len(pictures), 32))


def test_the_encode_step_keeps_twelve_digits_too():
    x = images(455, tokens=40, channels=30)
    close(coded(Given(x), np.zeros(455), "f32").moments, x)  # type: ignore[arg-type]
