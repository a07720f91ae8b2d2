"""Two clocks: what the times of a table and of its frames say about each other, and about the table itself.

    row times ──stretch──▶ unbroken stretches of rows, and what broke them: bad_time, duplicate_time, clock_back, gap, idle
    row times, frame times ──meet──▶ the frame of every row, how far off it lies, the drift between both clocks, a shift by one frame

Real logs have all of these: a recorder that pauses, a clock that is set back, frames written twice, times that start a frame late, videos joined from
pieces whose rounding adds up. Everything here is arithmetic on arrays; what is found has a name and a number and is never repaired in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

GAP_STEPS = 8  # default of `max_gap` in usual steps: a camera that drops a few frames passes, a pause does not
FEW = 8  # rows below which drift and shift are not judged
Problem = tuple[int, str, str]


def stretch(
    times: np.ndarray, episodes: Sequence[Any] | None, max_gap: float | None, idle: np.ndarray | None = None
) -> tuple[list[list[int]], list[Problem]]:
    """Rows in unbroken stretches, and what broke them. `max_gap` seconds; by default eight times the median step. Rows marked in `idle` are left
    out and break. A row whose time alone is off (the next one goes on where the last one was) is a `bad_time` and breaks nothing. A change of
    episode breaks a stretch and is no problem."""
    usual = usual_step(times)
    most = max_gap if max_gap is not None else GAP_STEPS * usual
    out: list[list[int]] = []
    problems: list[Problem] = []
    broken = True
    for row, time in enumerate(times):
        if not np.isfinite(time):
            problems.append((row, "bad_time", "no finite number"))
            continue
        if idle is not None and idle[row]:
            broken = True
            continue
        last = None if broken else out[-1][-1]
        if last is None or (episodes is not None and episodes[row] != episodes[last]):
            out.append([row])
            broken = False
            continue
        step = time - times[last]
        if step == 0:
            problems.append((row, "duplicate_time", f"the same time as row {last}"))
        elif 0 < step <= most:
            out[-1].append(row)
        elif row + 1 < len(times) and 0 < times[row + 1] - times[last] <= min(most, 3 * usual):
            problems.append((row, "bad_time", f"{step:+.3f} s after row {last}, and row {row + 1} is back in time"))
        else:
            reason = "gap" if step > 0 else "clock_back"
            problems.append((row, reason, f"{step:+.3f} s after row {last}; the usual step is {usual:.3f} s"))
            out.append([row])
    return out, problems


def usual_step(times: np.ndarray) -> float:
    """The median of the steps forward; 1 when there is none."""
    steps = np.diff(times[np.isfinite(times)])
    return float(np.median(steps[steps > 0])) if (steps > 0).any() else 1.0


def idle_rows(still: np.ndarray, times: np.ndarray, episodes: Sequence[Any] | None, max_idle: float) -> np.ndarray:
    """bool [n]: rows of the stretches in which every row is `still` for longer than `max_idle` seconds."""
    out = np.zeros(len(still), bool)
    first = None
    for row in range(len(still) + 1):
        goes_on = row < len(still) and still[row] and (episodes is None or first is None or episodes[row] == episodes[first])
        if first is not None and not goes_on:
            if times[row - 1] - times[first] > max_idle:
                out[first:row] = True
            first = None
        if first is None and row < len(still) and still[row]:
            first = row
    return out


@dataclass(frozen=True)
class Meeting:
    """`frame[i]` is the frame of row i (-1: none within tolerance), `off[i]` the row's time minus that frame's. `drift_s` is what the frames' clock
    gains on the rows' over the whole trajectory, `lag` the frames by which all rows lie off; both only where there are as many rows as frames."""

    frame: np.ndarray
    off: np.ndarray
    step: float
    tolerance: float
    drift_s: float | None
    lag: int

    def report(self) -> dict[str, Any]:
        """What a record keeps of it."""
        met = self.frame >= 0
        out: dict[str, Any] = {"rows_met": int(met.sum()), "tolerance_s": round(self.tolerance, 6)}
        if met.any():
            out |= {"offset_s": _short(np.median(self.off[met])), "worst_s": _short(np.abs(self.off[met]).max())}
        return out if self.drift_s is None else {**out, "drift_s": _short(self.drift_s)}


def meet(rows: np.ndarray, frames: np.ndarray, tolerance: float | None = None) -> Meeting:
    """Every row with the frame nearest to it in time (the earlier of two as near), if that is within `tolerance` seconds: half a frame by default.

    Drift and lag need as many rows as frames, for then row i belongs to frame i whatever the clocks say: the slope of frame times over row times
    gives the drift, and a median difference of about one frame, steady from row to row, is a log that starts one frame late or early."""
    step = usual_step(frames) if len(frames) > 1 else 1.0
    within = tolerance if tolerance is not None else 0.5 * step
    frame = np.full(len(rows), -1)
    off = np.full(len(rows), np.nan)
    known = np.isfinite(rows)
    if len(frames) and known.any():
        right = np.clip(np.searchsorted(frames, rows[known]), 1, max(1, len(frames) - 1))
        left = right - 1
        right = np.minimum(right, len(frames) - 1)
        nearest = np.where(frames[right] - rows[known] < rows[known] - frames[left], right, left)
        away = rows[known] - frames[nearest]
        off[known] = away
        frame[known] = np.where(np.abs(away) <= within + 1e-6, nearest, -1)
    drift, lag = None, 0
    if len(rows) == len(frames) >= FEW and known.all():
        apart = rows - frames
        span = rows[-1] - rows[0]
        if span > 0:
            slope = float(np.polyfit(rows - rows.mean(), frames - frames.mean(), 1)[0])
            drift = (slope - 1) * float(span)
            middle = float(np.median(apart))
            steady = float(np.median(np.abs(apart - middle))) < 0.25 * step and abs(drift) < 0.5 * step
            lag = round(middle / step) if steady and 0.75 * step <= abs(middle) <= 1.25 * step else 0
    return Meeting(frame, off, step, within, drift, lag)


def _short(value: Any) -> float:
    return round(float(value), 6) + 0.0
