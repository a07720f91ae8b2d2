"""One shard of an encoded dataset, opened for composing batches: the index columns that a batch needs as flat arrays (a nested row by pyarrow
costs 20 times as much as a slice of these), and its data files: mapped whole when they are local, through the cache when they are not.

The index is checked against the shard table's sha256 when it is opened, wherever it lies. Local data files are checked so too where `verify` is
set, once per file at first open; what comes from a store is checked record by record as it arrives (trainer/remote.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.format import codec, storage, verified
from pipelines.format.dataset import Dataset
from pipelines.format.document import sha256_hex
from pipelines.format.errors import VerifyError
from pipelines.format.forgotten import NAMED_BY, forgotten
from pipelines.format.record import Record, Segment

if TYPE_CHECKING:
    from trainer.remote import Remote


class Shard:
    """A shard of a dataset: records of its index, and the arrays that they point at. `gone` marks rows that tombstones name."""

    def __init__(self, dataset: Dataset, shard: int, stones: pa.Table | None = None, remote: Remote | None = None, verify: bool = False) -> None:
        self.dataset, self.shard, self.entry = dataset, shard, dataset.shards[shard]
        self.remote, self.verify = remote, verify
        named = [name for name in NAMED_BY if stones is not None and name not in ("id", "sha256")]
        table = self._index(["id", "h", "data", "segments", "sha256", *named])
        self.gone = forgotten(table, stones) if stones is not None else np.zeros(table.num_rows, np.bool_)
        self.files: dict[str, memoryview] = {}  # local: mapped whole, by kind
        self.keys: dict[str, str] = {}  # remote: names in the cache, by kind
        self.ids, self.data = table["id"].to_pylist(), table["data"].to_pylist()
        self.sha256, self.h = table["sha256"], table["h"].to_numpy()
        lists = table["segments"].combine_chunks()
        lists = lists.chunk(0) if hasattr(lists, "num_chunks") else lists
        self.offsets = lists.offsets.to_numpy()
        flat = lists.values
        plain = lambda name: flat.field(name).to_numpy(zero_copy_only=False)
        self.kind, self.role, self.dtype = plain("kind").tolist(), plain("role").tolist(), plain("dtype").tolist()
        self.atom, self.turn, self.tokens = plain("atom"), plain("turn"), plain("tokens")
        self.offset, self.nbytes = (flat.field(n).fill_null(0).to_numpy(zero_copy_only=False) for n in ("offset", "nbytes"))
        self.shape = flat.field("shape").to_pylist()
        self.is_tokens = np.asarray(pc.equal(flat.field("kind"), "tokens"))
        names = [_codes(flat.field(name)) for name in ("kind", "role", "dtype")]
        self._signed = np.ascontiguousarray(np.stack([*names, self.atom, self.turn, self.tokens], axis=1), np.int32)

    @property
    def local(self) -> bool:
        """Whether its files are mapped."""
        return self.remote is None

    def place(self, kind: str) -> tuple[str, int | None, str | None]:
        """(path, bytes, sha256) of the file for `tokens`, or of the other one; the last two are None where another dataset vouches for it."""
        e = self.entry
        name, size, digest = (e.tokens_file, e.tokens_bytes, e.tokens_sha256) if kind == "tokens" else (e.data, e.data_bytes, e.data_sha256)
        assert name is not None, f"shard {self.shard} of {self.dataset.path} has no file for {kind}"
        return storage.resolve(name, storage.absolute(self.dataset.path)), size, digest

    def signature(self, row: int) -> bytes:
        """What a layout depends on of this record: kinds, roles, types, atoms, turns and token counts of its segments."""
        return self._signed[self.offsets[row] : self.offsets[row + 1]].tobytes()

    def ids_at(self, i: int) -> np.ndarray:
        """Token ids of the i-th segment of the index."""
        return np.frombuffer(self.slice("tokens", int(self.offset[i]), int(self.nbytes[i])), self.dtype[i])

    def latents_at(self, i: int) -> np.ndarray:
        """Latents f32 [n, width] of the i-th segment, as stored."""
        view = self.slice("data", int(self.offset[i]), int(self.nbytes[i]))
        return codec.decode_latents(view, self.dtype[i], *self.shape[i])

    def array(self, segment: Segment) -> np.ndarray:
        """Token ids [n], or latents f32 [n, width] as stored."""
        assert segment.offset is not None and segment.nbytes is not None
        view = self.slice("tokens" if segment.kind == "tokens" else "data", segment.offset, segment.nbytes)
        if segment.kind == "tokens":
            return np.frombuffer(view, segment.dtype)
        return codec.decode_latents(view, str(segment.dtype), *segment.shape)

    def slice(self, kind: str, offset: int, nbytes: int) -> memoryview:
        """Stored bytes of the file for `kind`."""
        if self.remote is not None:
            return self.remote.slice(self, kind, offset, nbytes)
        whole = self.files.get(kind)
        if whole is None:
            whole = self.files[kind] = self._open(kind)
        return whole[offset : offset + nbytes]

    def record(self, row: int) -> Record:
        """The record at a row of the index: what a layout and a read need, and nothing else."""
        segments = tuple(self.segment(i) for i in range(self.offsets[row], self.offsets[row + 1]))
        return Record(self.ids[row], "", "", self.data[row], segments, "")

    def segment(self, i: int) -> Segment:
        """The i-th segment of the index, counted over all rows."""
        return Segment(
            kind=self.kind[i], role=self.role[i], atom=int(self.atom[i]), turn=int(self.turn[i]), dtype=self.dtype[i],
            shape=tuple(self.shape[i] or ()), tokens=int(self.tokens[i]), offset=int(self.offset[i]), nbytes=int(self.nbytes[i]),
        )  # fmt: skip

    def _open(self, kind: str) -> memoryview:
        path, size, digest = self.place(kind)
        if self.verify and digest is not None:
            verified.once(path, digest)
        # A borrowed file may stand in the table without a size.
        return self.dataset.slice(self.shard, kind, 0, storage.size(path) if size is None else size)

    def _index(self, columns: list[str]) -> Any:
        """Some columns of the index, its bytes checked."""
        path = storage.join(self.dataset.path, self.entry.index)
        if self.remote is not None:
            data: Any = self.remote.whole(path, self.entry.index_bytes, self.entry.index_sha256)
        else:
            verified.once(path, self.entry.index_sha256)
            data = storage.map_file(path)
        try:
            return pq.read_table(pa.BufferReader(pa.py_buffer(data)), columns=columns).combine_chunks()
        except (pa.ArrowInvalid, OSError) as e:
            raise VerifyError("the index cannot be read", where=path, found=e, next=f"pipelines verify {self.dataset.path} --deep") from e


_CODE: dict[str | None, int] = {}  # of names of kinds, roles and types: the same in every shard of the process


def _codes(names: pa.Array) -> np.ndarray:
    """A number for each name."""
    found = names.dictionary_encode()
    codes = [_CODE.setdefault(name, len(_CODE)) for name in found.dictionary.to_pylist()]
    return np.array([*codes, -1], np.int32)[found.indices.fill_null(len(codes)).to_numpy(zero_copy_only=False)]


def hashes_agree(data: memoryview | bytes, sha256: str) -> bool:
    """Whether bytes are those that a card or table means."""
    return sha256_hex(bytes(data)) == sha256
