"""Where every run came from: the fingerprints of its plan, datasets and code, so that a figure can be traced back to raw files."""

from __future__ import annotations

from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, joined, table, tag


def section(evidence: Evidence) -> Markup | None:
    """The table of runs and parents, and the command that follows a record back."""
    rows = [[run.arm, str(run.seed), what, tag("code", print_[:16])] for run in evidence.runs.values() for what, print_ in run.lineage]
    if not rows:
        return None
    follow = joined([tag("code", "pipelines trace RECORD_ID PATH"), " follows one record from file to training step."])
    note = tag("p", "Fingerprints are sha256 of what made the thing; equal fingerprints mean equal bytes. ", follow)
    body = tag("details", tag("summary", f"{len(rows)} links"), table(["arm", "seed", "made from", "fingerprint"], rows, numeric_from=9))
    return tag("section", tag("h2", "Lineage"), note, body, id="lineage")
