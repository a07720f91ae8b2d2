"""`pipelines run ablate`: one YAML with arms → plans, runs, results.parquet and report.html.

    Ablation ──make_plan──▶ plans/<arm> ──sweep──▶ arms/<arm>/seed-<n> ──evaluate──▶ eval.json ──▶ results.parquet ──▶ report.html ──▶ ablation.json

What is done is not done again: a plan, a run and an evaluation know by their fingerprints whether they are the ones asked for. Consumed tokens
by source must equal the plan, for every run. The card is written last.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from mixtures.mixture import Mixture
from pipelines.format import storage
from pipelines.format.document import dump, exact
from pipelines.format.errors import BudgetError, HeadwaterError, Stopped, VerifyError
from pipelines.format.estimate import Estimate
from pipelines.format.manifest import card, file_entry, parent, publish_card, read_card
from trainer.ablation import VERSION, Ablation, ArmRun, arm_runs, identity, mixture_of, plan_paths
from trainer.run import Run
from trainer.stood_in import noted

LEAST_STEPS, FEW_STEPS = 10, 300
SCHEMA = (("arm", "string"), ("seed", "int64"), ("metric", "string"), ("split", "string"), ("value", "double"), ("n", "int64"), ("chance", "double"))


class Ablate:
    """The stage."""

    config = Ablation
    summary = "arms of mixtures × runs × seeds: plan, train, evaluate, report"

    def plan(self, config: Ablation) -> Estimate:
        """Arms, tokens, steps and FLOPs before anything is made: counted as the planner would where the datasets are there."""
        runs = arm_runs(config)
        rows = [_expected(mixture_of(config, arm), next(r.run for r in runs if r.arm == arm), arm) for arm in config.arms]
        warnings = []
        for row in rows:
            if row["steps"] < FEW_STEPS:
                few = f"fewer than {LEAST_STEPS}: it will be refused" if row["steps"] < LEAST_STEPS else f"fewer than {FEW_STEPS}"
                warnings.append(f"{row['arm']}: {row['steps']} optimiser steps, {few}")
        if any(row["FLOPs"] is None for row in rows):
            warnings.append("some datasets are not there yet: steps are from the budgets alone")
        seeds = len(config.seeds)
        facts: dict[str, Any] = {"arms": len(rows), "seeds": seeds, "runs": len(runs), "at a time": config.parallel}
        facts |= {"tokens": seeds * sum(r["tokens"] for r in rows), "flops": seeds * sum(r["FLOPs"] or 0.0 for r in rows)}
        facts["commands"] = [" ".join(argv(r)) for r in runs if r.run.processes > 1]
        return Estimate(f"ablation {config.name or ''}".strip(), facts, rows, warnings)

    def run(self, config: Ablation, job: Any) -> str:
        """Everything, to the report. Returns the ablation's folder."""
        plans = _plans(config, job)
        runs = arm_runs(config)
        few = _check_steps(plans, runs)
        _train(config, job, plans, runs)
        return finish(config, plans, runs, few)


ABLATE = Ablate()


def argv(item: ArmRun) -> list[str]:
    """The command that trains an arm-run on several processes."""
    return ["-m", "trainer", storage.join(item.output, "run.yaml")]


