"""`pipelines run materialize`: a finished plan becomes files, for places that want files and no plan.

In: a plan. Out, by `form`: `ours`, a dataset of its own with a plan over it, or `webdataset`, tars of packed sequences. The stage lives on this floor
because tars hold what the trainer's batches hold; `pipelines run mix … --materialize` finds it by its entry point, as the command line does.
"""

from __future__ import annotations

from typing import Any

from mixtures.materialise import Materialise, estimate
from pipelines.format.estimate import Estimate


class Stage:
    """The stage behind the entry point `materialize`."""

    config = Materialise
    summary = "a plan to files of its own: our shards in the order of consumption, or webdataset tars of packed sequences"

    def plan(self, config: Materialise) -> Estimate:
        """Parts, sequences and bytes."""
        return estimate(config)

    def run(self, config: Materialise, job: Any) -> str:
        """Make the files; returns the path of the new plan, or of the folder of tars."""
        if config.form == "ours":
            from mixtures.own_dataset import make
        else:
            from trainer.webdataset import make
        return make(config, job)


STAGE = Stage()
