"""A trajectory: frames and the numbers beside them, checked, and cut into the samples of `actions.py`. Shared by the sources of action video.

    table ──check rows──▶ stretches without a gap ──draw goals──▶ frames that are needed ──source──▶ encoded once each ──▶ samples

What is wrong is counted by what it is, one reject per row or gap:  missing_frame (a row whose image is not there), bad_action (a NaN or no number),
bad_time, duplicate_time, gap (time jumps by more than `max_gap`, or backwards), too_short (a stretch that holds no sample), and what the
decoder says of a frame. A bad row keeps its place in time: only samples that would show it are not made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from pipelines.action_text import ActionText
from pipelines.actions import Goals, Pose, Track, picks, sample
from pipelines.columns import Columns, numbers, widths
from pipelines.format.document import Size
from pipelines.format.errors import Reject
from pipelines.format.record import Record, Segment
from pipelines.media.resizing import Mode
from pipelines.media.video import Limits
from pipelines.stage import Rejected, Source

_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
Load = Callable[[Sequence[int]], Iterator[tuple[int, Segment | Reject]]]


@dataclass(frozen=True)
class Trajectory:
    """One table with its frames. `origin` is the table's relative path; `missing` the rows without a frame; `load` encodes the frames of rows."""

    origin: str
    group: str
    table: Columns
    missing: Mapping[int, str]
    load: Load
    episodes: Sequence[Any] | None = None
    times: np.ndarray | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


class ActionSource(Source):
    """The keys that both sources of action video share. Either `pose` or `actions` (name in the template → column) or both; `template` defaults
    to the paper's form for poses, and to `action: name={name}, …` for actions. Times are a column in `time_unit`, or rows at `fps`."""

    data: ClassVar[str] = "action-video"
    path: str
    pose: Pose | None = None
    actions: dict[str, str] = Field(default_factory=dict)
    template: str | None = None
    time: str | None = None
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    fps: float | None = Field(default=None, gt=0)
    max_gap: float | None = Field(default=None, gt=0)
    goals: Goals = Goals()
    size: int | None = Field(default=224, ge=8, le=8192)
    mode: Mode = "center_crop"
    quality: int = Field(default=92, ge=1, le=100)
    max_pixels: Size = Limits().max_pixels
    licence: str | None = None

    @model_validator(mode="after")
    def _sound(self) -> ActionSource:
        if self.goals.backward and self.pose is None:
            raise ValueError("goals.backward needs a pose: recorded actions do not say how to go back")
        known = {"rel_t", *(("dx", "dy", "dyaw") if self.pose else ()), *self.actions}
        slots = ActionText(self.template).slots if self.template else {}
        loose = [s for s in slots if s not in known and not any(s.startswith(a) and s[len(a) :].isdigit() for a in self.actions)]
        if loose:
            raise ValueError(f"template names {', '.join(loose)}; known: {', '.join(sorted(known))}")
        return self

    def _values(self, table: Columns) -> dict[str, np.ndarray]:
        """Actions by name; a column of lists becomes name0, name1, …"""
        out: dict[str, np.ndarray] = {}
        for name, column in self.actions.items():
            wide = widths(table, column)
            out |= {f"{name}{i}": numbers(table, f"{column}[{i}]") for i in range(wide)} if wide else {name: numbers(table, column)}
        return out

    def _words(self, values: Mapping[str, Any]) -> ActionText:
        if self.template is not None:
            return ActionText(self.template)
        return ActionText() if self.pose else ActionText("action: " + ", ".join(f"{name}={{{name}}}" for name in values))

    def _times(self, t: Trajectory) -> np.ndarray:
        if t.times is not None:
            return t.times
        if self.time is not None:
            return self._seconds(t.table, self.time)
        return np.arange(t.table.rows) / (self.fps or 1.0)

    def _seconds(self, table: Columns, column: str) -> np.ndarray:
        return numbers(table, column) * _UNITS[self.time_unit]

    def samples(self, t: Trajectory, source: str) -> Iterator[Record | Rejected]:
        """All of a trajectory: what is wrong with its rows first, then its samples in order."""
        values = self._values(t.table)
        poses = self.pose.read(lambda name: numbers(t.table, name)) if self.pose else None
        words = self._words(values)
        times = self._times(t)
        numeric = [*values.values(), *([poses[:, i] for i in range(3)] if poses is not None else [])]
        sound = np.isfinite(np.stack(numeric)).all(axis=0) if numeric else np.ones(t.table.rows, bool)
        for row in range(t.table.rows):
            if row in t.missing:
                yield Rejected(f"{t.origin}#{row}", "missing_frame", t.missing[row])
            elif not sound[row]:
                yield Rejected(f"{t.origin}#{row}", "bad_action", "no finite number in a column that is used")
        stretches, problems = stretch(times, t.episodes, self.max_gap)
        yield from (Rejected(f"{t.origin}#{row}", reason, detail) for row, reason, detail in problems)
        first = times[stretches[0][0]] if stretches else 0.0
        for rows in stretches:
            if len(rows) <= self.goals.context:
                yield Rejected(f"{t.origin}#{rows[0]}", "too_short", f"{len(rows)} frames, a sample takes {self.goals.context + 1}")
                continue
            at = np.array(rows)
            group = t.group if t.episodes is None else f"{t.group}/{t.episodes[rows[0]]}"
            picked = {name: column[at] for name, column in values.items()}
            track = Track(t.origin, group, rows, times[at] - first, sound[at], None if poses is None else poses[at], picked, t.fields)
            yield from self._track(track, t, words, source)

    def _track(self, track: Track, t: Trajectory, words: ActionText, source: str) -> Iterator[Record | Rejected]:
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
        spacing = self.pose.spacing if self.pose else 1.0
        for pick in chosen:
            if all(i in frames for i in pick.frames):
                yield sample(track, pick, frames, self.goals, words, source, spacing, self.licence)


Problem = tuple[int, str, str]


def stretch(times: np.ndarray, episodes: Sequence[Any] | None, max_gap: float | None) -> tuple[list[list[int]], list[Problem]]:
    """Rows in unbroken stretches, and what broke them. `max_gap` seconds; by default eight times the median step, wide enough for a camera that
    drops a few frames and far below a pause. A change of episode breaks a stretch and is no problem."""
    steps = np.diff(times[np.isfinite(times)])
    usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1.0
    most = max_gap if max_gap is not None else 8 * usual
    out: list[list[int]] = []
    problems: list[Problem] = []
    for row, time in enumerate(times):
        if not np.isfinite(time):
            problems.append((row, "bad_time", "no finite number"))
            continue
        last = out[-1][-1] if out else None
        if last is None or (episodes is not None and episodes[row] != episodes[last]):
            out.append([row])
        elif time == times[last]:
            problems.append((row, "duplicate_time", f"the same time as row {last}"))
        elif not 0 < time - times[last] <= most:
            problems.append((row, "gap", f"{time - times[last]:+.3f} s after row {last}; the usual step is {usual:.3f} s"))
            out.append([row])
        else:
            out[-1].append(row)
    return out, problems
