"""Latent statistics are exact, and the same whatever the order and the split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encode.stats import BLOCK_ROWS, Moments, merge, publish


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
    entry = publish(str(tmp_path), some)
    data = (tmp_path / entry["path"]).read_bytes()
    assert entry == {"path": f"stats-{entry['sha256'][:16]}.parquet", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "n": 5}
    table = pq.read_table(tmp_path / entry["path"])
    assert table.column_names == ["channel", "n", "mean", "m2"]
    assert table["mean"].to_pylist() == pytest.approx(some.mean.tolist(), rel=0)
