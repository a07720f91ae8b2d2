"""The same balanced pairs from a table of URLs however it is cut, and after kills: a few in every run, many over Ray under `make soak`."""

import random

import pytest

from tests.balance_soak import LOCAL, RAY, Way, make, recipe, sampled, soak, web, world
from tests.fault_server import FaultServer

ROWS = 150


def test_parts_shards_and_buckets_of_any_size_sample_the_same_pairs(tmp_path, monkeypatch):
    ways = [Way("one"), Way("small parts", rows=13), Way("small shards, other buckets", shard_bytes=1 << 14, rows=40, buckets=2)]
    with FaultServer(web) as server:
        monkeypatch.setenv("HEADWATER_FETCH_PRIVATE", f"{server.address}:{server.port}")
        monkeypatch.setattr("pipelines.url_rows.ROWS", 0)  # put back what `make` sets
        world(tmp_path, server, ROWS)
        rows, told, whole = sampled(make(recipe(tmp_path, ways[0], str(tmp_path / "0"), ROWS), ways[0]))
        assert len(rows) >= ROWS // 3 and told["filtered"]["metaclip.balanced"] > 20 and told["filtered"]["exact_text"]
        for k, way in enumerate(ways[1:], 1):
            found = sampled(make(recipe(tmp_path, way, str(tmp_path / str(k)), ROWS), way))
            assert found[:2] == (rows, told), way.name
            assert found[2] != whole, "the shards do differ"


def test_three_random_kills_change_no_pair(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    assert soak(tmp_path, 3, seed, LOCAL[1:], ROWS) == [], f"seed {seed}"


@pytest.mark.soak
def test_thirty_random_kills_over_workers_and_shards_change_no_pair(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    assert soak(tmp_path, 30, seed, [*RAY, *LOCAL], 1_500) == [], f"seed {seed}"
