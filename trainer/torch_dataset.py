"""A plan for other trainers' data loaders: `torch.utils.data` datasets of packed batches, of single sequences and of plain samples.

    loader = DataLoader(PlanBatches("out/plans/example", batch=8), batch_size=None, num_workers=2)
    for batch, position in loader: ...                      # trainer.batch.Batch; position = the next step, one integer

    PlanSamples(path)       (Sample, position): views of mapped files as `mixtures.samples` gives them, of a plan or an encoded dataset
    PlanSequences(path)     map-style: sequence i as a Batch of one row, for samplers of one's own

Each worker makes every N-th item, and a loader asks its workers in turn, so what arrives is the plan's order, the same for any number of workers.
Ranks divide a step as C8 says; without `rank` and `world` those of an initialised torch.distributed hold.

Resume: `load_state_dict({"position": p})` with the p that came with the last batch that was used goes on after it, with any number of workers and,
for batches and for positions at the beginning of a step, of ranks. `state_dict()` says the same where this object itself iterates; a
StatefulDataLoader asks it in each worker, and then the number of workers has to stay. A dataset pickles as its arguments and its position: workers
open files themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch.distributed
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from mixtures.plan import Plan
from mixtures.samples import Sample, Samples
from pipelines.format.errors import InputError
from trainer.batch import Batch
from trainer.stream import Reader, Stream


class _Resumable(IterableDataset[Any]):
    """Where reading is, and which items are this worker's. Subclasses say `_from(position)`: (item, position after it) of this rank."""

    def __init__(self, path: str, rank: int | None, world: int | None) -> None:
        if (rank is None) != (world is None):
            raise InputError("a rank needs a world and a world a rank", where=path, found=f"rank {rank}, world {world}")
        shared = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.path = path
        self.rank = rank if rank is not None else torch.distributed.get_rank() if shared else 0
        self.world = world if world is not None else torch.distributed.get_world_size() if shared else 1
        if not 0 <= self.rank < self.world:
            raise InputError("no such rank", where=path, found=f"{self.rank} of {self.world}")
        self._state: dict[str, Any] = {"position": 0}

    def _from(self, position: int) -> Iterator[tuple[Any, int]]:
        raise NotImplementedError

    def _about(self) -> dict[str, Any]:
        """What a position is a position of."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        state, skip = self._state, worker
        if "worker" in state:
            if (state["worker"], state["workers"]) != (worker, workers):
                raise InputError(
                    "this state is that of one worker of a loader with another number of them",
                    where=self.path,
                    found=f"worker {worker} of {workers}",
                    allowed=f"worker {state['worker']} of {state['workers']}",
                    next='load_state_dict({"position": p}) with the position that came with the last item used',
                )
            skip = workers - 1
        for item, position in islice(self._from(state["position"]), skip, None, workers):
            # Set before the item is handed out: who asks for the state has the item.
            self._state = {"position": position} | ({"worker": worker, "workers": workers} if info else {})
            yield item, position

    def state_dict(self) -> dict[str, Any]:
        """Where reading goes on: {"position", …}; what it was read from, to be checked when it is loaded."""
        return {**self._state, **self._about()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, or from {"position": p} alone. InputError for a state of something else."""
        about = self._about()
        other = {k: state[k] for k in about if k in state and state[k] != about[k]}
        if other or not isinstance(state.get("position"), int) or state["position"] < 0:
            raise InputError("this state is not one of this dataset", where=self.path, found=other or state, allowed=about)
        self._state = {k: state[k] for k in ("position", "worker", "workers") if k in state}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_opened")}  # maps and columns do not travel


class PlanBatches(_Resumable):
    """(Batch, next step) of a plan: `batch` sequences a step over all ranks, ceil(batch / world) rows here, empty ones where the plan ends."""

    def __init__(self, path: str, batch: int, rank: int | None = None, world: int | None = None, split: str = "train") -> None:
        super().__init__(path, rank, world)
        if batch < 1:
            raise InputError("a step has at least one sequence", where=path, found=batch)
        self.batch, self.split = batch, split

    def _stream(self) -> Stream:
        if not hasattr(self, "_opened"):
            self._opened = Stream(Plan.open(self.path), self.batch, self.rank, self.world, split=self.split)
        return self._opened

    def __len__(self) -> int:
        """Steps of the whole plan, wherever reading stands."""
        return self._stream().steps

    def _from(self, position: int) -> Iterator[tuple[int, int]]:
        return ((step, step + 1) for step in range(position, len(self)))

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        for step, position in super().__iter__():  # numbers first, so that a worker makes only the batches that are its own
            yield self._stream().at(step), position

    def _about(self) -> dict[str, Any]:
        return {"plan": self._stream().reader.plan.card["fingerprint"], "split": self.split, "batch": self.batch}


class PlanSamples(_Resumable):
    """(Sample, position) of a plan or of an encoded dataset. Arrays are read-only views in this process; from a worker they come as copies.
    With a `batch_size` a loader collates items of one worker, so whole batches come in turn instead of single samples."""

    def __init__(
        self, path: str, rank: int | None = None, world: int | None = None, step: int | None = None, split: str = "train", verify: bool = True
    ) -> None:
        super().__init__(path, rank, world)
        self.step, self.split, self.verify = step, split, verify

    @property
    def samples(self) -> Samples:
        """What it reads, opened once a process."""
        if not hasattr(self, "_opened"):
            self._opened = Samples(self.path, self.split, self.verify)
        return self._opened

    def _from(self, position: int) -> Iterator[tuple[Sample, int]]:
        return self.samples.read(position, self.rank, self.world, self.step)

    def _about(self) -> dict[str, Any]:
        return {"of": self.samples.fingerprint, "split": self.split}


class PlanSequences(Dataset[Batch]):
    """Map-style: sequence i of a plan as a Batch of one row, in whatever order a sampler asks. `collate` joins sequences into one Batch."""

    def __init__(self, path: str, split: str = "train") -> None:
        self.path, self.split = path, split

    @functools.cached_property
    def _opened(self) -> Reader:
        return Reader(Plan.open(self.path))

    def __len__(self) -> int:
        return self._opened.plan.sequences(self.split)

    def __getitem__(self, i: int) -> Batch:
        return self.__getitems__([i])

    def __getitems__(self, numbers: list[int]) -> Batch:
        """Several sequences as the rows of one Batch, as a loader with a `batch_size` asks for them (`collate_fn=collate`)."""
        numbers = [n + len(self) if n < 0 else n for n in numbers]
        if not all(0 <= n < len(self) for n in numbers):
            raise IndexError(f"no such sequence in {self.path}: {numbers}, of {len(self)}")
        return self._opened.batch([self._opened.sequence(n, self.split) for n in numbers], numbers)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "split": self.split}


def collate(batch: Batch) -> Batch:
    """What `PlanSequences` gives a loader is a Batch already."""
    return batch
