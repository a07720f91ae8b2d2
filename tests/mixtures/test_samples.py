"""Samples: what a plan or a dataset stores, seen through mapped files in the order of consumption, from any position and for any rank."""

from __future__ import annotations

import pickle
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sets

from mixtures.layout import TEXT, layout
from mixtures.plan import Plan, make_plan
from mixtures.samples import SPANS, Sample, Samples, decode, position_of
from pipelines.format import codec, storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError, VerifyError
from pipelines.format.manifest import file_entry, publish_card
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment
from pipelines.format.verified import once
from tests.toys import curated, seal

SPECIALS = {"bos": 1000, "eos": 1001, "boi": 1002, "eoi": 1003, "pad": 1004}


def ids(n: int, rng: np.random.Generator, **how: Any) -> Segment:
    values = rng.integers(0, 1000, n).astype("<u2")
    return Segment("tokens", payload=values.tobytes(), dtype="uint16", shape=(n,), tokens=n, **how)


def picture(n: int, rng: np.random.Generator, name: str, **how: Any) -> Segment:
    payload = codec.encode_latents(rng.standard_normal((n, 40)).astype(np.float32), name)
    return Segment("latents", payload=payload, dtype=name, shape=(n, 40), tokens=n, **how)


def record(data: str, i: int, name: str) -> Record:
    rng = np.random.default_rng([i, len(data)])
    if data == "text":
        segments = [ids(int(rng.integers(1, 150)), rng)]  # longer than a row of 64, so that texts are cut
    elif data == "image-text":
        segments = [picture(4, rng, name, atom=0), *(ids(int(rng.integers(1, 9)), rng, atom=k, member=m) for k, m in ((1, "original"), (2, "other")))]
    elif data == "video":
        segments = [picture(4, rng, name, atom=k) for k in range(int(rng.integers(1, 6)))]
    else:
        asked = [s for t in range(3) for s in (ids(3, rng, role="context", atom=0, turn=t), ids(2, rng, atom=0, turn=t))]
        segments = [picture(4, rng, name, role="context", atom=0), *asked]
    return Record.make("toy", f"{data}{i}", data, segments)


