"""The lines of metrics.jsonl, also to TensorBoard and Weights & Biases when a run's `log:` asks: the same figures, rank 0 alone.

Neither package is imported unless asked for. A run that goes on repeats the steps since its checkpoint; what a logger has of them already is not
given again: TensorBoard is told to drop what lies at or after the first step (`purge_step`), and a W&B run, which has the run's fingerprint for its
id, keeps its lines and passes over steps it has, which have the same numbers.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any, Protocol

from pipelines.format import storage
from pipelines.format.errors import InputError
from trainer.run import Logs, Run


class Logger(Protocol):
    """Takes lines until closed."""

    def __call__(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def check(config: Logs, root: str) -> None:
    """InputError where a logger cannot work. Every rank asks, so that all stop before the first step."""
    wanted = [("tensorboard", "tensorboard", config.tensorboard), ("wandb", "wandb", config.wandb)]
    for key, package, asked in wanted:
        if asked and importlib.util.find_spec(package) is None:
            raise InputError(f"log.{key} needs a package that is not installed", where=f"log.{key}", found=f"no {package}",
                             next=f"pip install {package}, or leave log.{key} out: metrics.jsonl is written anyway")  # fmt: skip
    if config.tensorboard is True and not storage.is_local(root):
        raise InputError("TensorBoard writes to a folder of this machine", where="log.tensorboard", found=f"output {root}",
                         allowed="log: {tensorboard: FOLDER}")  # fmt: skip


def opened(run: Run, root: str, identity: str, first: int) -> list[Logger]:
    """The loggers of a run that begins, or goes on, at step `first`. Rank 0 only."""
    out: list[Logger] = []
    if run.log.tensorboard:
        folder = str(storage.local(storage.join(root, "tensorboard"))) if run.log.tensorboard is True else str(run.log.tensorboard)
        out.append(_TensorBoard(folder, first, run.log.every))
    if run.log.wandb is not None:
        out.append(_Wandb(run, root, identity))
    return out


def _figures(line: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in line.items() if k != "step" and isinstance(v, int | float) and math.isfinite(v)}


class _TensorBoard:
    def __init__(self, folder: str, first: int, every: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step=0 on a fresh folder does no harm, and clears what a run killed before its first checkpoint left.
        self._writer = SummaryWriter(folder, purge_step=first)  # type: ignore[no-untyped-call]
        self._every = every

    def __call__(self, line: dict[str, Any]) -> None:
        if line["step"] % self._every == 0:
            for key, value in _figures(line).items():
                self._writer.add_scalar(key, value, line["step"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]


class _Wandb:
    def __init__(self, run: Run, root: str, identity: str) -> None:
        import wandb

        config = run.log.wandb
        assert config is not None
        self._run = wandb.init(
            project=config.project, entity=config.entity, group=config.group, mode=config.mode, id=identity[:16], resume="allow",
            name=run.name or storage.absolute(root).rpartition("/")[2], config=run.recipe(),
            dir=str(storage.local(root)) if storage.is_local(root) else None,
            settings=wandb.Settings(console="off", save_code=False, disable_git=True),
        )  # fmt: skip
        self._next, self._every = int(self._run.step), run.log.every

    def __call__(self, line: dict[str, Any]) -> None:
        if line["step"] >= self._next and line["step"] % self._every == 0:
            self._run.log(_figures(line), step=line["step"])

    def close(self) -> None:
        self._run.finish()
