"""LeRobot datasets: which rows and which stretch of which video make each episode, by the dataset's own cards.

    v2.x   data/chunk-000/episode_000029.parquet             videos/chunk-000/{camera}/episode_000029.mp4          an episode a file
    v3.0   data/chunk-000/file-000.parquet                   videos/{camera}/chunk-000/file-000.mp4                many episodes a file
           meta/episodes/chunk-000/file-000.parquet          says for each episode which files, and from when to when in each video
           meta/tasks.parquet                                (v2: meta/tasks.jsonl)

What comes in: a folder and its listing. What goes out: `Episode`s in order, those whose files are here (a sample of a dataset is a dataset too),
and the tasks in words. Layout as written by lerobot at CODEBASE_VERSION v3.0 and v2.1.

In v3 an episode's place in a joined video is a time, kept as a sum of durations; where rounding adds up, or a join was made wrongly, it points at
a neighbour's frame. `before` counts the frames of the episodes ahead of it in the file, so that the time can be checked against the count.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.columns import Columns, numbers, read_columns, texts
from pipelines.format import storage
from pipelines.format.errors import HeadwaterError, InputError
from pipelines.table import scan, template

INFO = "meta/info.json"
_EPISODES, _TASKS = "meta/episodes/", "meta/tasks.parquet"


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode seen by one camera. `start_s`, `stop_s` and `before` are of v3: its stretch of the video, and the frames before it if known."""

    index: int
    camera: str
    table: str
    video: str
    fps: float
    start_s: float | None = None
    stop_s: float | None = None
    before: int | None = None
    frames_in_file: int | None = None

    def spec(self) -> dict[str, Any]:
        """As JSON, for a part."""
        return {k: v for k, v in asdict(self).items() if v is not None}


def episodes(root: str, listed: Collection[str], cameras: Sequence[str] | None) -> list[Episode]:
    """The episodes whose rows or video are here, by index, then camera. `InputError` for another layout or a camera that is not there."""
    info = storage.read_json(storage.join(root, INFO))
    version = str(info.get("codebase_version", "v2.0"))
    videos = sorted(name for name, f in info.get("features", {}).items() if f.get("dtype") == "video")
    chosen = list(cameras) if cameras else videos[:1]
    unknown = [c for c in chosen if c not in videos]
    if unknown or not chosen:
        said = unknown[0] if unknown else "none"
        raise InputError("no such camera", where=INFO, found=said, allowed=", ".join(videos) or "this dataset has no video")
    if version.startswith("v3"):
        found = _joined(root, listed, info, chosen)
    elif version.startswith("v2"):
        found = _apart(info, chosen)
    else:
        raise InputError("a LeRobot version that is not known here", where=INFO, found=version, allowed="v2.0, v2.1, v3.0")
    here = [e for e in found if e.table in listed or e.video in listed]
    if not here:
        raise InputError("none of the dataset's episodes is here", where=root, found=f"{info.get('total_episodes')} in {INFO}")
    return here


def _apart(info: Mapping[str, Any], cameras: Sequence[str]) -> list[Episode]:
    out = []
    for index in range(int(info["total_episodes"])):
        for camera in cameras:
            known = {"episode_index": index, "episode_chunk": index // int(info.get("chunks_size", 1000)), "video_key": camera}
            out.append(Episode(index, camera, template(info["data_path"], known), template(info["video_path"], known), float(info["fps"])))
    return out


def _joined(root: str, listed: Collection[str], info: Mapping[str, Any], cameras: Sequence[str]) -> list[Episode]:
    rows = sorted((r for path in sorted(listed) if path.startswith(_EPISODES) for r in _rows(root, path, cameras)), key=lambda r: r["episode_index"])
    if not rows:
        raise InputError("a v3 dataset without its list of episodes", where=root, found=f"no {_EPISODES}chunk-*/file-*.parquet")
    out, fps = [], float(info["fps"])
    for camera in cameras:
        in_file: dict[str, int] = {}
        mine = []
        for r in rows:
            known = {"video_key": camera, **{k: r[f"videos/{camera}/{k}"] for k in ("chunk_index", "file_index")}}
            video = template(info["video_path"], known)
            table = template(info["data_path"], {k: r[f"data/{k}"] for k in ("chunk_index", "file_index")})
            start, stop = float(r[f"videos/{camera}/from_timestamp"]), float(r[f"videos/{camera}/to_timestamp"])
            mine.append(Episode(int(r["episode_index"]), camera, table, video, fps, start, stop, in_file.get(video, 0)))
            in_file[video] = in_file.get(video, 0) + int(r["length"])
        out += [Episode(**{**asdict(e), "frames_in_file": in_file[e.video]}) for e in mine]
    return sorted(out, key=lambda e: (e.index, cameras.index(e.camera)))


def _rows(root: str, path: str, cameras: Sequence[str]) -> list[dict[str, Any]]:
    """The columns that say where an episode lies; a file of episodes holds hundreds more, of statistics."""
    wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    wanted += [f"videos/{c}/{k}" for c in cameras for k in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
    try:
        return list(pq.read_table(io.BytesIO(storage.read(storage.join(root, path))), columns=wanted, use_threads=False).to_pylist())
    except (pa.ArrowException, OSError, ValueError) as e:
        raise InputError("the list of episodes is not readable", where=path, found=str(e)[:200]) from None


def tasks(root: str) -> dict[int, str]:
    """task_index → what was to be done, in words; empty when the dataset does not say."""
    try:
        if storage.exists(storage.join(root, _TASKS)):
            table = read_columns(storage.join(root, _TASKS))
            # lerobot writes the words as the table's index, which Parquet keeps under one of these names.
            name = next((n for n in ("task", "__index_level_0__", "tasks") if n in table.names), None)
            if name is None:
                return {}
            return {int(i): str(t) for i, t in zip(numbers(table, "task_index"), texts(table, name), strict=True) if np.isfinite(i)}
        rows = [row.value for row in scan(storage.join(root, "meta/tasks.jsonl"))]
    except HeadwaterError:
        return {}
    return {int(r["task_index"]): str(r["task"]) for r in rows if isinstance(r, dict) and "task_index" in r and "task" in r}


class EpisodeRows:
    """The rows of one episode of a table that holds many."""

    def __init__(self, table: Columns, episode: int) -> None:
        self._table, self.names = table, table.names
        self._at = np.flatnonzero(numbers(table, "episode_index") == episode)
        self.rows = len(self._at)

    def raw(self, name: str) -> Any:
        """That column of the episode."""
        column = self._table.raw(name)
        return column[self._at] if isinstance(column, np.ndarray) else [column[i] for i in self._at]
