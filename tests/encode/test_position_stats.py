"""Statistics by position of real encode runs: those of what is stored, the same for any order of parts and number of workers, and never lost."""

import inspect
import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from encode import part_moments
from encode.fit_tokenizer import STAGE as FIT
from encode.fit_tokenizer import FitTokenizer
from encode.recipe import EncodeRecipe
from encode.stage import STAGE
from pipelines.commands import main
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.format.errors import InputError
from pipelines.format.manifest import read_card
from pipelines.format.part import PartWriter
from pipelines.format.record import Image, Record, Text
from tests import toys

TOKENS, CHANNELS = 4, 768  # of the pictures of 32 x 32 below


class Workers:
    """A job whose items are done by some workers at a time, in a shuffled order; results come as they are ready."""

    def __init__(self, job, number, seed):
        self.job, self.number, self.seed = job, number, seed

    def __getattr__(self, name):
        return getattr(self.job, name)

    def map(self, chain, items):
        items = list(items)
        random.Random(self.seed).shuffle(items)
        with ThreadPoolExecutor(self.number) as pool:
            for done in as_completed([pool.submit(self.one, chain, item) for item in items]):
                yield done.result()

    @staticmethod
    def one(chain, item):
        for step in chain:
            item = (step.fn(**step.kwargs) if inspect.isclass(step.fn) else partial(step.fn, **step.kwargs))(item)
        return item


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    toys.curated(str(root / "video"), "video", n=24, parts=6)
    toys.curated(str(root / "pictures"), "image-text", n=9, source="other")
    words = toys.curated(str(root / "words"), "text", n=6)
    with open_job("local") as job:
        FIT.run(parse(FitTokenizer, {"datasets": [words], "vocab": 300, "output": str(root / "tokenizer")}), job)
    return root


@pytest.fixture(autouse=True)
def every_part_keeps_its_moments(monkeypatch):
    """The parts here have fewer pictures than those that are kept beside a part; what becomes of few is tested below."""
    monkeypatch.setattr(part_moments, "FEW", 1)


def encode(world, out, of="video", workers=None, **keys):
    text = {"text_tokens": {"tokenizer": str(world / "tokenizer")}}
    given = {"dataset": str(world / of), "text": text, "images": {"pixels": {"size": 32, "patch": 16}}, "output": str(out), **keys}
    with open_job("local") as job:
        return Dataset.open(STAGE.run(parse(EncodeRecipe, given), Workers(job, *workers) if workers else job))


def stored(encoded):
    """Every distinct payload of every part as read back, longdouble [n, tokens, channels]."""
    found = []
    for i in range(len(encoded.shards)):
        distinct = {s.offset: s for r in encoded.records(i) for s in r.segments if s.kind == "latents"}
        found += [encoded.array(i, s) for s in distinct.values()]
    return np.stack(found).astype(np.longdouble)


def files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in Path(root).rglob("*") if p.is_file() and p.suffix in (".bin", ".parquet")}


@pytest.mark.parametrize("codec", ["bf16", "int8", "f32"])
def test_they_are_those_of_what_is_stored(world, tmp_path, codec):
    encoded = encode(world, tmp_path, storage=codec)
    x = stored(encoded)
    n, mean, variance = encoded.latent_stats(by="position")
    assert n == len(x) and mean.shape == variance.shape == (TOKENS, CHANNELS)
    deviation = np.sqrt(x.var(axis=0))
    assert (np.abs(mean - x.mean(axis=0)) <= 1e-12 * np.maximum(deviation, 1e-3)).all()
    np.testing.assert_allclose(variance, x.var(axis=0).astype(float), rtol=1e-12, atol=1e-18)
    by_channel = encoded.latent_stats()
    assert by_channel[0] == n * TOKENS
    np.testing.assert_allclose(by_channel[1], mean.mean(axis=0), rtol=1e-12, atol=1e-15)


