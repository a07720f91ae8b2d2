"""A strict YAML document → a frozen, typed object. The config *is* the object, and the file name is the registry.

    text ──read_yaml──▶ plain values + lines ──extends, overrides──▶ plain values ──pydantic──▶ object      (errors carry file:line: key)

A `Part` is a frozen class whose fields are its YAML keys. `image_size: {min_side: 64}` under `filters:` is the class `ImageSize` of the file
`filters/image_size.py`: adding a part is adding a file, and nothing lists them. A bare word is a part without fields. Overrides `a.b=c` win
over the file, the file over defaults; the resolved form is saved with the artifact.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path as FilePath
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from pipelines.format.errors import RecipeError
from pipelines.format.extends import KEY, Home, Places, extended, find, inside, keys_of, load_raw, merge, read_text, takes_null
from pipelines.format.sizes import Percent, Size, exact
from pipelines.format.yaml_text import Marks, Path, read_scalar, read_yaml

__all__ = ["At", "Document", "Part", "PartOf", "Percent", "Size", "canon", "dump", "exact", "fingerprint", "load", "load_raw", "merge"]
__all__ += ["parse", "read_yaml", "sha256_hex"]


class Document(BaseModel):
    """The base of every YAML document and of every block inside one: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    blocks: ClassVar[dict[str, type[BaseModel]]] = {}  # keys whose value is a document of another kind, which may say `extends` too
    leading: ClassVar[tuple[str, ...]] = ()  # keys that decide what others are: overrides of them come before `completed`, all others after it

    @classmethod
    def completed(cls, data: dict[str, Any], places: Places, home: Home) -> tuple[dict[str, Any], Places]:
        """The plain values, with all that is extended, as they are to be overridden and validated; places are file:line of every path."""
        return data, places


class Part(Document):
    """A part named in a document by its file: source, filter, transform, encoder, model, evaluation."""


T = TypeVar("T", bound=BaseModel)


# ---- parts by file name ----------------------------------------------------------------------------------------------------------------


class _Inner(ValueError):
    """A part's own validation errors, carried out of the outer validator with their paths."""

    def __init__(self, prefix: Path, errors: Sequence[Any]) -> None:
        super().__init__("a part does not fit")
        self.prefix, self.errors = prefix, errors


class At(ValueError):
    """A document's own complaint about one of its keys: what a validator of the whole raises, so that the error names that key and its line."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True)
class PartOf:
    """`field: Annotated[Any, PartOf("pipelines.sources")]`: a one-key mapping or a bare word, looked up as a file of that package."""

    package: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._resolve, serialization=core_schema.plain_serializer_function_ser_schema(_dump_part)
        )

    def _resolve(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        if isinstance(value, Part):
            return value
        if isinstance(value, str):
            value = {value: {}}
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError(f"a part is one word, or one key with its fields; known: {', '.join(self.names())}")
        (name, fields), *_ = value.items()
        cls = self.find(name)
        try:
            return cls.model_validate_json(json.dumps(fields if fields is not None else {}), strict=True, context=info.context)
        except ValidationError as e:
            raise _Inner((name,), e.errors(include_url=False)) from None

    def names(self) -> list[str]:
        """The parts there are: the files of the folder."""
        package = importlib.import_module(self.package)
        return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))

    def find(self, name: str) -> type[Part]:
        """The class of a part; its heavy imports wait until it is set up."""
        if name not in self.names():
            close = get_close_matches(name, self.names(), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"no part {name!r} in {self.package.replace('.', '/')}/{hint} known: {', '.join(self.names())}")
        module = importlib.import_module(f"{self.package}.{name}")
        cls = getattr(module, "".join(word[:1].upper() + word[1:] for word in name.split("_")), None)
        if cls is None:  # SdVae or SDVae: letters count, capitals do not
            wanted = name.replace("_", "")
            cls = next((v for k, v in vars(module).items() if k.lower() == wanted and isinstance(v, type)), None)
        assert isinstance(cls, type) and issubclass(cls, Part), f"{module.__name__} must define the Part named by its file"
        return cls


def named_place(data: Any) -> Any:
    """A document's mapping with its name in `output: out/plans/{name}`: documents that extend one file have places of their own without saying so."""
    if isinstance(data, dict) and isinstance(data.get("output"), str) and isinstance(data.get("name"), str):
        return {**data, "output": data["output"].replace("{name}", data["name"])}
    return data


def part_name(part: Part) -> str:
    """The name a part has in YAML: its file's."""
    return type(part).__module__.rsplit(".", 1)[-1]


def _dump_part(part: Part) -> dict[str, Any]:
    return {part_name(part): part.model_dump(mode="json")}


# ---- reading ---------------------------------------------------------------------------------------------------------------------------


def load(cls: type[T], ref: str, overrides: Iterable[str] = (), packaged: Sequence[FilePath | str] = ()) -> T:
    """Read the document at path `ref`, or the packaged one of that name, lay it on what it extends, apply `a.b=c` overrides, validate as `cls`."""
    path = find(ref, packaged)
    data, marks = read_yaml(read_text(path), str(ref))
    return parse(cls, data, marks, name=str(ref), overrides=overrides, folder=path.parent, stem=path.stem, packaged=packaged)


