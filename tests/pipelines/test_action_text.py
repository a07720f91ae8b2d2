"""Words and numbers in one line, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.action_text import ActionText, keys_text, plain, pressed
from pipelines.format.errors import Reject

KEYS = ("key.keyboard.w", "key.keyboard.a", "key.keyboard.space", "key.keyboard.left.shift", "D", "e", "F5", " ", "+", ",", "1", "ü")
names = st.sampled_from(KEYS)


def test_keys_come_in_a_fixed_order_whatever_order_they_were_logged_in():
    assert keys_text(["key.keyboard.space", "key.keyboard.w"]) == keys_text(["W", " ", "w"]) == "w+space"
    assert keys_text(["e", "d", "key.keyboard.left.shift", "a"]) == "a+d+shift+e"
    assert keys_text([]) == "none" and keys_text([1, 0]) == "0+1" and keys_text([""]) == "none"


@given(st.lists(names))
def test_a_set_of_keys_is_recovered_from_its_words(keys):
    text = keys_text(keys)
    again = pressed(text)
    assert keys_text(again) == text and len(set(again)) == len(again) and not any(c in k for k in again for c in "+, ")
    assert len(again) == len({keys_text([k]) for k in keys})


@given(st.lists(names), st.sampled_from(["W", "A", "turn left", "go to the house please"]), st.floats(-1e3, 1e3), st.floats(-99, 99))
def test_words_and_numbers_of_one_line_are_recovered(keys, said, dx, dy):
    words = ActionText("action: keys={keys}, dx={dx:.1f}, dy={dy}, said={said}", ("keys", "said"))
    values = {"keys": keys_text(keys), "said": said, "dx": dx, "dy": dy}
    back = words.parse(words.write(values))
    assert back is not None and (back["keys"], back["said"]) == (values["keys"], said)
    assert abs(back["dx"] - dx) <= 0.05 + 1e-9 and abs(back["dy"] - dy) <= 0.0005 + 1e-9


@given(st.text(), st.text())
def test_any_text_is_recovered_or_refused(a, b):
    words = ActionText("action: {a}, then {b}", ("a", "b"))
    values = {"a": plain(a), "b": plain(b)}
    try:
        text = words.write(values)
    except Reject as e:
        assert e.reason == "ambiguous_action" and ", then " in values["a"] + values["b"]
    else:
        assert words.parse(text) == values


def test_a_wasd_string_is_the_whole_action():
    words = ActionText("action: {key}", ("key",))
    assert words.write({"key": "W"}) == "action: W" and words.parse("action: W") == {"key": "W"}


def test_a_slot_named_twice_must_say_the_same_twice():
    words = ActionText("{a} and {a}")
    assert words.parse(words.write({"a": 1.0})) == {"a": 1.0} and words.parse("+1.000 and +2.000") is None


def test_text_that_looks_like_the_template_is_refused_when_written():
    words = ActionText("action: said={said}, dx={dx}, more={more}", ("said", "more"))
    with pytest.raises(Reject, match="cannot be told"):
        words.write({"said": "x, dx=+1.000, more=y", "dx": 2.0, "more": "z"})
