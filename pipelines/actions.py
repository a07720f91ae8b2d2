"""Actions in words, and the samples a trajectory gives: what every source of video with actions shares.

    poses of two frames ──delta──▶ dx, dy, dyaw in the frame of the first ──ActionText──▶ "action: dx=+1.338, dy=-0.659, dyaw=+0.012, rel_t=+0.031"
    rows between them  ──combine──▶ steer, throttle, keys, … ────────────────▶ "action: keys=w+space, steer=+0.120, throttle=+0.300"

A sample is `context` frames, the action as plain text, and the frame it leads to. The goal of a sample is some frames ahead or behind, drawn from
the hash of the observation's id, so it depends on no order and no worker. All samples of a trajectory point at the same encoded frames.

Deltas, offsets and their range follow Navigation World Models (Bar et al., 2024, arXiv 2412.03572): positions in the current pose's frame
divided by the dataset's waypoint spacing, yaw in radians, goals within 64 frames either way, rel_t = offset / 128.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from pipelines.action_text import ActionText
from pipelines.format.chance import draw, hash64, record_id
from pipelines.format.document import Document
from pipelines.format.record import Record, Segment, Text
from pipelines.resample import Combine, combined

# Metres between two frames by dataset, the waypoint spacing that Navigation World Models divides positions by.
SPACING = {"recon": 0.25, "scand": 0.38, "tartan": 0.72, "go_stanford": 0.12, "sacson": 0.255, "huron": 0.255}


def delta(a: Sequence[float], b: Sequence[float], spacing: float = 1.0) -> tuple[float, float, float]:
    """Pose b seen from pose a: (dx forward, dy left) in units of `spacing`, dyaw in (-π, π]. A pose is x, y, yaw (radians, counterclockwise)."""
    x, y, cos, sin = b[0] - a[0], b[1] - a[1], np.cos(a[2]), np.sin(a[2])
    turn = float(np.pi - (np.pi - (b[2] - a[2])) % (2 * np.pi))
    return float(x * cos + y * sin) / spacing, float(y * cos - x * sin) / spacing, turn


class Pose(Document):
    """The columns that say where the camera is: x and y in metres (or whatever `spacing` is in), yaw in radians, or quaternion columns w, x, y, z.
    `spacing` is the usual distance between two frames, a number or the name of a dataset whose number is known (`SPACING`)."""

    x: str
    y: str
    yaw: str | None = None
    quaternion: tuple[str, str, str, str] | None = None
    spacing: float = Field(default=1.0, gt=0)

    @field_validator("spacing", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return metres(value)

    @model_validator(mode="after")
    def _one(self) -> Pose:
        if (self.yaw is None) == (self.quaternion is None):
            raise ValueError("a pose needs either yaw or quaternion")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.x, self.y, *((self.yaw,) if self.yaw else self.quaternion or ()))

    def read(self, column: Callable[[str], np.ndarray]) -> np.ndarray:
        """[n, 3] float64: x, y, yaw."""
        yaw = column(self.yaw) if self.yaw is not None else heading(self.rotation(column))
        return np.stack([column(self.x), column(self.y), yaw], axis=1)

    def rotation(self, column: Callable[[str], np.ndarray]) -> np.ndarray:
        """[n, 4] float64: w, x, y, z."""
        return np.stack([column(name) for name in self.quaternion or ()], axis=1)


def heading(q: np.ndarray) -> np.ndarray:
    """The yaw of quaternions [n, 4] as w, x, y, z."""
    w, x, y, z = q.T
    return np.asarray(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def metres(spacing: Any) -> Any:
    """A spacing by the name of its dataset; anything but a known name is left to the field's own check."""
    if isinstance(spacing, str) and spacing not in SPACING:
        raise ValueError(f"no spacing is known for {spacing!r}; give metres, or one of {', '.join(SPACING)}")
    return SPACING.get(spacing, spacing) if isinstance(spacing, str) else spacing


