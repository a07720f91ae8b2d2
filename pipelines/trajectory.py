"""A trajectory: frames and what was done beside them, checked, and cut into the samples of `actions.py`. Shared by the sources of action video.

    table ──Log──▶ checked rows ──stretch──▶ runs without a gap ──draw goals──▶ frames that are needed ──source──▶ encoded once each ──▶ samples

What is wrong is counted by what it is, one reject per row or break: missing_frame (a row whose image is not there), misaligned (no frame within the
tolerance), bad_action (a NaN, no number, no word), bad_time, duplicate_time, gap, clock_back, idle, too_short (a stretch that holds no sample), and
what the decoder says of a frame. A bad row keeps its place in time: only samples that would show it are not made. `shifted` and `drift` are said of
a whole trajectory and cost all of it. What was found goes into the fields of every sample too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from pipelines.action_log import Idle, Log
from pipelines.action_text import ActionText
from pipelines.actions import Goals, Pose, Track, picks, sample
from pipelines.clocks import idle_rows, stretch, usual_step
from pipelines.columns import Columns, numbers
from pipelines.format.document import Size
from pipelines.format.errors import Reject
from pipelines.format.record import Record, Segment
from pipelines.media.resizing import Mode
from pipelines.media.video import Limits
from pipelines.motion_lag import find_lag, motion
from pipelines.stage import Rejected, Source

_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
THUMB = 32  # pixels a side of the frames that motion is looked for in
JUDGED = 512  # frames of a trajectory that are looked at for motion
Load = Callable[[Sequence[int]], Iterator[tuple[int, Segment | Reject]]]
Thumbs = Callable[[Sequence[int]], Iterator[tuple[int, np.ndarray]]]


@dataclass(frozen=True)
class Trajectory:
    """One log with its frames. `origin` is the table's relative path; `missing` row → (reason, detail) of rows without a frame; `load` encodes
    the frames of rows, `thumbs` makes small grey ones; `found` is what the source already knows of its alignment; `problems` of rows that do not
    appear in the log any more."""

    origin: str
    group: str
    log: Log
    missing: Mapping[int, tuple[str, str]]
    load: Load
    thumbs: Thumbs
    episodes: Sequence[Any] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)
    problems: Sequence[tuple[int, str, str]] = ()


class ActionSource(Source):
    """The keys that all sources of action video share. Any of `pose`, `actions` (name in the template → column of numbers) and `words` (→ column of
    text or of pressed keys); `template` defaults to the paper's form for poses, and to `action: name={name}, …` otherwise. Times are a column in
    `time_unit`, or rows at `fps`. Stretches in which nothing happens for longer than `max_idle` seconds are left out. `check_shift` compares
    the actions with the motion that the frames show, and warns of (in fields) or rejects a log that lies frames off."""

    data: ClassVar[str] = "action-video"
    version: ClassVar[int] = 2
    path: str
    pose: Pose | None = None
    actions: dict[str, str] = Field(default_factory=dict)
    words: dict[str, str] = Field(default_factory=dict)
    template: str | None = None
    time: str | None = None
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    fps: float | None = Field(default=None, gt=0)
    max_gap: float | None = Field(default=None, gt=0)
    max_idle: float | None = Field(default=None, gt=0)
    idle: Idle = "zero"
    check_shift: Literal["no", "warn", "reject"] = "no"
    goals: Goals = Goals()
    size: int | None = Field(default=224, ge=8, le=8192)
    mode: Mode = "center_crop"
    quality: int = Field(default=92, ge=1, le=100)
    max_pixels: Size = Limits().max_pixels
    licence: str | None = None

    @model_validator(mode="after")
    def _sound(self) -> ActionSource:
        pose = ("dx", "dy", "dyaw") if self.pose else ()
        if self.goals.backward and self.pose is None:
            raise ValueError("goals.backward needs a pose: recorded actions do not say how to go back")
        names = ["rel_t", *pose, *self.actions, *self.words]
        twice = [name for name, n in Counter(names).items() if n > 1]
        if twice:
            raise ValueError(f"{', '.join(twice)} would mean two things: a pose gives dx, dy, dyaw, and every sample has rel_t")
        slots = ActionText(self.template).slots if self.template else {}
        loose = [s for s in slots if s not in names and not any(s.startswith(a) and s[len(a) :].isdigit() for a in self.actions)]
        if loose:
            raise ValueError(f"template names {', '.join(loose)}; known: {', '.join(sorted(names))}")
        return self

    @property
    def _spacing(self) -> float:
        return self.pose.spacing if self.pose else 1.0

    def _log(self, table: Columns, times: np.ndarray | None = None) -> Log:
        if times is None:
            times = self._seconds(table, self.time) if self.time is not None else np.arange(table.rows) / (self.fps or 1.0)
        return Log.read(table, times, self.actions, self.words, self.pose)

    def _text(self, log: Log) -> ActionText:
        if self.template is None and self.pose:
            return ActionText()
        named = ", ".join(f"{name}={{{name}}}" for name in (*log.words, *log.values))
        return ActionText(self.template or "action: " + named, frozenset(log.words))

    def _seconds(self, table: Columns, column: str) -> np.ndarray:
        return numbers(table, column) * _UNITS[self.time_unit]

    def samples(self, t: Trajectory, source: str) -> Iterator[Record | Rejected]:
        """All of a trajectory: what is wrong with its rows first, then its samples in order."""
        log, text = t.log, self._text(t.log)
        idle = idle_rows(log.still(self.idle, self._spacing), log.times, t.episodes, self.max_idle) if self.max_idle else None
        runs, problems = stretch(log.times, t.episodes, self.max_gap, idle)
        wrong = sorted([*t.problems, *problems, *self._row_problems(t, idle)])
        found = {**self._report(log, wrong, idle), **t.found}
        if self.check_shift != "no" and runs:
            lag = self._lag(t, max(runs, key=len))
            if lag is not None and lag["frames"]:
                found["shift"] = lag
                if self.check_shift == "reject":
                    yield Rejected(t.origin, "shifted", f"actions agree with the frames {lag['frames']:+d} rows off: {lag}")
                    return
        yield from (Rejected(f"{t.origin}#{row}", reason, detail) for row, reason, detail in wrong)
        first, sound = log.times[runs[0][0]] if runs else 0.0, log.sound()
        for rows in runs:
            if len(rows) <= self.goals.context:
                yield Rejected(f"{t.origin}#{rows[0]}", "too_short", f"{len(rows)} frames, a sample takes {self.goals.context + 1}")
                continue
            yield from self._track(self._cut(t, rows, first, sound, found), t, text, source)

    def _row_problems(self, t: Trajectory, idle: np.ndarray | None) -> Iterator[tuple[int, str, str]]:
        sound = t.log.sound()
        for row in range(len(t.log)):
            if idle is not None and idle[row]:
                yield row, "idle", f"nothing happens for more than {self.max_idle} s"
            elif row in t.missing:
                yield row, *t.missing[row]
            elif not sound[row]:
                yield row, "bad_action", "no finite number, or no word, in a column that is used"

    def _report(self, log: Log, wrong: Sequence[tuple[int, str, str]], idle: np.ndarray | None) -> dict[str, Any]:
        """What is worth knowing of the whole trajectory, small enough to stand in each of its samples."""
        return {"rows": len(log), "step_s": round(usual_step(log.times), 6), **Counter(reason for _, reason, _ in wrong)}

    def _lag(self, t: Trajectory, rows: Sequence[int]) -> dict[str, Any] | None:
        """The lag that motion in the frames speaks for, if any does clearly; looked for in the middle of the longest stretch."""
        start = max(0, len(rows) - JUDGED) // 2
        seen = [row for row in rows[start : start + JUDGED] if row not in t.missing]
        effort = t.log.effort(self._spacing)
        if effort is None or not seen:
            return None
        try:
            small = dict(t.thumbs(seen))
        except Reject:
            return None  # what is wrong with the frames is said when they are loaded
        kept = [row for row in seen if row in small]
        if len(kept) < 2:
            return None
        lag = find_lag(motion(np.stack([small[row] for row in kept])), effort[kept])
        return None if lag is None else {"frames": lag.best if lag.sure else 0, "agreement": lag.at_best, "unshifted": lag.at_zero}

    def _cut(self, t: Trajectory, rows: list[int], first: float, sound: np.ndarray, found: Mapping[str, Any]) -> Track:
        at, log = np.array(rows), t.log
        group = t.group if t.episodes is None else f"{t.group}/{t.episodes[rows[0]]}"
        values = {name: column[at] for name, column in log.values.items()}
        words = {name: [said[i] for i in rows] for name, said in log.words.items()}
        noted = {name: [column[i] for i in rows] for name, column in log.noted.items()}
        poses = None if log.poses is None else log.poses[at]
        fields = {**t.fields, "trajectory": dict(found)}
        return Track(t.origin, group, rows, log.times[at] - first, sound[at], poses, values, fields, words, noted)

    def _track(self, track: Track, t: Trajectory, text: ActionText, source: str) -> Iterator[Record | Rejected]:
        chosen = [p for p in picks(track, self.goals, source) if not any(track.rows[i] in t.missing for i in p.frames)]
        needed = sorted({i for p in chosen for i in p.frames})
        number = {track.rows[i]: i for i in needed}
        frames: dict[int, Segment] = {}
        for row, found in t.load([track.rows[i] for i in needed]):
            if isinstance(found, Reject):
                yield Rejected(f"{t.origin}#{row}", found.reason, found.detail)
            else:
                i = number[row]
                frames[i] = found if found.time_s is not None else replace(found, time_s=round(float(track.times[i]), 6))
        for pick in chosen:
            if all(i in frames for i in pick.frames):
                try:
                    yield sample(track, pick, frames, self.goals, text, source, self._spacing, self.licence)
                except Reject as e:
                    yield Rejected(f"{t.origin}#{track.rows[pick.at]}~{pick.k}", e.reason, e.detail)
