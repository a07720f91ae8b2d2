"""The simulator service against the data it stands for: same poses, same bytes, and actions that undo how the data say them."""

from __future__ import annotations

from importlib.metadata import entry_points

import numpy as np
import pytest

from pipelines.media.images import encode_png
from pipelines.sources.world import World
from pipelines.world import motion
from pipelines.world.scene import make_scene
from pipelines.world.service_walker import Walker, walker


def records(grid: int = 2, scenes: int = 3):
    source = World(kind="action-video", scenes=scenes, seed=7, grid=grid, steps=8, goals=2)
    return [r for part in source.parts() for r in source.read(part.spec, "walks")]


def simulator(record) -> Walker:
    made = walker(record.origin, record.fields, 32)
    assert made is not None
    return made


@pytest.mark.parametrize("grid", [2, 3])
def test_every_record_of_the_world_finds_its_own_walk_and_frames_to_the_byte(grid):
    for record in records(grid):
        world = simulator(record)
        assert world.scene.grid == grid
        numbers = [*range(record.fields["frame"] - 3, record.fields["frame"] + 1), record.fields["goal"]]
        assert np.abs(world.walked(numbers) - np.array(record.fields["poses"])).max() <= 1e-6
        shown = [encode_png(p) for p in world.frames(numbers)]
        assert shown == [s.payload for s in record.segments if s.kind == "image"]
        assert encode_png(world.now()[0]) == shown[3]


def test_moving_by_the_action_of_the_data_leads_to_the_goal_of_the_data():
    for record in records():
        poses = np.array(record.fields["poses"])
        action = np.array([motion.relative(poses[3], poses[4])])
        reached = simulator(record).moved(poses[3:4], action)
        assert np.abs(reached[0, :2] - poses[4, :2]).max() < 1e-9
        assert abs(motion.wrap(reached[0, 2] - poses[4, 2])) < 1e-9


def test_a_frame_depends_on_its_pose_alone_and_noise_is_within_its_bounds():
    world = simulator(records()[0])
    poses = world.walked(range(6))
    assert np.array_equal(world.seen(poses)[4], world.seen(poses[4:5])[0])
    assert np.array_equal(world.seen(poses[:1]), world.frames([0]))
    clean = world.seen(poses, noise=False).astype(int)
    assert np.abs(world.seen(poses).astype(int) - clean).max() <= 7 and np.abs(world.frames(range(6)).astype(int) - clean).max() <= 7


def test_walks_keep_inside_and_go_on_beyond_what_was_recorded():
    world = simulator(records()[0])
    assert world.inside(world.walked(range(40))).all()
    assert not world.inside(np.array([[0.5, 4, 0], [4, 7.5, 0], [-3, 4, 0]])).any()
    assert np.array_equal(world.walked(range(40))[:8], world.walked(range(8)))


def test_things_stand_where_the_walker_sees_them():
    world = simulator(records()[0])
    for (name, (x, y)), shape in zip(world.places().items(), world.scene.shapes, strict=True):
        assert name == f"{shape.colour} {shape.kind}"
        shown = world.seen(np.array([[x - 2, y, 0.0]]), noise=False)[0]  # two steps ahead: 8 pixels above the walker
        from pipelines.world.render import RGB

        assert tuple(shown[15, 15]) == RGB[shape.colour]


def test_records_of_another_world_or_a_changed_one_are_not_simulated():
    record = records()[0]
    assert walker("walk_1#7~0", record.fields, 32) is None
    assert walker(record.origin.replace("seed-7", "seed-8"), record.fields, 32) is None
    assert walker(record.origin, {**record.fields, "poses": [[0, 0, 0]] * 5}, 32) is None
    assert walker(record.origin, {k: v for k, v in record.fields.items() if k != "scene"}, 32) is None


def test_a_scene_alone_in_the_same_cell_of_both_grids_is_told_apart_by_where_it_was_walked():
    twins = [n for n in range(400) if make_scene(0, n, 2).symbols() == make_scene(0, n, 3).symbols()]
    assert twins
    source = World(kind="action-video", scenes=1, first_scene=twins[0], grid=3, steps=8)
    (part,) = source.parts()
    assert {simulator(r).scene.grid for r in source.read(part.spec, "walks")} == {3}


def test_the_service_is_offered_by_its_name():
    (found,) = [e for e in entry_points(group="pipelines.services") if e.name == "walker"]
    assert found.load() is walker
