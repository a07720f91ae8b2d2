"""The encode job, wherever its steps run and whatever happens to its workers: the same bytes, every record, and word of what went another way."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from encode.coding import coded
from encode.encoder import ImageEncoding
from encode.encoders.pixels import Pixels
from encode.encoders.text_tokens import TextTokens
from encode.fit_tokenizer import STAGE as FIT
from encode.fit_tokenizer import FitTokenizer
from encode.memory import coded_as_fits, loaded, out_of_memory
from encode.recipe import EncodeRecipe
from encode.stage import STAGE, chain
from pipelines.build import build
from pipelines.engine import open_job
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.format.errors import InputError, Reject, TemporaryError
from pipelines.format.part import commit_path
from pipelines.stage import Step
from tests import toys
from tests.encode.mortal import Deadly, Mortal, workers
from tests.encode.test_stage import files

PARTS = 8


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pictures with captions in eight shards, a tokenizer, and what an undisturbed job makes of them in this process."""
    root = tmp_path_factory.mktemp("world")
    toys.curated(str(root / "c"), "image-text", n=3 * PARTS, parts=PARTS)
    with open_job("local") as job:
        FIT.run(parse(FitTokenizer, {"datasets": [str(root / "c")], "vocab": 300, "output": str(root / "tokenizer")}), job)
    (root / "marks").mkdir()
    encode(root, root / "golden", Mortal(size=32, patch=16, batch=4, marks=str(root / "marks")))
    return root


def recipe(root, out, images, **resources):
    text = TextTokens(tokenizer=str(root / "tokenizer"))
    return EncodeRecipe(dataset=str(root / "c"), text=text, images=images, output=str(out), resources=resources)


def encode(root, out, images, where="local", log=None, **resources):
    with open_job(where, log_path=log) as job:
        STAGE.run(recipe(root, out, images, **resources), job)
    return files(out)


def steps(world, job, **resources):
    config = recipe(world, world / "x", Pixels(size=32, patch=16), **resources)
    return chain(config, Dataset.open(str(world / "c")), "x", SimpleNamespace(gpus=None, **job))


def test_on_processors_one_worker_does_all_of_a_part_and_with_gpus_three_kinds_share_it(world):
    assert [s.name for s in steps(world, {"where": "ray", "cpus": 2})] == ["encode"]
    assert [s.name for s in steps(world, {"where": "local", "cpus": 2})] == ["load", "encode", "write"]
    load, encode, write = steps(world, {"where": "ray", "cpus": 2}, gpus=0.5)
    assert (encode.gpus, encode.cpus) == (0.5, 1) and (load.gpus, write.gpus) == (0, 0)


def test_a_cluster_with_gpus_is_used_from_a_driver_that_has_none_unless_the_encoder_has_no_use_for_them(world):
    def gpus(images, seen):
        config, job = recipe(world, world / "x", images), SimpleNamespace(where="ray", cpus=2, gpus=seen)
        return max(s.gpus for s in chain(config, Dataset.open(str(world / "c")), "x", job))

    tower = Mortal(size=32, patch=16, marks="", kind="a processor that a GPU is faster than")
    assert gpus(tower, 8.0) == 1.0 and gpus(tower, 0.0) == 0.0 and gpus(tower, None) == 0.0
    assert gpus(Pixels(size=32, patch=16), 8.0) == 0.0


