"""Runs a chain of steps over many items, on Ray or in this process, with the same results. The only importer of ray.

On Ray **a row of the dataset is a part, not a record**: only descriptors and the payload of the part at hand cross the object store, blocks are
split between rows and never inside, and there is no Ray sort, shuffle or group-by. In process the same steps run one item at a time: for tests,
for debugging, for machines without Ray, and for resuming a job that has nothing left to do, which therefore never starts Ray.

    items ──from_items──▶ step 1 ──▶ step 2 ──▶ … ──iter_rows──▶ results        (1:1 at every step; functions of equal needs are fused by Ray)

A HeadwaterError inside a step travels as a value and is raised here, so that a person sees it rather than a Ray traceback. A worker that is lost
(killed, out of memory, its machine gone) is replaced and what it had in hand is done again, which changes no byte: a part is committed once. A part
that takes its worker down again and again ends the job instead of going round for ever.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, cast

from pipelines import attempts, in_process, launching
from pipelines.format.errors import HeadwaterError, InputError, Stopped
from pipelines.lifted import lift, lower
from pipelines.places import fitting
from pipelines.stage import Job, Step
from pipelines.stopping import kept_signals

WINDOW = 10_000  # items handed to Ray at a time: beyond that its bookkeeping, not the work, takes the time
BLOCKS_PER_CPU = 4  # Ray's own default makes 200 blocks of anything, and minutes of scheduling out of seconds of work
HEAVY_BLOCKS = 2_000  # but items for a class are seconds of work each: one a block, so that a lost worker costs one and none waits behind another
WAITING = 2  # items sent to a worker that holds a class, beside those it works on: their data are there when it is done


class _Failed:
    """A HeadwaterError on its way from a worker to the driver."""

    def __init__(self, error: HeadwaterError) -> None:
        self.error = error


class _Box:
    """Keeps Ray Data from looking inside a row and turning its values into Arrow types."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _call(fn: Callable[[Any], Any], item: Any) -> Any:
    if isinstance(item, _Failed):
        return item
    try:
        return fn(item)
    except HeadwaterError as e:
        return _Failed(e)


