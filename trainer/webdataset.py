"""`form: webdataset`: packed sequences in tars that plain webdataset opens, one sample a sequence, every array as the trainer's batch has it.

    <output>/train.txt heldout.txt            names of the tars in the order of consumption, one a line
    <output>/train-00000-<hash>.tar           000000017.tokens.npy, 000000017.kind.npy, …, 000000017.json
    <output>/manifest.json                    kind `webdataset`: what the arrays are, what was counted, the plan it was made from

A sample is a `Batch` of one row without its first axis: token ids, kinds, documents, turns, positions, sources, conditions and targets [S], and
what says of its images (docs/materialise.md has the table). Latents are normalised, so that a loop needs nothing of ours: float32, the same to the
bit as in a batch, or rounded to float16, or to bfloat16 as its bit pattern in uint16, since .npy knows no bfloat16.

A part is one tar, made by one worker a sequence at a time.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from mixtures.cut_out import held
from mixtures.materialise import VERSION, Materialise, opened, part_rows, parts, read_plan
from mixtures.plan import Plan
from mixtures.plan_file import SPLITS, list_files
from mixtures.span import Row
from pipelines.format import storage
from pipelines.format.codec import bf16_bits
from pipelines.format.document import canon, dump, fingerprint
from pipelines.format.manifest import file_entry, parent
from pipelines.format.part import FORMAT, publish_commit
from pipelines.format.shard import TAR_END, tar_header

KIND = "webdataset"
# The fields of a batch, apart from `seq`, which the sample's key and its .json say.
PER_POSITION = ("tokens", "kind", "doc", "turn", "image", "position", "source", "condition", "text_target")
PER_LATENT = ("latents", "latent_slot", "latent_image")
PER_IMAGE = ("image_loss", "image_hidden", "image_h", "image_segment", "image_epoch")
_ZEROS = bytes(512)


def make(config: Materialise, job: Any) -> str:
    """Write the tars and the card; returns the output."""
    plan = read_plan(config)
    root, of, print_ = storage.absolute(config.output), storage.absolute(plan.path), plan.card["fingerprint"]
    path: str = job.build(
        write_part,
        {"plan": of, "print_": print_, "root": root, "latents": config.latents},
        output=root,
        name=plan.card["name"],
        data="sequences",
        kind=KIND,
        recipe=dump(config),
        fingerprint=config.identity(plan),
        parts=parts(config, plan),
        parents=[parent(of, root, print_)],
        versions={"materialize": VERSION},
        extras=lambda commits: _extras(config, plan, root, list(commits())),
    )
    return path


def _extras(config: Materialise, plan: Plan, root: str, commits: list[dict[str, Any]]) -> dict[str, Any]:
    """What the card says beside counts. The two lists of names are all that a plain loop needs."""
    tars = [c["files"][0] for c in commits]
    listed, more = list_files(root, tars)
    splits: dict[str, Any] = {}
    for split in SPLITS:
        mine = [c for c in commits if c["stats"]["split"] == split]
        names = "".join(c["files"][0]["path"] + "\n" for c in mine)
        listed.append(file_entry(root, f"{split}.txt", names.encode()))
        splits[split] = {"records": sum(c["written"] for c in mine), "tars": len(mine)}
    encoding = dict(plan.card["encoding"])
    if said := encoding.get("stats"):
        listed.append(file_entry(root, said["file"], storage.read(storage.join(plan.path, said["file"]))))
    about = {"sequence_length": plan.sequence_length, "latents": config.latents, "source_names": plan.sources, "splits": splits}
    made = fingerprint({"format": FORMAT, "kind": KIND, "tars": [t["sha256"] for t in tars], "sources": plan.sources})
    return {"encoding": encoding, "files": listed, "fingerprint": made, "sequences": about, **more}


def write_part(item: dict[str, Any], plan: str, print_: str, root: str, latents: str) -> dict[str, Any]:
    """Write one tar; returns the commit record."""
    read = opened(plan, print_)
    reader = _reader(plan, print_)
    sums: dict[str, Counter[str]] = {}
    with storage.building(root) as tar:
        for _, row in part_rows(read, item):
            said = _said(read, reader, row, item["split"], sums)
            arrays = _arrays(reader.batch([[reader.document(span) for span in row.spans]], [row.seq]), latents)
            for name, data in _members(f"{row.seq:09d}", arrays, said):
                tar.write(tar_header(name, len(data)))
                tar.write(data)
                tar.write(_ZEROS[: -len(data) % 512])
        tar.write(bytes(TAR_END))
        name = f"{item['split']}-{item['part']:05d}-{tar.sha256[:16]}.tar"
        entry = {"path": name, "bytes": tar.nbytes, "sha256": tar.sha256}
        tar.publish(root, name)
    n = item["stop"] - item["first"]
    total = sum(sums.values(), Counter())
    tokens = {k: total[k] for k in ("text", "visual", "loss", "all")}
    record = {
        "format": FORMAT, "part": item["part"], "fingerprint": item["fingerprint"], "files": [entry], "shards": [], "items": n,
        "in": n, "written": n, "filtered": {}, "rejected": {}, "tokens": tokens,
        "sources": {k: {"records": v["records"], **{t: v[t] for t in tokens}} for k, v in sorted(sums.items())},
        "stats": {k: item[k] for k in ("split", "first", "stop")},
    }  # fmt: skip
    return publish_commit(root, record)


@lru_cache(maxsize=2)
def _reader(plan: str, print_: str) -> Any:
    from trainer.stream import Reader

    return Reader(opened(plan, print_))


def _arrays(batch: Any, latents: str) -> dict[str, np.ndarray]:
    """The batch of one row as arrays, without the axis of rows."""
    out = {}
    for name in (*PER_POSITION, *PER_LATENT, *PER_IMAGE):
        array = getattr(batch, name).numpy()
        out[name] = array[0] if name in PER_POSITION else array
    if latents != "float32":
        out["latents"] = bf16_bits(out["latents"]) if latents == "bfloat16" else out["latents"].astype(np.float16)
    return out


def _said(plan: Plan, reader: Any, row: Row, split: str, sums: dict[str, Counter[str]]) -> dict[str, Any]:
    """The sample's .json: which sequence it is, and of each document the source, the record, the piece and the pass. Counts payload by the way."""
    documents = []
    for span in row.spans:
        name, record = plan.sources[span.source], reader.record(span.dataset, span.shard, span.row)
        sums.setdefault(name, Counter()).update({**held(span, record), "records": 1})
        piece = {"first": span.first, "start": span.start, "stop": span.stop, "epoch": span.epoch}
        documents.append({"source": name, "id": record.id, **piece})
    return {"seq": row.seq, "split": split, "stage": row.stage, "documents": documents}


def _members(key: str, arrays: dict[str, np.ndarray], said: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    yield f"{key}.json", canon(said)
    for name, array in arrays.items():
        file = io.BytesIO()
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
        yield f"{key}.{name}.npy", file.getvalue()