def test_steps_in_one_worker_give_the_bytes_of_steps_apart(world, tmp_path):
    (tmp_path / "marks").mkdir()
    images = Mortal(size=32, patch=16, batch=4, marks=str(tmp_path / "marks"))
    config, dataset = recipe(world, tmp_path / "out", images), Dataset.open(str(world / "c"))
    from encode.parts import encode_parts
    from pipelines.build import Build

    (one,) = chain(config, dataset, config.output, SimpleNamespace(where="ray", cpus=2, gpus=None))
    made = Build(config.output, "x", "image-text", {}, "f", encode_parts(config, dataset), [one])
    with open_job("local") as job:
        build(job, made)
    mine, golden = files(tmp_path / "out"), files(world / "golden")
    assert len(mine) > PARTS and all(golden[k] == v for k, v in mine.items())  # the golden one has statistics beside


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_the_part_says_so(world, tmp_path):
    marks, log = tmp_path / "marks", tmp_path / "log.jsonl"
    marks.mkdir()
    images = Mortal(size=32, patch=16, batch=32, room=9, marks=str(marks))
    made = encode(world, tmp_path / "out", images, log=str(log))
    golden = files(world / "golden")
    assert {k for k in made if k.startswith("latents")} == {k for k in golden if k.startswith("latents")}, "pixels do not depend on the batch"
    note = "out of memory: made in batches of 8 instead of 32"
    commits = [storage.read_json(commit_path(str(tmp_path / "out"), n)) for n in range(PARTS)]
    assert [c["stats"]["notes"] for c in commits] == [[note]] * PARTS
    eight = images.model_copy(update={"batch": 8}).fingerprint(images.machine())
    assert {c["stats"]["encoder"] for c in commits} == {eight} != {images.fingerprint(images.machine())}
    assert Dataset.open(str(tmp_path / "out")).encoding["image"]["fingerprint"] == eight
    assert log.read_text().count(note) == PARTS


@pytest.mark.parametrize("room", [32, 5, 1])
def test_a_part_is_made_in_one_batch_size_and_the_worker_keeps_it(tmp_path, room):
    pictures = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)
    encoding = ImageEncoding(Mortal(size=32, patch=16, batch=32, room=room, marks=str(tmp_path)))
    asked, sizes = encoding.network, []
    encoding.network = lambda batch: sizes.append(len(batch)) or asked(batch)
    first, again = coded_as_fits(encoding, pictures, "f32"), coded_as_fits(encoding, pictures, "f32")
    plain = coded(ImageEncoding(Pixels(size=32, patch=16)), pictures, "f32")
    assert first.payloads.tobytes() == again.payloads.tobytes() == plain.payloads.tobytes() and first.fingerprint == again.fingerprint
    assert first.notes == again.notes and bool(first.notes) == (room < 32)
    fits = max(b for b in (32, 16, 8, 4, 2, 1) if b <= room)
    whole = -(-70 // fits)
    assert sizes[-2 * whole :] == [fits] * (2 * whole), "from the first picture, and without another try"


def test_threads_that_share_a_network_never_mix_two_batch_sizes_in_a_part(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)
    encoding = ImageEncoding(Mortal(size=32, patch=16, batch=64, room=9, marks=str(tmp_path)))
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda _: coded_as_fits(encoding, pictures, "f32"), range(12)))
    eight = encoding.encoder.model_copy(update={"batch": 8}).fingerprint(encoding.machine)
    assert encoding.batch == 8 and {p.fingerprint for p in parts} == {eight} and len({p.notes for p in parts}) == 1


def test_full_parts_are_whole_batches(world):
    from encode.encoder import Grid
    from encode.parts import image_limit

    assert image_limit(Grid(256, 256, 256, 768), "bf16", 32) == 672 and image_limit(Grid(224, 224, 256, 1152), "bf16", 256) == 256
    assert image_limit(Grid(32, 32, 4, 768), "bf16", 2048) == 1024 and image_limit(Grid(2048, 2048, 9, 9), "none", 48) == 1024


