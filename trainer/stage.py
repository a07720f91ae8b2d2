"""`pipelines run train -c RUN.yaml`: the trainer as a stage: in this process, with `processes: n` under torchrun, with `engine: ray` on a cluster.

In: a Run. Out: the path of its run folder. One process runs in place, since torchrun takes 10 to 17 s to start; several are launched as
`-m trainer` with the resolved document as its argument, so that all ways train by the same lines. A process that is lost takes its group down;
the group is started again, `retries` times, and goes on from the newest checkpoint. No torch before `plan` or `run` is called.
"""

from __future__ import annotations

import sys
from typing import Any

from pipelines.format import storage
from pipelines.format.document import canon
from pipelines.format.errors import HeadwaterError, InputError, Stopped, TemporaryError
from pipelines.format.estimate import Estimate
from trainer import outcome
from trainer.run import Run, Workers

SAMPLED_ROWS = 256  # rows of the plan whose cost stands for all


class Train:
    """The `train` stage."""

    config = Run
    summary = "train a model on a plan of packed sequences"

    def plan(self, config: Run) -> Estimate:
        """Parameters, steps, tokens by source and FLOPs, from the plan's card and the model's shape; no weight is allocated."""
        from mixtures.plan import Plan
        from trainer.models.load import build, shape_of
        from trainer.pictures import encoding_of

        plan = Plan.open(config.plan)
        encoding_of(config, plan)  # what was to be read and is not there is said now
        model = build(config, shape_of(plan))
        of, sequences = model.parameters_by_use(), plan.sequences()
        steps = min(-(-sequences // config.batch), config.steps or sys.maxsize)
        used = min(steps * config.batch, sequences)
        share = used / max(sequences, 1)
        tokens = plan.card["tokens"]
        rows = [plan.row(i) for i in range(min(SAMPLED_ROWS, sequences))]
        # A row's cost is its length plus the sum of its documents' squared lengths over S; a causal document attends half its square.
        pairs = sum((r.cost - r.length) * plan.sequence_length / 2 for r in rows) / max(len(rows), 1) * used
        positions = tokens["text"] + plan.card.get("structure", 0)
        flops = model.training_flops(int(positions * share), int(tokens["visual"] * share), int(tokens.get("loss", 0) * share), int(pairs))
        facts = {
            "parameters": of["total"], "embedding": of["embedding"], "active_text": of["active_text"], "active_latent": of["active_latent"],
            "steps": steps, "sequences": used, "tokens": int(tokens["all"] * share), "flops": float(flops),
            "processes": config.processes * config.nodes,
        }  # fmt: skip
        table = [
            {"source": name, "tokens": int(s["taken"] * share), "loss-bearing": int((s.get("loss_tokens") or 0) * share)}
            for name, s in plan.card["sources"].items()
        ]
        warnings = [f"only {steps} optimiser steps: what is learned in so few says little"] if steps < 300 else []
        return Estimate(f"train {config.name or ''} → {config.output}".replace("  ", " "), facts, table, warnings)

    def run(self, config: Run, job: Any) -> str:
        """Train, or go on training; the run's folder. A process that is lost is one of `retries`; an error of ours is raised here as it was there."""
        if config.engine == "local" and config.processes * config.nodes == 1:
            from trainer.loop import train

            train(config, log=_told(job), stop=job.stop)
            return config.output
        if config.engine == "local" and config.nodes > 1:
            raise InputError("several machines need something that reaches them", where="nodes", found=config.nodes, allowed="engine: ray",
                             next="`engine: ray` with --address, or torchrun on each machine (docs/launch.md)")  # fmt: skip
        return _launched(config, job)


def _launched(config: Run, job: Any) -> str:
    """In several processes, started again when one is lost."""
    where: dict[str, Any] = {"where": config.engine, **({} if config.engine == "local" else _each(config, job))}
    argv, env = ["-m", "trainer", canon(config.recipe()).decode()], {outcome.VARIABLE: outcome.place(config.output)}
    for left in range(config.retries, -1, -1):
        outcome.take(config.output)  # of a launcher that was killed
        status = job.launch(argv, config.processes * config.nodes, env=env, **where)
        error = outcome.take(config.output)
        done = storage.exists(storage.join(config.output, "run.json"))
        if job.stop.is_set() and not done:
            raise Stopped("stopped; a checkpoint is kept", where=config.output, next="the same command goes on")
        if status == 0:
            return config.output
        if error is not None and not isinstance(error, TemporaryError):
            raise error
        if left:
            job.log("a process was lost", status=status, retries_left=left)
            print(f"a process was lost (status {status}); going on from the newest checkpoint", file=sys.stderr, flush=True)
    raise error or HeadwaterError(f"the trainer ended with status {status}", where=config.output,
                                  next="its messages stand above; the same command goes on from the newest checkpoint")  # fmt: skip


def _each(config: Run, job: Any) -> dict[str, float]:
    """What a process takes of a cluster."""
    asked = config.resources or Workers()
    gpus = asked.gpus
    if gpus is None:
        there = job.gpus
        if there is None:  # no cluster but this machine
            import torch

            there = float(torch.cuda.device_count())
        gpus = 1.0 if config.device != "cpu" and there else 0.0
    if gpus > 1 or (gpus and gpus != 1.0):
        raise InputError("a process trains on one whole GPU", where="resources.gpus", found=gpus, allowed="0 or 1")
    return {"cpus": asked.cpus, "gpus": gpus}


def _told(job: Any) -> Any:
    """Events go to the job's log, progress also to the terminal."""

    def say(event: str, **fields: Any) -> None:
        job.log(event, **fields)
        print(event, *(f"{k}={v}" for k, v in fields.items()), file=sys.stderr, flush=True)

    return say


TRAIN = Train()
