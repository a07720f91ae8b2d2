"""Sketches tell copies of a picture from other pictures, and an index finds what comparing one by one finds."""

import numpy as np
import pytest

from pipelines import sketches
from pipelines.format.errors import Reject
from pipelines.media import hashing, images, resizing
from pipelines.sketches import SketchIndex, alike, coarser, differences, grid_for, plain
from tests.pipelines.copies import COPIES, scenes

PHOTOS = list(scenes(12))


def sketch(pixels, how="as_is"):
    return hashing.sketches(images.encode_png(pixels), (how,))[1][0]


def drawing(x, y, colour=(200, 30, 30), ground=(240, 240, 235), size=96):
    pixels = np.full((size, size, 3), ground, np.uint8)
    pixels[y : y + 30, x : x + 30] = colour
    return pixels


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_alike_and_other_photos_are_not(copy):
    own = [sketch(p) for p in PHOTOS]
    for i, pixels in enumerate(PHOTOS):
        made = hashing.sketches(COPIES[copy](pixels))[1][0]
        assert [j for j, other in enumerate(own) if alike(made, other)] == [i]


@pytest.mark.parametrize("mode", ["center_crop", "border"])
def test_what_our_own_resize_makes_of_a_copy_is_alike_in_its_geometry(mode):
    for pixels in PHOTOS[:4]:
        stored = images.encode_jpeg(resizing.resize(images.decode(COPIES["0.7 of the size, JPEG at 60"](pixels)), 160, mode), 92)
        one = hashing.sketches(stored)[1][0]
        assert alike(one, sketch(pixels, mode)) and not alike(one, sketch(pixels))


@pytest.mark.parametrize("other", [drawing(46, 20), drawing(20, 20, colour=(30, 30, 200)), drawing(20, 30)], ids=["moved", "recoloured", "lowered"])
def test_drawings_that_differ_by_a_shape_are_told_apart_though_their_hashes_may_not_be(other):
    one = drawing(20, 20)
    assert alike(sketch(one), hashing.sketches(images.encode_jpeg(one, 60))[1][0])
    assert not alike(sketch(one), sketch(other))


def test_plain_pictures_match_nothing():
    flats = [np.full((40, 60, 3), c, np.uint8) for c in (0, 90, 255)]
    ramp = np.repeat(np.linspace(100, 125, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    made = [sketch(p) for p in [*flats, ramp]]
    assert all(plain(s.cells) for s in made) and not any(alike(a, b) for a in made for b in made)


def test_an_index_finds_what_comparing_one_by_one_finds(monkeypatch):
    pool = [hashing.sketches(copy(p))[1][0] for p in PHOTOS for copy in COPIES.values()]
    index = SketchIndex(pool)
    one_by_one = [[j for j, other in enumerate(pool) if alike(s, other)] for s in pool]
    assert [sorted(m.at for m in index.matches(s)) for s in pool] == one_by_one
    monkeypatch.setattr(sketches, "_SOME", 2)
    assert [sorted(m.at for m in index.matches(s)) for s in pool] == one_by_one
    best = index.matches(pool[0], most=2)
    assert len(best) == 2 and best[0] <= best[1] and best[0].worst == 0
    assert SketchIndex([]).matches(pool[0]) == []


def test_differences_are_what_their_definition_says_and_symmetric():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 256, (8, 8, 3)), rng.integers(0, 256, (8, 8, 3))

    def leaves(x, y):
        """By how much each cell of x leaves the range of the nine cells of y around its place."""
        out = np.zeros((8, 8, 3))
        for i in range(8):
            for j in range(8):
                near = y[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].reshape(-1, 3)
                out[i, j] = np.maximum(0, np.maximum(near.min(0) - x[i, j], x[i, j] - near.max(0)))
        return out

    excess = np.maximum(leaves(a, b), leaves(b, a))
    wanted = excess.max(), excess.mean(), np.corrcoef(a[..., 0].ravel(), b[..., 0].ravel())[0, 1]
    for x, y in ((a, b), (b, a)):
        assert np.allclose([float(v[0]) for v in differences(x, y[None])], wanted)
    assert differences(a, a[None])[0][0] == 0


def test_small_pictures_are_compared_on_fewer_cells():
    assert [grid_for(n) for n in (20, 31, 32, 47, 48, 4000)] == [8, 8, 16, 16, 32, 32]
    cells = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    exact = cells.reshape(2, 8, 4, 8, 4, 3).mean((2, 4))
    assert np.array_equal(coarser(cells, 8), np.floor(exact + 0.5)) and np.array_equal(coarser(cells, 32), cells)
    star = np.zeros((24, 24, 3), np.uint8)
    star[4:20, 11:14] = star[11:14, 4:20] = 255
    assert alike(sketch(star), hashing.sketches(COPIES["0.7 of the size, JPEG at 60"](star))[1][0])


def test_equal_pixels_have_one_digest_whatever_the_file_and_damage_is_a_reject():
    pixels = PHOTOS[0]
    digests = {hashing.sketches(f(pixels))[0] for f in (images.encode_png, COPIES["other format, same pixels"])}
    assert len(digests) == 1 and digests != {hashing.sketches(images.encode_jpeg(pixels))[0]}
    assert hashing.sketches(images.encode_png(pixels[:1]))[0] != hashing.sketches(images.encode_png(pixels[:1].reshape(-1, 1, 3)))[0]
    with pytest.raises(Reject):
        hashing.sketches(b"no image")
