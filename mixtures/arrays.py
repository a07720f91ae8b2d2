"""Where the stored arrays of a dataset's records lie, in columns: what `samples.py` cuts its views from.

In: a local encoded dataset. Out: per row group of an index (10,000 records) flat arrays over segments: which file, from which element to which,
of what form; and mapped files as typed arrays. Nested Arrow values are met once a row group and never again. A file is verified at its
first use (`pipelines.format.verified`), and records that tombstones name are marked as gone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.format import codec, storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.flat import flat
from pipelines.format.forgotten import NAMED_BY, forgotten, tombstones
from pipelines.format.rows import ROW_GROUP
from pipelines.format.verified import once

KEPT_ROWS = 500_000  # records whose columns stay in memory: some 60 MB
VIEWED_AS = {"uint16": "<u2", "uint32": "<u4", "bf16": "<u2", "f32": "<f4"}  # everything else is bytes
_PLAIN = frozenset({"bf16", "f32"})  # latents that can be shown as [n, width] without decoding
_FIELDS = ("kind", "dtype", "atom", "offset", "nbytes", "shape")
I64 = NDArray[np.int64]


class Form(NamedTuple):
    """What an array is. Tokens: kind "tokens", dtype uint16 or uint32, n = width = 0 (the array's length says it). Latents: kind "latents", dtype
    the codec, n rows of `width` channels. Images of a dataset without stored latents: kind "image", dtype jpeg."""

    kind: str
    dtype: str
    n: int
    width: int


def decode(array: NDArray[Any], form: Form) -> NDArray[Any]:
    """Stored latents as float32 [n, width], not normalised; tokens and images as they are."""
    return codec.decode_latents(array, form.dtype, form.n, form.width) if form.kind == "latents" else array


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Columns of one row group of an index; everything counts from its first record. `start` [rows + 1] counts into the segment columns, `atom`
    [rows + 1] into `atom_start` [atoms + 1], which counts into them too."""

    first: int
    ids: NDArray[Any]
    sources: NDArray[Any]
    gone: NDArray[np.bool_]
    start: I64
    atom: I64
    atom_start: I64
    file: I64  # of Arrays.files
    begin: I64  # in elements of that file's view
    end: I64
    form: I64  # of Arrays.forms
    is_text: NDArray[np.bool_]
    may_be_cut: NDArray[np.bool_]
    plain: bool  # every record is one array


class Arrays:
    """The arrays of some datasets. One per process; it holds maps and columns, no state of reading."""

    def __init__(self, datasets: list[Dataset], verify: bool = True) -> None:
        for dataset in datasets:
            if not storage.is_local(dataset.path):
                next = "copy the dataset to a local disk"
                raise InputError("samples are views of mapped files, and these lie elsewhere", where=dataset.path, next=next)
            if dataset.encoding is None:
                raise InputError("samples are ids and latents, and this dataset is not encoded", where=dataset.path, next="pipelines run encode")
        self.datasets, self.verify = datasets, verify
        self.files: list[NDArray[Any]] = []
        self.forms: list[Form] = []
        self.shaped: list[int] = []  # per form, the width of views that are shown as [n, width]; 0 for flat ones
        self._stones: list[pa.Table | None] = [tombstones(d) for d in datasets]
        self._file_of: dict[tuple[int, int, str, str], int] = {}
        self._form_of: dict[Form, int] = {}
        self._index: OrderedDict[tuple[int, int], pq.ParquetFile] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int, int], Group] = OrderedDict()
        self._bounds: dict[tuple[int, int], I64] = {}

    def bounds(self, dataset: int, shard: int) -> I64:
        """First rows of a shard's row groups, and the number of its rows."""
        found = self._bounds.get((dataset, shard))
        if found is None:
            about = self._parquet(dataset, shard).metadata
            rows = [about.row_group(g).num_rows for g in range(about.num_row_groups)]
            found = self._bounds[dataset, shard] = np.cumsum([0, *rows])
        return found

    def group(self, dataset: int, shard: int, group: int) -> Group:
        """The columns of one row group; the newest half million rows stay."""
        key = (dataset, shard, group)
        found = self._groups.get(key)
        if found is None:
            found = self._groups[key] = self._read(*key)
            while len(self._groups) > 1 and sum(len(g.ids) for g in self._groups.values()) > KEPT_ROWS:
                self._groups.popitem(last=False)
        else:
            self._groups.move_to_end(key)
        return found

    def _parquet(self, dataset: int, shard: int) -> pq.ParquetFile:
        found = self._index.get((dataset, shard))
        if found is None:
            owner, entry = self.datasets[dataset], self.datasets[dataset].shards[shard]
            path = storage.join(owner.path, entry.index)
            if self.verify:
                once(path, entry.index_sha256, entry.index_bytes)
            found = self._index[dataset, shard] = pq.ParquetFile(pa.BufferReader(pa.py_buffer(storage.map_file(path))))
            while len(self._index) > KEPT_ROWS // ROW_GROUP:
                self._index.popitem(last=False)
        return found

    def _read(self, dataset: int, shard: int, group: int) -> Group:
        stones = self._stones[dataset]
        named = [name for name in NAMED_BY if stones is not None and name != "id"]
        columns = ["id", "source", *named, *(f"segments.list.element.{name}" for name in _FIELDS)]
        table = self._parquet(dataset, shard).read_row_group(group, columns=columns, use_threads=False).combine_chunks()
        gone = forgotten(table, stones) if stones is not None else np.zeros(table.num_rows, np.bool_)
        lists = table["segments"].combine_chunks()
        lists = lists.chunk(0) if hasattr(lists, "num_chunks") else lists
        start = flat(lists.offsets).astype(np.int64)
        of = {name: lists.values.field(name) for name in _FIELDS}
        atom = flat(of["atom"], -1)
        opens = (atom < 0) | (np.diff(atom, prepend=-1) != 0)
        opens[start[:-1][start[:-1] < len(opens)]] = True
        atom_start: I64 = np.append(np.flatnonzero(opens), len(opens)).astype(np.int64)
        file, form, itemsize, is_text = self._typed(dataset, shard, of)
        begin: I64 = flat(of["offset"], 0).astype(np.int64) // itemsize
        end: I64 = begin + flat(of["nbytes"], 0).astype(np.int64) // itemsize
        words = lambda name: np.array(table[name].to_pylist(), object)
        atoms: I64 = np.searchsorted(atom_start[:-1], start)
        return Group(
            int(self.bounds(dataset, shard)[group]), words("id"), words("source"), gone, start, atoms,
            atom_start, file, begin, end, form, is_text, (atom < 0) & is_text, bool((np.diff(start) == 1).all()),
        )  # fmt: skip

    def _typed(self, dataset: int, shard: int, of: dict[str, Any]) -> tuple[I64, I64, I64, NDArray[np.bool_]]:
        """Per segment: its file, its form, bytes an element, and whether it is tokens. Forms are few, so each is made once a row group."""
        kind, dtype = of["kind"].dictionary_encode(), of["dtype"].dictionary_encode()
        kinds, dtypes = kind.dictionary.to_pylist(), [*dtype.dictionary.to_pylist(), ""]
        kind_of, dtype_of = flat(kind.indices).astype(np.int64), flat(dtype.indices, len(dtypes) - 1).astype(np.int64)
        edges, sizes = flat(of["shape"].offsets).astype(np.int64), np.append(flat(of["shape"].values), 0).astype(np.int64)
        is_text = np.isin(kind_of, [i for i, k in enumerate(kinds) if k == "tokens"])
        is_latents = np.isin(kind_of, [i for i, k in enumerate(kinds) if k == "latents"]) & (np.diff(edges) == 2)
        n, width = (np.where(is_latents, sizes[np.minimum(edges[:-1] + k, len(sizes) - 1)], 0) for k in (0, 1))
        assert int(n.max(initial=0)) < 1 << 24 and int(width.max(initial=0)) < 1 << 24
        seen, which = np.unique((kind_of * len(dtypes) + dtype_of) << 48 | n << 24 | width, return_inverse=True)
        file, form, itemsize = [], [], []
        for code in seen.tolist():
            k, d = divmod(code >> 48, len(dtypes))
            made = Form(kinds[k], dtypes[d], code >> 24 & 0xFFFFFF, code & 0xFFFFFF)
            file.append(self._file(dataset, shard, made))
            form.append(self._form_of.setdefault(made, len(self._form_of)))
            if form[-1] == len(self.forms):
                self.forms.append(made)
                self.shaped.append(made.width if made.kind == "latents" and made.dtype in _PLAIN else 0)
            itemsize.append(self.files[file[-1]].itemsize)
        pick = lambda values: np.array(values, np.int64)[which] if values else np.zeros(0, np.int64)
        return pick(file), pick(form), pick(itemsize), is_text

    def _file(self, dataset: int, shard: int, form: Form) -> int:
        """The number of a shard's mapped and verified file as this form views it."""
        view = VIEWED_AS.get(form.dtype, "u1")
        key = (dataset, shard, "tokens" if form.kind == "tokens" else "data", view)
        if key not in self._file_of:
            owner, entry = self.datasets[dataset], self.datasets[dataset].shards[shard]
            name, nbytes, digest = (
                (entry.tokens_file, entry.tokens_bytes, entry.tokens_sha256)
                if form.kind == "tokens"
                else (entry.data, entry.data_bytes, entry.data_sha256)
            )
            mapped = memoryview(b"")  # a shard of empty segments has no file
            if name is not None:
                path = storage.resolve(name, storage.absolute(owner.path))
                if self.verify and digest is not None:  # a file of another dataset is vouched for there
                    once(path, digest, nbytes)
                mapped = storage.map_file(path)
            size = np.dtype(view).itemsize
            self._file_of[key] = len(self.files)
            self.files.append(np.frombuffer(mapped[: len(mapped) // size * size], view))
        return self._file_of[key]
