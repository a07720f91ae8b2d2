"""Near hashes are found exactly, by keys that any two of them share."""

import random

import numpy as np
import pytest

from pipelines.format.hamming import Near, blocks, flat, masks, near_pairs

ALL = (1 << 64) - 1


def near_copies(n, seed=0):
    """Random hashes and copies of them with 0 to 9 bits changed, all distinct."""
    rng = random.Random(seed)
    out = {rng.getrandbits(64) for _ in range(n)}
    for h in sorted(out):
        for bits in rng.sample(range(10), 3):
            for at in rng.sample(range(64), bits):
                h ^= 1 << at
            out.add(h)
    return rng.sample(sorted(out), len(out))


def found(hashes, distance, first=1 << 14, each=64):
    """All pairs that the masks bring together, as a job finds them: each group in the order of `hashes`."""
    out = []
    for mask in masks(distance):
        groups = {}
        for i, h in enumerate(hashes):
            groups.setdefault(h & mask, []).append(i)
        for group in groups.values():
            pairs = near_pairs(np.array([hashes[i] for i in group], np.uint64), distance, mask, first, each)
            out += [(group[i], group[j], bits) for i, j, bits in pairs]
    return out


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10])
def test_blocks_cover_every_bit_once(n):
    assert sum(blocks(n)) == ALL and sum(b.bit_count() for b in blocks(n)) == 64
    assert {b.bit_count() for b in blocks(n)} <= {64 // n, 64 // n + 1}


@pytest.mark.parametrize("distance", [1, 2, 4, 8])
def test_every_near_pair_is_found_once_and_no_other(distance):
    hashes = near_copies(60)
    wanted = {(i, j, (a ^ b).bit_count()) for i, a in enumerate(hashes) for j, b in enumerate(hashes) if i < j and (a ^ b).bit_count() <= distance}
    pairs = found(hashes, distance)
    assert set(pairs) == wanted and len(pairs) == len(wanted) > 20


def test_a_distance_of_nothing_needs_no_masks():
    assert masks(0) == []


def test_work_and_pairs_are_bounded_where_all_hashes_are_alike():
    rng = random.Random(1)
    hashes = list(dict.fromkeys(0xFFFFFFFF ^ (1 << rng.randrange(32)) ^ (1 << 32 + rng.randrange(32)) for _ in range(900)))
    mask = masks(4)[0]
    pairs = list(near_pairs(np.array(hashes, np.uint64), 4, mask, first=100, each=5))
    assert max(i for i, _, _ in pairs) < 100
    assert max(np.bincount([j for _, j, _ in pairs])) == 5
    assert pairs == list(near_pairs(np.array(hashes, np.uint64), 4, mask, first=100, each=5))


@pytest.mark.parametrize("distance", [0, 1, 4, 7])
def test_a_list_is_asked_for_its_nearest_hash(distance):
    hashes = near_copies(80, seed=2)
    near = Near(np.array(hashes[::2], np.uint64), distance)
    for h in hashes:
        least = min((h ^ other).bit_count() for other in hashes[::2])
        assert near.nearest(h) == (least if least <= distance else None)
    assert Near(np.array([], np.uint64), distance).nearest(5) is None


def test_flat_hashes_are_those_with_few_bits():
    assert flat(1 << 63) and flat((1 << 24) - 1) and not flat((1 << 25) - 1) and not flat(0x5555555555555555)


@pytest.mark.parametrize("distance", [0, 2, 4, 8])
def test_many_hashes_are_answered_as_one_after_another_would_be(distance):
    listed, asked = near_copies(60), near_copies(60, seed=2) + near_copies(60)[::7]
    near = Near(np.array(listed, np.uint64), distance)
    best, at = near.of_many(np.array(asked, np.uint64))
    assert [None if b > distance else b for b in best.tolist()] == [near.nearest(h) for h in asked]
    found = [(h ^ int(near.hashes[i])).bit_count() for h, i, b in zip(asked, at.tolist(), best.tolist(), strict=True) if b <= distance]
    assert found == best[best <= distance].tolist() and len(found) >= 1


def test_many_hashes_beside_many_equal_ones_are_compared_in_pieces(monkeypatch):
    monkeypatch.setattr("pipelines.format.hamming._CHUNK", 50)
    listed = np.arange(40, dtype=np.uint64) << np.uint64(3)
    near = Near(listed, 1)
    asked = np.arange(300, dtype=np.uint64)
    best, _ = near.of_many(asked)
    assert [None if b > 1 else b for b in best.tolist()] == [near.nearest(int(h)) for h in asked]
