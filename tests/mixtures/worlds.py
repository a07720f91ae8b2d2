"""Datasets to plan over at random: contents that differ, shared frames and groups, odd sizes; and a plan's rows read in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.latent_stats import publish
from mixtures.plan import Plan
from mixtures.plan_file import ROWS_PER_FILE, row_path
from pipelines.format.document import fingerprint
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment
from tests.mixtures.sets import SPECIALS, image, shape, text
from tests.toys import seal


def filled(s: Segment, rng: np.random.Generator) -> Segment:
    """The segment with contents of its own in place of zeros."""
    if s.kind == "tokens":
        return replace(s, payload=rng.integers(0, 1000, s.tokens).astype("<u2").tobytes())
    return replace(s, payload=rng.standard_normal((s.tokens, 2)).astype("<f4").tobytes())


def of_records(root: str | Path, data: str, records: Sequence[Record], parts: int = 2) -> str:
    """A dataset of these records, with statistics where they have images."""
    commits, n = [], len(records)
    for part in range(parts):
        with PartWriter(str(root), part, fingerprint=fingerprint([str(data), part]), encoded=True) as w:
            for record in records[part * n // parts : (part + 1) * n // parts]:
                w.emit()
                w.add(record)
            commits.append(w.commit())
    encoding: dict[str, Any] = {"text": {"tokenizer_sha256": "0", "vocab": 1005, "specials": SPECIALS}}
    if data != "text":
        encoding["image"] = {"encoder": "toy", "fingerprint": "0", "tokens": 4, "width": 2, "codec": "f32"}
        encoding["stats"], _ = publish(str(root), (10, np.array([0.25, -0.5]), np.array([3.0, 20.0])))
    return seal(str(root), data, data, commits, {}, encoding)


def trajectories(n: int, rng: np.random.Generator, length: int = 6) -> list[Record]:
    """Action samples whose context frames are those of the samples before, several of one trajectory (and group) sharing them."""
    out: list[Record] = []
    while len(out) < n:
        frames = [filled(image(4), rng) for _ in range(length + 5)]
        for k in range(min(length, n - len(out))):
            shown = [replace(f, role="context") for f in frames[k : k + 4]]
            acted = filled(text(int(rng.integers(1, 9)), "context", 0), rng)
            group = f"trajectory{len(out) - k}"
            out.append(Record.make("acts", f"{len(out)}", "action-video", [*shown, acted, frames[k + 4]], group=group))
    return out


def records(data: str, sizes: Sequence[Any], seed: int = 0, groups: Sequence[str] | None = None) -> list[Record]:
    """Records of these sizes, each payload another."""
    rng = np.random.default_rng([seed, len(data)])
    group = lambda i: groups[i] if groups else None
    return [Record.make(data, f"{i}", data, [filled(s, rng) for s in shape(data, size)], group=group(i)) for i, size in enumerate(sizes)]


def mixed(root: Path, n: int = 60) -> dict[str, dict[str, Any]]:
    """Sources of all five kinds under `root`: texts that are cut, two passes, several captions, long clips, shared frames, isolated questions."""
    rng = np.random.default_rng(3)
    sizes: dict[str, list[Any]] = {
        "text": [int(x) for x in rng.integers(0, 150, n)],
        "pairs": [(4, *(int(x) for x in rng.integers(0, 12, int(rng.integers(1, 4))))) for _ in range(n)],
        "clips": [int(x) for x in rng.integers(1, 25, n)],
        "asked": [(4, *((int(a), int(b)) for a, b in rng.integers(1, 5, (int(rng.integers(1, 5)), 2)))) for _ in range(n)],
    }
    kinds = {"text": "text", "pairs": "image-text", "clips": "video", "asked": "vqa"}
    made = {name: of_records(root / name, kinds[name], records(kinds[name], size)) for name, size in sizes.items()}
    made["acts"] = of_records(root / "acts", "action-video", trajectories(n, rng))
    words = {"clips": {"history": "clean_copy"}, "asked": {"turns": "isolated", "loss": "text"}, "pairs": {"both": True, "image_first": 0.3}}
    return {name: {"dataset": path, "epochs": 1.7, "max_epochs": 2, **words.get(name, {})} for name, path in made.items()}


@cache
def worlds(root: str, seed: int) -> dict[str, str]:
    """Datasets of all five kinds with odd sizes: empty texts and captions, one to three captions, several images, frames shared by samples, and
    groups that stand in two sources. Paths by source; made once."""
    rng = np.random.default_rng([seed, 5])
    n = int(rng.integers(15, 60))
    whole = lambda low, high: int(rng.integers(low, high))
    at, groups = Path(root) / str(seed), [f"scene{i // 3}" for i in range(n)]
    texts = records("text", [whole(0, 2) * whole(0, 200) for _ in range(n)], seed)
    pairs = records("image-text", [(4, *(whole(0, 12) for _ in range(whole(1, 4)))) for _ in range(n)], seed, groups)
    clips = records("video", [whole(1, 25) for _ in range(n)], seed)
    asked = records("vqa", [(4, *((whole(1, 6), whole(1, 6)) for _ in range(whole(1, 6)))) for _ in range(n)], seed, groups)
    asked = [replace(r, segments=(filled(image(4, "context"), rng), *r.segments)) if i % 4 == 0 else r for i, r in enumerate(asked)]
    made = {"text": texts, "image-text": pairs, "video": clips, "vqa": asked, "action-video": trajectories(n, rng)}
    return {data: of_records(at / data, data, of, parts=whole(1, 4)) for data, of in made.items()}


class Rows:
    """A split of a plan in columns, read as anybody may: `row` of each span, and the plan's columns by name."""

    def __init__(self, plan: Plan, split: str = "train") -> None:
        files = [plan.file(row_path(plan.path, split, start)) for start in range(0, plan.sequences(split), ROWS_PER_FILE)]
        join = lambda parts, dtype=np.int64: np.concatenate([np.zeros(0, dtype), *parts])
        self.length, self.stage = (join([f.rows[k] for f in files]) for k in ("length", "stage"))
        counts = join([np.diff(f.start) for f in files])
        self.row = np.repeat(np.arange(len(counts)), counts)
        names = (
            files[0].spans if files else ("dataset", "source", "shard", "row", "first", "count", "caption", "start", "stop", "image_first", "epoch")
        )
        self.columns = {name: join([f.spans[name] for f in files]) for name in names}

    def of(self, source: int) -> dict[str, NDArray[Any]]:
        """The columns of one source's spans; `at` is the row, `record` the shard and row of the dataset as one number."""
        mine = self.columns["source"] == source
        out = {name: column[mine] for name, column in self.columns.items()}
        return out | {"at": self.row[mine], "record": (out["shard"] << 32) + out["row"], "payload": out["stop"] - out["start"]}
