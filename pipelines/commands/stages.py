"""List what can be run, from every installed package."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from pipelines import plugins
from pipelines.terminal import table


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yamls", action="store_true", help="list the packaged YAML documents too")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    found = []
    for name, entry in plugins.entries(plugins.STAGES).items():
        row = {"name": name, "from": entry.value, "package": entry.dist.name if entry.dist else "", "does": ""}
        try:
            row["does"] = _says(entry.load())
        except Exception as error:  # a broken third-party package must not hide the others
            row["does"] = f"cannot be imported: {error}"
        found.append(row)
    result: dict[str, Any] = {"stages": found}
    if args.yamls:
        result["yamls"] = [{"name": path.stem, "path": str(path)} for folder in plugins.packaged() for path in sorted(folder.glob("*.yaml"))]
    return result


def _says(stage: Any) -> str:
    """The first sentence of the stage's own docstring, or of its config's."""
    text = getattr(stage, "summary", None) or inspect.getdoc(type(stage)) or inspect.getdoc(stage.config) or ""
    return text.partition("\n")[0]


def show(answer: dict[str, Any]) -> None:
    table("pipelines run STAGE -c FILE", ["stage", "does", "from"], [[s["name"], s["does"], s["from"]] for s in answer["stages"]])
    if "yamls" in answer:
        table("packaged documents", ["name", "path"], [[y["name"], y["path"]] for y in answer["yamls"]])
