"""The recipe: a YAML document that says how raw files become a curated dataset.

    name, source, filters, transforms, seed, output        records pass every filter, then every transform, in the order written
    across                                                 then stages over the whole dataset, such as duplicates
    shard_bytes, error_budget                              how it is stored and how much may go wrong
    engine, resources                                      what runs it: never part of any fingerprint
    keep_dropped                                           also write what filters dropped, as a dataset below the output; no part of it
    retry                                                  take up again what was rejected in passing (`--retry transient`); no part of it either
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipelines.build import ErrorBudget
from pipelines.format.document import Document, PartOf, Size, dump, part_name


class Resources(Document):
    """What one worker of a step takes: processors (fractions allowed), GPUs, and how many workers."""

    cpus: float = 1.0
    gpus: float = 0.0
    actors: int | None = None


class Recipe(Document):
    """A curating recipe. `name` becomes the source of every record, and so part of its id."""

    name: str
    source: Annotated[Any, PartOf("pipelines.sources")]
    filters: list[Annotated[Any, PartOf("pipelines.filters")]] = Field(default_factory=list)
    transforms: list[Annotated[Any, PartOf("pipelines.transforms")]] = Field(default_factory=list)
    across: list[Annotated[Any, PartOf("pipelines.across")]] = Field(default_factory=list)
    seed: int = 0
    shard_bytes: Size = 268_435_456  # 256 MiB
    output: str
    error_budget: ErrorBudget = ErrorBudget()
    engine: Literal["ray", "local"] = "ray"
    retry: Literal["transient", "timeout", "failed"] | None = None
    keep_dropped: bool = False
    resources: Resources = Resources()

    def versions(self) -> dict[str, int]:
        """The version of every part used: a part whose meaning changes takes a new number, and its records are made anew."""
        parts = [self.source, *self.filters, *self.transforms, *self.across]
        return {"curate": 1, **{part_name(p): type(p).version for p in parts}}

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, as saved in the card."""
        return dump(self)
