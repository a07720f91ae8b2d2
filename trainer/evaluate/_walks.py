"""Held-out trajectories of a plan: starts for roll-outs and plans, with what in truth comes after them.

In: the held-out records of an action-video source. A record is a few context frames, an action and a frame; records of one trajectory name its frames
by their times, and say poses of them, so together they hold the trajectory as it was, latents and poses. Out: starts, each an observation and the
next frames one by one, in an order that depends on the records alone, one start a trajectory before a second of any.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.format import chance
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.record import Record, Segment
from trainer.evaluate._moves import Wording, between
from trainer.evaluate._questions import held_out_records
from trainer.evaluate._tokenizers import tokenizer_of

TRAJECTORY = re.compile(r"(.*)[#@][^#@]*")  # of an origin, before the part that names the observation
APART = 10  # milliseconds by which a frame may be off its time
MOST = 256  # records that say how far a unit is


@dataclass
class _Track:
    """One trajectory: frames and poses by time in milliseconds, and its observations."""

    frames: dict[int, tuple[Dataset, int, Segment]] = field(default_factory=dict)
    poses: dict[int, np.ndarray] = field(default_factory=dict)
    seen: dict[int, tuple[Dataset, int, Record]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Start:
    """An observation and what followed. context: latents [n, C] of its frames, the last is now; poses [1 + K, 3], from now on; frames: the K that
    followed; moves [K, 3] between them in the units of the text, of which one is `spacing` units of the poses."""

    item: str
    record: Record
    context: tuple[np.ndarray, ...]
    poses: np.ndarray
    frames: tuple[np.ndarray, ...]
    moves: np.ndarray
    wording: Wording
    spacing: float


def told_of(plan: Any, source: str) -> bool:
    """Whether a plan holds anything of a source out: arms of one ablation need not all have it."""
    return source in plan.sources and len(plan.held_out(source)) > 0


def starts(plan: Any, source: str, count: int, horizon: int) -> list[Start]:
    """Up to `count` held-out starts with `horizon` frames after them. InputError where there is none."""
    tracks = _tracks(plan, source)
    tokenizer, longest = tokenizer_of(plan, source), 0
    ranked = []
    for name, track in tracks.items():
        able = []
        for now, (_, _, record) in track.seen.items():
            times = _after(track, now, record, horizon)
            longest = max(longest, len(times))
            if len(times) == horizon:
                able.append((int(chance.draw(chance.group_hash(name), 0, "rollout", now)), now, times))
        ranked += [(level, int(chance.draw(chance.group_hash(name), 0, "rollout")), name, now, t) for level, (_, now, t) in enumerate(sorted(able))]
    if not ranked:
        raise InputError("no held-out observation has so many known frames after it", where=source, found=f"{horizon} wanted, {longest} the most",
                         next="a shorter horizon, or a larger held_out.fraction")  # fmt: skip
    chosen = sorted(ranked)[:count]
    scale = _scale([tracks[name] for name in dict.fromkeys(name for _, _, name, _, _ in chosen)], tokenizer)
    return [_start(tracks[name], now, times, tokenizer, scale) for _, _, name, now, times in chosen]


def _tracks(plan: Any, source: str) -> dict[str, _Track]:
    tracks: dict[str, _Track] = defaultdict(_Track)
    for dataset, shard, record in held_out_records(plan, source):
        images = [s for s in record.segments if s.kind == "latents"]
        if record.data != "action-video" or len(images) < 2 or any(s.time_s is None for s in images):
            raise InputError("roll-outs need records of frames at known times, an action and a frame", where=f"{source}: {record.id}",
                             found=record.data, allowed="an action-video source")  # fmt: skip
        match = TRAJECTORY.fullmatch(record.origin)
        track = tracks[f"{record.source}\x1f{match[1] if match else record.origin}"]
        times = [_ms(s) for s in images]
        for at, segment in zip(times, images, strict=True):
            track.frames.setdefault(at, (dataset, shard, segment))
        poses = record.fields.get("poses") or []
        named = times if len(poses) == len(times) else [times[-2], times[-1]] if len(poses) == 2 else []
        track.poses.update(zip(named, (np.array(p, np.float64) for p in poses), strict=False))
        before = track.seen.get(times[-2])
        if before is None or record.id < before[2].id:
            track.seen[times[-2]] = (dataset, shard, record)
    return tracks


def _after(track: _Track, now: int, record: Record, horizon: int) -> list[int]:
    """Times of the frames that follow, as far as frames and poses are known, at the pace of the record's own context."""
    context = [_ms(s) for s in record.segments if s.kind == "latents"][:-1]
    pace = context[-1] - context[-2] if len(context) > 1 else 0
    if pace <= 0 or now not in track.poses:
        return []
    times: list[int] = []
    while len(times) < horizon:
        wanted = now + pace * (len(times) + 1)
        near = [t for t in range(wanted - APART, wanted + APART + 1) if t in track.frames and t in track.poses]
        if not near:
            break
        times.append(min(near, key=lambda t: (abs(t - wanted), t)))
    return times


def _start(track: _Track, now: int, times: Sequence[int], tokenizer: Any, scale: tuple[float, float]) -> Start:
    spacing, horizon = scale
    dataset, shard, record = track.seen[now]
    read = lambda of: np.asarray(of[0].array(of[1], of[2]), np.float32)
    poses = np.stack([track.poses[t] for t in (now, *times)])
    moves = between(poses[:-1], poses[1:]) / np.array([spacing, spacing, 1.0])
    context = tuple(read((dataset, shard, s)) for s in record.segments[:-1] if s.kind == "latents")
    wording = Wording(_text(track.seen[now], tokenizer), tokenizer, horizon)
    return Start(record.id, record, context, poses, tuple(read(track.frames[t]) for t in times), moves, wording, spacing)


def _text(seen: tuple[Dataset, int, Record], tokenizer: Any) -> str:
    dataset, shard, record = seen
    ids = [int(i) for s in record.segments if s.kind == "tokens" for i in dataset.array(shard, s)]
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def _scale(tracks: Sequence[_Track], tokenizer: Any) -> tuple[float, float]:
    """(how many units of the poses are one of the text's, frames at which rel_t is 1): what records' own actions tell of their own poses. Neither
    stands in an index. Over MOST records, since one action may be no move at all; numbers with six digits (`fields.action`) before the text's
    three."""
    went = said = frames = rel_t = 0.0
    found = [seen for track in tracks for _, seen in sorted(track.seen.items())][:MOST]
    poses = {id(seen): track.poses for track in tracks for seen in track.seen.values()}
    for seen in found:
        record = seen[2]
        exact = {k: v for k, v in (record.fields.get("action") or {}).items() if isinstance(v, float)}
        told = exact or Wording(_text(seen, tokenizer), tokenizer).numbers()
        now, goal = (_ms(s) for s in [s for s in record.segments if s.kind == "latents"][-2:])
        if not {"dx", "dy"} <= set(told) or not {now, goal} <= set(poses[id(seen)]):
            continue
        move = between(poses[id(seen)][now], poses[id(seen)][goal])
        went, said = went + float(np.hypot(move[0], move[1])), said + float(np.hypot(told["dx"], told["dy"]))
        if exact.get("rel_t") and isinstance(record.fields.get("offset"), int):
            frames, rel_t = frames + abs(record.fields["offset"]), rel_t + abs(exact["rel_t"])
    spacing = went / said if said > 0 else 1.0
    return 1.0 if abs(spacing - 1) < 0.01 else spacing, float(round(frames / rel_t)) if rel_t else 128.0


def _ms(segment: Segment) -> int:
    return round(1000 * float(segment.time_s or 0))
