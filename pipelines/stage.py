"""The contracts: what a source, a filter, a transform and a stage must answer. One method each, one type per answer.

    Source     parts() → units of work;  read(part) → records, or what could not be read
    Filter     reason(record) → why to drop it, or None
    Transform  apply(record) → none, one or many records
    Across     rounds of map and reduce over a whole dataset (duplicates, balancing), ending in ids and reasons
    Stage      config, plan(config) → Estimate, run(config, job) → path of the artifact

Parts never meet the engine: they are plain Python and are tested without a cluster. A filter or transform raises `Reject` to cost one record;
any other exception costs one record too, is counted as `error:<Class>`, and weighs on the job's error budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import Any, ClassVar, Protocol, runtime_checkable

from pipelines.format.document import Part
from pipelines.format.errors import Reject
from pipelines.format.estimate import Estimate
from pipelines.format.record import Record

__all__ = [
    "Across",
    "Estimate",
    "Filter",
    "Job",
    "Part",
    "Record",
    "Reject",
    "Rejected",
    "Source",
    "SourcePart",
    "Stage",
    "Step",
    "Transform",
    "together",
]


@dataclass(frozen=True, slots=True)
class SourcePart:
    """One unit of work: `spec` is JSON that `read` understands, `inputs` the files behind it as [relative path, bytes, tag]."""

    spec: dict[str, Any]
    inputs: list[list[Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Rejected:
    """An item of a part that could not be turned into a record; everything else of the part still is."""

    origin: str
    reason: str
    detail: str = ""


class Source(Part):
    """Where records come from. `data` says their kind; parts must be a pure function of the recipe and the sorted listing."""

    version: ClassVar[int] = 1
    data: ClassVar[str]

    def parts(self) -> list[SourcePart]:
        """The units of work, numbered by their place in this list."""
        raise NotImplementedError

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        """The records of one part, in a fixed order; `source` is the recipe's name and goes into every record."""
        raise NotImplementedError

    def again(self, spec: dict[str, Any], origins: list[str]) -> dict[str, Any] | None:
        """The spec of a part that takes up only these items of `spec`, which could not be read before; None where asking again cannot help."""
        return None

    def parents(self) -> list[tuple[str, str]]:
        """Artifacts that this source reads, as (path, fingerprint): the card names them, and lineage goes on through them."""
        return []

    def hashed(self, fields: dict[str, Any]) -> dict[str, Any]:
        """What of this source's resolved fields says what the records are. The rest may change without another dataset coming of it."""
        return fields


class Filter(Part):
    """A reason to drop a record. The reason is the filter's file name, with `.detail` when it has several rules."""

    version: ClassVar[int] = 1

    def reason(self, record: Record) -> str | None:
        """Why this record is dropped, or None to keep it."""
        raise NotImplementedError

    def kept(self, record: Record) -> Record:
        """The record as what follows sees it, asked once `reason` gave None. Only where the method itself rewrites (C4 drops lines, a classifier
        notes its score) is it another than the one given."""
        return record

    def files(self) -> list[str]:
        """Files beside the source that decide what is dropped (a model, a list): their bytes enter the fingerprint."""
        return []


class Transform(Part):
    """A change of a record into none, one or many. Derived records get origins that end in `~k`."""

    version: ClassVar[int] = 1

    def apply(self, record: Record) -> Iterable[Record]:
        """What becomes of this record."""
        raise NotImplementedError


Row = tuple[int, bytes, Any]


Map = Callable[..., Iterable[Any]]
Reduce = Callable[[Iterable[Row]], Iterable[Any]]


class Across(Part):
    """A stage over a whole dataset, independent of sharding and workers.

    `rounds` is a list of (map, reduce). map turns an iterator (of records in the first round, of the values that the round before gave afterwards)
    into rows (bucket, key, value), the value being JSON; reduce sees one bucket's rows, sorted by key, then value, and gives values for the next
    round; the last reduce gives (id, reason) of the records to drop. `buckets` is a constant of the recipe, never the number of workers.
    `payloads` asks for the bytes of images.

    Rounds named in `again` go over the records once more, knowing what was found: their map gets (records, told), told[r] being the list of all
    values that round r gave. A last round of that kind may have None for its reduce: its map then gives the (id, reason) of its own records itself,
    and no worker ever holds the drops of other parts.
    """

    version: ClassVar[int] = 1
    payloads: ClassVar[bool] = False
    again: ClassVar[tuple[int, ...]] = ()
    buckets: int = 64

    def rounds(self) -> Sequence[tuple[Map, Reduce | None]]:
        """The rounds, in order."""
        raise NotImplementedError

    def files(self) -> list[str]:
        """Files beside the source that decide what is dropped (an entry list, evaluation sets): their bytes enter the fingerprint."""
        return []

    def report(self, told: list[list[Any]]) -> dict[str, Any] | None:
        """Figures for the card (`figures`), from what all rounds but the last gave; small, and free of clock and host."""
        return None


