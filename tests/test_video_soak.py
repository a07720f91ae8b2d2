"""Video, actions and questions give the same bytes after kills and with any number of workers: a few in every run, many under `make soak`."""

import random

import pytest

from tests.video_soak import LOCAL, WAYS, Way, soak


def test_five_random_kills_over_every_source_change_no_byte(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    assert soak(tmp_path, 5, seed, LOCAL, 12) == [], f"seed {seed}"


@pytest.mark.soak
def test_forty_random_kills_over_workers_change_no_byte(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    assert soak(tmp_path, 40, seed, WAYS, 24) == [], f"seed {seed}"


def test_ways_differ_in_who_runs_alone():
    assert {way.workers for way in WAYS if way.engine == "ray"} == {1, 2, 4} and Way("x").engine == "local"
