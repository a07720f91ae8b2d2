"""Trajectories as folders of frames with an aligned table of poses or actions: robot logs, donkeycar tubs, exported game play.

    walk_1/actions.jsonl    {"x": 0.1, "y": 0.0, "yaw": 0.02, "t": 0.25}            source: {frames_actions: {path: walks/, table: "*/actions.jsonl",
    walk_1/images/000000.jpg                                                          image: "images/{row:06}.jpg", pose: {x: x, y: y, yaw: yaw}}}

One table is one trajectory (or several: `episode` names a column that tells them apart). `image` is a template over the row's columns, relative
to the table; `{row}` is the row's number. What is wrong with rows is counted by reason (`trajectory.py`); frames are resized and encoded once,
and all samples of the trajectory share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.columns import read_columns, texts
from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.image_frames import IMAGES, ImageFrames
from pipelines.listing import Input, list_files, place, runs
from pipelines.stage import Rejected, SourcePart
from pipelines.table import beside, matching, template
from pipelines.trajectory import Trajectory


class FramesActions(ImageFrames):
    """`table` is a name or pattern (`*.catalog`), `image` a template such as `images/{cam/image_array}` or `frames/{row:06}.jpg`."""

    table: str
    image: str
    episode: str | None = None

    def parts(self) -> list[SourcePart]:
        listed = list_files(self.path)
        tables = matching(self.table, (f.path for f in listed))
        frames = [f for f in listed if f.path.lower().endswith(IMAGES)]
        by_path = {f.path: f for f in listed}
        owned = {t: [f for f in frames if f.path.startswith(_folder(t))] for t in tables}
        # The unit is a table with all its frames: its weight is theirs together.
        weighed = [Input(t, by_path[t].bytes + sum(f.bytes for f in owned[t]), by_path[t].tag) for t in tables]
        out = []
        for run in runs(weighed):
            inputs = {f.path: f.as_list() for item in run for f in [by_path[item.path], *owned[item.path]]}
            out.append(SourcePart({"tables": [item.path for item in run]}, list(inputs.values())))
        return out

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        there: dict[str, set[str]] = {}
        for rel in spec["tables"]:
            folder = _folder(rel).rstrip("/")
            if folder not in there:
                below = storage.listing(storage.join(self.path, folder), IMAGES) if place(self.path, rel) != self.path else []
                there[folder] = {f"{folder}/{f[0]}" if folder else f[0] for f in below}
            try:
                yield from self.samples(self._trajectory(rel, there[folder]), source)
            except Reject as e:
                yield Rejected(rel, e.reason, e.detail)

    def _trajectory(self, rel: str, there: set[str]) -> Trajectory:
        path = place(self.path, rel)
        table = read_columns(path)
        named = {name: texts(table, name) for name in table.names if f"{{{name}}}" in self.image or f"{{{name}:" in self.image}
        files: dict[int, str] = {}
        missing: dict[int, str] = {}
        for row in range(table.rows):
            try:
                file = beside(rel, template(self.image, {"row": row, **{name: values[row] for name, values in named.items()}}))
            except Reject as e:
                missing[row] = e.detail
                continue
            if file in there:
                files[row] = file
            else:
                missing[row] = file

        episodes = texts(table, self.episode) if self.episode else None
        problems = {row: ("missing_frame", detail) for row, detail in missing.items()}
        return Trajectory(rel, sha256_hex(storage.read(path)), self._log(table), problems, self._loader(files), self._thumbs(files), episodes)


def _folder(rel: str) -> str:
    head, slash, _ = rel.rpartition("/")
    return head + slash