def parse(
    cls: type[T],
    data: Any,
    marks: Marks | None = None,
    *,
    name: str = "<config>",
    overrides: Iterable[str] = (),
    folder: FilePath | str = ".",
    stem: str | None = None,
    packaged: Sequence[FilePath | str] = (),
) -> T:
    """Validate plain values as `cls`; `folder` is what file references inside the document are relative to."""
    data = {} if data is None else data
    where: dict[Path, str] = {}
    if not isinstance(data, dict):
        raise RecipeError("a document is a mapping of keys", where=name, found=type(data).__name__)
    later = []
    for override in overrides:  # what is extended must be known before a key of it can be overridden
        key = override.partition("=")[0]
        if (key.rpartition(".")[2] == KEY and _extends_here(cls, override)) or key in getattr(cls, "leading", ()):
            _override(cls, data, override, where)
        else:
            later.append(override)
    home = Home(FilePath(folder), name, packaged, ((FilePath(folder) / f"{stem}.yaml").resolve(),) if stem else ())
    data, places = extended(cls, data, marks or {}, home)
    named = stem if stem and "name" in cls.model_fields else None
    data = {**data, "name": data.get("name") or named} if named else data
    if issubclass(cls, Document):
        data, places = cls.completed(data, {**places, **where}, home)
    for override in later:
        _override(cls, data, override, where)
    if named and data.get("name") is None:
        data["name"] = named
    try:
        return cls.model_validate_json(json.dumps(data), strict=True, context={"folder": str(folder), "file": name})
    except ValidationError as e:
        raise _explain(cls, e, places, where, name) from None


def _extends_here(cls: type[BaseModel], override: str) -> bool:
    key = override.partition("=")[0]
    return key == KEY or key.removesuffix(f".{KEY}") in getattr(cls, "blocks", {})


def _override(cls: type[BaseModel], data: dict[str, Any], text: str, said: dict[Path, str]) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError("an override is written key.key=value", where=f"command line: {text}", found=text)
    path: list[str | int] = []
    here: Any = data
    kind: Any = cls
    steps = key.split(".")
    for i, step in enumerate(steps):
        where: str | int = int(step) if isinstance(here, list) and step.isdigit() else step
        path.append(where)
        if isinstance(here, list) and not (isinstance(where, int) and where < len(here)):
            raise RecipeError("a list is indexed by number", where=f"command line: {text}", found=step, allowed=f"0 to {len(here) - 1}")
        kind = inside(kind, where)
        if i == len(steps) - 1:
            found = read_scalar(value, f"command line: {text}")
            if found is None and isinstance(here, dict) and step in here and not takes_null(kind, here[step]):
                del here[step]
            else:
                here[where] = found
            break
        inner = here.get(where) if isinstance(here, dict) else here[where]  # type: ignore[index]
        if isinstance(inner, str):  # a bare word is a part without fields
            inner = {inner: {}}
        if not isinstance(inner, dict | list):
            inner = {}
            said[tuple(path)] = text  # what is missing in a mapping that an override begins is missing there
        here[where] = inner
        here = here[where]
    said[tuple(path)] = text


def _explain(cls: type[BaseModel], e: ValidationError, places: Places, overrides: dict[Path, str], name: str) -> RecipeError:
    problems = list(_flatten(e.errors(include_url=False), ()))
    lines = []
    for path, kind, message, found in problems:
        place = _place(path, places, overrides, name)
        key = ".".join(map(str, path)) or "the document"
        if kind == "extra_forbidden":
            message = f"unknown key {path[-1]!r}"
            message += _suggest(cls, path)
        elif kind == "missing":
            message = "this key is required"
        elif not isinstance(found, dict | list):
            message += f" (found {found!r})"
        lines.append((place, key, message))
    (place, key, message), rest = lines[0], lines[1:]
    more = "".join(f"\n  {p}: {k}: {m}" for p, k, m in rest[:8])
    return RecipeError(f"{key}: {message}{more}", where=place, next=f"{len(problems)} problem(s); every key is explained in the class's docs")


def _flatten(errors: Sequence[Any], prefix: Path) -> Iterable[tuple[Path, str, str, Any]]:
    for error in errors:
        path = (*prefix, *(p for p in error["loc"] if not (isinstance(p, str) and p.startswith("function-"))))
        inner = error.get("ctx", {}).get("error")
        if isinstance(inner, At):
            yield (*path, *inner.path), error["type"], str(inner), {}
        elif isinstance(inner, _Inner):
            yield from _flatten(inner.errors, (*path, *inner.prefix))
        else:
            yield path, error["type"], error["msg"].removeprefix("Value error, "), error.get("input")


def _place(path: Path, places: Places, overrides: dict[Path, str], name: str) -> str:
    for n in range(len(path), -1, -1):
        if path[:n] in overrides:
            return f"command line: {overrides[path[:n]]}"
        if path[:n] in places:
            return places[path[:n]]
    return name


def _suggest(cls: type[BaseModel], path: Path) -> str:
    kind: Any = cls
    for step in path[:-1]:
        kind = inside(kind, step)
    known = keys_of(kind)
    close = get_close_matches(str(path[-1]), known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


# ---- writing down ----------------------------------------------------------------------------------------------------------------------


def dump(document: BaseModel) -> dict[str, Any]:
    """The resolved document as plain values: what is saved beside the artifact."""
    return document.model_dump(mode="json")


def canon(x: Any) -> bytes:
    """JSON with sorted keys, no spaces, UTF-8 and shortest floats: equal values give equal bytes."""
    return json.dumps(x, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_hex(data: bytes | memoryview) -> str:
    """sha256 as 64 hex digits."""
    return sha256(data).hexdigest()


def fingerprint(x: Any) -> str:
    """sha256 of the canonical form: what says that two artifacts were made of the same things in the same way."""
    return sha256_hex(canon(x))
