"""A table beside a video: which frame each row shows, or what the rows say at each frame, and whether both clocks can be believed.

What comes in: a video's open file, a table, the rows' times (or none: by number), for LeRobot v3 the episode's stretch of a joined video. What goes
out: a `Trajectory` that loads just the frames it is asked for. Raises `Reject` for a trajectory whose clocks contradict each other:

    shifted   as many rows as frames, and every row about one frame off; or an episode's start points one or more frames beside the count of frames
    drift     as many rows as frames, and at the end row i lies more than a frame away from frame i

Both are said only when `match` is left open. `match: number` says that row i is frame i, `match: time` that times are right as they stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.clocks import Meeting, meet, stretch
from pipelines.columns import Columns, numbers
from pipelines.format.errors import Reject
from pipelines.format.record import Image, Segment
from pipelines.lerobot import Episode
from pipelines.media.video import Limits, clock, stills, thumbnails
from pipelines.resample import Align, Resampling, increasing
from pipelines.trajectory import THUMB, ActionSource, Trajectory


@dataclass(frozen=True, slots=True)
class Aligning:
    """The keys of `VideoActions` that say how rows and frames meet."""

    match: str | None
    tolerance: float | None
    frames_lead: bool
    rate: float | None
    align: Align
    max_distance: float | None
    limits: Limits


class Aligned:
    """One table with one video, or with an episode's stretch of it. `numbered[i]` is the frame of row i in the whole video, -1 for none."""

    def __init__(self, how: Aligning, f: Any, table: Columns, times: np.ndarray | None, episode: Episode | None = None) -> None:
        self.how, self.file, self.table = how, f, table
        self.info, presented = clock(f, how.limits)
        first, stop = self._window(presented, episode)
        self.first, self.start_s = first, float(presented[first]) if stop > first else 0.0
        if episode is not None and episode.start_s is not None:
            self._joined_right(presented, episode)
            self.start_s = episode.start_s
        self.shown = presented[first:stop] - self.start_s
        self.times = times

    def _window(self, presented: np.ndarray, episode: Episode | None) -> tuple[int, int]:
        """Frames [first, stop) of an episode in a joined video: those from its start to before its stop, a quarter frame allowed for rounding."""
        if episode is None or episode.start_s is None or episode.stop_s is None:
            return 0, len(presented)
        slack = 0.25 / episode.fps
        first, stop = np.searchsorted(presented, [episode.start_s - slack, episode.stop_s - slack])
        return int(first), int(stop)

    def _joined_right(self, presented: np.ndarray, e: Episode) -> None:
        """The episode's start against the count of frames before it, where the file holds exactly the frames of its episodes."""
        if self.how.match is not None or e.before is None or e.frames_in_file != len(presented) or e.before >= len(presented):
            return
        off = (float(e.start_s or 0) - float(presented[e.before])) * e.fps
        if abs(off) > 0.5:
            raise Reject("shifted", f"episode {e.index} starts {off:+.2f} frames beside its {e.before}th frame in {e.video}")

    def trajectory(
        self, source: ActionSource, origin: str, group: str, fields: Mapping[str, Any], tasks: Mapping[int, str] | None = None
    ) -> Trajectory:
        """What the source makes samples of."""
        step = float(np.median(np.diff(self.shown))) if len(self.shown) > 1 else 1.0
        times = self.times if self.times is not None else np.arange(self.table.rows) * step
        log = source._log(self.table, times)
        if tasks and "task_index" in self.table.names:
            said = [tasks.get(int(i), "") if np.isfinite(i) else "" for i in numbers(self.table, "task_index")]
            log = replace(log, noted={"task": said})
        found: dict[str, Any] = {"frames": len(self.shown)}
        problems: list[tuple[int, str, str]] = []
        if self.how.frames_lead:
            at, frames = self._frame_clock()
            _, problems = stretch(times, None, source.max_gap)
            problems = [p for p in problems if p[1] in ("bad_time", "duplicate_time", "clock_back")]
            found |= {"log_rows": self.table.rows, "align": self.how.align}
            log = log.on(at, lambda rows, to: Resampling(rows, to, self.how.align, self.how.max_distance, source.goals.combine))
            missing: dict[int, tuple[str, str]] = {}
            found |= {"covered": int(log.sound().sum())} if increasing(times).any() else {}
        else:
            frames, missing, more = self._rows_meet()
            found |= more
        problems = [(row, reason, f"in the table: {detail}") for row, reason, detail in problems]
        load, thumbs = self._loader(source, frames), self._thumbs(source, frames)
        return Trajectory(origin, group, log, missing, load, thumbs, None, fields, found, problems)

    def _frame_clock(self) -> tuple[np.ndarray, np.ndarray]:
        """Times of the samples' frames, and which frames those are: all, or those nearest to every 1/rate seconds."""
        if self.how.rate is None:
            return self.shown, np.arange(len(self.shown)) + self.first
        wanted = np.arange(0, self.shown[-1] + 1e-9, 1 / self.how.rate) if len(self.shown) else self.shown
        right = np.clip(np.searchsorted(self.shown, wanted), 1, max(1, len(self.shown) - 1))
        left = right - 1
        near = np.unique(np.where(self.shown[np.minimum(right, len(self.shown) - 1)] - wanted < wanted - self.shown[left], right, left))
        return self.shown[near], near + self.first

    def _rows_meet(self) -> tuple[np.ndarray, dict[int, tuple[str, str]], dict[str, Any]]:
        """Frame of each row; rows without one, and why; what was found."""
        end = f"the video ends after {len(self.shown)} frames, {self.shown[-1] if len(self.shown) else 0:.3f} s"
        rows = self.table.rows
        if self.times is None:
            frames = np.where(np.arange(rows) < len(self.shown), np.arange(rows) + self.first, -1)
            return frames, dict.fromkeys(range(len(self.shown), rows), ("missing_frame", end)), {}
        m = meet(self.times, self.shown, self.how.tolerance)
        if self.how.match is None:
            self._believed(m)
        missing = {}
        beyond = (self.shown[-1] if len(self.shown) else 0) + m.step
        for row in np.flatnonzero(m.frame < 0).tolist():
            if np.isfinite(m.off[row]):
                late = self.times[row] >= beyond - 1e-6
                near = f"{m.off[row]:+.4f} s from the nearest frame, allowed {m.tolerance:.4f}"
                missing[row] = ("missing_frame", end) if late else ("misaligned", near)
        return np.where(m.frame >= 0, m.frame + self.first, -1), missing, m.report()

    def _believed(self, m: Meeting) -> None:
        if m.lag:
            raise Reject("shifted", f"rows and frames are as many, and rows lie {m.lag:+d} frame off; say match: number or match: time")
        if m.drift_s is not None and abs(m.drift_s) > m.step:
            raise Reject("drift", f"frames drift {m.drift_s:+.3f} s from the rows; say match: number if row i is frame i, or match: time")

    def _loader(self, source: ActionSource, frames: np.ndarray) -> Any:
        """Frames of rows as JPEGs; two rows may show one frame. A shared video is opened once a call, and only the pictures needed are decoded."""

        def load(rows: Sequence[int]) -> Iterator[tuple[int, Segment | Reject]]:
            wanted: dict[int, list[int]] = {}
            for row in rows:
                wanted.setdefault(int(frames[row]), []).append(row)
            order, found, stopped = sorted(wanted), set[int](), Reject("unreadable", "the frame did not decode")
            size, mode, quality = source.size, source.mode, source.quality
            try:
                for still in stills(self.file, numbers=order, size=size, mode=mode, quality=quality, limits=self.how.limits):
                    image = Image(still.payload, shape=still.shape, time_s=round(still.time_s - self.start_s, 6))
                    for row in wanted[order[still.k]]:
                        found.add(row)
                        yield row, image
            except Reject as e:
                stopped = e
            yield from ((row, stopped) for row in rows if row not in found)

        return load

    def _thumbs(self, source: ActionSource, frames: np.ndarray) -> Any:
        def thumbs(rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
            wanted = sorted({int(frames[row]) for row in rows})
            small = {wanted[k]: image for k, image in thumbnails(self.file, wanted, THUMB, self.how.limits)}
            yield from ((row, small[int(frames[row])]) for row in rows if int(frames[row]) in small)

        return thumbs
