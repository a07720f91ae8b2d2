"""kill -9 at random moments: three in every test run, fifty over all stages under `make soak`."""

import random

import pytest

from tests.soak import soak


@pytest.mark.ray
def test_three_random_kills_change_no_byte(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    assert soak(tmp_path, 3, seed, kinds=("image-text",), spared=("fit-tokenizer", "mix")) == [], f"seed {seed}"


@pytest.mark.soak
def test_fifty_random_kills_over_all_stages_change_no_byte(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    assert soak(tmp_path, 50, seed) == [], f"seed {seed}"