def test_the_card_names_both_with_count_and_hash_and_by_channel_everything_reads_as_before(world, tmp_path):
    encoded = encode(world, tmp_path)
    said = encoded.encoding["stats"]
    assert sorted(said) == ["file", "n", "position", "sha256"] and sorted(said["position"]) == ["file", "n", "sha256"]
    named = {f["path"]: f["sha256"] for f in encoded.card["files"]}
    for entry in (said, said["position"]):
        assert named[entry["file"]] == entry["sha256"] and entry["sha256"][:16] in entry["file"]
    table = pq.read_table(tmp_path / said["position"]["file"])
    assert table.column_names == ["token", "channel", "n", "mean", "m2"] and table.num_rows == TOKENS * CHANNELS
    assert pq.read_table(tmp_path / said["file"]).column_names == ["channel", "n", "mean", "m2"]


@pytest.mark.parametrize("workers", [(1, 1), (2, 2), (4, 3)])
def test_any_number_of_workers_and_any_order_of_parts_give_the_same_bytes(world, tmp_path, workers):
    one, other = encode(world, tmp_path / "a"), encode(world, tmp_path / "b", workers=workers)
    assert files(one.path) == files(other.path) and one.fingerprint == other.fingerprint
    assert sum(name.startswith("moments/") for name in files(one.path)) == 6


@pytest.mark.parametrize("run", [1, 2, 4])
def test_parts_merged_in_runs_by_several_workers_give_the_same_bytes(world, tmp_path, monkeypatch, run):
    one = encode(world, tmp_path / "a")
    monkeypatch.setattr("encode.stats.RUN", run)
    other = encode(world, tmp_path / "b", workers=(2, 0))
    assert files(one.path) == files(other.path)


@pytest.mark.parametrize("keys", [{}, {"shard_bytes": 1}])
def test_few_images_keep_nothing_beside_them_and_come_to_the_same_bits(world, tmp_path, monkeypatch, keys):
    one = encode(world, tmp_path / "a", **keys)
    monkeypatch.setattr(part_moments, "FEW", 16)
    other = encode(world, tmp_path / "b", **keys)
    assert not (tmp_path / "b/moments").exists() and one.encoding["stats"] == other.encoding["stats"]
    assert {k: v for k, v in files(one.path).items() if not k.startswith("moments/")} == files(other.path)
    assert main(["verify", other.path, "--deep"]) == 0


def test_two_pictures_of_equal_latents_are_two_in_the_statistics_however_few_there_are(world, tmp_path, monkeypatch):
    monkeypatch.setattr(part_moments, "FEW", 16)
    plain = toys.jpeg(1)
    with_comment = plain[:2] + b"\xff\xfe\x00\x06seen" + plain[2:]
    with PartWriter(str(tmp_path / "c"), 0, fingerprint="f") as w:
        for i, payload in enumerate((plain, with_comment, toys.jpeg(2))):
            w.emit()
            w.add(Record.make("toy", f"{i}.jpg", "image-text", [Image(payload, atom=0, shape=(32, 32, 3)), Text("a word", atom=1)]))
        commit = w.commit()
    toys.seal(str(tmp_path / "c"), "toy", "image-text", [commit], {})
    encoded = encode(tmp_path, tmp_path / "e", "c", text={"text_tokens": {"tokenizer": str(world / "tokenizer")}})
    assert len(stored(encoded)) == 2 and len(list((tmp_path / "e/moments").iterdir())) == 1
    assert encoded.latent_moments("position")[0] * TOKENS == encoded.latent_moments()[0] == 3 * TOKENS


def test_parts_committed_before_there_were_moments_beside_them_are_read(world, tmp_path):
    encoded = encode(world, tmp_path)
    before = encoded.encoding["stats"]
    for path in (tmp_path / "parts").iterdir():
        commit = json.loads(path.read_text())
        del commit["stats"]["positions"]
        path.write_text(json.dumps({**commit, "files": [f for f in commit["files"] if not f["path"].startswith("moments/")]}))
    (tmp_path / "manifest.json").unlink()
    assert encode(world, tmp_path).encoding["stats"] == before


