"""Our side's data of benchmarks.reader: one encoded dataset of all samples, three of its parts (the same files, linked), and plans over them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mixtures.mixture import Mixture
from mixtures.plan import make_plan
from pipelines.format.document import fingerprint
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment
from tests.toys import seal

SPECIALS = {"bos": 65_000, "eos": 65_001, "boi": 65_002, "eoi": 65_003, "pad": 65_004}
PATCHES = 256


def write(root: Path, nbytes: int, parts: list[range], sample: Callable[[int, int], np.ndarray]) -> None:
    """The datasets `all`, `a`, `b`, `c` and the plans `shuffled` and `mixture` below `root`. Rows are as long as eight samples and what stands
    around them, so that no text is cut."""
    text = nbytes < 65536
    data = "text" if text else "video"
    commits = []
    for number, of in enumerate(parts):
        with PartWriter(str(root / "all"), number, fingerprint=fingerprint([number, nbytes]), encoded=True) as w:
            for i in of:
                w.emit()
                w.add(Record.make("bench", f"{i}", data, [_segment(sample(i, nbytes), text)]))
            commits.append(w.commit())
    encoding: dict[str, Any] = {"text": {"tokenizer_sha256": "0" * 64, "vocab": 65_005, "specials": SPECIALS}}
    if not text:
        encoding["image"] = {"encoder": "bench", "fingerprint": "0" * 64, "tokens": PATCHES, "width": nbytes // 2 // PATCHES, "codec": "bf16"}
    seal(str(root / "all"), "all", data, commits, {}, encoding)
    for name, commit in zip("abc", commits, strict=True):
        (root / name).mkdir()
        for file in commit["files"]:
            os.link(root / "all" / file["path"], root / name / file["path"])
        seal(str(root / name), name, data, [commit], {}, encoding)
    row = 8 * (nbytes // 2 + 2 if text else PATCHES + 4)
    for plan, names in (("shuffled", ["all"]), ("mixture", ["a", "b", "c"])):
        sources = {name: {"dataset": str(root / name), "epochs": 1} for name in names}
        make_plan(Mixture.model_validate({"sequence_length": row, "sources": sources, "normalise": "none"}), str(root / plan))


def _segment(words: np.ndarray, text: bool) -> Segment:
    if text:
        return Segment("tokens", payload=words.tobytes(), dtype="uint16", shape=(words.nbytes // 2,), tokens=words.nbytes // 2)
    shape = (PATCHES, words.nbytes // 2 // PATCHES)
    return Segment("latents", atom=0, payload=words.tobytes(), dtype="bf16", shape=shape, tokens=PATCHES)
