"""A small LeRobot v3.0 folder: three episodes of two cameras, two in one file and one in the next, with the number of every frame painted in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.pipelines.clips import clip

CAMERAS = ("observation.images.front", "observation.images.wrist")
LENGTHS = (30, 24, 26)
FILES = (0, 0, 1)  # the file of each episode
FPS = 10


def lerobot_v3(root: Path, start_error: dict[int, float] | None = None, first: dict[str, int] | None = None, keyframes: int = 6) -> None:
    """Frame numbers count from 0 in each camera's first file and from 500 in the second, the wrist camera's from 1000 and 1500. `start_error` moves
    the stated start (and stop) of an episode, in seconds."""
    info = {
        "codebase_version": "v3.0", "total_episodes": 3, "total_frames": sum(LENGTHS), "chunks_size": 1000, "fps": FPS,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {**{c: {"dtype": "video"} for c in CAMERAS}, "action": {"dtype": "float32", "shape": [2]}},
    }  # fmt: skip
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    words = pa.table({"task_index": [0, 1], "__index_level_0__": ["Pick up the bottle.", "Put it down."]})
    pq.write_table(words, root / "meta/tasks.parquet")
    rows, index, at = [], 0, {0: 0, 1: 0}
    data: dict[int, list[dict[str, object]]] = {0: [], 1: []}
    for episode, (length, file) in enumerate(zip(LENGTHS, FILES, strict=True)):
        start = at[file] / FPS + (start_error or {}).get(episode, 0.0)
        row = {"episode_index": episode, "length": length, "tasks": ["x"], "dataset_from_index": index, "dataset_to_index": index + length}
        row |= {"data/chunk_index": 0, "data/file_index": file, "stats/action/min": [0.0]}
        for c in CAMERAS:
            row |= {f"videos/{c}/chunk_index": 0, f"videos/{c}/file_index": file}
            row |= {f"videos/{c}/from_timestamp": start, f"videos/{c}/to_timestamp": start + length / FPS}
        rows.append(row)
        for i in range(length):
            action = [float(at[file] + i), -float(i)]
            data[file].append({"action": action, "timestamp": np.float32(i / FPS), "frame_index": i, "episode_index": episode,
                               "index": index + i, "task_index": int(i >= 15)})  # fmt: skip
        index, at[file] = index + length, at[file] + length
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    for file in (0, 1):
        (root / "data/chunk-000").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(data[file]), root / f"data/chunk-000/file-{file:03}.parquet")
        for k, c in enumerate(CAMERAS):
            folder = root / f"videos/{c}/chunk-000"
            folder.mkdir(parents=True, exist_ok=True)
            options = {"g": str(keyframes), "keyint_min": str(keyframes)}
            (folder / f"file-{file:03}.mp4").write_bytes(clip(at[file], fps=FPS, first=1000 * k + 500 * file, options=options))