def dataset(root: Path, data: str, n: int, name: str = "bf16") -> str:
    commits = []
    for part in range(3):
        with PartWriter(str(root), part, fingerprint=f"{part}" * 64, encoded=True) as w:
            for i in range(part * n // 3, (part + 1) * n // 3):
                w.emit()
                w.add(record(data, i, name))
            commits.append(w.commit())
    encoding: dict[str, Any] = {"text": {"tokenizer_sha256": "0" * 64, "vocab": 1005, "specials": SPECIALS}}
    if data != "text":
        encoding["image"] = {"encoder": "toy", "fingerprint": "0" * 64, "tokens": 4, "width": 40, "codec": name}
    return seal(str(root), f"toy-{data}", data, commits, {}, encoding)


@pytest.fixture(scope="module", params=["bf16", "f32", "int8", "f8e4m3"])
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    root = tmp_path_factory.mktemp(request.param)
    sources = {}
    for data, n, more in (("text", 60, {}), ("image-text", 60, {"image_first": 0.5}), ("video", 60, {}), ("vqa", 30, {"turns": "isolated"})):
        sources[data] = {"dataset": dataset(root / data, data, n, request.param), "epochs": 1, **more}
    mixture = sets.mixture(sources, root / "plan", held_out={"fraction": 0.1, "seed": 0}, normalise="none")
    return Plan.open(make_plan(mixture))


def told(sample: Sample) -> tuple[Any, ...]:
    """A sample by value."""
    return sample.source, sample.id, sample.forms, tuple(a.tobytes() for a in sample.arrays)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_sample_of_a_plan_is_what_its_span_takes_in_the_order_in_which_it_is_shown(plan: Plan, split: str) -> None:
    samples, spans = Samples(plan.path, split), [s for i in range(plan.sequences(split)) for s in plan.row(i, split).spans]
    found = [s for s, _ in samples.read()]
    assert len(found) == len(spans) > 20
    seen = set()
    for sample, span in zip(found, spans, strict=True):
        kept, dataset = plan.record(span), plan.datasets[span.dataset]
        laid = layout(span, kept, plan.rules(span.source), plan.specials)
        assert (sample.source, sample.id) == (plan.sources[span.source], kept.id)
        payload = laid.segment[(laid.kind == TEXT) | (laid.image >= 0)]
        order = payload[np.flatnonzero(np.diff(payload, prepend=-2))].tolist()
        assert len(order) == len(sample.arrays) == len(sample.forms)
        for number, array, form in zip(order, sample.arrays, sample.forms, strict=True):
            segment = kept.segments[number]
            whole = dataset.array(span.shard, segment)
            at = laid.offset[(laid.segment == number) & (laid.offset >= 0)]
            assert (form.kind, form.dtype) == (segment.kind, segment.dtype)
            assert np.array_equal(decode(array, form), whole[at])
            seen.add((sample.source, form.kind, len(at) < len(whole), order[0] > 0))
    assert split == "heldout" or {("text", "tokens", True, False), ("image-text", "latents", False, True), ("vqa", "latents", False, False)} <= seen


def test_samples_of_a_dataset_are_its_records_in_written_order(plan: Plan) -> None:
    for owner in plan.datasets:
        records = [(i, r) for i in range(len(owner.shards)) for r in owner.records(i)]
        found = list(Samples(owner.path).read())
        assert [(s.source, s.id) for s, _ in found] == [("toy", r.id) for _, r in records]
        assert [p for _, p in found] == list(range(1, len(records) + 1))
        for (sample, _), (shard, r) in zip(found, records, strict=True):
            for array, form, segment in zip(sample.arrays, sample.forms, r.segments, strict=True):
                assert np.array_equal(decode(array, form), owner.array(shard, segment))


def test_arrays_are_views_of_the_mapped_file_as_it_is_stored(plan: Plan) -> None:
    for sample, _ in Samples(plan.path).read():
        for array, form in zip(sample.arrays, sample.forms, strict=True):
            assert array.base is not None and not array.flags.writeable
            if form.kind == "latents":
                flat = form.dtype in ("int8", "f8e4m3")
                assert array.dtype == {"bf16": "<u2", "f32": "<f4"}.get(form.dtype, "u1") and array.shape == ((len(array),) if flat else (4, 40))


def test_reading_goes_on_from_every_position(plan: Plan) -> None:
    for path in (plan.path, plan.datasets[1].path):
        samples = Samples(path)
        whole = [(told(s), p) for s, p in samples.read()]
        for at in range(0, len(whole), 5):
            assert [(told(s), p) for s, p in samples.read(whole[at][1])] == whole[at + 1 :]
        assert list(samples.read(whole[-1][1])) == [] == list(samples.read(position_of(10**9)))


@pytest.mark.parametrize(("world", "batch"), [(1, None), (2, None), (3, None), (2, 3), (3, 7), (4, 2)])
def test_ranks_read_every_sample_once_as_the_steps_of_a_run_divide_them(plan: Plan, world: int, batch: int | None) -> None:
    size = batch or world
    samples, whole = Samples(plan.path), [(told(s), p) for s, p in Samples(plan.path).read()]
    by_rank = [[(told(s), p) for s, p in samples.read(0, r, world, batch)] for r in range(world)]
    assert sorted(p for rank in by_rank for _, p in rank) == [p for _, p in whole]
    for r, mine in enumerate(by_rank):
        expected = [n for step in range(0, len(samples), size) for n in range(step + r, min(step + size, len(samples)), world)]
        assert list(dict.fromkeys((p - 1) // SPANS for _, p in mine)) == expected
        assert mine == [x for x in whole if (x[1] - 1) // SPANS in set(expected)]


def test_a_position_at_a_step_is_right_for_another_world(plan: Plan) -> None:
    samples, step = Samples(plan.path), position_of(12)
    early = [told(s) for r in range(3) for s, p in samples.read(0, r, 3, 6) if p <= step]
    late = [told(s) for r in range(2) for s, _ in samples.read(step, r, 2, 6)]
    assert sorted(early + late) == sorted(told(s) for s, _ in samples.read())


def test_one_sequence_can_be_asked_for(plan: Plan) -> None:
    samples = pickle.loads(pickle.dumps(Samples(plan.path)))
    whole = [told(s) for i in range(len(samples)) for s in samples.sequence(i)]
    assert whole == [told(s) for s, _ in samples.read()]
    assert [told(Samples(plan.datasets[0].path).sequence(7)[0])] == [told(s) for s, p in Samples(plan.datasets[0].path).read() if p == 8]
    with pytest.raises(InputError, match="no such sequence"):
        samples.sequence(len(samples))


def test_forgotten_records_are_left_out_and_positions_stay(plan: Plan, tmp_path: Path) -> None:
    path = dataset(tmp_path / "text", "text", 30)
    planned = make_plan(sets.mixture({"text": {"dataset": path, "epochs": 1}}, tmp_path / "plan"))
    both = [[(told(s), p) for s, p in Samples(at).read()] for at in (path, planned)]
    victims = {Samples(path).sequence(i)[0].id for i in (0, 4, 29)}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": sorted(victims), "url": pa.nulls(3, pa.string())}), sink)
    entry = file_entry(path, "tombstones-0.parquet", sink.getvalue().to_pybytes())
    card = storage.read_json(f"{path}/manifest.json") | {"tombstones": {"file": entry["path"], "sha256": entry["sha256"], "n": 3}}
    publish_card(path, "manifest.json", card)
    for before, at in zip(both, (path, planned), strict=True):
        after = [(told(s), p) for s, p in Samples(at).read()]
        assert after == [(s, p) for s, p in before if s[1] not in victims] and len(after) < len(before)
    assert Samples(path).sequence(4) == []


def test_a_changed_file_is_found_at_its_first_use_and_never_read(plan: Plan, tmp_path: Path) -> None:
    path = dataset(tmp_path / "text", "text", 30)
    list(Samples(path).read())  # remembered as right
    file = tmp_path / "text" / str(Dataset.open(path).shards[1].tokens_file)
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    with pytest.raises(VerifyError, match="differs"):
        list(Samples(path).read())
    assert len(list(Samples(path, verify=False).read())) == 30
    file.write_bytes(data[:-2])
    with pytest.raises(VerifyError, match="another length"):
        list(Samples(path).read())


def test_a_file_is_hashed_once_a_machine_and_again_when_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.format import verified

    file, cache, hashed = tmp_path / "x.bin", tmp_path / "cache", []
    file.write_bytes(b"abc")
    right, real = sha256(b"abc").hexdigest(), storage.map_file
    monkeypatch.setenv("HEADWATER_CACHE", str(cache))
    monkeypatch.setattr(storage, "map_file", lambda path: hashed.append(path) or real(path))
    for _ in range(2):
        verified._seen.clear()  # another process
        once(str(file), right)
        once(str(file), right)
    assert len(hashed) == 1
    verified._seen.clear()
    file.write_bytes(b"abd")
    with pytest.raises(VerifyError, match="differs"):
        once(str(file), right)
    cache_is_a_file = tmp_path / "file"
    cache_is_a_file.write_text("")
    monkeypatch.setenv("HEADWATER_CACHE", str(cache_is_a_file))
    file.write_bytes(b"abc")
    once(str(file), right)  # no note can be written: that costs time and nothing else


def test_what_cannot_be_mapped_is_refused(tmp_path: Path, plan: Plan) -> None:
    with pytest.raises(InputError, match="not encoded"):
        Samples(curated(str(tmp_path / "curated"), "text"))
    with pytest.raises(InputError, match="no such rank"):
        next(Samples(plan.path).read(0, 2, 2))


def test_reading_samples_loads_neither_torch_nor_ray() -> None:
    code = "import mixtures.samples, sys; print([m for m in ('torch', 'ray', 'fsspec.implementations.s3') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_first_sample_costs_no_import_of_pandas(plan: Plan) -> None:
    code = f"import sys; from mixtures.samples import Samples; next(Samples({plan.path!r}).read(1 << 20)); print('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
