"""The world source: five kinds of records from one world, the same scene in each, split by cast."""

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

import pipelines
from pipelines.format.chance import held_out
from pipelines.format.document import load
from pipelines.format.record import atoms
from pipelines.media.images import decode
from pipelines.recipe import Recipe
from pipelines.sources.world import World
from pipelines.world import motion, oracle

KINDS = ("text", "image-text", "video", "action-video", "vqa")
RECIPES = Path(pipelines.__file__).parent / "recipes"


def read(kind, source="world", **more):
    world = World(kind=kind, **{"scenes": 12, **more})
    return [r for part in world.parts() for r in world.read(part.spec, source)]


def of_kind(record, kind):
    return [s for s in record.segments if s.kind == kind]


def test_parts_are_runs_of_256_scenes():
    parts = World(kind="text", scenes=600, first_scene=100).parts()
    assert [p.spec for p in parts] == [{"first": 100, "stop": 356}, {"first": 356, "stop": 612}, {"first": 612, "stop": 700}]
    assert World(kind="text", scenes=0).parts() == []


@pytest.mark.parametrize("kind", KINDS)
def test_reading_twice_gives_equal_records_with_ids_of_their_own(kind):
    records = read(kind)
    assert records == read(kind)
    assert len({r.id for r in records}) == len(records)
    assert {r.data for r in records} == {kind} == {World(kind=kind).data}
    assert all(json.loads(json.dumps(r.fields)) == r.fields for r in records)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_is_the_same_wherever_its_part_begins(kind):
    alone = read(kind, scenes=1, first_scene=7)
    assert alone == [r for r in read(kind) if r.fields["scene"] == 7]


def test_equal_scene_numbers_carry_one_group_and_one_picture_in_all_kinds():
    by_kind = {kind: {r.fields["scene"]: r for r in read(kind)} for kind in KINDS}
    for number in range(12):
        records = {kind: by_kind[kind][number] for kind in KINDS}
        assert len({r.group for r in records.values()}) == 1
        assert len({of_kind(records[k], "image")[0].payload for k in ("image-text", "video", "vqa")}) == 1


def test_a_split_by_group_leaves_no_held_out_cast_in_training_in_any_kind():
    seen = {True: set(), False: set()}
    for start, kind in enumerate(("text", "image-text", "vqa")):
        for r in read(kind, scenes=400, first_scene=1000 * start):
            cast = frozenset(tuple(shape[:3]) for shape in r.fields["shapes"])
            seen[bool(held_out(r.group, 0.1, 0))].add(cast)
    assert len(seen[True]) > 50 and not seen[True] & seen[False]


def test_every_frame_of_a_clip_shows_the_cast_of_its_group():
    for r in read("video", frames=2):
        for image in of_kind(r, "image"):
            assert "world:" + "+".join(sorted(s.look for s in oracle.see(decode(image.payload)))) == r.group


def test_text_is_one_segment_that_may_be_cut_and_about_half_is_followed_by_questions():
    records = read("text", scenes=400)
    assert all(len(r.segments) == 1 and atoms(r.segments).flags == [1] for r in records)
    assert all(r.fields["asked"] == ("Question:" in r.segments[0].text) for r in records)
    assert 160 < sum(r.fields["asked"] for r in records) < 240
    assert not any(r.fields["asked"] for r in read("text", asked=0.0)) and all(r.fields["asked"] for r in read("text", asked=1.0))


def test_a_pair_is_an_image_and_two_named_captions_each_an_atom():
    for r in read("image-text"):
        assert [(s.kind, s.role, s.atom, s.member) for s in r.segments] == [
            ("image", "target", 0, None),
            ("text", "target", 1, "original"),
            ("text", "target", 2, "recaption"),
        ]


def test_a_clip_is_frames_a_second_apart_each_an_atom():
    for r in read("video", frames=3):
        assert [(s.kind, s.role, s.atom, s.time_s) for s in r.segments] == [("image", "target", i, float(i)) for i in range(3)]
        assert all(decode(s.payload).shape == s.shape == (32, 32, 3) for s in r.segments)


def test_a_vqa_record_is_one_atom_of_an_image_and_numbered_turns():
    for r in read("vqa", questions=4):
        image, *turns = r.segments
        assert (image.kind, image.role, image.turn) == ("image", "context", -1) and {s.atom for s in r.segments} == {0}
        asked = r.fields["questions"]
        assert len(turns) == 2 * len(asked)
        for i, q in enumerate(asked):
            question, answer = turns[2 * i : 2 * i + 2]
            assert (question.role, question.turn, answer.role, answer.turn, q["turn"]) == ("context", i, "target", i, i)
            assert question.text == f"Question: {q['question']} Answer:" and [answer.text.strip()] == q["answers"]


def test_only_the_named_types_are_asked():
    types = {q["type"] for r in read("vqa", types=("count", "where")) for q in r.fields["questions"]}
    assert types == {"count", "where"}
    with pytest.raises(ValidationError, match="twice"):
        World(kind="vqa", types=("count", "count"))


def test_an_action_sample_is_four_frames_an_action_and_a_goal_in_one_atom():
    for r in read("action-video", scenes=2):
        assert [(s.kind, s.role) for s in r.segments] == [("image", "context")] * 4 + [("text", "context"), ("image", "target")]
        assert {s.atom for s in r.segments} == {0}
        times = [s.time_s for s in of_kind(r, "image")]
        assert times == [r.fields["frame"] - 3 + i for i in range(4)] + [r.fields["goal"]]
        assert r.fields["goal"] != r.fields["frame"] and abs(r.fields["goal"] - r.fields["frame"]) <= 8


def test_the_action_leads_from_the_current_pose_to_the_goal():
    for r in read("action-video", scenes=4):
        *_, here, goal = np.array(r.fields["poses"])
        text = motion.action_text(*motion.relative(here, goal), r.fields["goal"] - r.fields["frame"])
        values = [[float(v) for v in re.findall(r"[+-]\d+\.\d{3}", t)] for t in (text, of_kind(r, "text")[0].text)]
        assert values[0] == pytest.approx(values[1], abs=1.1e-3)


def test_the_samples_of_a_walk_share_its_frames():
    records = read("action-video", scenes=1, steps=14, goals=3)
    assert len(records) == 11 * 3
    frames = {(s.time_s, s.payload) for r in records for s in of_kind(r, "image")}
    assert len(frames) == 14


def test_goals_are_drawn_by_record_id():
    goals = {source: [r.fields["goal"] for r in read("action-video", source, scenes=3)] for source in ("one", "two", "three")}
    assert all(a != b for a, b in combinations(goals.values(), 2))


def test_pixels_and_grid_are_as_asked():
    for r in read("vqa", image_size=48, grid=3):
        assert decode(r.segments[0].payload).shape == (48, 48, 3)
        assert len(oracle.see(decode(r.segments[0].payload), 3)) == len(r.fields["shapes"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_packaged_recipe_of_every_kind_loads_and_its_scenes_are_its_own(kind):
    name = "world_" + kind.replace("-", "_")
    source = load(Recipe, name, packaged=[RECIPES]).source
    assert source.data == kind and source.parts()
    mine = range(source.first_scene, source.first_scene + source.scenes)
    for other in {*KINDS} - {kind}:
        theirs = load(Recipe, "world_" + other.replace("-", "_"), packaged=[RECIPES]).source
        assert max(mine[0], theirs.first_scene) > min(mine[-1], theirs.first_scene + theirs.scenes - 1)
