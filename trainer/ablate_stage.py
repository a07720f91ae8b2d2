"""`pipelines run ablate`: one YAML with arms → plans, runs, results.parquet and report.html.

    Ablation ──make_plan──▶ plans/<arm> ──sweep──▶ arms/<arm>/seed-<n> ──evaluate──▶ eval.json ──▶ results.parquet ──▶ report.html ──▶ ablation.json

What is done is not done again: a plan, a run and an evaluation know by their fingerprints whether they are the ones asked for. Consumed tokens
by source must equal the plan, for every run. The card is written last.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from pipelines.format import storage
from pipelines.format.document import dump
from pipelines.format.errors import BudgetError, RecipeError, VerifyError
from pipelines.format.estimate import Estimate
from pipelines.format.manifest import card, file_entry, parent, publish_card, read_card
from trainer.ablation import VERSION, Ablation, ArmRun, arm_runs, identity, mixture_of, plan_paths

LEAST_STEPS, FEW_STEPS = 10, 300
SCHEMA = (("arm", "string"), ("seed", "int64"), ("metric", "string"), ("split", "string"), ("value", "double"), ("n", "int64"), ("chance", "double"))


class Ablate:
    """The stage."""

    config = Ablation
    summary = "arms of mixtures × runs × seeds: plan, train, evaluate, report"

    def plan(self, config: Ablation) -> Estimate:
        """Arms, tokens, steps and FLOPs before anything is made; reads cards only."""
        rows: list[dict[str, Any]] = []
        warnings = []
        runs = arm_runs(config)
        for arm in config.arms:
            run = next(r.run for r in runs if r.arm == arm)
            mixture = mixture_of(config, arm)
            budgets = {name: round(s.tokens * mixture.scale) for name, s in mixture.sources.items() if s.tokens}
            payload = sum(budgets.values())
            steps = -(-payload // (mixture.sequence_length * run.batch))
            row = {"arm": arm, "budget": " + ".join(f"{s} {n:,}" for s, n in budgets.items()), "tokens": payload, "steps (at least)": steps}
            parameters = _parameters(run, mixture)
            flops = None if parameters is None else 6.0 * parameters * payload
            rows.append({**row, "parameters": parameters, "FLOPs": flops, "runs": len(config.seeds)})
            if steps < FEW_STEPS:
                few = f"fewer than {LEAST_STEPS}: it will be refused" if steps < LEAST_STEPS else f"fewer than {FEW_STEPS}"
                warnings.append(f"{arm}: about {steps} optimiser steps, {few}")
        tokens = sum(r["tokens"] for r in rows) * len(config.seeds)
        total = sum(r["FLOPs"] or 0 for r in rows) * len(config.seeds)
        facts: dict[str, Any] = {"arms": len(rows), "seeds": len(config.seeds), "runs": len(runs), "tokens": tokens, "flops": total}
        facts["at a time"] = config.parallel
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


def _parameters(run: Any, mixture: Any) -> int | None:
    """Parameters that act on a token or latent (the larger of the two), counted on the meta device; None before datasets are encoded."""
    from trainer.models.load import build

    encodings = [read_card(p).get("encoding") or {} for s in mixture.sources.values() for p in s.paths if _there(p)]
    if not encodings:
        return None
    text: dict[str, Any] = next((e["text"] for e in encodings if e.get("text")), {})
    image: dict[str, Any] = next((e["image"] for e in encodings if e.get("image")), {})
    shape = {"vocab": int(text.get("vocab", 1)), "channels": int(image.get("width", 1)), "patches": int(image.get("tokens", 1))}
    return int(build(run, shape).parameters_by_use()["text"])


def _there(path: str) -> bool:
    return storage.exists(storage.join(path, "manifest.json"))


def _plans(config: Ablation, job: Any) -> dict[str, Any]:
    """Make every plan that is not there yet; arm → opened plan."""
    from mixtures.plan import Plan, make_plan

    made = {}
    for arm, path in plan_paths(config).items():
        make_plan(mixture_of(config, arm, path), path, job=job)
        made[arm] = Plan.open(path)
        job.log("plan", arm=arm, path=path)
    for arm in config.arms:
        other = config.settled(arm).records_from
        if other is not None:
            _same_records(arm, made[arm], other, made[other])
    return made


def _same_records(arm: str, plan: Any, other: str, of: Any) -> None:
    """`records_from`: both arms train on one list of records, source by source. An encoder arm is only then a comparison of encoders."""
    mine, theirs = _records(plan), _records(of)
    if mine != theirs:
        differing = sum((mine - theirs).values()) + sum((theirs - mine).values())
        raise RecipeError(
            f"arms.{arm}: its records are not those of {other}",
            found=f"{differing:,} records differ",
            next="budgets that take the same records: `count: records`, or encoders with the same tokens a record",
        )


def _records(plan: Any) -> Counter[tuple[str, str, int]]:
    """(source, record id, epoch) of every span of the training split."""
    names = {(d, s): dataset.index(s, ["id"])["id"].to_pylist() for d, dataset in enumerate(plan.datasets) for s in range(len(dataset.shards))}
    spans = (span for i in range(plan.sequences("train")) for span in plan.row(i).spans)
    return Counter((plan.sources[s.source], names[s.dataset, s.shard][s.row], s.epoch) for s in spans)


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
        if item.run.processes > 1:  # torchrun starts these; what remains below is their evaluation
            document = json.dumps(item.run.recipe(), indent=1).encode()  # JSON is YAML
            storage.publish(storage.join(item.output, "run.yaml"), document)
            job.launch(argv(item), item.run.processes)
    tasks = []
    for item in runs:
        threads = item.run.threads or (1 if config.parallel > 1 else None)
        run = item.run.model_copy(update={"threads": threads, "processes": 1})
        tasks.append(task(f"{item.arm} seed {item.seed}", run, asked, float(plans[item.arm].card["tokens"]["all"])))
    sweep(tasks, config.parallel, job.stop, job.log)


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
    if item.run.steps is not None:
        return  # a run cut short by its own key consumes a prefix, and says so
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
