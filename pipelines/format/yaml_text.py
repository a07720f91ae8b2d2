"""YAML text → plain values and the line of every key. The strictest small subset that people write by hand.

YAML 1.2 core scalars only: `true`, `false`, `null` in lower case, `3e-4` is a number and `no` a string (PyYAML's default reads them the other
way round). No tags, anchors or aliases, one document, ≤ 1 MiB, nested ≤ 32 deep; a key given twice is an error. What comes out is made of
dict, list, str, int, float, bool and None, with `Marks`: the line of each path, so that a later error can name file, line and key.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from pipelines.format.errors import RecipeError

Path = tuple[str | int, ...]
Marks = dict[Path, int]
MAX_BYTES, MAX_DEPTH = 1 << 20, 32


class _Core(yaml.SafeLoader):
    """SafeLoader with the YAML 1.2 core resolvers in place of the 1.1 ones."""


_Core.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"^(?:true|false)$", "tf"),
    ("tag:yaml.org,2002:null", r"^(?:null|~|)$", ["n", "~", ""]),
    ("tag:yaml.org,2002:int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("tag:yaml.org,2002:float", r"^(?:[-+]?\.inf|\.nan)$", "-+."),
):
    _Core.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def read_yaml(text: str, name: str = "<text>") -> tuple[Any, Marks]:
    """Parse one document. Returns the value and the 1-based line of every path; raises RecipeError with file:line."""
    if len(text.encode()) > MAX_BYTES:
        raise RecipeError("the document is too large", where=name, found=f"{len(text.encode()):,} bytes", allowed=f"{MAX_BYTES:,} bytes")
    try:
        _refuse_magic(text, name)
        node = yaml.compose(text, Loader=_Core)
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise RecipeError(f"not valid YAML: {e.problem or e.context}", where=f"{name}:{line}") from None
    except yaml.YAMLError as e:
        raise RecipeError(f"not valid YAML: {e}", where=name) from None
    marks: Marks = {(): 1}
    return (None if node is None else _value(node, (), marks, name)), marks


def read_scalar(text: str, name: str) -> Any:
    """The right-hand side of an override `a.b=c`, read as YAML."""
    return read_yaml(text, name)[0]


def _refuse_magic(text: str, name: str) -> None:
    depth = documents = 0
    for event in yaml.parse(text, Loader=_Core):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if getattr(event, "anchor", None) is not None:
            raise RecipeError("anchors and aliases are not read", where=f"{name}:{line}", allowed="write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise RecipeError("tags are not read", where=f"{name}:{line}", found=tag, allowed="plain values")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if depth > MAX_DEPTH:
            raise RecipeError("nested too deeply", where=f"{name}:{line}", allowed=f"{MAX_DEPTH} levels")
        if documents > 1:
            raise RecipeError("one file holds one document", where=f"{name}:{line}")


def _value(node: yaml.Node, path: Path, marks: Marks, name: str) -> Any:
    marks[path] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, i), marks, name) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError("a key must be a plain word", where=f"{name}:{line}")
            key = key_node.value
            if key in out:
                raise RecipeError(f"the key {key!r} is given twice", where=f"{name}:{line}")
            out[key] = _value(value_node, (*path, key), marks, name)
            marks[(*path, key)] = line
        return out
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node)


def _scalar(node: yaml.ScalarNode) -> Any:
    kind, text = node.tag.rsplit(":", 1)[-1], node.value
    if kind == "bool":
        return text == "true"
    if kind == "null":
        return None
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    return text
