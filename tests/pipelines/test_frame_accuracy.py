"""What each decoder declares, proved: no wrong frame in any combination of codec, rate, groups, container and rotation that it says it gets right,
and no frame at all from the others."""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines.clips import ClipSource
from pipelines.format.errors import InputError, Reject
from pipelines.media import child, frames, pyav_frames
from pipelines.media.backends import BACKENDS, installed, refusal
from pipelines.media.child import close_children
from pipelines.media.video import By, Frames, frames_every, frames_numbered, frames_shown_at, frames_uniform, sniff, stills
from tests.peak import most_held
from tests.pipelines.accuracy import CODECS, Case, cases, made, repeated, table, times, truth
from tests.pipelines.clips import clip, number


@pytest.fixture(scope="module", autouse=True)
def _no_child_left():
    yield
    close_children()


def _usable(name: str) -> By:
    """The decoder, or a skip where it is not installed or does not load."""
    by = By(name, trusted=True)
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    try:
        frames_numbered(clip(3), [0], by=by)
    except InputError as e:
        pytest.skip(f"{name} does not load here: {e.found}")
    return by


def _facts(case: Case) -> dict[str, object]:
    """What is true of the file by the way it was made."""
    box = "mov" if case.container == "mp4" else "matroska"
    opened = {"hevc": True, "mpeg4": True, "h264": False}.get(case.codec, False) != (case.shift == "other")
    none = dict.fromkeys(("wide_pixels", "damaged", "several"), False)
    turned, hidden = bool(case.rotation), case.shift == "hidden"
    return {"container": box, "codec": case.codec, "turned": turned, "uneven": case.uneven, "leading": opened, "hidden": hidden, **none}