def _expected(mixture: Mixture, run: Run, arm: str) -> dict[str, Any]:
    """A row of the dry run: one arm with one seed."""
    budgets = {name: int(exact(s.tokens) * exact(mixture.scale)) for name, s in mixture.sources.items() if s.tokens}
    row: dict[str, Any] = {"arm": arm, "budget": " + ".join(f"{s} {n:,}" for s, n in budgets.items()), "tokens": sum(budgets.values())}
    places = [p for s in mixture.sources.values() for p in s.paths]
    if not all(storage.exists(storage.join(p, "manifest.json")) for p in places):
        return {**row, "steps": -(-row["tokens"] // (mixture.sequence_length * run.batch)), "parameters": None, "FLOPs": None}
    from mixtures.estimate import estimate
    from trainer.models.load import build

    facts = estimate(mixture).facts
    encodings = [read_card(p)["encoding"] for p in places]
    image: dict[str, Any] = next((e["image"] for e in encodings if e.get("image")), {})
    vocab = max(int(e["text"]["vocab"]) for e in encodings)
    model = build(run, {"vocab": vocab, "channels": int(image.get("width", 1)), "patches": int(image.get("tokens", 1))})
    tokens = facts["tokens"]
    # Attention is left out (no pairs): at these lengths it is a few per cent, and a lower bound is honest before packing.
    flops = model.training_flops(tokens["text"] + facts["structure"], tokens["visual"], tokens["loss"], 0)
    steps = min(-(-facts["sequences"] // run.batch), run.steps or facts["sequences"])
    return {**row, "tokens": tokens["all"], "steps": steps, "parameters": model.parameters_by_use()["total"], "FLOPs": float(flops)}


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


def _train(config: Ablation, job: Any, plans: dict[str, Any], runs: list[ArmRun]) -> None:
    from trainer.sweep import sweep, task

    asked = dump(config)["evaluate"]
    for item in runs:
        # torchrun trains these, one after the other, each on all its processes; what remains for the sweep is their evaluation.
        if item.run.processes > 1 and not storage.exists(storage.join(item.output, "run.json")):
            document = json.dumps(item.run.recipe(), indent=1).encode()  # JSON is YAML
            storage.publish(storage.join(item.output, "run.yaml"), document)
            status = job.launch(argv(item), item.run.processes)
            if job.stop.is_set():
                raise Stopped("stopped; finished runs and a checkpoint are kept", where=item.output, next="the same command goes on")
            if status:
                raise HeadwaterError(f"the trainer ended with status {status}", where=item.output, next="its messages stand above")
    tasks = []
    for item in runs:
        threads = item.run.threads or (1 if config.parallel > 1 else None)
        run = item.run.model_copy(update={"threads": threads, "processes": 1})
        tasks.append(task(f"{item.arm} seed {item.seed}", run, asked, float(plans[item.arm].card["tokens"]["all"])))
    sweep(tasks, config.parallel, job.stop, _told(job))


def _told(job: Any) -> Any:
    """Finished arm-runs go to the job's log, and as a line to the person waiting."""

    def say(event: str, **fields: Any) -> None:
        job.log(event, **fields)
        print(f"  {event} {fields['name']}: {fields['seconds']} s, {fields['done']} of {fields['of']}", file=sys.stderr, flush=True)

    return say


def finish(config: Ablation, plans: dict[str, Any], runs: list[ArmRun], few: list[str]) -> str:
    """results.parquet, report.html and the card, from what the runs left on disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from trainer.report.page import render
    from trainer.report.reading import read

    root = config.output
    rows: list[dict[str, Any]] = []
    for item in runs:
        _same_tokens(item, read_card(item.output), plans[item.arm].card)
        found = storage.read_json(storage.join(item.output, "eval.json"))["rows"]
        rows += [{"arm": item.arm, "seed": item.seed, **r} for r in found]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([(n, getattr(pa, t if t != "double" else "float64")()) for n, t in SCHEMA])), sink)
    results = file_entry(root, "results.parquet", sink.getvalue().to_pybytes())
    facts = _facts(config, plans, runs, few)
    print_ = identity(config, {arm: plan.card["fingerprint"] for arm, plan in plans.items()})
    parents = [parent(item.output, root, read_card(item.output)["fingerprint"]) for item in runs]
    made = card("ablation", config.name or "ablation", print_, dump(config), parents=parents, stages={"ablate": VERSION}, **facts)
    report = file_entry(root, "report.html", render(read(root, {**made, "path": root})).encode())
    publish_card(root, "ablation.json", {**made, "files": [results, report], "bytes": results["bytes"] + report["bytes"]})
    return root


def _facts(config: Ablation, plans: dict[str, Any], runs: list[ArmRun], few: list[str]) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    place = lambda path: storage.relative(storage.absolute(path), storage.absolute(config.output))
    for arm, plan in plans.items():
        epochs = [s.get("epochs") or 0 for s in plan.card["sources"].values()]
        outputs = {str(r.seed): place(r.output) for r in runs if r.arm == arm}
        arms[arm] = {"plan": place(plan.path), "repeats": float(max(epochs, default=0)), "runs": outputs}
    tokens: dict[str, int] = {}
    for item in runs:
        for kind, n in read_card(item.output)["tokens"].items():
            tokens[kind] = tokens.get(kind, 0) + int(n)
    warnings = [f"fewer than {FEW_STEPS} optimiser steps in {arm}" for arm in few]
    return {"arms": arms, "records": len(runs), "tokens": tokens, "warnings": warnings}


def planned_tokens(plan_card: dict[str, Any]) -> dict[str, int]:
    """Payload tokens by source that a plan holds for training."""
    return {name: int((s.get("tokens") or {}).get("all", 0)) for name, s in plan_card["sources"].items()}


def _same_tokens(item: ArmRun, run_card: dict[str, Any], plan_card: dict[str, Any]) -> None:
    if item.run.steps is not None or noted(item.output):
        return  # a run cut short by its own key consumes a prefix, and says so; one in which others stood in for forgotten records says which
    planned = planned_tokens(plan_card)
    consumed = {name: int(s["tokens"]["all"]) for name, s in run_card["sources"].items()}
    for name in sorted({*planned, *consumed}):
        if planned.get(name, 0) != consumed.get(name, 0):
            raise VerifyError(
                f"arm {item.arm}, seed {item.seed}: consumed tokens of {name} differ from the plan",
                where=item.output,
                found=f"{consumed.get(name, 0):,}",
                allowed=f"{planned.get(name, 0):,}",
            )
