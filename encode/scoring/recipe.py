"""The score recipe: a curated dataset and named scorers -> the same dataset with score columns.

    dataset: out/captions
    scores:
      clip:      {similarity: {weights: google/siglip2-so400m-patch14-384}}
      nsfw:      {image_class: {weights: models/nsfw, label: nsfw}}
      aesthetic: {embedding_head: {tower: openai/clip-vit-large-patch14, head: aesthetic.safetensors}}
    output: out/captions_scored

A score's name is what filters and mixtures ask for (`where: {scores: {clip: {min: 0.28}}}`). The output's index points at the dataset's own data
files: no picture is copied, so keep both.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import field_validator

from encode.recipe import Resources
from encode.scorer import Scorer
from pipelines.format.document import Document, PartOf


class ScoreRecipe(Document):
    """`replace: true` lets a score that the dataset has already be made anew; without, that is an error. See the module's text for the rest."""

    name: str = ""
    dataset: str
    scores: dict[str, Annotated[Any, PartOf("encode.scorers")]]
    replace: bool = False
    output: str
    engine: Literal["ray", "local"] = "ray"
    resources: Resources = Resources()

    @field_validator("scores")
    @classmethod
    def _named(cls, scores: dict[str, Any]) -> dict[str, Any]:
        if not scores:
            raise ValueError("name at least one score")
        for name in scores:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
                raise ValueError(f"{name!r} is no name for a score: letters, digits, _ and -, since a dot divides the name of a caption from it")
        return scores

    def scorers(self) -> dict[str, Scorer]:
        """The scorers by the names of their scores."""
        return dict(self.scores)
