"""Every distinct payload is stored once, every record comes back as it went in, and equal records give equal bytes."""

import io
import tarfile

import numpy as np
import pytest

from pipelines.format import codec
from pipelines.format.dataset import Dataset
from pipelines.format.errors import ConflictError, VerifyError
from pipelines.format.part import PartWriter
from pipelines.format.record import Image, Record, Segment, Text, atoms
from pipelines.format.shard import tar_header
from tests import toys

KINDS = ("text", "image-text", "video", "action-video", "vqa")


@pytest.mark.parametrize("data", KINDS)
def test_records_come_back_as_they_went_in(tmp_path, data):
    root = toys.curated(str(tmp_path / "d"), data, n=5, parts=2)
    ds = Dataset.open(root)
    back = [r for i in range(len(ds.shards)) for r in ds.records(i, payloads=True)]
    wanted = list(toys.records(data, 5))
    assert [r.id for r in back] == [r.id for r in wanted]
    for a, b in zip(back, wanted, strict=True):
        assert [(s.kind, s.role, s.atom, s.turn, s.text, s.payload, s.shape, s.time_s) for s in a.segments] == [
            (s.kind, s.role, s.atom, s.turn, s.text, s.payload, s.shape, s.time_s) for s in b.segments
        ]
        assert (a.group, a.origin, a.fields, a.data) == (b.group, b.origin, b.fields, b.data)


def test_equal_records_give_equal_files(tmp_path):
    a, b = (toys.curated(str(tmp_path / name), "vqa", n=6) for name in "ab")
    assert Dataset.open(a).shards == Dataset.open(b).shards
    assert Dataset.open(a).fingerprint == Dataset.open(b).fingerprint


def test_a_payload_that_many_records_share_is_stored_once(tmp_path):
    frame = b"f" * 10_000
    with PartWriter(str(tmp_path), 0, fingerprint="x") as w:
        for i in range(50):
            w.emit()
            w.add(Record.make("s", f"o{i}", "image-text", [Image(frame, atom=0), Text(f"{i}", atom=1)]))
        commit = w.commit()
    assert commit["files"][0]["bytes"] < 10_000 + 50 * 2_048
    with tarfile.open(tmp_path / commit["files"][0]["path"]) as tar:
        assert sum(m.name.endswith(".jpg") for m in tar) == 1


def test_the_tar_is_plain_ustar_with_nothing_of_this_machine(tmp_path):
    root = toys.curated(str(tmp_path / "d"), "image-text", n=3, parts=1)
    raw = (tmp_path / "d" / str(Dataset.open(root).shards[0].data)).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        members = tar.getmembers()
    assert {(m.mode, m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0o644, 0, 0, "", "", 0)}
    assert [m.name.split(".", 1) for m in members[:2]] == [["00000-000000", "json"], ["00000-000000", "0.jpg"]]


def test_webdataset_itself_reads_our_tars(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    root = toys.curated(str(tmp_path / "d"), "image-text", n=7, parts=2)
    ds = Dataset.open(root)
    tars = [f"{root}/{s.data}" for s in ds.shards]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(samples) == 7 == ds.card["records"]
    assert [s["0.jpg"] for s in samples] == [r.segments[0].payload for i in range(len(tars)) for r in ds.records(i, payloads=True)]


def test_arrays_are_aligned_and_read_back(tmp_path):
    ids = np.arange(7, dtype=np.uint16)
    x = np.random.default_rng(0).standard_normal((4, 40)).astype(np.float32)
    with PartWriter(str(tmp_path), 0, fingerprint="x", encoded=True) as w:
        for i in range(3):
            w.emit()
            t = Segment("tokens", payload=ids.tobytes(), dtype="uint16", shape=(7,), tokens=7)
            z = Segment("latents", atom=0, payload=codec.encode_latents(x + i, "f32"), dtype="f32", shape=(4, 40), tokens=4)
            w.add(Record.make("s", f"{i}", "image-text", [z, t]))
        commit = w.commit()
    (shard,) = commit["shards"]
    assert shard["tokens_bytes"] == 14 and shard["data_bytes"] == 3 * 640
    assert commit["tokens"] == {"text": 21, "visual": 12, "loss": 33, "all": 33}
    root = toys.seal(str(tmp_path), "s", "image-text", [commit], {})
    ds = Dataset.open(root)
    for i, r in enumerate(ds.records(0)):
        z, t = r.segments
        assert t.offset == 0 and z.offset == i * 640 and z.offset % 64 == 0
        assert ds.array(0, t).tolist() == ids.tolist() and np.array_equal(ds.array(0, z), x + i)


def test_a_part_rolls_to_a_new_shard_when_one_is_full(tmp_path):
    with PartWriter(str(tmp_path), 3, fingerprint="x", shard_bytes=5_000) as w:
        for r in toys.records("image-text", 12):
            w.emit()
            w.add(r)
        commit = w.commit()
    shards = commit["shards"]
    assert len(shards) > 1 and sum(s["records"] for s in shards) == 12
    assert [s["first_row"] for s in shards] == np.cumsum([0] + [s["records"] for s in shards])[:-1].tolist()


def test_a_record_that_is_lost_on_the_way_fails_the_commit(tmp_path):
    with PartWriter(str(tmp_path), 0, fingerprint="x") as w:
        w.emit(2)
        w.add(toys.record("text", 0))
        with pytest.raises(AssertionError, match="2 came in, 1 went out"):
            w.commit()


def test_equal_work_may_be_committed_twice_and_other_work_may_not(tmp_path):
    def commit(n, fingerprint):
        with PartWriter(str(tmp_path), 0, fingerprint=fingerprint) as w:
            for r in toys.records("text", n):
                w.emit()
                w.add(r)
            return w.commit()

    assert commit(3, "same") == commit(3, "same")
    with pytest.raises(ConflictError) as e:
        commit(4, "other")
    assert e.value.exit == 6


def test_neighbours_of_one_atom_form_one_entry():
    s = [Segment("latents", atom=0, tokens=4), Segment("tokens", atom=0, tokens=2), Segment("tokens", tokens=5), Segment("tokens", tokens=6)]
    a = atoms(tuple(s))
    assert (a.tokens, a.segments, a.images, a.flags) == ([6, 5, 6], [2, 1, 1], [1, 0, 0], [0, 1, 1])


def test_a_changed_shard_table_is_noticed_when_the_dataset_is_opened(tmp_path):
    root = toys.curated(str(tmp_path / "d"), "text")
    table = tmp_path / "d" / Dataset.open(root).card["shards"]["file"]
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    with pytest.raises(VerifyError):
        Dataset.open(root)


@pytest.mark.parametrize("name", ["00000-000001.json", "x" * 100, "x/" * 60 + "y", "ü.jpg"])
@pytest.mark.parametrize("size", [0, 1, 16_969, 8**11 - 1])
def test_a_members_header_is_the_one_that_tarfile_makes(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_records_that_share_a_frame_are_handed_one_object(tmp_path):
    root = toys.curated(str(tmp_path / "d"), "action-video", n=6, parts=1)
    ds = Dataset.open(root)
    seen = [s.payload for r in ds.records(0, payloads=True) for s in r.segments if s.payload is not None]
    assert len({id(p) for p in seen}) == len(set(seen)) < len(seen)
    ds.release(0)
    assert not ds._maps and [r.id for r in ds.records(0)] == [r.id for r in toys.records("action-video", 6)], "and it is opened again when asked for"
