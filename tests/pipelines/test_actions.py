"""Actions in words and the samples of a trajectory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.action_text import ActionText
from pipelines.actions import Goals, Pose, Track, action, delta, picks, sample
from pipelines.format.record import Image

angle = st.floats(-20, 20)
metre = st.floats(-1000, 1000)


def test_the_default_form_is_the_papers_to_the_letter():
    text = ActionText().write({"dx": 1.338, "dy": -0.659, "dyaw": 0.012, "rel_t": 4 / 128})
    assert text == "action: dx=+1.338, dy=-0.659, dyaw=+0.012, rel_t=+0.031"


def test_other_templates_and_digits():
    words = ActionText("action: steer={steer}, throttle={throttle:.2f} (gear {gear:.0f})")
    text = words.write({"steer": 0.12, "throttle": 0.3, "gear": 2})
    assert text == "action: steer=+0.120, throttle=+0.30 (gear +2)"
    assert words.parse(text) == {"steer": 0.12, "throttle": 0.3, "gear": 2.0}


@given(st.tuples(*[st.floats(-1e4, 1e4)] * 4))
def test_parsing_is_the_inverse_of_writing_up_to_rounding(values):
    words = ActionText()
    named = dict(zip(words.slots, values, strict=True))
    text = words.write(named)
    back = words.parse(text)
    assert back is not None and all(abs(back[k] - named[k]) <= 0.0005 + 1e-9 for k in named)
    assert words.write(back) == text and "-0.000" not in text


@pytest.mark.parametrize("text", ["", "action: dx=1.338, dy=-0.659, dyaw=+0.012, rel_t=+0.031", "action: dx=+nan, dy=+0.000, dyaw=+0.0, rel_t=+0"])
def test_a_text_of_another_form_is_not_parsed(text):
    assert ActionText().parse(text) is None


def test_a_step_ahead_is_dx_and_a_step_left_is_dy_whatever_the_heading():
    for yaw in np.linspace(-4, 4, 17):
        ahead = (3 + math.cos(yaw), 2 + math.sin(yaw), yaw)
        left = (3 - math.sin(yaw), 2 + math.cos(yaw), yaw + 0.5)
        assert delta((3, 2, yaw), ahead) == pytest.approx((1, 0, 0), abs=1e-12)
        assert delta((3, 2, yaw), left, spacing=0.25) == pytest.approx((0, 4, 0.5), abs=1e-12)


@given(metre, metre, angle, metre, metre, angle)
def test_walking_the_delta_leads_to_the_goal_and_the_turn_is_the_short_one(x, y, a, u, v, b):
    dx, dy, turn = delta((x, y, a), (u, v, b))
    assert x + dx * math.cos(a) - dy * math.sin(a) == pytest.approx(u, abs=1e-6)
    assert y + dx * math.sin(a) + dy * math.cos(a) == pytest.approx(v, abs=1e-6)
    assert -math.pi < turn <= math.pi and math.cos(a + turn) == pytest.approx(math.cos(b), abs=1e-9)


def test_a_quaternion_gives_the_yaw_it_was_made_of():
    yaw = np.linspace(-3, 3, 13)
    columns = {"x": yaw * 0, "y": yaw, "w": np.cos(yaw / 2), "i": yaw * 0, "j": yaw * 0, "k": np.sin(yaw / 2)}
    poses = Pose(x="x", y="y", quaternion=("w", "i", "j", "k")).read(columns.__getitem__)
    assert poses == pytest.approx(np.stack([yaw * 0, yaw, yaw], axis=1))
    with pytest.raises(ValidationError, match="either yaw or quaternion"):
        Pose(x="x", y="y")


def track(n: int = 40, sound: np.ndarray | None = None, values: dict | None = None, poses: bool = True) -> Track:
    at = np.stack([np.arange(n) * 0.25, np.zeros(n), np.zeros(n)], axis=1)
    sound = np.ones(n, bool) if sound is None else sound
    return Track("walk.jsonl", "g", list(range(100, 100 + n)), np.arange(n) / 4, sound, at if poses else None, values or {}, {"task": "walk"})


def test_goals_stay_in_reach_and_use_all_of_it():
    goals = Goals(max=5, backward=True, each=8)
    seen = {(p.at, p.offset) for p in picks(track(), goals, "s")}
    assert all(1 <= abs(o) <= 5 and 0 <= at + o < 40 and at >= 3 for at, o in seen)
    assert {o for _, o in seen} == {-5, -4, -3, -2, -1, 1, 2, 3, 4, 5}
    assert all(o > 0 for p in picks(track(), Goals(max=5), "s") for o in [p.offset])


def test_a_goal_depends_on_its_own_observation_only():
    goals = Goals(max=5, each=2)
    whole = {(p.at, p.k): p.offset for p in picks(track(40), goals, "s")}
    strided = {(p.at, p.k): p.offset for p in picks(track(40), Goals(max=5, each=2, stride=3), "s")}
    assert strided.items() <= whole.items() and len(strided) < len(whole)
    assert whole != {(p.at, p.k): p.offset for p in picks(track(40), Goals(max=5, each=2, seed=1), "s")}


def test_samples_over_numbers_that_are_not_all_there_are_not_made():
    sound = np.ones(40, bool)
    sound[20] = False
    by_pose = list(picks(track(sound=sound), Goals(max=4, each=4), "s"))
    assert all(20 not in (p.at, p.at + p.offset) for p in by_pose) and any(p.at < 20 < p.at + p.offset for p in by_pose)
    by_action = list(picks(track(sound=sound, values={"a": np.zeros(40)}, poses=False), Goals(max=4, each=4), "s"))
    assert not any(p.at <= 20 < p.at + p.offset for p in by_action)


@pytest.mark.parametrize(("combine", "wanted"), [("first", 3.0), ("last", 6.0), ("mean", 4.5), ("sum", 18.0)])
def test_actions_on_the_way_become_one(combine, wanted):
    found = action(track(values={"a": np.arange(40.0)}, poses=False), Goals(combine=combine), 3, 4, 1.0)
    assert found == {"rel_t": 4 / 128, "a": wanted}


def test_a_sample_is_context_action_goal_in_one_atom_with_shared_payloads():
    goals = Goals(max=1)
    t = track(8)
    frames = {i: Image(bytes([i]), shape=(8, 8, 3), time_s=i / 4) for i in range(8)}
    found = [sample(t, p, frames, goals, ActionText(), "s", spacing=0.25) for p in picks(t, goals, "s")]
    assert [r.origin for r in found] == [f"walk.jsonl#{row}~0" for row in range(103, 107)]
    first = found[0]
    assert [(s.kind, s.role, s.atom) for s in first.segments] == [("image", "context", 0)] * 4 + [("text", "context", 0), ("image", "target", 0)]
    assert first.segments[4].text == "action: dx=+1.000, dy=+0.000, dyaw=+0.000, rel_t=+0.008"
    assert first.segments[1].payload is found[1].segments[0].payload
    assert first.fields == {
        "task": "walk",
        "offset": 1,
        "action": {"dx": 1.0, "dy": 0.0, "dyaw": 0.0, "rel_t": 0.007812},
        "poses": [[0.75, 0.0, 0.0], [1.0, 0.0, 0.0]],
    }
