"""Trajectories as video files with an aligned table of poses or actions.

    layout: beside    drives/a.mp4 with drives/a.csv (or .jsonl, .json, .parquet, .npy, .npz, .pkl)      one video, one table, one trajectory
    layout: lerobot   a LeRobot folder, v2.x or v3.0: its cards say where episodes' rows and videos lie, and how many a second (`lerobot.py`)

Rows meet frames by time: a row's frame is the one nearest to its timestamp, and must lie within `tolerance` of it (else the row is `misaligned`).
Without times, rows meet frames by number, or by `fps`. Or the frames lead (`clock: frames`): then what rows say is brought to the frames' times by
`align`. When a frame is shown is read from the video's packets; only frames that some sample shows are decoded, once each.

With `listed`, videos and the tables beside them are files of a list, on the web too: a pair is a part, and both are fetched while it is read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from pipelines import lerobot
from pipelines.columns import SUFFIXES as TABLES
from pipelines.columns import Columns, read_columns
from pipelines.format import storage
from pipelines.format.errors import InputError, Reject
from pipelines.format.record import Record
from pipelines.lerobot import INFO, Episode, EpisodeRows
from pipelines.listed import Listed, hashed
from pipelines.listing import Input, list_files, runs
from pipelines.media.video import SUFFIXES as VIDEOS
from pipelines.media.video import Limits
from pipelines.resample import Align
from pipelines.stage import Rejected, SourcePart
from pipelines.table import template
from pipelines.trajectory import ActionSource, Trajectory
from pipelines.video_alignment import Aligned, Aligning
from pipelines.video_files import digest, video_at, video_file


class VideoActions(ActionSource):
    """`layout: auto` takes lerobot where meta/info.json is. `camera` picks one of LeRobot's videos (default: the first by name), or several: each
    camera's view is a trajectory of its own. `table` says where a video's table lies when not beside it: `labels/{stem}.csv`.

    `match`: rows and frames meet by time or by number (default: by time where there is one). `tolerance` in seconds, half a frame by default.
    `time_from: first_row` for a clock that began long before the video (a time of day): the first row is then the first frame. With `clock: frames`
    samples step from frame to frame, or `rate` times a second, and actions are brought there by `align`, from rows within `max_distance` seconds."""

    listed: Listed | None = None
    layout: Literal["auto", "beside", "lerobot"] = "auto"
    table: str | None = None
    camera: str | tuple[str, ...] | None = None
    match: Literal["time", "number"] | None = None
    tolerance: float | None = Field(default=None, gt=0)
    time_from: Literal["video", "first_row"] = "video"
    clock: Literal["rows", "frames"] = "rows"
    rate: float | None = Field(default=None, gt=0)
    align: Align = "nearest"
    max_distance: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _clocked(self) -> VideoActions:
        if self.clock == "rows" and (self.rate is not None or self.max_distance is not None or self.align != "nearest"):
            raise ValueError("rate, align and max_distance bring rows to frames: they need clock: frames")
        if self.clock == "frames" and self.match == "number":
            raise ValueError("clock: frames needs times, not match: number")
        return self

    def hashed(self, fields: dict[str, Any]) -> dict[str, Any]:
        return hashed(fields, self.listed)

    def again(self, spec: dict[str, Any], origins: list[str]) -> dict[str, Any] | None:
        """Only a pair that was not had at all can be asked for again."""
        return spec if self.listed is not None and set(origins) == {spec["pair"][0][0]} else None

    def parts(self) -> list[SourcePart]:
        if self.listed is not None:
            return self._pairs(self.listed)
        listed = {f.path: f for f in list_files(self.path)}
        out = []
        if self._is_lerobot(listed):
            for run in self._episodes(listed):
                paths = sorted({p for e in run for p in (e.table, e.video) if p in listed}, key=str.encode)
                out.append(SourcePart({"episodes": [e.spec() for e in run]}, [listed[p].as_list() for p in paths]))
            return out
        pairs = dict(self._beside(listed))
        weighed = [Input(v, listed[v].bytes + (listed[t].bytes if t else 0), "") for v, t in pairs.items()]
        for group in runs(weighed):
            items = [[item.path, pairs[item.path]] for item in group]
            out.append(SourcePart({"items": items}, [listed[p].as_list() for item in items for p in item if p]))
        return out

    def _pairs(self, listed: Listed) -> list[SourcePart]:
        """The videos of a list with their tables. Nothing is fetched here, so LeRobot's cards are not looked into."""
        if self.layout == "lerobot":
            raise InputError("a LeRobot dataset is read as a folder", where=self.path, next="copy it, or name its folder in an object store")
        entries = {_plain(e.name): (e.name, n, e.digest or "") for n, e in enumerate(listed.entries(self.path))}
        out = []
        for video, table in self._beside(entries):
            pair = [list(entries[name][:2]) for name in (video, table) if name]
            out.append(SourcePart({"pair": pair}, [[entries[name][0], None, entries[name][2]] for name in (video, table) if name]))
        return out

    def _is_lerobot(self, listed: dict[str, Input]) -> bool:
        if self.layout == "lerobot" and INFO not in listed:
            raise InputError("this is no LeRobot dataset", where=self.path, found=f"no {INFO}", next="layout: beside")
        return INFO in listed and self.layout != "beside"

    def _beside(self, listed: Collection[str]) -> Iterator[tuple[str, str | None]]:
        for video in sorted((p for p in listed if p.lower().endswith(VIDEOS)), key=str.encode):
            stem = video.rpartition(".")[0]
            names = [template(self.table, {"stem": stem, "name": stem.rpartition("/")[2]})] if self.table else [stem + s for s in TABLES]
            yield video, next((n for n in names if n in listed), None)

    def _episodes(self, listed: dict[str, Input]) -> list[list[Episode]]:
        """Episodes in runs for a part each. An episode weighs its share of the files it lies in, and keeps its cameras together."""
        cameras = [self.camera] if isinstance(self.camera, str) else self.camera
        found = lerobot.episodes(self.path, set(listed), cameras)
        files = [p for e in found for p in (e.table, e.video)]
        shared = {p: files.count(p) for p in set(files)}
        weighed = [Input(str(i), sum(listed[p].bytes // shared[p] for p in (e.table, e.video) if p in listed), "") for i, e in enumerate(found)]
        return [[found[int(i.path)] for i in run] for run in runs(weighed, group=lambda i: str(found[int(i.path)].index))]

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        if "episodes" in spec:
            yield from self._read_lerobot([Episode(**e) for e in spec["episodes"]], source)
            return
        # [name, number in the list or None] of each video and of its table, if it has one
        pairs = [spec["pair"]] if "pair" in spec else [[[name, None] for name in item if name] for item in spec["items"]]
        for video, *tables in pairs:
            try:
                if not tables:
                    raise Reject("missing_table", f"no table for {video[0]}")
                with self._at(*tables[0]) as where:
                    rows = read_columns(where, _plain(tables[0][0]))
                with self._at(*video) as where, video_at(where) as f:
                    aligned = Aligned(self._aligning, f, rows, self._row_times(rows, None))
                    group = digest(f)
                    yield from self.samples(aligned.trajectory(self, tables[0][0], group, {"video": video[0]}), source)
            except Reject as e:
                yield Rejected(video[0], e.reason, e.detail)

    @contextmanager
    def _at(self, name: str, entry: int | None) -> Iterator[str]:
        """Where a file can be read: below `path`, or, as an entry of the list, wherever it lies or was fetched to."""
        if self.listed is None or entry is None:
            yield storage.join(self.path, name)
            return
        with self.listed.held(self.path, entry, name) as where:
            yield where

    def _read_lerobot(self, episodes: list[Episode], source: str) -> Iterator[Record | Rejected]:
        words = lerobot.tasks(self.path)
        table, rows = "", None
        digests: dict[str, str] = {}
        groups: dict[int, str] = {}
        for e in episodes:
            try:
                for path, reason in ((e.table, "missing_table"), (e.video, "missing_frame")):
                    if not storage.exists(storage.join(self.path, path)):
                        raise Reject(reason, f"episode {e.index}: no {path}")
                if e.table != table or rows is None:  # one table is held at a time; episodes come in the order of their files
                    table, rows = e.table, read_columns(storage.join(self.path, e.table))
                mine = rows if e.start_s is None else EpisodeRows(rows, e.index)
                with video_file(self.path, e.video) as f:
                    if e.video not in digests:
                        digests[e.video] = digest(f)
                    apart = e.start_s is None and not isinstance(self.camera, tuple)
                    # Views of one episode stay on one side of the held-out split; a joined video's episodes have a group each.
                    group = groups.setdefault(e.index, digests[e.video] if apart else f"{digests[e.video]}/{e.index}")
                    yield from self.samples(self._episode(e, mine, f, group, words), source)
            except Reject as problem:
                yield Rejected(_origin(e, self.camera), problem.reason, problem.detail)

    def _episode(self, e: Episode, rows: Columns, f: Any, group: str, words: dict[int, str]) -> Trajectory:
        fields = {"video": e.video, "episode": e.index, **({"camera": e.camera} if isinstance(self.camera, tuple) else {})}
        aligned = Aligned(self._aligning, f, rows, self._row_times(rows, e), e)
        return aligned.trajectory(self, _origin(e, self.camera), group, fields, words)

    @property
    def _aligning(self) -> Aligning:
        limits = Limits(max_pixels=self.max_pixels)
        return Aligning(self.match, self.tolerance, self.clock == "frames", self.rate, self.align, self.max_distance, limits)

    def _row_times(self, table: Columns, e: Episode | None) -> np.ndarray | None:
        """Seconds of every row from the start of its video (or episode), or None when rows are frames by number."""
        if self.match == "number":
            return None
        times: np.ndarray | None
        if self.time is not None:
            times = self._seconds(table, self.time)
        elif e is not None and "timestamp" in table.names:
            times = self._seconds(table, "timestamp")
        else:
            rate = self.fps or (e.fps if e else None)
            times = np.arange(table.rows) / rate if rate else None
        if times is None or self.time_from == "video" or not np.isfinite(times).any():
            return times
        return np.asarray(times - times[np.isfinite(times)][0])


def _plain(name: str) -> str:
    """A name in a list without what tells URLs of one path apart."""
    return name.partition("?")[0]


def _origin(e: Episode, camera: str | tuple[str, ...] | None) -> str:
    """The table, with the episode where it holds many, with the camera where several are read."""
    rows = e.table if e.start_s is None else f"{e.table}!{e.index}"
    return f"{rows}!{e.camera}" if isinstance(camera, tuple) else rows