class EngineJob:
    """A running job (the `Job` of stage.py). Ray is started by the first `map` that has items, and not before."""

    def __init__(self, where: str = "ray", address: str | None = None, cpus: int | None = None, log_path: str | None = None) -> None:
        self.where, self._address, self._asked = where, address, cpus
        self.stop = Event()
        self.scratch = tempfile.mkdtemp(prefix="headwater-")
        self.log_path, self._started_ray = log_path, False

    @property
    def cpus(self) -> int:
        """Processors to plan for."""
        return self._asked or len(os.sched_getaffinity(0))

    @property
    def gpus(self) -> float | None:
        """GPUs of the running cluster that this job was sent to, which the driver's machine may not have. None: this machine is all there is."""
        if self.where != "ray" or self._address is None:
            return None
        return float(self._start_ray().cluster_resources().get("GPU", 0.0))

    def map(self, chain: Sequence[Step | Callable[[Any], Any]], items: list[dict[str, Any]]) -> Iterator[Any]:
        """Run every item through the chain; results in no particular order. Stops between items when `stop` is set. A bare function is a step."""
        if not items:
            return
        steps = [s if isinstance(s, Step) else Step(s) for s in chain]
        results = self._on_ray(steps, items) if self.where == "ray" else in_process.run(steps, items, _call)
        with contextlib.closing(cast(Generator[Any], results)):  # now, and not when somebody lets go of the error
            for result in results:
                if isinstance(result, _Failed):
                    raise result.error
                yield result
                if self.stop.is_set():
                    raise Stopped("stopped before the job was complete")

    def each(self, fn: Callable[..., Any], kwargs: dict[str, Any], items: list[dict[str, Any]], **asked: Any) -> Iterator[Any]:
        """See `Job.each`."""
        return self.map([Step(fn, kwargs, **asked)], items)

    def build(self, fn: Callable[..., dict[str, Any]], kwargs: dict[str, Any], **asked: Any) -> str:
        """See `Job.build`."""
        from pipelines.build import Build, build
        return build(cast(Job, self), Build(chain=[Step(fn, kwargs)], **asked))

    def _on_ray(self, chain: list[Step], items: list[dict[str, Any]]) -> Iterator[Any]:
        ray = self._start_ray()
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = int(sum(m.get("CPU", 0) for m in machines)) or 1
        heavy = any(inspect.isclass(step.fn) for step in chain)
        if heavy and cpus == 1 and len(chain) > 1:
            # The kinds of worker share a single processor, or the one that holds it would wait for the others for ever.
            chain = [replace(step, cpus=step.cpus / 4) for step in chain]
        blocks = max(BLOCKS_PER_CPU * cpus, HEAVY_BLOCKS * heavy)
        for start in range(0, len(items), WINDOW):
            window = items[start : start + WINDOW]
            counter = ray.remote(num_cpus=0, max_restarts=-1)(attempts.Attempts).remote()
            rows = [_row(item, i) for i, item in enumerate(window, start)]
            dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), blocks))
            for k, step in enumerate(chain):
                begin = _Begin(counter, k, step.name or str(getattr(step.fn, "__name__", "step")))
                if inspect.isclass(step.fn):
                    dataset = self._add_class(ray, dataset, step, begin, machines, _beside(chain), len(window))
                else:
                    dataset = dataset.map(_rowwise(step.fn, step.kwargs, begin), num_cpus=step.cpus)
            for row in dataset.iter_rows():
                yield _value(row)

    def _add_class(self, ray: Any, dataset: Any, step: Step, begin: _Begin, machines: list[dict[str, float]], beside: float, items: int) -> Any:
        fits, cpus = fitting(machines, step.cpus, step.gpus, beside)
        if not fits and self._address is None:
            needs = f"{step.cpus:g} CPUs" + (f" and {step.gpus:g} GPUs" if step.gpus else "")
            there = ", ".join(f"{m.get('CPU', 0):g} CPUs and {m.get('GPU', 0):g} GPUs" for m in machines)
            raise InputError("no machine can hold a worker", where=step.name, found=there, allowed=f"at least {needs}", next="change `resources`")
        if not fits:  # of a running cluster, which may grow
            self.log("waiting", step=step.name, cpus=step.cpus, gpus=step.gpus, machines=len(machines))
        pool = ray.data.ActorPoolStrategy(
            size=max(1, min(step.actors or fits, items)),
            max_tasks_in_flight_per_actor=step.at_once + WAITING,
            max_concurrent_calls_per_actor=step.at_once,
            enable_true_multi_threading=step.at_once > 1,
        )
        held = {"num_cpus": cpus, **({"num_gpus": step.gpus} if step.gpus else {})}
        # Ray Data's own defaults start lost actors anew and hand out again what they had, as often as it takes; `attempts` counts.
        return dataset.map(_actor(step.fn, begin), fn_constructor_kwargs=step.kwargs, compute=pool, **held)

    def _start_ray(self) -> Any:
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a thread of a stopped job must not start a second Ray behind our back
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        try:
            import ray.data
        except ImportError as e:
            raise InputError("Ray is not installed", found=e, next="pip install 'ray[data]', or run with engine=local") from e
        if not ray.is_initialized():
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
            with kept_signals():
                if self._address:
                    ray.init(address=self._address, **quiet)
                else:
                    ray.init(address="local", include_dashboard=False, num_cpus=self._asked, object_store_memory=_store_bytes(), **quiet)
            self._started_ray = True
        for name in ("ray.data", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.enable_operator_progress_bars = False
        context.print_on_execution_start = False
        return ray

    def launch(
        self, argv: list[str], processes: int = 1, where: str = "local", env: dict[str, str] | None = None, cpus: float = 1.0, gpus: float = 0.0
    ) -> int:
        """See `Job.launch`."""
        if where != "ray":
            return launching.here(argv, processes, where, env, self.stop, self._told)
        self._start_ray()
        import ray.train.torch
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        each = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
        return launching.on_ray(ray, ray.train, argv, processes, each, env, self.stop, self._told, self.scratch, self._address is None)

    def _told(self, line: str) -> None:
        """A line of what was launched: for the person watching, and for the log."""
        print(line, file=sys.stderr, flush=True)
        self.log("said", line=line)

    def log(self, event: str, **fields: Any) -> None:
        """One line of log.jsonl: clock and host stand here and in no card."""
        if self.log_path:
            line = json.dumps({"time": round(time.time(), 3), "host": os.uname().nodename, "event": event, **fields}, default=str)
            with open(self.log_path, "a", encoding="utf-8") as f:
                f.write(line + "\n")

    def close(self) -> None:
        """Give back scratch space and the Ray that this job started."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self._started_ray:
            import ray
            ray.shutdown()


@contextlib.contextmanager
def open_job(where: str = "ray", address: str | None = None, cpus: int | None = None, log_path: str | None = None) -> Iterator[EngineJob]:
    """A job that cleans up after itself."""
    job = EngineJob(where, address, cpus, log_path)
    try:
        yield job
    finally:
        job.close()


def _beside(chain: list[Step]) -> float:
    """What the steps beside a class need to go on at all."""
    return max((step.cpus for step in chain if not inspect.isclass(step.fn)), default=0.0)


@dataclass(frozen=True)
class _Begin:
    """Says before the work what is begun (`attempts.py`)."""

    attempts: Any
    step: int
    name: str

    def __call__(self, number: int) -> _Failed | None:
        import ray

        try:
            count = ray.get(self.attempts.begin.remote((self.step, number)), timeout=30)
        except ray.exceptions.RayError:  # then it goes uncounted
            return None
        return _Failed(attempts.too_often(self.name, number)) if count > attempts.ALLOWED else None


def _settle(folder: str) -> None:
    """Relative paths in a recipe mean the driver's working directory, in every worker that has one of that name."""
    with contextlib.suppress(OSError):
        os.chdir(folder)


def _rowwise(fn: Callable[..., Any], kwargs: dict[str, Any], begin: _Begin) -> Callable[[dict[str, Any]], dict[str, Any]]:
    folder = os.getcwd()

    def run(row: dict[str, Any]) -> dict[str, Any]:
        _settle(folder)
        return _row(begin(row["number"]) or _call(lambda item: fn(item, **kwargs), _value(row)), row["number"])

    run.__name__ = getattr(fn, "__name__", "step")
    return run


def _actor(cls: Any, begin: _Begin) -> type:
    folder = os.getcwd()

    class Actor:
        def __init__(self, **kwargs: Any) -> None:
            _settle(folder)
            try:
                self._call: Any = cls(**kwargs)
            except HeadwaterError as e:  # a setting that cannot work must reach the person, not die as a lost actor
                failed = _Failed(e)
                self._call = lambda item: failed

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return _row(begin(row["number"]) or _call(self._call, _value(row)), row["number"])

    Actor.__name__ = cls.__name__
    return Actor


def _row(value: Any, number: int) -> dict[str, Any]:
    """A value on its way to the next step: the number of its item tells what is begun again, large arrays go beside it."""
    rest, beside = lift(value)
    return {"row": _Box(rest), "number": number, "beside": beside}


def _value(row: dict[str, Any]) -> Any:
    return lower(row["row"].value, row["beside"])


def _store_bytes() -> int:
    """A tenth of memory, within 300 MiB and 8 GiB: parts are small and never live long in the object store."""
    return max(300 << 20, min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10, 8 << 30))
