"""`pipelines run mix`: a mixture YAML becomes a plan. Reads indexes, opens no payload, needs neither Ray nor torch."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from mixtures.mixture import Mixture
from pipelines.format import storage
from pipelines.format.estimate import Estimate

if TYPE_CHECKING:
    from pipelines.stage import Job


class Mix:
    """The stage behind the entry point `mix`."""

    config = Mixture
    summary = "token budgets by source → a plan of packed training sequences"

    def plan(self, config: Mixture) -> Estimate:
        """What the plan would hold: wanted, available, epochs, loss-bearing tokens, sequences, fill. Raises what planning would."""
        from mixtures.estimate import estimate

        return estimate(config)

    def run(self, config: Mixture, job: Job | Any) -> str:
        """Write the plan to `output` and return that path."""
        from mixtures.plan import make_plan

        path = make_plan(config, job=job)
        if config.materialize:
            _materialise(path, "ours" if config.materialize is True else config.materialize, config.engine, job)
        return path

    def diff(self, a: str, b: str) -> dict[str, Any]:
        """`--diff A B`: what two plans, or two mixture YAMLs, have in common."""
        from mixtures.diff import diff

        return diff(a, b)

    def count(self, path: str) -> dict[str, Any]:
        """`stats`: what the rows of a plan say beyond its card, by stage and source."""
        from mixtures.counted import count

        return count(path)


def _materialise(plan: str, form: str, engine: str, job: Job | Any) -> None:
    """The plan's files, in a folder of the form's name in the plan's own. The stage that makes them stands on a higher floor, so it is found by its
    entry point, as the command line finds it."""
    (entry,) = entry_points(group="pipelines.stages", name="materialize")
    stage = entry.load()
    output = storage.join(plan, form)
    job.log("materialize", form=form, output=stage.run(stage.config(plan=plan, output=output, form=form, engine=engine), job))


STAGE = Mix()
