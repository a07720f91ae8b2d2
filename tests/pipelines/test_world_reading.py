"""Reading what models painted: exact on true pictures of any size, and less and less sure as they get worse, but never of what is not there."""

import numpy as np
import pytest

from pipelines.format import codec
from pipelines.media import images
from pipelines.plugins import find
from pipelines.world import language, reading, render
from pipelines.world.reading import Said
from pipelines.world.scene import Scene, Shape, make_scene, place_name

SCENES = range(80)


def seen(scene, pixels):
    return reading.read(pixels, scene.grid) == sorted(scene.shapes, key=lambda s: s.cell)


def shares(done, scenes=SCENES):
    """Share of facts of full captions that hold in pictures to which something was done."""
    held = []
    for number in scenes:
        scene, rng = make_scene(3, number), np.random.default_rng(number)
        held += reading.held(reading.said(language.recaption(scene)), reading.read(done(render.picture(scene), rng)))
    return sum(h for _, h in held) / len(held)


def noise(amount):
    return lambda x, rng: np.clip(x + amount * rng.standard_normal(x.shape), 0, 255).astype(np.uint8)


def fade(share):
    return lambda x, rng: (share * x + (1 - share) * 110).astype(np.uint8)


def blur(times):
    def done(x, rng):
        x = x.astype(np.float32)
        for axis in (0, 1) * times:
            x = (np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)) / 4
        return x.astype(np.uint8)

    return done


@pytest.mark.parametrize(("size", "grid"), [(32, 2), (32, 3), (48, 3), (64, 2), (100, 2)])
def test_every_true_picture_is_read_exactly(size, grid):
    assert all(seen(scene, render.picture(scene, size)) for scene in (make_scene(3, n, grid) for n in SCENES))


def test_nothing_is_seen_in_backgrounds_noise_or_one_colour():
    for number in SCENES:
        assert reading.read(render.picture(Scene(0, number, 2, ()))) == []
        assert reading.read(np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)) == []
    assert reading.read(np.full((32, 32, 3), (214, 44, 44), np.uint8)) == []


def test_faded_noisy_and_blurred_pictures_are_still_read_and_ruined_ones_less_and_less():
    assert shares(fade(0.7)) == shares(noise(15)) == shares(blur(1)) == 1
    for ruin, steps in ((noise, (15, 60, 150)), (blur, (1, 6, 40))):
        found = [shares(ruin(s)) for s in steps]
        assert found == sorted(found, reverse=True) and found[-1] < 0.6, found
    assert shares(fade(0.2)) == 0


def test_what_codecs_and_jpeg_lose_costs_little():
    def coded(name):
        def done(x, rng):
            flat = x.reshape(-1, 192) / np.float32(127.5) - 1
            back = codec.decode_latents(bytes(codec.encode_latents(flat, name)), name, *flat.shape)
            return np.clip(np.rint((back + 1) * 127.5), 0, 255).astype(np.uint8).reshape(x.shape)

        return done

    assert {shares(coded(name)) for name in ("bf16", "int8", "f8e4m3")} == {1}
    found = [shares(lambda x, rng, q=q: images.decode(images.encode_jpeg(x, q))) for q in (92, 60, 10)]
    assert found == sorted(found, reverse=True) and found[0] > 0.98 and found[2] < 0.8


def test_shapes_that_stand_a_little_beside_their_places_are_read():
    for number in SCENES:
        scene = make_scene(3, number)
        moved = np.roll(render.picture(scene), (1, -1), (0, 1))
        there = sorted(scene.shapes, key=lambda s: s.cell)
        assert [(s.kind, s.colour, s.cell) for s in reading.read(moved)] == [(s.kind, s.colour, s.cell) for s in there]


@pytest.mark.parametrize("phrasing", ["plain", "other", "both"])
@pytest.mark.parametrize("grid", [2, 3])
def test_captions_in_every_wording_state_what_is_true_of_their_scenes(grid, phrasing):
    for number in SCENES:
        scene = make_scene(7, number, grid)
        full = reading.said(language.recaption(scene, phrasing))
        assert {(s.kind, s.colour, s.size, s.place) for s in full} == {(s.kind, s.colour, s.size, place_name(grid, s.cell)) for s in scene.shapes}
        short = reading.said(language.original(scene, phrasing))
        assert short and {(s.kind, s.colour) for s in short} <= {(s.kind, s.colour) for s in scene.shapes}
        assert all(s.size is s.place is None for s in short)
        assert all(holds for _, holds in reading.held(full, scene.shapes, grid) + reading.held(short, scene.shapes, grid))


def test_a_caption_of_something_else_is_refused():
    for caption in ("a photo of a bench", "red circle and a dog", ""):
        with pytest.raises(ValueError):
            reading.said(caption)


def test_facts_hold_one_by_one_each_shape_explains_one_statement_and_more_shapes_cost_nothing():
    stated = [Said("circle", "red", "large", "top left"), Said("cross", "red", "large", "top right")]
    there = [Shape("large", "red", "circle", 0), Shape("small", "red", "cross", 1), Shape("small", "blue", "square", 2)]
    assert [h for _, h in reading.held(stated, there)] == [True] * 4 + [True, True, False, True]
    assert [h for _, h in reading.held(stated, there[:1])] == [True] * 4 + [False] * 4  # the circle is red too, but it is the circle
    assert not any(h for _, h in reading.held(stated, []))
    twice = [Said("circle", "red"), Said("circle", "red")]
    assert sum(h for _, h in reading.held(twice, there[:1])) == 2


def test_what_a_stranger_sees_is_an_entry_point():
    scenes = find("pipelines.services", "scene")(grid=3)
    scene = make_scene(1, 4, 3)
    facts = scenes.held(scenes.said(language.recaption(scene)), scenes.read(render.picture(scene, 48)))
    words = scenes.values(scenes.said("a large red circle at the top left and a blue square"))
    assert words == ["circle", "red", "large", "top left", "square", "blue"]
    assert len(facts) == 4 * len(scene.shapes) and all(h for _, h in facts) and {f for f, _ in facts} == set(scenes.facts)
