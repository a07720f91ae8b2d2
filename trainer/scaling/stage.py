"""`pipelines run scaling -c FILE`: laws of runs that were trained anywhere, from a table of them, or of a finished ablation.

    runs: runs.csv            ──▶   scaling.json (every law, its intervals, what has none and why) and report.html
    columns: {n: params, d: tokens, losses: {language: loss}}

With sizes and tokens: IsoFLOP parabolas where budgets have sizes enough, power laws, L(N, D), and with `own` L(N, D_own, D_other). With `sources`: a
law over mixtures and the next one. The same tables and figures as in an ablation's report.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from pipelines.format import storage
from pipelines.format.document import Document, Percent, dump, fingerprint, sha256_hex
from pipelines.format.errors import InputError
from pipelines.format.estimate import Estimate
from pipelines.format.manifest import card, file_entry, publish_card, read_card, refuse_other_recipe
from trainer.scaling.points import Measured
from trainer.scaling.table import Columns, Table, read

VERSION = 1


class Scaling(Document):
    """runs: a table (.csv, .parquet), or the folder of an ablation, which needs no columns. highest_left_out: runs of a table with the highest
    losses, dropped first, as published re-fits do with outliers. bounds: least and most share by source of the next mixture (null: within what the
    runs span). draws: refits for intervals (mixtures: at most 100)."""

    name: str = ""
    runs: str
    columns: Columns = Columns()
    highest_left_out: int = Field(0, ge=0)
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    bounds: dict[str, tuple[Percent, Percent]] | None = None
    draws: int = Field(400, ge=20)
    key: int = 0
    output: str
    engine: Literal["local", "ray"] = "local"

    @model_validator(mode="after")
    def _something(self) -> Scaling:
        c = self.columns
        if self.runs.endswith((".csv", ".parquet")) and not c.sources and (c.n is None or (c.d is None and c.flops is None)):
            raise ValueError("columns: say `n` with `d` or `flops` for laws over sizes, or `sources` for a law over mixtures")
        if not c.losses:
            raise ValueError("columns.losses: no loss to fit")
        for name in (*c.own, *self.weights):
            if name not in c.losses:
                raise ValueError(f"no loss {name!r} in columns.losses; known: {', '.join(c.losses)}")
        return self


class ScalingStage:
    """The stage."""

    config = Scaling
    summary = "laws of the loss over sizes, tokens and mixtures, from a table of runs"

    def plan(self, config: Scaling) -> Estimate:
        """What the table holds."""
        table = _read(config)
        facts: dict[str, Any] = {"runs": table.rows, "left out": table.left_out + config.highest_left_out, "sizes": len({r.n for r in table.runs})}
        facts["budgets"] = len({r.budget for r in table.runs if r.budget is not None})
        return Estimate(f"scaling {config.name}".strip(), {**facts, "output": config.output})

    def run(self, config: Scaling, job: Any) -> str:
        """Fit, unless the output already holds these very laws. Returns the folder."""
        output = storage.absolute(config.output)
        table = _without_highest(_read(config), config)
        settings = {k: v for k, v in dump(config).items() if k not in ("name", "runs", "output", "engine")}
        recipe = fingerprint({"stage": "scaling", "version": VERSION, **settings, "table": _identity(config)})
        refuse_other_recipe(output, "manifest.json", recipe)
        if storage.exists(storage.join(output, "manifest.json")):
            return output
        figures, page = _made(config, table)
        job.log("scaling", runs=len(table.runs) or len(table.mixtures))
        files = [file_entry(output, "scaling.json", json.dumps(figures, indent=1, allow_nan=False).encode())]
        files.append(file_entry(output, "report.html", page.encode()))
        facts = {"files": files, "bytes": sum(f["bytes"] for f in files), "records": table.rows - table.left_out, "recipe_fingerprint": recipe}
        made = card("scaling", config.name or "scaling", fingerprint([recipe, *(f["sha256"] for f in files)]), dump(config),
                    stages={"scaling": VERSION}, left_out=table.left_out, **facts)  # fmt: skip
        publish_card(output, "manifest.json", made, recipe)
        storage.sweep(output)
        return output


STAGE = ScalingStage()


def _is_table(config: Scaling) -> bool:
    return config.runs.endswith((".csv", ".parquet"))


def _read(config: Scaling) -> Table:
    if _is_table(config):
        return read(storage.absolute(config.runs), config.columns)
    from trainer.scaling.ablated import read as read_ablation

    return read_ablation(config.runs)


def _identity(config: Scaling) -> str:
    """What the runs are, wherever they lie."""
    place = storage.absolute(config.runs)
    return sha256_hex(storage.read(place)) if _is_table(config) else str(read_card(place)["fingerprint"])


def _without_highest(table: Table, config: Scaling) -> Table:
    """The table less the runs of the highest first loss."""
    if not config.highest_left_out:
        return table
    if not _is_table(config):
        raise InputError("runs of an ablation are not left out by their loss", where=config.runs, found="highest_left_out")
    first = table.losses[next(iter(table.losses))]
    if config.highest_left_out >= len(first):
        raise InputError("more runs are left out than there are", found=f"highest_left_out {config.highest_left_out}", allowed=f"under {len(first)}")
    kept = first < np.sort(first)[-config.highest_left_out]
    runs: list[Measured] = [r for r, k in zip(table.runs, kept, strict=True) if k] if table.runs else []
    losses = {name: values[kept] for name, values in table.losses.items()}
    arms = [a for a, k in zip(table.arms, kept, strict=True) if k]
    return Table(runs, table.mixtures[kept], losses, table.rows, table.left_out + int((~kept).sum()), table.sources, arms)


def _made(config: Scaling, table: Table) -> tuple[dict[str, Any], str]:
    """scaling.json and the page."""
    from trainer.report.compare import isoflop_law, mixing_law
    from trainer.report.figures.isoflop import drawn
    from trainer.report.markup import Markup, tag
    from trainer.scaling.sweep import laws

    sections: list[Markup | None] = []
    figures: dict[str, Any] = {"runs": table.rows, "left_out": table.left_out, "laws": [], "mixtures": []}
    if table.runs:
        found = laws(table.runs, config.key, max(config.draws, 1000), config.draws)
        figures["laws"] = isoflop_law.rows(found)
        sections += [drawn(table.runs, found), tag("section", tag("h2", "Laws"), *isoflop_law.tables(found), id="laws")]
    if table.mixtures.shape[1] and table.losses:
        names = list(table.losses)
        title = tag("h2", "A law over mixtures")
        try:
            mixed = mixing_law.fitted(table.sources, names, table.arms, table.mixtures, np.stack([table.losses[n] for n in names], 1),
                                      weights=config.weights, bounds=config.bounds, draws=min(config.draws, 100), key=config.key)  # fmt: skip
        except ValueError as e:
            if config.columns.sources or config.bounds:  # asked for
                raise InputError(str(e), where=config.runs) from None
            figures["mixtures_missing"] = str(e)
            sections.append(tag("section", title, tag("p", f"No law: {e}.", class_="weak"), id="mixing-law"))
        else:
            figures["mixtures"] = mixing_law.rows(mixed)
            sections.append(tag("section", title, *mixing_law.tables(mixed), id="mixing-law"))
    return figures, _page(config.name or "scaling", [s for s in sections if s is not None], table)


def _page(name: str, sections: list[Any], table: Table) -> str:
    """The sections as one file: no network, no script, as a report's."""
    from trainer.report.markup import POLICY, Markup, tag
    from trainer.report.page import STYLE

    policy = Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">')
    view = tag("meta", name="viewport", content="width=device-width, initial-scale=1")
    head = tag("head", tag("meta", charset="utf-8"), policy, view, tag("title", name), tag("style", STYLE))
    left = f", {table.left_out:,} left out" if table.left_out else ""
    body = tag("body", tag("main", tag("h1", name), tag("p", f"{table.rows:,} runs{left}", class_="lead"), *sections))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def pages(path: str) -> list[tuple[str, str]]:
    """For `pipelines view`: the page that was made with the laws."""
    return [("report.html", storage.read(storage.join(path, "report.html")).decode())]
