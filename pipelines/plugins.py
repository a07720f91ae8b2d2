"""What is installed: stages, pages, checks and services, found by entry point so that no import points upward.

In: the name of a group and of a thing in it. Out: the loaded thing, or an error that names what there is. Packages of other people take
part by declaring entry points; nothing here knows them. Importing an entry point never imports ray or torch (CONTRACTS C10), so finding
is cheap.
"""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.format.errors import InputError

STAGES = "pipelines.stages"
VIEWS = "pipelines.views"
CHECKS = "pipelines.checks"
AUDITS = "pipelines.audits"


def entries(group: str) -> dict[str, EntryPoint]:
    """All entry points of a group by name, ours first, then by name; the first of two with one name wins."""
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=group), key=lambda e: (not _ours(e), e.name)):
        found.setdefault(entry.name, entry)
    return found


def find(group: str, name: str) -> Any:
    """The thing called `name`, loaded.

    Raises InputError when there is none, with the nearest names, or when what declares it cannot be imported.
    """
    known = entries(group)
    if name not in known:
        noun = group.rsplit(".", 1)[1].rstrip("s")
        near = nearest(name, known)
        hint = f"did you mean {near}?" if near else "pipelines stages" if group == STAGES else None
        raise InputError(f"there is no {noun} of this name", found=name, allowed=", ".join(sorted(known)) or "none is installed", next=hint)
    entry = known[name]
    try:
        return entry.load()
    except ImportError as error:
        raise InputError(
            f"{name} is declared but cannot be imported: {error}",
            where=entry.value,
            next="pipelines doctor tells which package is missing",
        ) from error


def nearest(word: str, known: Any) -> str | None:
    """The known name that looks most like `word`, if any does."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def packaged(first: str | None = None) -> list[Path]:
    """Folders of YAML documents that ship with the packages that declare stages; the package of stage `first` is looked in first.

    Found without importing those packages: the demo's command must not pay for the trainer's imports.
    """
    known = entries(STAGES)
    roots = [entry.value.partition(":")[0].partition(".")[0] for entry in known.values()]
    if first in known:
        roots.insert(0, known[first].value.partition(":")[0].partition(".")[0])
    folders: list[Path] = []
    for root in dict.fromkeys(["pipelines", *roots] if first is None else roots):
        spec = find_spec(root)
        for place in (spec.submodule_search_locations or []) if spec else []:
            folders += sorted({path.parent for path in Path(place).glob("*/*.yaml")})
    return list(dict.fromkeys(folders))


def _ours(entry: EntryPoint) -> bool:
    return entry.dist is not None and entry.dist.name == "headwater"
