"""`pipelines run ablate`: one YAML with arms → plans, runs, results.parquet and report.html.

    Ablation ──make_plan──▶ plans/<arm> ──ablate_launch──▶ arms/<arm>/seed-<n>, eval.json ──ablate_card──▶ results.parquet, report.html

What is done is not done again: a plan, a run and an evaluation know by their fingerprints whether they are the ones asked for. The card is written
last. Beside this: ablate_estimate (the dry run), ablate_launch (here, Ray, SLURM), ablate_diff (do arms differ in what they should?), ablate_card.
"""

from __future__ import annotations

from typing import Any

from pipelines.format.errors import BudgetError
from pipelines.format.estimate import Estimate
from trainer.ablate_card import finish
from trainer.ablate_estimate import FEW_STEPS, LEAST_STEPS, expected
from trainer.ablate_launch import train_all
from trainer.ablation import Ablation, ArmRun, arm_runs, mixture_of, plan_paths


class Ablate:
    """The stage."""

    config = Ablation
    summary = "arms of mixtures × runs × seeds: plan, train, evaluate, report"

    def plan(self, config: Ablation) -> Estimate:
        """Arms, tokens, steps, FLOPs, GPU-hours, disk and power before anything is made: as the planner counts, where the datasets are there."""
        return expected(config)

    def run(self, config: Ablation, job: Any) -> str:
        """Everything, to the report. Returns the ablation's folder."""
        plans = _plans(config, job)
        runs = arm_runs(config)
        few = _check_steps(plans, runs)
        train_all(config, job, plans, runs)
        return finish(config, plans, runs, few)


ABLATE = Ablate()


def _plans(config: Ablation, job: Any) -> dict[str, Any]:
    """Make every plan that is not there yet; arm → opened plan. Arms that take another's records come after it."""
    from mixtures.plan import Plan, make_plan

    paths = plan_paths(config)
    for arm in sorted(config.arms, key=lambda a: config.settled(a).records_from is not None):
        other = config.settled(arm).records_from
        make_plan(mixture_of(config, arm, paths[arm]), paths[arm], records_from=None if other is None else paths[other], job=job)
        job.log("plan", arm=arm, path=paths[arm])
    return {arm: Plan.open(paths[arm]) for arm in config.arms}


def _check_steps(plans: dict[str, Any], runs: list[ArmRun]) -> list[str]:
    """Refuse an arm of fewer than 10 optimiser steps; return the arms of fewer than 300."""
    few = []
    for item in runs:
        steps = -(-plans[item.arm].sequences("train") // item.run.batch)
        steps = min(steps, item.run.steps or steps)
        if steps < LEAST_STEPS:
            raise BudgetError(
                f"arm {item.arm} has too few optimiser steps to mean anything",
                found=f"{steps} steps of {item.run.batch} sequences",
                allowed=f"at least {LEAST_STEPS}",
                next="raise `scale`, or lower `run.batch`",
            )
        if steps < FEW_STEPS and item.arm not in few:
            few.append(item.arm)
    return few