@dataclass(frozen=True)
class Step:
    """One step of a chain: a function item → item, or a class that is set up once per worker and then called with items.

    cpus and gpus are what one call needs at a time (0.5 of a GPU: two workers share one); `actors` is how many workers a class gets (None: as
    many as fit on the GPUs or CPUs there are). A worker is called with `at_once` items at a time, each in a thread: where a device does the work, it
    goes on with one item while the host ends another. `processes`: without Ray, a function beside a class runs in so many child processes (0: in a
    thread of this one).
    """

    fn: Callable[..., Any]
    kwargs: dict[str, Any] = field(default_factory=dict)
    cpus: float = 1.0
    gpus: float = 0.0
    actors: int | None = None
    name: str | None = None
    at_once: int = 1
    processes: int = 0

    def ready(self) -> Callable[[Any], Any]:
        """The step as it is called with items; a class is set up now."""
        return self.fn(**self.kwargs) if isinstance(self.fn, type) else partial(_called, self.fn, self.kwargs)


def _called(fn: Callable[..., Any], kwargs: dict[str, Any], item: Any) -> Any:
    return fn(item, **kwargs)


class Together:
    """Several steps as one of them, in one worker: what one gives the next one takes in the same process, so that nothing travels."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._calls = [step.ready() for step in steps]

    def __call__(self, item: Any) -> Any:
        for call in self._calls:
            item = call(item)
        return item


def together(steps: Sequence[Step], name: str | None = None) -> Step:
    """One step that does the work of all, with the largest of their needs."""
    actors = next((s.actors for s in steps if s.actors), None)
    return Step(Together, {"steps": list(steps)}, max(s.cpus for s in steps), max(s.gpus for s in steps), actors, name)


class Job(Protocol):
    """What a stage may use of the engine."""

    where: str
    cpus: int
    gpus: float | None
    scratch: str
    stop: Event

    def map(self, chain: Sequence[Step | Callable[[Any], Any]], items: list[dict[str, Any]]) -> Iterator[Any]:
        """Run every item through the chain; results come in no particular order. A bare function is a step that needs one processor."""
        ...

    def each(self, fn: Callable[..., Any], kwargs: dict[str, Any], items: list[dict[str, Any]], **asked: Any) -> Iterator[Any]:
        """`map` with one step, `asked` being the other fields of Step: for packages that may not import it."""
        ...

    def build(self, fn: Callable[..., dict[str, Any]], kwargs: dict[str, Any], **asked: Any) -> str:
        """Make an artifact part by part: `fn(part, **kwargs)` commits one and returns its record; `asked` are the fields of `pipelines.build.Build`
        beside its chain. So a package that may not import the builder has parts, resume and card like all others. Returns the path."""
        ...

    def launch(
        self, argv: list[str], processes: int = 1, where: str = "local", env: dict[str, str] | None = None, cpus: float = 1.0, gpus: float = 0.0
    ) -> int:
        """Run a Python module or script (argv after `python`) as that many processes that find one another; returns the exit status. `where`: local
        (torchrun), slurm (srun), or ray: workers of Ray Train with so many processors and GPUs each (launching.py). What they print is told."""
        ...

    def log(self, event: str, **fields: Any) -> None:
        """A line for log.jsonl and, briefly, for the person watching."""
        ...


@runtime_checkable
class Stage(Protocol):
    """What an entry point of the group `pipelines.stages` names. Importing it loads neither ray nor torch.

    Two more methods may be there: `diff(a, b) → dict`, what two of its artifacts have in common (`run STAGE --diff A B`), and `count(path) → dict`,
    what an artifact of it holds beyond its card (`stats`, which finds the stage by the card's `code.stages`)."""

    config: type[Any]

    def plan(self, config: Any) -> Estimate:
        """What running this would take and give, without running it."""
        ...

    def run(self, config: Any, job: Job) -> str:
        """Make the artifact; returns its path."""
        ...
