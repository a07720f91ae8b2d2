"""Any filter of datatrove, named as it is: `datatrove_filter: {name: C4ParagraphFilter}`; a recipe need not wait for us to wrap one.

Only classes that `datatrove.pipeline.filters` itself exports can be named, with plain keyword arguments: a recipe never imports code. What
the filter writes into the text or the metadata of what it keeps is taken over. Not accepted: filters that need a function (LambdaFilter) or
draw from a generator (SamplerFilter: what it keeps depends on what it saw before; give the mixture a smaller `pool` instead), and
`exclusion_writer` (`keep_dropped: true` does that).
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

from pydantic import Field, JsonValue, PrivateAttr

from pipelines.extra import need
from pipelines.format.document import canon
from pipelines.format.errors import InputError
from pipelines.format.record import Record, Text
from pipelines.stage import Filter
from pipelines.words import text_of

_REFUSED = ("LambdaFilter", "SamplerFilter", "BaseFilter")


class DatatroveFilter(Filter):
    """`name` is a class of `datatrove.pipeline.filters`, `options` its keyword arguments. The reason's detail is the class, then its own
    reason."""

    name: str
    options: dict[str, JsonValue] = Field(default_factory=dict)
    _left: tuple[str, Any] = PrivateAttr(("", None))

    def reason(self, record: Record) -> str | None:
        text = text_of(record)
        metadata = {"url": record.url} if record.url else {}
        document = need("datatrove.data", "datatrove_filter").Document(text=text, id=record.id, metadata={**record.fields, **metadata})
        found = _step(self.name, canon(self.options)).filter(document)
        kept, why = found if isinstance(found, tuple) else (found, None)
        self._left = (text, document)
        if kept:
            return None
        return f"datatrove_filter.{self.name}" + (f".{_slug(why)}" if why else "")

    def kept(self, record: Record) -> Record:
        """The record with the text and the plain metadata that the filter left."""
        text, document = self._left
        assert text is text_of(record), "asked about another record than `reason`"
        noted = {k: v for k, v in document.metadata.items() if k != "url" and isinstance(v, str | int | float | bool)}
        segments = record.segments if document.text == text else (Text(document.text),)
        return (
            record
            if segments is record.segments and noted == record.fields
            else replace(record, segments=segments, fields={**record.fields, **noted})
        )


def _slug(reason: str) -> str:
    return re.sub(r"\W+", "_", reason).strip("_").lower()


@lru_cache(maxsize=32)
def _step(name: str, options: bytes) -> Any:
    import json

    module = need("datatrove.pipeline.filters", "datatrove_filter")
    base = module.BaseFilter if hasattr(module, "BaseFilter") else need("datatrove.pipeline.filters.base_filter", "datatrove_filter").BaseFilter
    known = {n: c for n, c in vars(module).items() if inspect.isclass(c) and issubclass(c, base) and n not in _REFUSED}
    if name not in known:
        raise InputError(
            "datatrove has no such filter that a recipe may name", where="datatrove_filter.name", found=name, allowed=", ".join(sorted(known))
        )
    chosen: dict[str, Any] = json.loads(options)
    allowed = [p for p in inspect.signature(known[name].__init__).parameters if p not in ("self", "exclusion_writer")]
    unknown = chosen.keys() - set(allowed)
    if unknown:
        raise InputError(
            "this filter has no such option", where=f"datatrove_filter.{name}", found=", ".join(sorted(unknown)), allowed=", ".join(allowed)
        )
    return known[name](**chosen)
