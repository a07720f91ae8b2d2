"""What a decoder that was taken over can say to its parent: nothing that is not expected is believed, and it costs its record."""

from __future__ import annotations

import json
import os
import signal
import time
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.commands import doctor
from pipelines.format.errors import InputError, Reject
from pipelines.media import child, clip_frames, still, video
from pipelines.media.child import Answer, Child, ChildDied, ask, close_children, guarded
from pipelines.media.wire import believed, head_of, ratio
from tests.pipelines.clips import clip

OPS = "tests.crash_ops"
JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3), max_leaves=9)  # fmt: skip # noqa: E501
RULE = {"first": "0", "stop": None, "length": "1", "fps": "1"}
BUSY = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)  # the machine may be busy
META = st.dictionaries(
    st.sampled_from(["k", "time_s", "shape", "clip", "i", "of", "start", "stop", "step", "small", "whole", "frames", "phash"]), JSON
)


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


@BUSY
@given(
    st.binary(max_size=64)
    | st.dictionaries(st.sampled_from(["kind", "blob", "meta", "reason", "detail", "walls"]), JSON).map(lambda d: json.dumps(d).encode())
)
def test_a_header_is_of_the_known_form_or_a_value_error(raw):
    try:
        head, length = head_of(raw)
    except ValueError:
        return
    assert isinstance(length, int) and head["kind"] in ("ready", "answer", "reject", "broken", "end")


@BUSY
@given(META, st.binary(max_size=99))
def test_whatever_is_said_of_frames_gives_frames_or_a_reason(meta, blob):
    data = b"\0\0\0\x18ftypisom" + bytes(400)
    info = dict.fromkeys(("container", "codec"), "x") | dict.fromkeys(("width", "height", "frames", "duration_s", "fps", "start_s"), 1)
    with pytest.MonkeyPatch.context() as patch:
        for said in ([Answer(info, bytearray()), Answer(meta, bytearray(blob))], [Answer(meta, bytearray(blob))], []):
            for module in (video, clip_frames):
                patch.setattr(module, "guarded", lambda *_, said=said, **__: iter(said))
            for module in (video, still):
                patch.setattr(module, "ask", lambda *_, **__: Answer(meta, bytearray(blob)))
            for read in (
                lambda: video.frames_at(data, [0.0]),
                lambda: list(video.stills(data, fps=1.0)),
                lambda: video.probe(data),
                lambda: list(clip_frames.clips(data, RULE, None, clip_frames.Pictures(8, "center_crop", 90), video.Limits())),
                lambda: still.verify(b"RIFF"),
                lambda: still.resized(b"RIFF", 8, "center_crop", 90, True, 99),
            ):
                try:
                    read()
                except Reject as e:
                    assert e.reason and e.detail


def test_more_frames_than_were_asked_for_are_not_taken(monkeypatch):
    info = dict.fromkeys(("container", "codec"), "x") | dict.fromkeys(("width", "height", "frames", "duration_s", "fps", "start_s"), 1)
    frame = Answer({"k": 0, "time_s": 0.0, "shape": [1, 1, 3]}, bytearray(3))

    def endless(*_: object, **__: object):
        yield Answer(info, bytearray())
        while True:
            yield frame

    monkeypatch.setattr(video, "guarded", endless)
    got = video.frames_at(b"\0\0\0\x18ftypisom" + bytes(400), [0.0, 1.0])
    assert len(got.frames) == 2 and got.stopped is not None and got.stopped.reason == "unreadable"


def test_a_function_with_one_answer_is_not_listened_to_for_ever():
    with pytest.raises(Reject, match="one"):
        ask(f"{OPS}:endless", {})
    assert ask(f"{OPS}:echo", {}, b"next").blob == b"next"


def test_saying_that_no_decoder_loads_does_not_stop_the_job_unless_it_is_true():
    with pytest.raises(Reject) as e:
        list(guarded(f"{OPS}:nonsense", {"what": "cannot load"}, wall_s=20))
    assert e.value.reason == "unreadable"
    with pytest.raises(InputError, match="cannot load"):
        list(guarded("tests.no_such_module:sample", {}))


def test_words_after_the_end_do_not_answer_the_next_record():
    with pytest.raises(Reject):
        list(guarded(f"{OPS}:nonsense", {"what": "more than the end"}, wall_s=20))
    assert ask(f"{OPS}:echo", {}, b"mine").blob == b"mine"


def test_a_child_that_was_stopped_takes_nothing_in_and_costs_its_deadline_not_minutes():
    c = Child()
    os.kill(c.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(ChildDied) as e:
        list(c.call(f"{OPS}:echo", {}, bytes(child.INLINE), wall_s=0.5))
    assert e.value.reason == "timeout" and time.monotonic() - started < 2.5 and not c.alive


@pytest.mark.parametrize("text", ["1e999999999", "1/0", "", None, 3, "nan", "9" * 99, "1/2/3"])
def test_fractions_are_plain_and_short(text):
    with pytest.raises(Reject), believed():
        ratio(text)
    assert ratio("-30/7") == Fraction(-30, 7)


def test_the_doctor_tells_of_missing_walls(monkeypatch):
    states = {row["what"]: row for row in doctor._decoding()}
    assert states["ffmpeg in PyAV"]["found"][0].isdigit()
    real = Child.__init__

    def wall_less(self: Child, *args: object) -> None:
        real(self)
        self.walls = ("seccomp",)

    monkeypatch.setattr(Child, "__init__", wall_less)
    row = doctor._decoding()[0]
    assert row["state"] == "note" and "no landlock" in row["note"]


def test_a_good_film_is_still_good():
    assert len(video.frames_every(clip(30), 10).frames) == 10
