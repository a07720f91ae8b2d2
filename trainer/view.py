"""Web pages of runs and ablations, for `pipelines view`: an ablation's is its report, a run's has its losses, tokens and evaluation.

`pages(path)` → [(name, html)], the first is the front page. A run is shown as an ablation of one arm and one seed, by the same sections.
"""

from __future__ import annotations

from pipelines.format import storage
from pipelines.format.errors import InputError
from pipelines.format.manifest import read_card


def pages(path: str) -> list[tuple[str, str]]:
    """The pages of the run or ablation at `path`; self-contained, no script."""
    from trainer.report.evidence import Evidence
    from trainer.report.page import render
    from trainer.report.reading import evaluated, read, read_run

    card = read_card(path)
    if card["kind"] == "ablation":
        return [("report.html", render(read(path, card)))]
    if card["kind"] != "run":
        raise InputError("this is neither a run nor an ablation", where=path, found=card["kind"])
    name, seed = str(card["name"]), int(card["recipe"].get("seed", 0))
    run = read_run(path, name, seed)
    results = [{"arm": name, "seed": seed, **row} for row in evaluated(path)]
    budgets = {name: {source: kinds["payload"] for source, kinds in run.planned.items()}}
    shown = Evidence(name, [name], [seed], results, {(name, seed): run}, budgets, card=card)
    return [(f"{storage.absolute(path).rpartition('/')[2]}.html", render(shown))]
