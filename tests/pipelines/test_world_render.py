"""Pictures: what the symbols say can be read back from the pixels, at rest, moving and from a walker's eyes."""

import math

import numpy as np
import pytest

from pipelines.world import motion, oracle, render
from pipelines.world.scene import COLOURS, KINDS, SIZES, Scene, Shape, make_scene


def one(shape, grid=2, number=0):
    return Scene(0, number, grid, (shape,))


@pytest.mark.parametrize(("size", "grid"), [(32, 2), (48, 3), (64, 2), (24, 2)])
def test_every_shape_can_be_read_from_the_pixels_alone(size, grid):
    for number in range(150):
        scene = make_scene(3, number, grid)
        assert oracle.see(render.picture(scene, size), grid) == sorted(scene.shapes, key=lambda s: s.cell)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_shape_of_every_look_is_read_in_every_cell(size, kind):
    for colour in COLOURS:
        for cell in range(4):
            scene = one(Shape(size, colour, kind, cell), number=cell)
            assert oracle.see(render.picture(scene)) == list(scene.shapes)


def test_no_background_looks_like_a_shape():
    for number in range(300):
        assert oracle.see(render.picture(Scene(0, number, 2, ()))) == []


def test_nothing_is_seen_in_noise():
    pixels = np.random.Generator(np.random.Philox(key=1)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert oracle.see(pixels) == []


def test_pictures_are_bytes_of_the_asked_size_and_repeat_exactly():
    scene = make_scene(0, 5)
    for size in (16, 32, 56):
        pixels = render.picture(scene, size)
        assert pixels.dtype == np.uint8 and pixels.shape == (size, size, 3)
        assert np.array_equal(pixels, render.picture(scene, size))


def test_scenes_of_one_symbolic_content_have_different_pixels():
    shape = Shape("large", "red", "circle", 0)
    assert len({render.picture(one(shape, number=n)).tobytes() for n in range(50)}) == 50


def test_large_shapes_cover_a_good_part_of_their_cell():
    y, x = np.mgrid[0:16, 0:16].astype(np.float32) - 7.5
    for kind in KINDS:
        share = {s: float(render.coverage(kind, x, y, render.RADIUS[s] * 16).mean()) for s in SIZES}
        assert share["large"] > 0.25 and share["large"] / share["small"] == pytest.approx((0.425 / 0.275) ** 2, rel=0.05)


def test_a_clip_begins_with_the_picture_itself():
    for number in range(20):
        scene = make_scene(0, number)
        clip = render.frames(scene, motion.slide_centres(scene, motion.slides(scene), 4, 32))
        assert np.array_equal(clip[0], render.picture(scene))
        assert len({f.tobytes() for f in clip}) == 4


def test_a_clip_ends_with_each_shape_in_its_last_cell():
    for number in range(60):
        scene = make_scene(0, number)
        moves = motion.slides(scene)
        last = render.frames(scene, motion.slide_centres(scene, moves, 3, 32))[-1]
        moved = [Shape(s.size, s.colour, s.kind, to) for s, (_, to) in zip(scene.shapes, moves, strict=True)]
        assert oracle.see(last) == sorted(moved, key=lambda s: s.cell)


def test_a_walker_sees_a_shape_where_its_relative_position_says():
    seen = 0
    for number in range(60):
        scene = make_scene(1, number)
        poses = motion.walk(scene, 6)
        views = render.view(scene, poses)
        for shape in scene.shapes:
            row, column = scene.place(shape.cell)
            centre = np.array([(column + 0.5) * render.CELL, (scene.grid - row - 0.5) * render.CELL, 0.0])
            for pose, pixels in zip(poses, views, strict=True):
                forward, left, _ = motion.relative(pose, centre)
                i, j = (render.VIEW - render.BEHIND - forward) * 4, (render.VIEW / 2 - left) * 4
                if 0 <= i < 32 and 0 <= j < 32:
                    seen += 1
                    distance = pixels[int(i), int(j)].astype(float) - render.RGB[shape.colour]
                    assert np.linalg.norm(distance) < oracle.NEAR, (number, shape)
    assert seen > 200


def test_a_view_turns_with_the_walker():
    scene = make_scene(0, 2)
    ahead = np.array([[4.0, 4.0, 0.3], [4.0, 4.0, 0.3 + 2 * math.pi], [4.0, 4.0, 0.3 + math.pi / 2]])
    same, again, turned = render.view(scene, ahead).astype(int)
    assert np.abs(same - again).mean() < 2 * render.NOISE + 1
    assert np.abs(same - turned).mean() > np.abs(same - again).mean() + 2


def test_the_ground_outside_the_floor_is_dark_but_not_flat():
    scene = Scene(0, 1, 2, ())
    outside = render.view(scene, np.array([[-20.0, -20.0, 0.0]]))[0].astype(float)
    inside = render.view(scene, np.array([[3.0, 4.0, 0.0]]))[0].astype(float)
    assert outside.mean() < 0.6 * inside.mean()
    assert outside.std() > 2 * render.NOISE / math.sqrt(12)


def test_masks_are_shares():
    y, x = np.mgrid[-20:20:0.7, -20:20:0.7].astype(np.float32)
    for kind in KINDS:
        mask = render.coverage(kind, x, y, 6.8)
        assert mask.min() == 0 and mask.max() == 1