class Goals(Document):
    """Which frame a sample leads to: `min` … `max` frames away, with `backward` also behind (`min: 0` lets an observation be its own goal, as
    Navigation World Models does); `each` goals per observation, an observation every `stride` frames. `combine` makes one action of the rows from
    observation to goal: the first, the last before the goal, mean, or sum; `said` one word: the first, the last, or what held the longest."""

    context: int = Field(default=4, ge=1, le=64)
    min: int = Field(default=1, ge=0)
    max: int = Field(default=64, ge=1)
    backward: bool = False
    each: int = Field(default=1, ge=1, le=256)
    stride: int = Field(default=1, ge=1)
    horizon: int = Field(default=128, ge=1)
    combine: Combine = "mean"
    said: Literal["first", "last", "most"] = "most"
    seed: int = 0

    @field_validator("max")
    @classmethod
    def _order(cls, value: int, info: Any) -> int:
        if value < info.data.get("min", 1):
            raise ValueError("max is below min")
        return value

    def offset(self, h: int, k: int, at: int, length: int) -> int | None:
        """The k-th goal of the observation at frame `at` of `length`: uniform over what exists. None when nothing is in reach."""
        ahead = max(0, min(self.max, length - 1 - at) - self.min + 1)
        nearest = max(self.min, 1)  # zero frames away is counted once, ahead
        behind = max(0, min(self.max, at) - nearest + 1) if self.backward else 0
        if ahead + behind == 0:
            return None
        place = draw(h, self.seed, "goal", k) % (ahead + behind)
        return self.min + place if place < ahead else -(nearest + place - ahead)


@dataclass(frozen=True)
class Track:
    """An unbroken stretch of a trajectory. `rows` are the numbers of its frames in the table (what origins name), `sound` says whose numbers are
    all there, `poses` are [n, 3] or None, `values` the columns of actions by their name in the template, each [n], `words` those in words."""

    origin: str
    group: str
    rows: Sequence[int]
    times: np.ndarray
    sound: np.ndarray
    poses: np.ndarray | None
    values: Mapping[str, np.ndarray]
    fields: Mapping[str, Any]
    words: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    noted: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # columns that go into a record's fields as they are at its observation


@dataclass(frozen=True, slots=True)
class Pick:
    """One sample to be: the observation at frame `at`, its k-th goal, and the frames it shows (context, then goal)."""

    at: int
    k: int
    offset: int
    frames: tuple[int, ...]


def picks(track: Track, goals: Goals, source: str) -> Iterator[Pick]:
    """The samples of a stretch in the order of their observations, without those whose numbers are not all there."""
    for at in range(goals.context - 1, len(track.rows), goals.stride):
        h = hash64(record_id(source, f"{track.origin}#{track.rows[at]}"))
        for k in range(goals.each):
            offset = goals.offset(h, k, at, len(track.rows))
            if offset is None:
                continue
            ends = track.poses is None or (track.sound[at] and track.sound[at + offset])  # a goal without a pose is just a picture
            between = track.sound[at : at + offset].all() if track.values or track.words else True
            if ends and between:
                yield Pick(at, k, offset, (*range(at - goals.context + 1, at + 1), at + offset))


def sample(
    track: Track,
    pick: Pick,
    frames: Mapping[int, Segment],
    goals: Goals,
    words: ActionText,
    source: str,
    spacing: float = 1.0,
    licence: str | None = None,
) -> Record:
    """Context frames, the action in words, the goal. The segments of all samples share the frames' payloads."""
    values = action(track, goals, pick.at, pick.offset, spacing)
    *before, goal = (frames[i] for i in pick.frames)
    segments = [replace(s, role="context", atom=0) for s in before]
    segments += [Text(words.write(values), "context", 0), replace(goal, role="target", atom=0)]
    noted = {name: column[pick.at] for name, column in track.noted.items()}
    fields = {**track.fields, **noted, "offset": pick.offset, "action": {name: _kept(values[name]) for name in words.slots}}
    if track.poses is not None:
        fields["poses"] = [[round(float(v), 6) + 0.0 for v in track.poses[i]] for i in (pick.at, pick.at + pick.offset)]
    origin = f"{track.origin}#{track.rows[pick.at]}~{pick.k}"
    return Record.make(source, origin, "action-video", segments, track.group, licence=licence, fields=fields)


def _kept(value: float | str) -> float | str:
    return value if isinstance(value, str) else round(value, 6) + 0.0


def action(track: Track, goals: Goals, at: int, offset: int, spacing: float) -> dict[str, float | str]:
    """Everything a template may name for the move from frame `at` to `at + offset`. What happened on the way is the rows from the observation to the
    one before the goal; on the way back it is the observation's own row, since recorded actions do not say how to go back."""
    out: dict[str, float | str] = {"rel_t": offset / goals.horizon}
    if track.poses is not None:
        out["dx"], out["dy"], out["dyaw"] = delta(track.poses[at], track.poses[at + offset], spacing)
    stop = at + max(offset, 1)
    for name, column in track.values.items():
        out[name] = combined(column[at:stop], goals.combine)
    for name, said in track.words.items():
        heard = [str(w) for w in said[at:stop]]
        out[name] = {"first": heard[0], "last": heard[-1], "most": Counter(heard).most_common(1)[0][0]}[goals.said]  # ties: the earliest
    return out