def test_a_lost_or_damaged_file_of_a_part_is_seen_by_verify_and_made_again(world, tmp_path, capfd):
    whole = files(encode(world, tmp_path).path)
    beside = sorted(tmp_path.glob("moments/*"))
    beside[0].unlink()
    beside[1].write_bytes(beside[1].read_bytes()[::-1])
    assert main(["verify", str(tmp_path), "--json"]) == 4
    assert [p["file"] for p in json.loads(capfd.readouterr().out)["problems"]] == [f"moments/{beside[0].name}"]
    assert main(["verify", str(tmp_path), "--deep", "--json"]) == 4
    assert [p["file"] for p in json.loads(capfd.readouterr().out)["problems"]] == [f"moments/{b.name}" for b in beside[:2]]
    beside[1].unlink()
    encode(world, tmp_path)
    assert files(tmp_path) == whole and main(["verify", str(tmp_path), "--deep"]) == 0


def test_gc_takes_what_no_commit_record_names_and_nothing_else(world, tmp_path, capfd):
    encode(world, tmp_path)
    before = files(tmp_path)
    (tmp_path / "moments" / "00000-0123456789abcdef.parquet").write_bytes(b"of a dead job")
    (tmp_path / "stats-position-0123456789abcdef.parquet").write_bytes(b"of a dead job")
    assert main(["gc", str(tmp_path), "--older-than", "0", "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["removed"]) == 2 and files(tmp_path) == before


def test_a_dataset_grown_by_parts_has_the_statistics_of_the_whole_and_keeps_the_older_ones(world, tmp_path):
    toys.curated(str(tmp_path / "curated"), "video", n=8, parts=2)
    text = {"text_tokens": {"tokenizer": str(world / "tokenizer")}}
    old = encode(tmp_path, tmp_path / "e", "curated", text=text)
    before = [m.tobytes() for m in old.latent_moments("position")[1:]]
    shutil.rmtree(tmp_path / "curated")
    toys.curated(str(tmp_path / "curated"), "video", n=12, parts=3)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "e" / "moments").iterdir()}
    new = encode(tmp_path, tmp_path / "e", "curated", text=text)
    assert new.latent_moments("position")[0] == len(stored(new)) > old.latent_moments("position")[0] == len(stored(old))
    np.testing.assert_allclose(new.latent_stats("position")[1], stored(new).mean(axis=0).astype(float), rtol=1e-12, atol=1e-15)
    assert [m.tobytes() for m in Dataset.open(new.path, old.fingerprint).latent_moments("position")[1:]] == before
    assert kept.items() <= {p: p.stat().st_mtime_ns for p in (tmp_path / "e" / "moments").iterdir()}.items()


def test_reused_latents_bring_their_statistics(world, tmp_path):
    first = encode(world, tmp_path / "first")
    again = encode(world, tmp_path / "again", images={"reuse": first.path})
    assert again.encoding["stats"] == first.encoding["stats"] and not (tmp_path / "again" / "moments").exists()
    for ours, theirs in zip(again.latent_moments("position"), first.latent_moments("position"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_dataset_without_them_opens_and_says_what_to_do(world, tmp_path):
    encoded = encode(world, tmp_path)
    card = json.loads((tmp_path / "manifest.json").read_text())
    del card["encoding"]["stats"]["position"]
    (tmp_path / "manifest.json").write_text(json.dumps(card))
    old = Dataset.open(str(tmp_path))
    assert old.latent_stats()[0] == encoded.latent_stats()[0]
    with pytest.raises(InputError, match="by channel alone"):
        old.latent_stats(by="position")


def test_a_dataset_of_text_has_neither(world, tmp_path):
    encode(world, tmp_path, "words", images=None)
    assert "stats" not in read_card(str(tmp_path))["encoding"] and not (tmp_path / "moments").exists()
