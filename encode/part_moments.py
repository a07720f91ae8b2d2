"""The moments of one part by position: in a file beside it, or, of a few images, in the images themselves.

In: the moments [tokens, channels] of a part's latents as stored, every distinct picture once. They are 16 bytes for every value of an image, packed
to 13 of full mantissas: 4.1 MB of 256 x 1,152, 1.5 % of a full part in bf16. So they stand in no commit record but in `moments/PPPPP-<hash>.parquet`,
which the record names, and resuming, verify and gc know. Of fewer than `FEW` images they would be a quarter of the latents and more, and nothing is
written: whoever merges reads the images again, at most 9 MB, and gets the same as the encoder had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.format import codec, storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import VerifyError
from pipelines.format.moments import Moments, from_parquet, to_parquet
from pipelines.format.part import PartWriter

FOLDER = "moments"
FEW = 16


def commit_stats(writer: PartWriter, moments: Moments, payloads: Sequence[Any]) -> dict[str, Any]:
    """What a commit record says of its part's latents; `payloads` are those of its distinct pictures. Two pictures whose latents are equal are two in
    the moments and one on disk, so such a part keeps its moments however few there are."""
    said: dict[str, Any] = {"latents": moments.by_channel().as_json()}
    if moments.n < FEW and len({bytes(p) for p in payloads}) == len(payloads):
        return said
    return {**said, "positions": writer.beside(FOLDER, to_parquet(moments), ".parquet")}


def where_from(commit: dict[str, Any]) -> dict[str, Any]:
    """All that `moments_of` needs of a commit record."""
    stats = commit["stats"]
    if "positions" in stats:
        return {"file": next(f for f in commit["files"] if f["path"] == stats["positions"])}
    return {"shards": [{k: s[k] for k in ("index", "data")} for s in commit["shards"]], "images": stats["images"]}


def moments_of(root: str, place: dict[str, Any]) -> Moments | None:
    """The moments of the part. None where it has no file and stores fewer images than it was made of, as parts may that were committed before
    there were such files."""
    if "file" in place:
        where = storage.join(root, place["file"]["path"])
        data = storage.read(where)
        if sha256_hex(data) != place["file"]["sha256"]:
            raise VerifyError("the moments of a part differ from its commit record", where=where, next="remove the file and run the job again")
        return from_parquet(data, where)
    distinct: dict[bytes, Any] = {}
    for shard in place["shards"]:
        _add_images(root, shard, distinct)
    if len(distinct) != place["images"]:
        return None
    found = [codec.decode_latents(payload, s["dtype"], *s["shape"]) for payload, s in distinct.items()]
    return Moments.of(np.stack(found))


def _add_images(root: str, shard: dict[str, Any], distinct: dict[bytes, Any]) -> None:
    """The distinct latents of a shard in the order in which its records name them."""
    table = pq.read_table(pa.BufferReader(storage.read(storage.join(root, shard["index"]))), columns=["segments"])
    segments = [s for row in table["segments"].to_pylist() for s in row if s["kind"] == "latents"]
    if not segments:
        return
    data = storage.read(storage.join(root, shard["data"]))
    for s in {s["offset"]: s for s in segments}.values():
        distinct.setdefault(data[s["offset"] : s["offset"] + s["nbytes"]], s)
