"""Encoded datasets of stated sizes, by the writer that jobs use. To a planner only numbers of tokens matter, so payloads are zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures.budget import Drafted
from mixtures.latent_stats import publish
from mixtures.mixture import Mixture
from mixtures.placed import none
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


def shape(data: str, size: Any) -> list[Segment]:
    """One record from a few numbers: text n | (image, caption…) | frames of 4 | (image, (question, answer)…) | action n."""
    if data == "text":
        return [text(size)]
    if data == "image-text":
        return [image(size[0]), *(text(n, atom=1 + i, name=("original", "recaption", "third")[i]) for i, n in enumerate(size[1:]))]
    if data == "video":
        return [image(4, atom=i) for i in range(size)]
    if data == "action-video":
        return [*(image(4, "context") for _ in range(4)), text(size, "context", 0), image(4)]
    turns = [(text(q, "context", 0, i), text(a, "target", 0, i)) for i, (q, a) in enumerate(size[1:])]
    return [image(size[0], "context"), *(s for pair in turns for s in pair)]


def dataset(
    root: str | Path, data: str, sizes: Sequence[Any], source: str = "toy", parts: int = 2, groups: Sequence[str] | None = None, **more: Any
) -> str:
    """A dataset of one record per entry of `sizes`, in `parts` parts (each a shard)."""
    commits, n = [], len(sizes)
    for part in range(parts):
        with PartWriter(str(root), part, fingerprint=fingerprint([source, part]), encoded=True) as w:
            for i in range(part * n // parts, (part + 1) * n // parts):
                r = Record.make(source, f"{i}", data, shape(data, sizes[i]), group=groups[i] if groups else None)
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