def test_an_error_in_the_middle_of_a_part_leaves_nothing_of_its_first_batches(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    encoding = ImageEncoding(Mortal(size=32, patch=16, batch=8, marks=str(tmp_path)))
    inner, calls = encoding.network, []

    def late(batch):
        calls.append(len(batch))
        if calls.count(8) == 3 and len(batch) == 8:
            raise MemoryError
        return inner(batch)

    encoding.network = late
    part = coded_as_fits(encoding, pictures, "f32")
    assert len(part.payloads) == 40 and part.moments.n == 40 and part.notes


def test_what_does_not_fit_at_all_is_told_and_other_errors_are_not_taken_for_it(tmp_path):
    picture = np.zeros((3, 32, 32, 3), np.uint8)
    encoding = ImageEncoding(Mortal(size=32, patch=16, batch=2, marks=str(tmp_path)))

    def never(batch):
        raise MemoryError

    encoding.network = never
    with pytest.raises(InputError, match="single picture"):
        coded_as_fits(encoding, picture, "f32")

    class Large(Mortal):
        def network(self, machine):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(InputError, match="the network does not fit"):
        loaded(Large(size=32, patch=16, marks=str(tmp_path)))
    torch = pytest.importorskip("torch")
    told = [torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")]
    assert all(map(out_of_memory, told))
    assert not out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered")) and not out_of_memory(ValueError("out of memory"))


def test_a_gpu_is_fed_by_child_processes_and_the_bytes_and_rejects_are_those_of_one(world, tmp_path):
    from pipelines.format.part import PartWriter
    from pipelines.format.record import Image, Record

    commits = []
    for part in range(5):
        with PartWriter(str(tmp_path / "c"), part, fingerprint="f") as w:
            for i in range(part * 60, part * 60 + 60):
                payload = (toys.jpeg(i), toys.jpeg(i)[:90], toys.jpeg(i // 2))[i % 3]
                w.emit()
                w.add(Record.make("toy", f"{i}.jpg", "video", [Image(payload, atom=0, shape=(32, 32, 3))]))
            commits.append(w.commit())
    parent = toys.seal(str(tmp_path / "c"), "toy", "video", commits, {})

    def made(place, **resources):
        config = recipe(world, tmp_path / place, Pixels(size=96, patch=8), **resources).model_copy(update={"dataset": parent})
        with open_job("local", cpus=4) as job:
            assert [s.processes for s in chain(config, Dataset.open(parent), "x", job)] == ([2, 0, 1] if resources else [0, 0, 0])
            return Dataset.open(STAGE.run(config, job))

    one, many = made("one"), made("many", gpus=1)
    assert one.fingerprint == many.fingerprint and one.card["rejected"] == many.card["rejected"] and sum(one.card["rejected"].values()) == 100


def test_pictures_too_large_are_told_alike_by_every_thread():
    import struct
    import zlib

    from pipelines.media import images

    head = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + struct.pack(">I", 0) + b"IDAT"

    def read(i):
        try:
            return images.decode(bomb if i % 2 else toys.jpeg(1)).shape
        except Reject as e:
            return e.reason, e.detail

    alone = [read(0), read(1)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(400))) == alone * 200
    assert alone[1][0] == "too_large"


@pytest.mark.ray
def test_workers_that_are_killed_cost_no_record_and_change_no_byte(world, tmp_path, ray_session):
    (tmp_path / "marks").mkdir()
    images = Mortal(size=32, patch=16, batch=4, deaths=3, marks=str(tmp_path / "marks"))
    assert encode(world, tmp_path / "out", images, "ray") == files(world / "golden")
    assert len(list((tmp_path / "marks").glob("death-*"))) == 3 and len(workers(tmp_path / "marks")) >= 4


@pytest.mark.ray
def test_an_item_that_always_kills_its_worker_ends_the_job(ray_session):
    with open_job("ray") as job, pytest.raises(TemporaryError, match=r"lost 5 times(.|\n)*deadly, part 2 "):
        for _ in job.map([Step(Deadly, {"by": 2}, name="deadly", actors=1)], [0, 1, 2, 3]):
            pass


@pytest.mark.ray
def test_every_gpu_is_used_in_halves_here_and_the_bytes_are_those_of_one_process(world, tmp_path):
    import ray

    ray.shutdown()
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, object_store_memory=300 << 20, log_to_driver=False)
    try:
        (tmp_path / "marks").mkdir()
        images = Mortal(size=32, patch=16, batch=4, deaths=1, slow=0.4, marks=str(tmp_path / "marks"))
        assert encode(world, tmp_path / "out", images, "ray", gpus=0.5) == files(world / "golden")
        seen = workers(tmp_path / "marks")
        assert set(seen.values()) == {"0", "1"}, seen
    finally:
        ray.shutdown()
