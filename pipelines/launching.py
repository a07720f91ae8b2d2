"""Processes that find one another: under torchrun on this machine, or as workers of Ray Train on a cluster.

In: `-m MODULE ARGUMENTS`, as for python. Out: an exit status, and every line that the processes print, told as it comes. Standard output belongs to
the command that launches, so what is launched never writes to it. On a cluster each worker calls `MODULE.__main__.main(arguments, stop, say)` in
its own process, inside the process group that Ray Train has set up; `stop` is an event that is set when the job is asked to stop, `say` takes lines.
A worker that ends with a status takes the group down with it: the others wait for it in a collective, and would do so for ever.

Ray comes in as an argument: engine.py is the only importer.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from pipelines.format.errors import InputError

Told = Callable[[str], None]
POLL_SECONDS = 0.5  # how often a worker asks whether it should stop
LEAVING_SECONDS = 30.0  # for a checkpoint after SIGTERM


def here(argv: list[str], processes: int, where: str, env: dict[str, str] | None, stop: threading.Event, told: Told) -> int:
    """Run `python *argv`; several processes under torchrun, or srun where `where` is slurm. SIGTERM is passed on when `stop` is set."""
    command = [sys.executable, *argv]
    if where == "slurm":
        command = ["srun", f"--ntasks={processes}", *command]
    elif processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *argv]
    told_by: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    child = subprocess.Popen(command, env={**os.environ, **(env or {})}, **told_by)
    assert child.stdout is not None
    reading = threading.Thread(target=_tell, args=(child.stdout, told), daemon=True)
    reading.start()
    while child.poll() is None:
        if stop.wait(0.05):
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(LEAVING_SECONDS)
            child.kill()
    reading.join(5)  # what outlives its parent may hold the pipe open
    return child.wait()


def _tell(lines: IO[str], told: Told) -> None:
    for line in lines:
        told(line.rstrip("\n"))


class Mailbox:
    """What workers and the one who launched them say to each other; an actor of its own, so that neither waits for the other."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._stop = False

    def say(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        """The lines since the last time."""
        out, self._lines = self._lines, []
        return out

    def stop(self) -> None:
        self._stop = True

    def stopped(self) -> bool:
        return self._stop


def work(config: dict[str, Any]) -> None:
    """What a worker of Ray Train does."""
    mailbox, (flag, module, *arguments) = config["mailbox"], config["argv"]
    assert flag == "-m", "what is launched on a cluster is a module"
    with contextlib.suppress(OSError):
        os.chdir(config["folder"])  # relative paths mean the driver's, in every worker that has a folder of that name
    os.environ.update(config["env"])
    stop, done = threading.Event(), threading.Event()

    def ask() -> None:
        while not done.wait(POLL_SECONDS):
            if mailbox.stopped.remote().future().result():
                stop.set()
                return

    threading.Thread(target=ask, daemon=True).start()
    say = lambda line: mailbox.say.remote(line).future().result()
    try:
        status = importlib.import_module(f"{module}.__main__").main(arguments, stop, say)
    finally:
        done.set()
    if status and not stop.is_set():
        raise RuntimeError(f"{module} ended with status {status}")


def on_ray(
    ray: Any, train: Any, argv: list[str], workers: int, each: dict[str, float], env: dict[str, str] | None, stop: threading.Event, told: Told,
    scratch: str, fixed: bool,
) -> int:  # fmt: skip
    """Run `argv` by `workers` workers of a TorchTrainer, each with the resources `each`; `fixed`: the cluster cannot grow. 0, or 1 when one was
    lost or gave up. Nothing is started anew here: whoever launches knows what can be gone on with. `train` is the module ray.train."""
    there = ray.cluster_resources()
    lacking = {name: want * workers for name, want in each.items() if want * workers > there.get(name, 0.0)}
    if lacking and fixed:
        raise InputError("this machine cannot hold so many workers", where="processes", found={name: there.get(name, 0.0) for name in lacking},
                         allowed=f"at least {lacking}", next="fewer `processes`, or a cluster: --address")  # fmt: skip
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    trainer = train.torch.TorchTrainer(
        work,
        train_loop_config={"argv": argv, "mailbox": mailbox, "folder": os.getcwd(), "env": env or {}},
        torch_config=train.torch.TorchConfig(backend="nccl" if each.get("GPU") else "gloo"),
        scaling_config=train.ScalingConfig(num_workers=workers, use_gpu=bool(each.get("GPU")), resources_per_worker=each, placement_strategy="PACK"),
        run_config=train.RunConfig(name="run", storage_path=scratch, failure_config=train.FailureConfig(max_failures=0)),
    )
    failed: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failed.append(error)

    fitting = threading.Thread(target=fit, daemon=True)
    fitting.start()
    asked = False
    while fitting.is_alive():
        fitting.join(0.2)
        if stop.is_set() and not asked:
            asked = bool(ray.get(mailbox.stop.remote()) or True)
        for line in ray.get(mailbox.take.remote()):
            told(line)
    for line in ray.get(mailbox.take.remote()):
        told(line)
    if failed:
        told(f"a worker was lost or gave up: {str(failed[0]).strip().splitlines()[-1][:300]}")
    ray.kill(mailbox)
    return 1 if failed else 0
