"""A folder laid out as a Hugging Face dataset: its shards of text by configuration and split, with no code of the dataset's own.

Which files belong to a split is what the hub's own library decides from data alone: `configs` in the head of README.md, with its globs;
without them, the files whose name or folder names the split; without any of those, every data file is `train`. Shards are Parquet or JSON
Lines and are read by `parquet_text` and `jsonl`, in the same parts and with the same care. A dataset script (`<name>.py`) is never run, and
a folder that has nothing else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

from pipelines.bounded import COMPRESSIONS
from pipelines.file_source import FileSource
from pipelines.format import storage
from pipelines.format.errors import HeadwaterError, InputError
from pipelines.format.record import Record
from pipelines.format.yaml_text import read_yaml
from pipelines.listing import Input, list_files, place
from pipelines.sources.jsonl import Jsonl
from pipelines.sources.parquet_text import ParquetText
from pipelines.stage import Rejected, Source, SourcePart

_JSONL = tuple(kind + end for kind in (".jsonl", ".ndjson", ".json") for end in ("", *COMPRESSIONS))
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


class HfDataset(Source):
    """`config` and `split` name what the dataset's card lists; the other keys are those of `jsonl` and `parquet_text`."""

    data: ClassVar[str] = "text"
    path: str
    config: str | None = None
    split: str = "train"
    text_field: str = "text"
    url_field: str | None = None
    licence_field: str | None = None
    licence: str | None = None
    keep: tuple[str, ...] = ()

    def parts(self) -> list[SourcePart]:
        """As `parquet_text` and `jsonl` would cut each shard."""
        return [part for item in self.files() for part in self._reader(item.path).cut(item, place(self.path, item.path))]

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        yield from self._reader(spec["file"]).read(spec, source)

    def files(self) -> list[Input]:
        """The split's shards, sorted by path bytes."""
        shards = [f for f in list_files(self.path, (*_JSONL, ".parquet")) if not any(p.startswith(".") for p in f.path.split("/"))]
        patterns = self._patterns()
        if patterns is not None:
            found = [f for f in shards if any(_glob(p).fullmatch(f.path) for p in patterns)]
        else:
            names = _SPLIT_NAMES.get(self.split, (self.split,))
            found = [f for f in shards if _names(f.path, names)]
            if not found and self.split == "train" and not any(_names(f.path, n) for f in shards for n in _SPLIT_NAMES.values()):
                found = shards
        if not found:
            raise InputError(
                "no shard of this split", where=self.path, found=f"split {self.split}", allowed=", ".join(f.path for f in shards[:5]) or "none"
            )
        return found

    def _patterns(self) -> list[str] | None:
        """The globs that the card gives for this configuration and split; None when it gives none."""
        path = storage.join(self.path, "README.md")
        if not storage.exists(path):
            return self._default(None)
        text = storage.read(path, 0, 1 << 20).decode("utf-8", "replace")
        head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.S)
        try:
            card = read_yaml(head[1], path)[0] if head else {}
        except HeadwaterError as error:
            raise InputError("the card's head cannot be read", where=path, found=error, next="name the files with jsonl or parquet_text") from None
        configs = card.get("configs") if isinstance(card, dict) else None
        return self._default(configs if isinstance(configs, list) else None)

    def _default(self, configs: list[Any] | None) -> list[str] | None:
        known = [c for c in configs or [] if isinstance(c, dict) and "data_files" in c]
        if not known:
            if self.config is not None:
                raise InputError("the dataset's card lists no configurations", where=self.path, found=f"config: {self.config}")
            return None
        names = [str(c.get("config_name", "default")) for c in known]
        first = next((i for i, c in enumerate(known) if c.get("default") is True), names.index("default") if "default" in names else 0)
        wanted = self.config if self.config is not None else names[first]
        if wanted not in names:
            raise InputError("the dataset has no such configuration", where=self.path, found=wanted, allowed=", ".join(names[:20]))
        return _globs(known[names.index(wanted)]["data_files"], self.split)

    def _reader(self, file: str) -> FileSource:
        return (ParquetText if file.endswith(".parquet") else Jsonl)(**self._shared())

    def _shared(self) -> dict[str, Any]:
        return {k: v for k, v in self.model_dump().items() if k not in ("config", "split")}


def _globs(files: Any, split: str) -> list[str]:
    """Of `data_files` in any of its forms: a glob, a list of globs, split → glob, or a list of {split, path}."""
    if isinstance(files, dict):
        files = [{"split": k, "path": v} for k, v in files.items()]
    if isinstance(files, str):
        files = [files]
    out: list[str] = []
    for entry in files if isinstance(files, list) else []:
        said = entry.get("split", "train") if isinstance(entry, dict) else "train"
        paths = entry.get("path") if isinstance(entry, dict) else entry
        if said == split:
            out += [p for p in (paths if isinstance(paths, list) else [paths]) if isinstance(p, str)]
    return out


def _glob(pattern: str) -> re.Pattern[str]:
    """`*` and `?` within a folder, `**` across folders; a folder's name alone means all below it."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("./").rstrip("/"))
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(signs.get(p, re.escape(p)) for p in parts) + "(?:/.*)?")


def _names(path: str, names: tuple[str, ...]) -> bool:
    """Whether a folder or the file is named after the split, as a word between separators."""
    return re.search(rf"(?:^|[-._ /])(?:{'|'.join(map(re.escape, names))})(?:$|[-._ /0-9])", path) is not None
