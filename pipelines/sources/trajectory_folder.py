"""Navigation trajectories as Navigation World Models keeps them: a folder each, frames by number, positions and yaw in one file.

    walk_1/0.jpg  walk_1/1.jpg  …          source: {trajectory_folder: {path: recon/, spacing: recon}}
    walk_1/traj_data.pkl                   {"position": float [N, 2] in metres, "yaw": float [N] in radians}

The pickle is read and never run (`pickled.py`); `traj_data.npz`, `.json` and `.parquet` with the same columns are read as well. The defaults are
those of Bar et al. (arXiv 2412.03572): four frames of context, four goals for each observation, drawn within 64 frames either way (the
observation itself included), positions in the current pose's frame divided by the dataset's waypoint spacing, yaw in radians, rel_t =
offset / 128. One thing differs: there goals are drawn anew in every epoch, here they are part of the dataset; take another `goals.seed` for others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, field_validator, model_validator

from pipelines.actions import Goals, metres
from pipelines.columns import Columns, read_columns
from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import InputError, Reject
from pipelines.format.record import Record
from pipelines.image_frames import IMAGES, ImageFrames
from pipelines.listing import Input, list_files, runs
from pipelines.stage import Rejected, SourcePart
from pipelines.trajectory import Trajectory

DATA = ("pkl", "npz", "json", "jsonl", "csv", "parquet")


class TrajectoryFolder(ImageFrames):
    """`spacing` in metres, or a dataset's name; `position` and `yaw` are the columns (positions lie there as x, y and perhaps more). `trajectories`
    is a text file of folder names, one a line, as splits come: only those are read. Frames are at `fps`, 4 unless you say so."""

    spacing: float = Field(default=1.0, gt=0)
    position: str = "position"
    yaw: str = "yaw"
    table: str = "traj_data"
    trajectories: str | None = None
    fps: float = Field(default=4.0, gt=0)
    goals: Goals = Goals(min=0, max=64, backward=True, each=4)

    @model_validator(mode="before")
    @classmethod
    def _posed(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("pose") is not None:
            return given
        position, yaw = given.get("position", "position"), given.get("yaw", "yaw")
        return {**given, "pose": {"x": f"{position}[0]", "y": f"{position}[1]", "yaw": yaw, "spacing": given.get("spacing", 1.0)}}

    @field_validator("spacing", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return metres(value)

    def parts(self) -> list[SourcePart]:
        listed = list_files(self.path)
        wanted = self._wanted(listed)
        names = {f"{self.table}.{end}" for end in DATA}
        folders: dict[str, list[Input]] = {}
        for f in listed:
            folders.setdefault(_folder(f.path), []).append(f)
        weighed, owned = [], {}
        for folder, files in sorted(folders.items(), key=lambda item: item[0].encode()):
            tables = sorted(f.path for f in files if f.path.rpartition("/")[2] in names)
            if not tables or (wanted is not None and folder.rstrip("/") not in wanted):
                continue
            kept = [f for f in files if f.path == tables[0] or f.path.lower().endswith(IMAGES)]
            owned[tables[0]] = kept
            weighed.append(Input(tables[0], sum(f.bytes for f in kept), ""))
        if not weighed:
            raise InputError("no trajectory here", where=self.path, allowed=f"folders with {self.table}.pkl (or {', '.join(DATA[1:])})")
        return [
            SourcePart({"tables": [item.path for item in run]}, [f.as_list() for item in run for f in owned[item.path]])
            for run in runs(weighed)
        ]

    def _wanted(self, listed: list[Input]) -> set[str] | None:
        """Folders that the list of trajectories names, or None for all. A name that has no folder is an error: a split is meant as it stands."""
        if self.trajectories is None:
            return None
        lines = storage.read(storage.join(self.path, self.trajectories)).decode("utf-8").split("\n")
        names = {line.strip().strip("/") for line in lines if line.strip()}
        there = {_folder(f.path).rstrip("/") for f in listed}
        if names - there:
            some = ", ".join(sorted(names - there)[:3])
            raise InputError("the list names trajectories that are not here", where=self.trajectories, found=f"{len(names - there)}: {some}")
        return names

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        for rel in spec["tables"]:
            try:
                yield from self.samples(self._trajectory(rel), source)
            except Reject as e:
                yield Rejected(_origin(rel), e.reason, e.detail)

    def _trajectory(self, rel: str) -> Trajectory:
        data, table = self._bytes(rel), read_columns(storage.join(self.path, rel))
        files = self._numbered(_folder(rel))
        missing = {row: ("missing_frame", f"{_folder(rel)}{row}.jpg") for row in range(table.rows) if row not in files}
        found = {"frames": len(files)}
        return Trajectory(_origin(rel), sha256_hex(data), self._checked(table), missing, self._loader(files), self._thumbs(files), found=found)

    def _checked(self, table: Columns) -> Any:
        for name in (self.position, self.yaw):
            if name not in table.names:
                raise Reject("unreadable", f"no {name!r} in the trajectory's data; there are: {', '.join(table.names)[:200] or 'none'}")
        return self._log(table)

    def _numbered(self, folder: str) -> dict[int, str]:
        """Frame number → file, relative to the source; `7.jpg` and `000007.png` are both frame 7, the first by name counts."""
        out: dict[int, str] = {}
        for name, *_ in sorted(storage.listing(storage.join(self.path, folder), IMAGES), key=lambda f: f[0].encode()):
            stem = name.rpartition(".")[0]
            if "/" not in name and stem.isascii() and stem.isdigit():
                out.setdefault(int(stem), folder + name)
        return out


def _origin(rel: str) -> str:
    """The trajectory by its folder, so that a conversion of its data keeps its samples; by its data where the source's path is the folder."""
    return _folder(rel).rstrip("/") or rel


def _folder(rel: str) -> str:
    head, slash, _ = rel.rpartition("/")
    return head + slash
