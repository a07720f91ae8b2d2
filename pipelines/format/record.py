"""The record: one sample, as an ordered list of segments. There is no class per modality.

What comes in: a source's reading of the raw world. What goes out: rows of an index and payloads in a data file (`shard.py`). A segment is
text or an image before encoding, tokens or latents after it; each has a role (`target` takes loss, `context` does not), an `atom` (segments
that must stay together; -1 may be cut) and a `turn` (one question of several on an image; -1 is what all turns share). New kinds of data are
new sources that emit these same segments, never new classes.

    text          Text
    image-text    Image (atom 0), Text (atom 1, named "original"), Text (atom 2, named "recaption") …
    video         Image(t=0 s) atom 0, Image(t=1 s) atom 1, … and, where it is kept, Video (context): the clip itself, which encoding leaves out
    action-video  Image ×4 context, Text context, Image target: one atom
    vqa           Image(s), then per question Text(context) and Text(target) with its turn: one atom
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.format.chance import hash64, record_id

DATA = ("text", "image-text", "video", "action-video", "vqa")
Role = Literal["target", "context"]


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of a record. `payload` is in memory only; on disk `offset` and `nbytes` say where its bytes lie."""

    kind: Literal["text", "image", "video", "tokens", "latents"]
    role: Role = "target"
    atom: int = -1
    turn: int = -1
    member: str | None = None  # a caption's name, or the name of the payload inside a tar
    text: str | None = None  # curated text only
    payload: bytes | None = field(default=None, repr=False)
    dtype: str | None = None  # jpeg, png, mp4 | uint16, uint32 | bf16, f32, int8, f8e4m3
    shape: tuple[int, ...] = ()  # image, video: height, width, 3; tokens: n; latents: n, width
    tokens: int = 0  # payload tokens: stored ids or latent rows; 0 before encoding
    time_s: float | None = None  # presentation time of a video frame, or of a clip's beginning
    offset: int | None = None
    nbytes: int | None = None


def Text(text: str, role: Role = "target", atom: int = -1, turn: int = -1, name: str | None = None) -> Segment:
    """A text segment; `name` tells several captions of one image apart."""
    return Segment("text", role, atom, turn, member=name, text=text)


def Image(
    payload: bytes,
    role: Role = "target",
    atom: int = -1,
    turn: int = -1,
    shape: tuple[int, ...] = (),
    time_s: float | None = None,
    dtype: str = "jpeg",
) -> Segment:
    """An image segment of encoded bytes (JPEG or PNG); shape is height, width, channels."""
    return Segment("image", role, atom, turn, payload=payload, dtype=dtype, shape=shape, time_s=time_s)


def Video(payload: bytes, shape: tuple[int, ...], time_s: float, dtype: str = "mp4") -> Segment:
    """A clip as a file of its own, behind all that is trained on: for people and other tools. It has no tokens, and encoding leaves it out."""
    return Segment("video", "context", payload=payload, dtype=dtype, shape=shape, time_s=time_s)


@dataclass(frozen=True, slots=True)
class Record:
    """One sample. `group` names what must never be split between training and held-out data: a scene, a file, a trajectory."""

    id: str
    source: str
    origin: str
    data: str
    segments: tuple[Segment, ...]
    group: str
    licence: str | None = None
    url: str | None = None
    phash: int | None = None
    scores: dict[str, float] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls, source: str, origin: str, data: str, segments: list[Segment] | tuple[Segment, ...], group: str | None = None, **rest: Any
    ) -> Record:
        """A new record with its id. `origin` is relative to the source's root: never an absolute path, a host or a time."""
        id = record_id(source, origin)
        return cls(id, source, origin, data, tuple(segments), group or id, **rest)

    @property
    def h(self) -> int:
        """The uint64 that all draws for this record start from."""
        return hash64(self.id)


@dataclass(frozen=True, slots=True)
class Atoms:
    """What a planner may not cut or separate, as parallel lists: payload tokens, segments, images, and 1 where cutting is allowed."""

    tokens: list[int]
    segments: list[int]
    images: list[int]
    flags: list[int]


def atoms(segments: tuple[Segment, ...]) -> Atoms:
    """Group a record's segments: neighbours with one atom number ≥ 0 form one entry, each segment with -1 is an entry of its own."""
    out = Atoms([], [], [], [])
    last = -1
    for s in segments:
        image = int(s.kind in ("image", "latents"))
        if s.atom >= 0 and s.atom == last and out.tokens:
            out.tokens[-1] += s.tokens
            out.segments[-1] += 1
            out.images[-1] += image
        else:
            out.tokens.append(s.tokens)
            out.segments.append(1)
            out.images.append(image)
            out.flags.append(int(s.atom < 0))
        last = s.atom
    return out