def _wrong(case: Case, by: By) -> str | None:
    """What is not as it should be at one frame a second, or at seven arbitrary times."""
    data, turn = made(case), -(case.rotation // 90)
    for at, got in (
        (None, frames_every(data, 1.0, by=by)),
        (times(case), frames_shown_at(data, times(case), by=by)),
    ):
        shown = [number(np.rot90(pixels, turn)) for _, pixels in got.frames]
        wanted = at if at is not None else range(-int(-got.info.duration_s // 1))
        if got.stopped or shown != [truth(case, t) for t in wanted]:
            return f"{case}: {shown} instead of {[truth(case, t) for t in wanted]}; {got.stopped}"
    return None


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", BACKENDS)
def test_no_wrong_frame_in_anything_declared_and_none_from_the_rest(name, codec):
    by, count = _usable(name), Counter[str]()
    wrong = []
    for case in (c for c in cases() if c.codec == codec):
        try:
            bad = _wrong(case, by)
            count["exact"] += not bad
            wrong += [bad] if bad else []
            undeclared = refusal(name, _facts(case))
        except Reject as e:
            count["refused"] += 1
            undeclared = None if refusal(name, _facts(case)) and e.reason == "not_allowed" else f"refused: {e}"
        wrong += [f"{case}: {undeclared}"] if undeclared else []
    print(f"{name} {codec}: {dict(count)}")
    assert not wrong, "\n".join(wrong)
    if name == "pyav":
        assert count["refused"] == 0


def test_the_table_in_the_documentation_is_what_is_declared(repo: Path):
    assert table() in (repo / "docs" / "video.md").read_text(encoding="utf-8")


# ---- what is decoded -------------------------------------------------------------------------------------------------------------------------


class _Counting:
    """A codec context that counts what passes through it."""

    packets = 0

    def __init__(self, context):
        object.__setattr__(self, "context", context)

    def __getattr__(self, name):
        return getattr(self.context, name)

    def __setattr__(self, name, value):
        setattr(self.context, name, value)

    def decode(self, packet):
        _Counting.packets += packet is not None
        return self.context.decode(packet)


@pytest.mark.parametrize("uneven", [False, True])
def test_only_groups_that_hold_wanted_frames_are_decoded(monkeypatch, uneven):
    feed = pyav_frames._feed
    monkeypatch.setattr(pyav_frames, "_feed", lambda context, *rest: feed(_Counting(context), *rest))
    data = made(Case("vp9", uneven, 12, "mp4"))
    limits = {"container": sniff(data), "max_pixels": 1 << 20, "max_seconds": 100, "max_frames_in_file": 1000}
    for wanted, most in (([0], 1), ([11], 12), ([24, 120, 328], 1 + 1 + 5), (range(0, 330, 12), 28), (range(330), 330)):
        _Counting.packets = 0
        got = list(frames.sample({**limits, "numbers": list(wanted)}, io.BytesIO(data)))[1:]
        assert [number(pixels) for _, pixels in got] == list(wanted)
        assert len(got) <= _Counting.packets <= most, wanted


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_film():
    """Forty times the film, 13,200 frames: the child's peak stays, but for the table of packets (about 150 bytes a frame while it is made)."""
    close_children()
    data, peaks = made(Case("h264", False, 12, "mp4")), []
    for often in (1, 40):
        film = repeated(data, often, 11)
        shown = [s.k for s in stills(film, fps=1.0)]
        assert shown == list(range(11 * often))
        peaks.append(most_held(child._idle[0].pid))
    assert peaks[0] < 400 << 20 and peaks[1] - peaks[0] < (16 << 20)


# ---- which frames ----------------------------------------------------------------------------------------------------------------------------


def _numbers(got: Frames) -> list[int]:
    assert got.stopped is None
    return [number(pixels) for _, pixels in got.frames]


def test_uniform_frames_are_the_middles_of_equal_stretches():
    data = clip(300)  # ten seconds
    assert _numbers(frames_uniform(data, 5)) == [30, 90, 150, 210, 270]
    assert _numbers(frames_uniform(data, 1)) == [150]
    assert _numbers(frames_uniform(data, 4, start=2, stop=4)) == [67, 82, 97, 112]
    assert _numbers(frames_uniform(data, 2, start=8, stop=1e6)) == [255, 285]
    assert _numbers(frames_uniform(clip(2), 4)) == [0, 0, 1, 1]
    assert _numbers(frames_uniform(data, 3, start=10)) == []


def test_uniform_frames_of_an_uneven_rate_are_even_in_time():
    case = Case("h264", True, 250, "mp4")
    got = frames_uniform(made(case), 9)
    assert _numbers(got) == [truth(case, (2 * k + 1) / 18 * got.info.duration_s) for k in range(9)]


def test_what_is_on_screen_is_the_last_frame_shown_and_nothing_outside_the_video():
    data = clip(30)
    assert _numbers(frames_shown_at(data, [0.5, 0.0329, 0.034, 0.999, 1.0, -0.1, 0.5])) == [0, 1, 15, 15, 29]
    assert [(s.k, round(s.time_s, 3)) for s in stills(data, shown=[0.5, 9.0, 0.0])] == [(2, 0.0), (0, 0.5)]
    assert [s.k for s in stills(data, uniform=3)] == [0, 1, 2]


# ---- who decodes -----------------------------------------------------------------------------------------------------------------------------


def test_decoders_that_cannot_be_confined_open_trusted_files_only():
    for name in ("decord", "torchcodec"):
        with pytest.raises(InputError, match="trusted"):
            frames_every(clip(3), by=By(name))
        with pytest.raises(ValueError, match="trusted: true"):
            ClipSource(backend=name)
        assert ClipSource(backend=name, trusted=True).backend == name
    assert BACKENDS["pyav"].trust is False and len(frames_every(clip(3)).frames) == 1


def test_text_and_playlists_reach_no_decoder_however_trusted():
    by = _usable("decord")
    for text in (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile x.mp4\n"):
        with pytest.raises(Reject) as e:
            frames_every(text, by=by)
        assert e.value.reason == "not_allowed"


def test_a_damaged_file_is_refused_by_decoders_that_would_paint_over_the_damage():
    data = clip(300, container="matroska")
    with pytest.raises(Reject, match="damaged"):
        frames_every(data[: len(data) // 2], by=_usable("decord"))


STAND_IN = '''
import av, torch_less
from types import SimpleNamespace

class VideoDecoder:
    def __init__(self, source, *, stream_index, dimension_order, num_ffmpeg_threads, seek_mode):
        assert (dimension_order, num_ffmpeg_threads, seek_mode) == ("NHWC", 1, "exact")
        with av.open(source) as box:
            self.frames = [(f.to_ndarray(format="rgb24"), f.time) for f in box.decode(box.streams[stream_index])]
        self.frames = self.frames[torch_less.MISSING:]

    def __len__(self):
        return len(self.frames)

    def get_frames_at(self, indices):
        import numpy as np
        data = np.stack([self.frames[i][0] for i in indices])
        times = np.array([self.frames[i][1] + torch_less.LATE for i in indices])
        return SimpleNamespace(data=SimpleNamespace(numpy=lambda: data), pts_seconds=times)
'''


def _stand_in(tmp_path: Path, monkeypatch, missing: int = 0, late: float = 0.0) -> By:
    close_children()
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text("ffmpeg_major_version = 8\n")
    (tmp_path / "torchcodec" / "decoders.py").write_text(STAND_IN)
    (tmp_path / "torch_less.py").write_text(f"MISSING, LATE = {missing}, {late}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "torchcodec", raising=False)
    return By("torchcodec", trusted=True)


def test_torchcodec_is_asked_for_frame_numbers_in_its_exact_mode(tmp_path, monkeypatch):
    """By a stand-in with the same signatures: the real one is tested above wherever it loads."""
    by = _stand_in(tmp_path, monkeypatch)
    assert _numbers(frames_every(clip(90), by=by)) == [0, 30, 60]
    with pytest.raises(Reject, match="mjpeg in mov"):
        frames_every(clip(5, codec="mjpeg", container="mov"), by=by)
    close_children()


@pytest.mark.parametrize(("missing", "late", "says"), [(1, 0.0, "counts 29 frames of 30"), (0, 0.01, "lies elsewhere")])
def test_a_decoder_that_counts_or_times_frames_otherwise_is_refused(tmp_path, monkeypatch, missing, late, says):
    got = frames_every(clip(30), by=_stand_in(tmp_path, monkeypatch, missing, late))
    assert got.frames == [] and got.stopped is not None and says in got.stopped.detail
    close_children()


def test_a_decoder_that_does_not_load_stops_the_job_and_not_one_record(tmp_path, monkeypatch):
    by = _stand_in(tmp_path, monkeypatch)
    (tmp_path / "torchcodec" / "decoders.py").write_text("raise RuntimeError('no FFmpeg found')")
    with pytest.raises(InputError, match="no FFmpeg found"):
        frames_every(clip(3), by=by)
    close_children()
