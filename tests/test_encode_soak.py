"""Encoded datasets are the same after any kill: three kills of a job in process in every run, twenty over Ray under `make soak`."""

import random

import pytest

from tests.encode_soak import World, differences, encode, soak


def test_three_random_kills_change_no_byte_of_an_encoded_dataset(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    wrong, hit = soak(tmp_path, 3, seed, "local", 160)
    assert wrong == [] and hit.total() == 3, f"seed {seed}"


def test_the_comparison_names_what_differs(tmp_path):
    world = World(tmp_path, "local")
    world.make(160)
    encode(world.document, "local")
    (tmp_path / "out/_tmp").mkdir()
    (tmp_path / "out/_tmp/half").write_bytes(b"latents")
    (tmp_path / "out/latents-00000-0000000000000000.bin").write_bytes(b"of a part that was never committed")
    assert differences(world) == [], "gc takes the rubbish of the dead"
    (tmp_path / "out/mine.bin").write_bytes(b"")
    latents = min((tmp_path / "out").glob("latents-*"))
    data = bytearray(latents.read_bytes())
    data[0] ^= 1
    latents.write_bytes(data)
    wrong = differences(world)
    assert wrong[:2] == [f"{latents.name}: other bytes", "mine.bin: left over"] and any(latents.name in w and "sha256" in w for w in wrong[2:]), wrong
    latents.unlink()
    assert f"{latents.name}: missing" in differences(world)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_random_kills_over_ray_change_no_byte_of_an_encoded_dataset(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    wrong, hit = soak(tmp_path, 20, seed, "ray", 960)
    assert wrong == [] and hit.total() == 20, f"seed {seed}"
