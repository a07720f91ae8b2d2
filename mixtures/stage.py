"""`pipelines run mix`: a mixture YAML becomes a plan. Reads indexes, opens no payload, needs neither Ray nor torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mixtures.mixture import Mixture
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

        return make_plan(config, job=job)

    def diff(self, a: str, b: str) -> dict[str, Any]:
        """`--diff A B`: what two plans, or two mixture YAMLs, have in common."""
        from mixtures.diff import diff

        return diff(a, b)

    def count(self, path: str) -> dict[str, Any]:
        """`stats`: what the rows of a plan say beyond its card, by stage and source."""
        from mixtures.counted import count

        return count(path)


STAGE = Mix()
