"""Robot episodes as RLDS TFRecords: Bridge, Open X-Embodiment and what TensorFlow Datasets writes of that form. TensorFlow is not needed.

    bridge/1.0.0/bridge_dataset-train.tfrecord-00000-of-00001      source: {rlds: {path: bridge/, camera: observation/image_0, actions: {a: action}}}

A record is an episode: its pictures, actions and instruction step by step, which the dataset has already put together, so that row i is frame i.
Columns are named as below `steps/` (`action`, `observation/state`); the instruction in words goes into `fields.task`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydantic import Field

from pipelines.columns import texts
from pipelines.format.document import sha256_hex
from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.image_frames import ImageFrames
from pipelines.listing import list_files, place
from pipelines.stage import Rejected, SourcePart
from pipelines.table import matching
from pipelines.tfrecord import Example, columns_of, examples
from pipelines.trajectory import Trajectory


class Rlds(ImageFrames):
    """`camera` is one of the episode's lists of pictures; episodes without it are rejected. `files` names the records: `*-train.tfrecord*` takes
    one split. `prefix` is where steps lie in a record. Times are at `fps`, which the dataset's documentation says (Bridge: 5)."""

    camera: str
    files: str = "*.tfrecord*"
    instruction: str | None = "language_instruction"
    prefix: str = "steps/"
    fps: float = Field(default=1.0, gt=0)

    def parts(self) -> list[SourcePart]:
        """A file a part: datasets come in files of 100 to 200 MB, and a record cannot be found without those before it."""
        listed = {f.path: f for f in list_files(self.path)}
        return [SourcePart({"file": path}, [listed[path].as_list()]) for path in matching(self.files, listed)]

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        for number, found in enumerate(examples(place(self.path, spec["file"]))):
            origin = f"{spec['file']}!{number}"
            try:
                if isinstance(found, Reject):
                    raise found
                yield from self.samples(self._trajectory(origin, number, found), source)
            except Reject as e:
                yield Rejected(origin, e.reason, e.detail)

    def _trajectory(self, origin: str, number: int, found: Example) -> Trajectory:
        steps = columns_of(found, self.prefix)
        pictures = dict(enumerate(steps.pictures(self.camera)))
        log = self._log(steps)
        if self.instruction is not None and self.instruction in steps.names:
            log = replace(log, noted={"task": texts(steps, self.instruction)})
        group = sha256_hex(b"".join(pictures.values()))
        return Trajectory(origin, group, log, {}, self._loader(pictures), self._thumbs(pictures), None, {"episode": number})
