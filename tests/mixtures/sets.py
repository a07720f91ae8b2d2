"""Encoded datasets of stated sizes, by the writer that jobs use. To a planner only numbers of tokens matter, so payloads are zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.budget import Drafted
from mixtures.latent_stats import publish
from mixtures.mixture import Mixture
from mixtures.placed import none
from mixtures.plan import Plan
from mixtures.plan_file import ROWS_PER_FILE, row_path
from mixtures.spill import HELD
from pipelines.format.chance import draw
from pipelines.format.document import fingerprint, parse
from pipelines.format.manifest import read_card
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment
from tests.toys import seal

SPECIALS = {"bos": 1000, "eos": 1001, "boi": 1002, "eoi": 1003, "pad": 1004}


def text(n: int, role: str = "target", atom: int = -1, turn: int = -1, name: str | None = None) -> Segment:
    return Segment("tokens", role, atom, turn, name, None, bytes(2 * n), "uint16", (n,), n)  # type: ignore[arg-type]


def image(n: int, role: str = "target", atom: int = 0) -> Segment:
    return Segment("latents", role, atom, -1, None, None, bytes(8 * n), "f32", (n, 2), n)  # type: ignore[arg-type]


def shape(data: str, size: Any, frame: int = 4) -> list[Segment]:
    """One record from a few numbers: text n | (image, caption…) | frames of 4 | (image, (question, answer)…) | action n."""
    if data == "text":
        return [text(size)]
    if data == "image-text":
        return [image(size[0]), *(text(n, atom=1 + i, name=("original", "recaption", "third")[i]) for i, n in enumerate(size[1:]))]
    if data == "video":
        return [image(frame, atom=i) for i in range(size)]
    if data == "action-video":
        return [*(image(4, "context") for _ in range(4)), text(size, "context", 0), image(4)]
    turns = [(text(q, "context", 0, i), text(a, "target", 0, i)) for i, (q, a) in enumerate(size[1:])]
    return [*([image(size[0], "context")] if size[0] else []), *(s for pair in turns for s in pair)]


def dataset(
    root: str | Path, data: str, sizes: Sequence[Any], source: str = "toy", parts: int = 2, groups: Sequence[str] | None = None, **more: Any
) -> str:
    """A dataset of one record per entry of `sizes`, in `parts` parts (each a shard)."""
    commits, n = [], len(sizes)
    for part in range(parts):
        with PartWriter(str(root), part, fingerprint=fingerprint([source, part]), encoded=True) as w:
            for i in range(part * n // parts, (part + 1) * n // parts):
                r = Record.make(source, f"{i}", data, shape(data, sizes[i], more.get("frame", 4)), group=groups[i] if groups else None)
                if "image" in more:  # another encoder's tokens of the same images
                    r = replace(r, segments=tuple(image(more["image"](s.tokens), s.role, s.atom) if s.kind == "latents" else s for s in r.segments))
                if "licences" in more:
                    r = replace(r, licence=more["licences"][i])
                w.emit()
                w.add(replace(r, scores=more["scores"][i]) if "scores" in more else r)
            commits.append(w.commit())
    encoding: dict[str, Any] = {"text": {"tokenizer_sha256": more.get("tokenizer", "0"), "vocab": 1005, "specials": SPECIALS}}
    if data != "text":
        encoding["image"] = {"encoder": "toy", "fingerprint": more.get("encoder", "0"), "tokens": 4, "width": 2, "codec": "f32"}
        mean = np.array(more.get("mean", [0.0, 1.0]))
        encoding["stats"], _ = publish(str(root), (max(n, 1), mean, mean + 1))
    return seal(str(root), source, data, commits, {}, encoding)


def mixture(sources: dict[str, Any], output: str | Path | None = None, **keys: Any) -> Mixture:
    """A mixture document, validated as a YAML file would be."""
    document = {"sequence_length": 64, "sources": sources, **keys}
    return parse(Mixture, document | ({"output": str(output)} if output else {}))


def drawn(drafted: Drafted, seed: int = 0) -> NDArray[Any]:
    """The units that a source gives to training, pass after pass, each in draw order."""
    keys = [key for key in drafted.units.facts if key != HELD]
    parts = [drafted.units.bucket(key, i) for key in keys for i in range(drafted.units.buckets)]
    u = np.concatenate([none(), *parts])
    order = np.concatenate([np.zeros(0, np.uint64), *(draw(one["h"], seed, "order", int(one["epoch"][0])) for one in parts if len(one))])
    return u[np.lexsort((u["first"], order, u["epoch"]))]


def counted(path: str) -> int:
    """Payload tokens of a dataset, from its card."""
    return int(read_card(path)["tokens"]["all"])


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
