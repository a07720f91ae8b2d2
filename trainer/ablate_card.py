"""What a finished ablation leaves: results.parquet, diff.json, report.md, report.html and the card, each a pure function of what its runs left.

In: the document, opened plans, arm-runs that are trained and evaluated. Consumed tokens by source must equal the plan, for every run; the machine's
diff of resolved configs goes beside the results. Nothing here depends on time or order of work, so an ablation that was killed and gone on with
ends in the same bytes of results.parquet.
"""

from __future__ import annotations

import json
from typing import Any

from pipelines.format import storage
from pipelines.format.document import dump
from pipelines.format.errors import VerifyError
from pipelines.format.manifest import card, file_entry, parent, publish_card, read_card
from trainer.ablate_diff import difference, held_fixed
from trainer.ablate_estimate import FEW_STEPS
from trainer.ablation import VERSION, Ablation, ArmRun, identity
from trainer.stood_in import noted

SCHEMA = (("arm", "string"), ("seed", "int64"), ("metric", "string"), ("split", "string"), ("value", "double"), ("n", "int64"), ("chance", "double"))


def finish(config: Ablation, plans: dict[str, Any], runs: list[ArmRun], few: list[str]) -> str:
    """Everything from what the runs left on disk. Returns the ablation's folder."""
    from trainer.report.markdown import markdown
    from trainer.report.page import render
    from trainer.report.reading import read

    root = config.output
    rows: list[dict[str, Any]] = []
    computed = set()
    cards: dict[str, tuple[dict[str, Any], ...]] = {arm: (plans[arm].card,) for arm in config.arms}
    for item in runs:
        made = read_card(item.output)
        _same_tokens(item, made, plans[item.arm].card)
        found = storage.read_json(storage.join(item.output, "eval.json"))
        rows += [{"arm": item.arm, "seed": item.seed, **r} for r in found["rows"]]
        cards[item.arm] += ({**made, "evaluate": found["evaluate"]},)
        computed.add(" ".join((found.get("computed") or {}).values()))
    files = [file_entry(root, "results.parquet", _table(rows))]
    diff = difference(config, cards)
    facts = _facts(config, plans, runs, few)
    if len(known := sorted(computed - {""})) > 1:
        facts["warnings"].append(f"runs were evaluated in different arithmetic: {', '.join(known)}")
    if diff["undeclared"]:
        facts["warnings"].append(f"{diff['undeclared']} differences between runs that the document does not declare (diff.json)")
    said = json.dumps({**diff, "held": held_fixed(config, cards)}, indent=1, sort_keys=True, default=str)
    files.append(file_entry(root, "diff.json", said.encode()))
    print_ = identity(config, {arm: plan.card["fingerprint"] for arm, plan in plans.items()})
    parents = [parent(item.output, root, read_card(item.output)["fingerprint"]) for item in runs]
    made = card("ablation", config.name or "ablation", print_, dump(config), parents=parents, stages={"ablate": VERSION}, **facts)
    evidence = read(root, {**made, "path": root})
    files += [file_entry(root, "report.html", render(evidence).encode()), file_entry(root, "report.md", markdown(evidence).encode())]
    publish_card(root, "ablation.json", {**made, "files": files, "bytes": sum(f["bytes"] for f in files)})
    return root


def _table(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([(n, getattr(pa, t if t != "double" else "float64")()) for n, t in SCHEMA])), sink)
    return bytes(sink.getvalue().to_pybytes())


def _facts(config: Ablation, plans: dict[str, Any], runs: list[ArmRun], few: list[str]) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    place = lambda path: storage.relative(storage.absolute(path), storage.absolute(config.output))
    for arm, plan in plans.items():
        epochs = [s.get("epochs") or 0 for s in plan.card["sources"].values()]
        outputs = {str(r.seed): place(r.output) for r in runs if r.arm == arm}
        first = read_card(next(r.output for r in runs if r.arm == arm))
        cost = {"payload": first["tokens"]["all"], "loss_tokens": first["tokens"]["loss"], "flops": first.get("flops"), "steps": first["steps"]}
        arms[arm] = {"plan": place(plan.path), "repeats": float(max(epochs, default=0)), "runs": outputs, "cost": cost}
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
    """VerifyError unless what the run consumed is what the plan holds, source by source: all of it, or the prefix that `steps` asks for."""
    if noted(item.output):
        return  # others stood in for forgotten records, and the card says which
    if item.run.steps is not None and item.run.steps * item.run.batch < plan_card["records"]:
        from mixtures.plan import Plan
        from trainer import ledger

        planned = ledger.tokens(Plan.open(item.run.plan), int(run_card["steps"]), item.run.batch)
    else:
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
