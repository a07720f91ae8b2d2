"""Trajectories as video files with an aligned table of poses or actions.

    layout: beside    drives/a.mp4 with drives/a.csv (or .jsonl, .json, .parquet, .npy, .npz)      one video, one table, one trajectory
    layout: lerobot   a LeRobot v2.1 folder: meta/info.json says where episodes' Parquet rows and videos lie, and how many a second

Rows meet frames by time: a row's frame is the one nearest to its timestamp, and must lie within half a frame of it (else the row is `misaligned`).
Without times, rows meet frames by number, or by `fps`. Only frames that some sample shows are decoded, once each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from pipelines.columns import SUFFIXES as TABLES
from pipelines.columns import Columns, numbers, read_columns, texts
from pipelines.format import storage
from pipelines.format.errors import HeadwaterError, InputError, Reject
from pipelines.format.record import Image, Record, Segment
from pipelines.listing import Input, list_files, runs
from pipelines.media.video import SUFFIXES as VIDEOS
from pipelines.media.video import Limits, VideoInfo, probe, stills
from pipelines.stage import Rejected, SourcePart
from pipelines.table import scan, template
from pipelines.trajectory import ActionSource, Trajectory
from pipelines.video_files import digest, video_file

INFO = "meta/info.json"


class VideoActions(ActionSource):
    """`layout: auto` takes lerobot where meta/info.json is. `camera` picks one of LeRobot's videos (default: the first by name). `table` says where
    a video's table lies when not beside it: `labels/{stem}.csv`."""

    layout: Literal["auto", "beside", "lerobot"] = "auto"
    table: str | None = None
    camera: str | None = None

    def parts(self) -> list[SourcePart]:
        listed = {f.path: f for f in list_files(self.path)}
        pairs = self._lerobot(listed) if self._is_lerobot(listed) else self._beside(listed)
        weighed, named = [], {}
        for video, table, known in pairs:
            inputs = [listed[p] for p in (video, table) if p in listed]
            named[video] = (video, table, known, inputs)
            weighed.append(Input(video, sum(i.bytes for i in inputs), ""))
        out = []
        for run in runs(weighed):
            items = [named[item.path] for item in run]
            out.append(SourcePart({"items": [[v, t, k] for v, t, k, _ in items]}, [i.as_list() for *_, found in items for i in found]))
        return out

    def _is_lerobot(self, listed: dict[str, Input]) -> bool:
        if self.layout == "lerobot" and INFO not in listed:
            raise InputError("this is no LeRobot dataset", where=self.path, found=f"no {INFO}", next="layout: beside")
        return INFO in listed and self.layout != "beside"

    def _beside(self, listed: dict[str, Input]) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
        for video in sorted((p for p in listed if p.lower().endswith(VIDEOS)), key=str.encode):
            stem = video.rpartition(".")[0]
            names = [template(self.table, {"stem": stem, "name": stem.rpartition("/")[2]})] if self.table else [stem + s for s in TABLES]
            yield video, next((n for n in names if n in listed), None), {}

    def _lerobot(self, listed: dict[str, Input]) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
        """(video, table, facts) of the episodes that are here; info.json may list more than a sample of a dataset holds."""
        info = storage.read_json(storage.join(self.path, INFO))
        if not str(info.get("codebase_version", "v2")).startswith("v2"):
            raise InputError("this LeRobot version packs many episodes into one file", where=INFO, found=info["codebase_version"], allowed="v2.x")
        cameras = sorted(name for name, f in info.get("features", {}).items() if f.get("dtype") == "video")
        camera = self.camera or next(iter(cameras), None)
        if camera not in cameras:
            raise InputError("no such camera", where=INFO, found=camera, allowed=", ".join(cameras) or "this dataset has no video")
        for episode in range(int(info["total_episodes"])):
            known = {"episode_index": episode, "episode_chunk": episode // int(info.get("chunks_size", 1000)), "video_key": camera}
            table = template(info["data_path"].replace(":03d", ":03").replace(":06d", ":06"), known)
            video = template(info["video_path"].replace(":03d", ":03").replace(":06d", ":06"), known)
            if table in listed or video in listed:
                yield video, table, {"episode": episode, "fps": float(info["fps"])}

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        tasks: dict[int, str] | None = None
        for video, table, known in spec["items"]:
            try:
                if table is None or not storage.exists(storage.join(self.path, table)):
                    raise Reject("missing_table", f"no table for {video}")
                if not storage.exists(storage.join(self.path, video)):
                    raise Reject("missing_frame", f"no video for {table}")
                if known and tasks is None:
                    tasks = self._tasks()
                with video_file(self.path, video) as f:
                    yield from self.samples(self._trajectory(video, table, known, tasks or {}, f), source)
            except Reject as e:
                yield Rejected(video, e.reason, e.detail)

    def _tasks(self) -> dict[int, str]:
        try:
            rows = [row.value for row in scan(storage.join(self.path, "meta/tasks.jsonl"))]
        except HeadwaterError:
            return {}
        return {int(r["task_index"]): str(r["task"]) for r in rows if isinstance(r, dict) and "task_index" in r and "task" in r}

    def _trajectory(self, video: str, rel: str, known: dict[str, Any], tasks: dict[int, str], f: Any) -> Trajectory:
        table = read_columns(storage.join(self.path, rel))
        info = probe(f, self._limits)
        times = self._row_times(table, known)
        missing = {}
        for row in range(table.rows):
            beyond = times[row] >= info.duration_s if times is not None else row >= info.frames
            if beyond:
                missing[row] = f"the video ends after {info.frames} frames, {info.duration_s:.3f} s"
        fields: dict[str, Any] = {"video": video, **({"episode": known["episode"]} if known else {})}
        if tasks and "task_index" in table.names and table.rows:
            fields["task"] = tasks.get(int(texts(table, "task_index")[0] or -1), "")
        shown = times if times is not None else np.arange(table.rows) / max(info.fps, 1e-6)
        return Trajectory(rel, digest(f), table, missing, self._loader(f, info, times), None, shown, fields)

    @property
    def _limits(self) -> Limits:
        return Limits(max_pixels=self.max_pixels)

    def _row_times(self, table: Columns, known: dict[str, Any]) -> np.ndarray | None:
        """Seconds of every row, or None when rows are frames by number."""
        if self.time is not None:
            return self._seconds(table, self.time)
        if known and "timestamp" in table.names:
            return numbers(table, "timestamp")
        rate = self.fps or known.get("fps")
        return np.arange(table.rows) / rate if rate else None

    def _loader(self, f: Any, info: VideoInfo, times: np.ndarray | None) -> Any:
        def load(rows: Sequence[int]) -> Iterator[tuple[int, Segment | Reject]]:
            at = [float(times[r]) for r in rows] if times is not None else None
            found: set[int] = set()
            stopped = Reject("unreadable", "the frame did not decode")
            try:
                for still in stills(
                    f, at=at, numbers=None if at is not None else rows, size=self.size, mode=self.mode, quality=self.quality, limits=self._limits
                ):
                    row = rows[still.k]
                    found.add(row)
                    if at is not None and abs(still.time_s - at[still.k]) > 0.5 / info.fps + 1e-6:
                        yield row, Reject("misaligned", f"row at {at[still.k]:.3f} s, nearest frame at {still.time_s:.3f} s")
                    else:
                        yield row, Image(still.payload, shape=still.shape, time_s=still.time_s)
            except Reject as e:
                stopped = e
            yield from ((row, stopped) for row in rows if row not in found)

        return load
