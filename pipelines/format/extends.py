"""`extends: other.yaml`: a document that says only in what it differs from another.

    a.yaml ──extends──▶ b.yaml ──extends──▶ c.yaml        c, then b laid on it, then a laid on that; each value keeps the file and line it is from

`extends` names a file, relative to the file that says so, or a packaged document. Mappings are laid on one another key by key; anything else
replaces what was there; `null` takes a key away (it stays null only where null is itself a value of that key). A document's `name` is never
inherited. What comes out is the whole document without `extends`: it is what is validated, saved and fingerprinted, so that how a document was
spelled leaves no trace.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from pipelines.format.errors import InputError, RecipeError
from pipelines.format.yaml_text import MAX_BYTES, MAX_DEPTH, Marks, Path, read_yaml

Places = dict[Path, str]  # file:line of every path
KEY = "extends"


def load_raw(path: str | FilePath) -> dict[str, Any]:
    """The plain values of a YAML file, unvalidated and not extended."""
    return _mapping(find(str(path), []), str(path))[0]


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping; any other value, null too, replaces what was there."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def find(ref: str, packaged: Sequence[FilePath | str]) -> FilePath:
    """The file at `ref`, or the packaged document of that name. InputError lists the names."""
    path = FilePath(ref)
    if path.is_file():
        return path
    for folder in packaged:
        inside = FilePath(folder) / f"{ref.removesuffix('.yaml')}.yaml"
        if inside.is_file():
            return inside
    known = sorted(p.stem for folder in packaged for p in FilePath(folder).glob("*.yaml"))
    raise InputError("no such document", where=ref, allowed=f"a file, or a packaged name: {', '.join(known)}" if known else "a file")


def read_text(path: FilePath) -> str:
    """The text of a document. InputError where it cannot be read."""
    try:
        if path.stat().st_size > MAX_BYTES:  # said before it is read: a wrong path may be a data file
            raise RecipeError("the document is too large", where=path, found=f"{path.stat().st_size:,} bytes", allowed=f"{MAX_BYTES:,} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError("the document cannot be read", where=path, found=e) from None


@dataclass(frozen=True, slots=True)
class Home:
    """Where a document stands: the folder that its references are relative to, what errors call it, the packaged folders, and what led here."""

    folder: FilePath
    name: str
    packaged: Sequence[FilePath | str] = ()
    chain: tuple[FilePath, ...] = ()  # resolved; the innermost last


def extended(cls: type[BaseModel], data: dict[str, Any], marks: Marks | Places, home: Home) -> tuple[dict[str, Any], Places]:
    """`data` laid on what it extends, and on what its blocks extend (`blocks` of the class), with file:line of every path.

    Raises RecipeError or InputError at the line that says `extends` when that file is missing or leads back here.
    """
    places = {path: place if isinstance(place, str) else f"{home.name}:{place}" for path, place in marks.items()}
    for key, kind in getattr(cls, "blocks", {}).items():
        if isinstance(data.get(key), dict) and KEY in data[key]:
            block, inner = _laid(kind, data[key], {p[1:]: at for p, at in places.items() if p[:1] == (key,)}, home)
            places = {p: at for p, at in places.items() if p[:1] != (key,)} | {(key, *p): at for p, at in inner.items()}
            data = {**data, key: block}
    return _laid(cls, data, places, home) if KEY in data else (data, places)


def _laid(cls: type[BaseModel], data: dict[str, Any], places: Places, home: Home) -> tuple[dict[str, Any], Places]:
    own = {k: v for k, v in data.items() if k != KEY}
    ref, said_at = data[KEY], places.get((KEY,), home.name)
    if ref is None:
        return own, places
    if not isinstance(ref, str) or not ref:
        raise RecipeError("a document extends one other", where=f"{said_at}: {KEY}", found=ref, allowed="a path from this file, or a packaged name")
    path = _named(ref, home, said_at)
    name = os.path.normpath(path)
    chain = home.chain or ((home.folder / FilePath(home.name).name).resolve(),)
    if path.resolve() in chain:
        circle = " → ".join([*(p.name for p in chain[chain.index(path.resolve()) :]), path.name])
        raise RecipeError("documents extend one another in a circle", where=f"{said_at}: {KEY}", found=circle, next="let one say no `extends`")
    if len(chain) > MAX_DEPTH:
        raise RecipeError("too many documents extend one another", where=f"{said_at}: {KEY}", found=len(chain) + 1, allowed=MAX_DEPTH)
    there, marks = _mapping(path, name)
    base, base_places = extended(cls, there, marks, Home(path.parent, name, home.packaged, (*chain, path.resolve())))
    return lay({k: v for k, v in base.items() if k != "name"}, own, cls, base_places, places)


def _named(ref: str, home: Home, said_at: str) -> FilePath:
    beside = FilePath(ref) if os.path.isabs(ref) else home.folder / ref
    if beside.is_file():
        return beside
    try:
        return find(f"{ref.removesuffix('.yaml')}.yaml", home.packaged) if home.packaged and "/" not in ref else find(str(beside), [])
    except InputError as e:
        raise InputError("the document that this one extends is missing", where=f"{said_at}: {KEY}", found=str(beside), allowed=e.allowed) from None


def _mapping(path: FilePath, name: str) -> tuple[dict[str, Any], Marks]:
    data, marks = read_yaml(read_text(path), name)
    if not isinstance(data, dict):
        raise RecipeError("a document is a mapping of keys", where=name, found=type(data).__name__)
    return data, marks


def lay(
    base: dict[str, Any], over: dict[str, Any], kind: Any = Any, base_places: Places | None = None, places: Places | None = None
) -> tuple[dict[str, Any], Places]:
    """`over` on `base`, where null takes a key away unless the type `kind` has null as a value there. Places are those of the values that stay."""
    where = {(): "", **(base_places or {})}
    out = _lay(base, over, kind, (), where)
    return out, {p: at for p, at in {**where, **(places or {})}.items() if p or at}


def _lay(base: dict[str, Any], over: dict[str, Any], kind: Any, at: Path, where: Places) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        had, inner = out.get(key), inside(kind, key)
        if isinstance(value, dict) and isinstance(had, dict):
            out[key] = _lay(had, value, inner, (*at, key), where)
            continue
        here = (*at, key)
        for path in [p for p in where if p[: len(here)] == here]:
            del where[path]
        if value is None and key in out and not takes_null(inner, had):
            del out[key]
        else:
            out[key] = value
    return out


# ---- what a type says of a key -----------------------------------------------------------------------------------------------------------


def _options(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) is Annotated:
        return _options(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return tuple(option for arg in get_args(kind) for option in _options(arg))
    return (kind,)


def inside(kind: Any, step: str | int) -> Any:
    """The type of what lies under `step` of a value of type `kind`; Any where nobody can tell."""
    for option in _options(kind):
        if isinstance(option, type) and issubclass(option, BaseModel) and step in option.model_fields:
            return option.model_fields[str(step)].annotation
        if get_origin(option) in (dict, list):
            return get_args(option)[-1]
    return Any


def keys_of(kind: Any) -> list[str]:
    """The keys that a value of this type may have, where it is a document."""
    return [key for o in _options(kind) if isinstance(o, type) and issubclass(o, BaseModel) for key in o.model_fields]


def takes_null(kind: Any, had: Any) -> bool:
    """Whether null is a value of that type, rather than the absence of one. Of a type that says nothing, a mapping is taken away."""
    options = _options(kind)
    return not isinstance(had, dict) if Any in options else NoneType in options
