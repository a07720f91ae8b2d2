"""`pipelines run train -c RUN.yaml`: the trainer as a stage, in this process or, with `processes: n`, under torchrun.

In: a Run. Out: the path of its run folder. One process runs in place, since torchrun takes 10 to 17 s to start; several are launched as
`python -m trainer` on the resolved document, so that both ways train by the same lines. No torch before `plan` or `run` is called.
"""

from __future__ import annotations

import sys
from typing import Any

from pipelines.format import storage
from pipelines.format.document import canon
from pipelines.format.errors import HeadwaterError, Stopped
from pipelines.format.estimate import Estimate
from trainer.run import Run

SAMPLED_ROWS = 256  # rows of the plan whose cost stands for all


class Train:
    """The `train` stage."""

    config = Run
    summary = "train a model on a plan of packed sequences"

    def plan(self, config: Run) -> Estimate:
        """Parameters, steps, tokens by source and FLOPs, from the plan's card and the model's shape; no weight is allocated."""
        from mixtures.plan import Plan
        from trainer.models.load import build, shape_of

        plan = Plan.open(config.plan)
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
            "steps": steps, "sequences": used, "tokens": int(tokens["all"] * share), "flops": float(flops), "processes": config.processes,
        }  # fmt: skip
        table = [
            {"source": name, "tokens": int(s["taken"] * share), "loss-bearing": int((s.get("loss_tokens") or 0) * share)}
            for name, s in plan.card["sources"].items()
        ]
        warnings = [f"only {steps} optimiser steps: what is learned in so few says little"] if steps < 300 else []
        return Estimate(f"train {config.name or ''} → {config.output}".replace("  ", " "), facts, table, warnings)

    def run(self, config: Run, job: Any) -> str:
        """Train, or go on training; the run's folder."""
        if config.processes == 1:
            from trainer.loop import train

            train(config, log=_told(job), stop=job.stop)
            return config.output
        document = storage.join(job.scratch, "run.yaml")
        storage.replace(document, canon(config.recipe()))
        status = job.launch(["-m", "trainer", document], config.processes)
        if job.stop.is_set():
            raise Stopped("stopped; a checkpoint is kept", where=config.output, next="the same command goes on")
        if status:
            raise HeadwaterError(f"the trainer ended with status {status}", where=config.output, next="its messages stand above")
        return config.output


def _told(job: Any) -> Any:
    """Events go to the job's log, progress also to the terminal."""

    def say(event: str, **fields: Any) -> None:
        job.log(event, **fields)
        print(event, *(f"{k}={v}" for k, v in fields.items()), file=sys.stderr, flush=True)

    return say


TRAIN = Train()
