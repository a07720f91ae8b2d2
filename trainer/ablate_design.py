"""What an ablation document says besides its arms: on which hardware its cost is reckoned, which spreads its power, how SLURM starts it; and which
arms its questions and figures are about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from pipelines.format.document import Document, Part, Percent, dump

ARMS_KEYS = ("of", "against", "arms", "ladder", "chosen")  # of compare's parts and of figures: what stands under them are arms


def arms_asked_about(part: Part) -> Iterator[str]:
    """Every arm that a part of `compare` or of `report` names."""
    waiting: list[Any] = [dump(part)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for key, below in value.items():
                if key in ARMS_KEYS and below:
                    yield from [below] if isinstance(below, str) else below
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value



class Hardware(Document):
    """One device as the dry run reckons with it: dense bf16 TFLOP/s (default: an H100 or H200, NVIDIA's data sheet) and the share of them that
    training reaches."""

    tflops: float = Field(989.0, gt=0)
    mfu: Percent = Field(0.4, gt=0, le=1)


class Spread(Document):
    """Assumed standard deviations of a paired difference between two arms, in units of the measure: from seed to seed, and from item to item."""

    seed: Percent = Field(ge=0)
    item: float = Field(ge=0)

    @property
    def spreads(self) -> tuple[float, float]:
        """(seed, item)."""
        return float(self.seed), float(self.item)


class Slurm(Document):
    """An array job of arms × seeds, a task each, and a job after it that makes the report.

    nodes, gpus, cpus, time: of a task (gpus of each node; 0 for none). at_once: tasks that may run side by side. options: further lines for #SBATCH,
    without the mark (`--partition=gpu`). setup: shell lines before the work (modules, an environment). submit: call sbatch, unless what was
    submitted before may still be alive (`again`: even then); else only the scripts are written."""

    nodes: int = Field(1, ge=1)
    gpus: int = Field(0, ge=0)
    cpus: int = Field(4, ge=1)
    time: Annotated[str, Field(pattern=r"^[0-9:-]+$")] = "24:00:00"
    at_once: int | None = Field(None, ge=1)
    options: list[Annotated[str, Field(pattern=r"^--[^\n]+$")]] = []
    setup: list[Annotated[str, Field(pattern=r"^[^\n]*$")]] = []
    submit: bool | Literal["again"] = False
