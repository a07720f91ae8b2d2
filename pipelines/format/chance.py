"""Identity and chance: who a record is, and every decision that looks random.

Nothing here keeps state. An id is a hash of (source, origin); a decision is a hash of (id, seed, purpose). So a draw depends on no rank,
worker, order or clock, and the same record meets the same fate on a laptop and on a cluster.

    id  = blake2b-128 of  source ␟ origin                              32 hex digits
    h   = the first 8 bytes of that digest, little-endian
    draw(h, seed, purpose, *extra) = splitmix64(h xor K),  K = blake2b-64 of "headwater/1/purpose/seed/extra…"

splitmix64 is the finaliser of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).

>>> record_id("captions", "a.jpg")
'137bd4d4f8c9cc10030030b1ce8d7056'
>>> draw(hash64("137bd4d4f8c9cc10030030b1ce8d7056"), 0, "order", 0)
5195859944059316780
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
_MASK = (1 << 64) - 1
_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SEPARATOR = "\x1f"


def record_id(source: str, origin: str) -> str:
    """The record's name for life: 32 hex digits, kept through encoding, the same for local and remote copies of one input."""
    return blake2b(f"{source}{SEPARATOR}{origin}".encode(), digest_size=16).hexdigest()


def hash64(id: str) -> int:
    """`h` of a record: the first 8 bytes of its id digest, little-endian."""
    return int.from_bytes(bytes.fromhex(id[:16]), "little")


def group_hash(group: str) -> int:
    """`h` of a group: blake2b-128 of its UTF-8 text, first 8 bytes, little-endian."""
    return int.from_bytes(blake2b(group.encode(), digest_size=16).digest()[:8], "little")


def _key(seed: int, purpose: str, extra: tuple[Any, ...]) -> int:
    text = "/".join(["headwater/1", purpose, str(seed), *map(str, extra)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


@overload
def draw(h: int, seed: int, purpose: str, *extra: Any) -> int: ...
@overload
def draw(h: U64, seed: int, purpose: str, *extra: Any) -> U64: ...
def draw(h: int | U64, seed: int, purpose: str, *extra: Any) -> int | U64:
    """A uint64 that depends on nothing but its arguments; an array of `h` gives an array."""
    key = _key(seed, purpose, extra)
    if isinstance(h, np.ndarray):
        return draw_by(h, np.uint64(key))
    x = ((int(h) ^ key) + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * _MIX1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX2) & _MASK
    return x ^ (x >> 31)


def keys(seed: int, purpose: str, extras: Iterable[Any]) -> U64:
    """K of `draw` for each of many last extras (entries of a list), to be used by `draw_by`."""
    return np.fromiter((_key(seed, purpose, (x,)) for x in extras), np.uint64)


def draw_by(h: U64, key: U64 | np.uint64) -> U64:
    """`draw` for arrays of h and of keys: draw_by(h, keys(seed, purpose, xs))[i] = draw(h[i], seed, purpose, xs[i])."""
    z = (h.astype(np.uint64, copy=False) ^ key) + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX2)
    return z ^ (z >> np.uint64(31))


@overload
def uniform(u: int) -> float: ...
@overload
def uniform(u: U64) -> NDArray[np.float64]: ...
def uniform(u: int | U64) -> float | NDArray[np.float64]:
    """A draw as a number in [0, 1) with 53 bits."""
    if isinstance(u, np.ndarray):
        return (u >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (int(u) >> 11) * 2.0**-53


def order(h: U64, seed: int, purpose: str, *extra: Any, ids: Sequence[str] | None = None) -> NDArray[np.int64]:
    """The permutation that sorts records by their draw, ties by id (or by place when no ids are given)."""
    keys = draw(h, seed, purpose, *extra)
    if ids is None:
        return np.argsort(keys, kind="stable")
    return np.lexsort((np.asarray(ids), keys))


def noise(key: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal float32 of the given shape, a pure function of `key` (numpy's Philox), always made on the CPU."""
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)


@overload
def held_out(group: str, fraction: float, seed: int) -> bool: ...
@overload
def held_out(group: list[str] | list[bytes], fraction: float, seed: int) -> NDArray[np.bool_]: ...
def held_out(group: str | list[str] | list[bytes], fraction: float, seed: int) -> bool | NDArray[np.bool_]:
    """Whether a group stands on the held-out side: the same for every source, arm and training seed. Many may come as their UTF-8."""
    if isinstance(group, str):
        return uniform(draw(group_hash(group), seed, "split")) < fraction
    return held_out_by(group_hashes(group), fraction, seed)


def group_hashes(groups: list[str] | list[bytes]) -> U64:
    """`group_hash` of many, which may come as their UTF-8."""
    named: list[Any] = [str(g).encode() for g in groups] if len(groups) and isinstance(groups[0], str) else list(groups)
    return np.frombuffer(b"".join([blake2b(g, digest_size=16).digest() for g in named]), dtype="<u8")[::2]


def held_out_by(h: U64, fraction: float, seed: int) -> NDArray[np.bool_]:
    """`held_out` of groups whose hashes are known."""
    return uniform(draw(h, seed, "split")) < fraction
