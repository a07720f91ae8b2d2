"""The embedded source: a procedural little world that renders all five kinds of data from a seed. No download, no file.

What comes in: a kind, a seed and a range of scene numbers. What goes out: records of that kind. Scene n of a seed is the same scene in
every kind: its picture, its captions, its prose, its questions, the first frame of its clip and the floor of its walks agree, and carry
one `group`. So held-out scenes are held out of all five. Kinds take disjoint scenes by `first_scene`, or the same ones on purpose.
docs/world.md has every distribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator

from pipelines.format.chance import hash64, record_id
from pipelines.format.document import Percent, Size
from pipelines.format.record import Image, Record, Segment, Text
from pipelines.media.images import encode_png
from pipelines.stage import Source, SourcePart
from pipelines.world import language, motion, render
from pipelines.world.questions import TYPES, Phrasing, Type, ask
from pipelines.world.scene import Scene, make_scene

PART = 256  # scenes a part


class World(Source):
    """Scenes `first_scene` … `first_scene + scenes` of the world of `seed`, as one kind of data."""

    kind: Literal["text", "image-text", "video", "action-video", "vqa"]
    scenes: Size = Field(1024, description="how many scenes")
    first_scene: Size = Field(0, description="number of the first; equal numbers are equal scenes in all kinds")
    seed: int = Field(0, ge=0)
    image_size: int = Field(32, ge=8, le=1024, description="pixels a side")
    grid: Literal[2, 3] = Field(2, description="cells a side")
    phrasing: Phrasing = Field("plain", description="wording of captions, prose and questions: plain, other, or both mixed")
    asked: Percent = Field(0.5, ge=0, le=1, description="text: share of prose followed by questions and answers on it")
    prose_questions: int = Field(2, ge=1, le=len(TYPES), description="text: how many")
    questions: int = Field(5, ge=1, le=len(TYPES), description="vqa: at most, each of another type")
    types: tuple[Type, ...] = Field(TYPES, min_length=1, description="vqa: the types that may be asked")
    frames: int = Field(4, ge=2, le=64, description="video: one a second")
    steps: int = Field(12, ge=motion.CONTEXT + 1, le=4096, description="action-video: frames of a walk, one a second")
    goals: int = Field(2, ge=1, le=64, description="action-video: samples of each observation, each with a goal of its own")
    horizon: int = Field(8, ge=1, le=motion.REL_T, description="action-video: a goal is at most so many frames before or after")

    @field_validator("types")
    @classmethod
    def _once(cls, types: tuple[Type, ...]) -> tuple[Type, ...]:
        if len(set(types)) < len(types):
            raise ValueError("a type of question is named twice")
        return types

    @property
    def data(self) -> str:  # type: ignore[override]
        """The kind of record that comes out: here the recipe says it."""
        return self.kind

    def parts(self) -> list[SourcePart]:
        """Runs of 256 scenes, counted from `first_scene`."""
        stop = self.first_scene + self.scenes
        return [SourcePart({"first": n, "stop": min(n + PART, stop)}, []) for n in range(self.first_scene, stop, PART)]

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record]:
        """The records of one part, in the order of scene numbers."""
        for number in range(spec["first"], spec["stop"]):
            scene = make_scene(self.seed, number, self.grid)
            if self.kind == "action-video":
                yield from self._walk(scene, source)
            else:
                segments, fields = _MAKE[self.kind](self, scene)
                yield self._record(scene, source, "", segments, fields)

    def _record(self, scene: Scene, source: str, clip: str, segments: list[Segment], fields: dict[str, Any]) -> Record:
        fields = {"scene": scene.number, "shapes": scene.symbols(), **fields}
        return Record.make(source, self._origin(scene) + clip, self.kind, segments, scene.group, fields=fields)

    def _origin(self, scene: Scene) -> str:
        return f"seed-{self.seed}/scene-{scene.number}"

    def _text(self, scene: Scene) -> tuple[list[Segment], dict[str, Any]]:
        if scene.dice("asked").share() < self.asked:
            return [Text(language.prose_with_questions(scene, self.prose_questions, self.phrasing))], {"asked": True}
        return [Text(language.prose(scene, self.phrasing))], {"asked": False}

    def _pair(self, scene: Scene) -> tuple[list[Segment], dict[str, Any]]:
        original, recaption = language.original(scene, self.phrasing), language.recaption(scene, self.phrasing)
        return [self._picture(scene), Text(original, atom=1, name="original"), Text(recaption, atom=2, name="recaption")], {}

    def _clip(self, scene: Scene) -> tuple[list[Segment], dict[str, Any]]:
        moves = motion.slides(scene)
        pixels = render.frames(scene, motion.slide_centres(scene, moves, self.frames, self.image_size), self.image_size)
        shape = pixels.shape[1:]
        images = [Image(encode_png(p), atom=i, shape=shape, time_s=float(i), dtype="png") for i, p in enumerate(pixels)]
        return images, {"moves": [list(m) for m in moves]}

    def _vqa(self, scene: Scene) -> tuple[list[Segment], dict[str, Any]]:
        segments = [self._picture(scene, "context")]
        asked = ask(scene, scene.dice("questions"), self.questions, self.types, self.phrasing)
        for turn, q in enumerate(asked):
            segments += [Text(q.prompt, "context", atom=0, turn=turn), Text(q.target, atom=0, turn=turn)]
        return segments, {"questions": [q.fields(turn) for turn, q in enumerate(asked)]}

    def _walk(self, scene: Scene, source: str) -> Iterator[Record]:
        """The samples of one walk: for every frame with three before it, `goals` goals. They share the walk's frames, byte for byte."""
        poses = motion.walk(scene, self.steps)
        pixels = render.view(scene, poses, self.image_size)
        shape, frames = pixels.shape[1:], [encode_png(p) for p in pixels]
        written = [[round(float(v), 6) for v in pose] for pose in poses]
        for t in range(motion.CONTEXT - 1, self.steps):
            seen = range(t - motion.CONTEXT + 1, t + 1)
            clip = f"@{seen[0] * 1000}-{t * 1000}"
            h = hash64(record_id(source, self._origin(scene) + clip))
            for k in range(self.goals):
                offset = motion.goal_offset(h, self.seed, k, t, self.steps, self.horizon)
                goal = t + offset
                action = motion.action_text(*motion.relative(poses[t], poses[goal]), offset)
                segments = [Image(frames[i], "context", atom=0, shape=shape, time_s=float(i), dtype="png") for i in seen]
                segments.append(Text(action, "context", atom=0))
                segments.append(Image(frames[goal], "target", atom=0, shape=shape, time_s=float(goal), dtype="png"))
                fields = {"poses": [written[i] for i in (*seen, goal)], "frame": t, "goal": goal, "k": k}
                yield self._record(scene, source, f"{clip}~{k}", segments, fields)

    def _picture(self, scene: Scene, role: Literal["target", "context"] = "target") -> Segment:
        pixels = render.picture(scene, self.image_size)
        return Image(encode_png(pixels), role, atom=0, shape=pixels.shape, dtype="png")


_MAKE = {"text": World._text, "image-text": World._pair, "video": World._clip, "vqa": World._vqa}
