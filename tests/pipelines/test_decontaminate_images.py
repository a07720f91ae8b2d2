"""No picture of an evaluation set is trained on, in whatever kind of record, file or geometry it comes; what is no copy stays."""

import io
import json
import os
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.across.decontaminate_images import DecontaminateImages
from pipelines.across.reference_images import ReferenceImages, image_files, reference_images
from pipelines.curate import Curate
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.format.errors import InputError
from pipelines.format.record import Image, Record, Text
from pipelines.media import images
from pipelines.recipe import Recipe
from tests.pipelines.clips import clip
from tests.pipelines.copies import COPIES, scenes
from tests.pipelines.test_image_hash import rounds

PHOTOS = list(scenes(10))
JPEGS = [images.encode_jpeg(p, 95) for p in PHOTOS]
LEAKED = 5  # of the photos: those that the evaluation set shows


def folder(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("evaluation"), {f"e/{i}.jpg": JPEGS[i] for i in range(LEAKED)})


def run(kind, source, output, *across, transforms=(), where="local", **more):
    document = {"name": "t", "source": source, "transforms": list(transforms), "across": list(across), "engine": where, "output": str(output), **more}
    with open_job(where) as job:
        return Dataset.open(Curate(kind).run(parse(Recipe, document), job))


def stage(path, **more):
    return {"decontaminate_images": {"against": {"test": {"path": path}}, **more}}


def held(data):
    return [r for i in range(len(data.shards)) for r in data.records(i)]


def training(root):
    """Of every photo every copy, with its caption."""
    for i, (pixels, data) in enumerate(zip(PHOTOS, JPEGS, strict=True)):
        for k, (name, copy) in enumerate(COPIES.items()):
            folder(root, {f"{i}-{k}.jpg": data if name == "exact" else copy(pixels), f"{i}-{k}.txt": f"photo {i} {name}".encode()})
    return {"image_folder": {"path": str(root)}}


@pytest.mark.parametrize("transform", [[], [{"resize_image": {"size": 160}}], [{"resize_image": {"size": 160, "mode": "border"}}]], ids=str)
def test_every_planted_copy_of_an_evaluation_picture_leaves_and_nothing_else(tmp_path, evaluation, transform):
    data = run("image-text", training(tmp_path / "in"), tmp_path / "out", stage(evaluation), transforms=transform, keep_dropped=True)
    n = len(COPIES)
    assert {r.origin[0] for r in held(data)} == set("56789") and len(held(data)) == 5 * n
    assert data.card["in"] == data.card["written"] + sum(data.card["filtered"].values()) == 10 * n
    told = data.card["figures"]["decontaminate_images"]
    assert told["sets"]["test"]["pictures"] == told["sets"]["test"]["met"] == LEAKED
    exact = data.card["filtered"].get("decontaminate_images.test.exact", 0)
    assert exact == told["sets"]["test"]["exact"] == (LEAKED if not transform else 0)
    near = data.card["filtered"]["decontaminate_images.test.near"]
    assert near == told["sets"]["test"]["near"] == sum(told["bits"].values()) == LEAKED * n - exact
    assert len(told["farthest"]) == 5 and all(said.startswith("test: e/") for said in told["farthest"].values())
    assert len(held(Dataset.open(f"{data.path}/dropped"))) == LEAKED * n


def test_without_near_only_bytes_and_pixels_count(tmp_path, evaluation):
    pixels = images.decode(JPEGS[0])
    files = {"a.jpg": JPEGS[0], "b.png": images.encode_png(pixels), "c.jpg": images.encode_jpeg(pixels, 90)}
    texts = {f"{Path(n).stem}.txt": b"a photo" for n in files}
    data = run("image-text", {"image_folder": {"path": folder(tmp_path / "in", files | texts)}}, tmp_path / "out", stage(evaluation, near=False))
    assert [r.origin for r in held(data)] == ["c.jpg"] and data.card["filtered"] == {"decontaminate_images.test.exact": 2}


def sample(origin, pictures, data="image-text", **rest):
    segments = [Image(p, atom=i, shape=(8, 8, 3)) for i, p in enumerate(pictures)]
    return Record.make("t", origin, data, [*segments, Text("words", atom=len(pictures))], **rest)


def dropped(records, parts=1, **more):
    return rounds(DecontaminateImages(**more), [records[k::parts] for k in range(parts)])


def test_a_record_leaves_for_one_of_its_pictures_and_with_drop_group_all_of_its_group_leaves(evaluation):
    """Frames of clips, images of an action-video sample, images of a question: one rule."""
    copy = COPIES["JPEG at quality 60"](PHOTOS[1])
    records = [sample(f"film@{i}", [JPEGS[5 + i], copy if i == 1 else JPEGS[9]], "video", group="film") for i in range(3)]
    records += [sample("car", [JPEGS[6], JPEGS[7], copy], "action-video", group="drive"), sample("rad", [copy], "vqa")]
    records += [sample("other", [JPEGS[8]], "vqa")]
    against = {"test": ReferenceImages(path=evaluation)}
    near = "decontaminate_images.test.near"
    by_record, _ = dropped(records, against=against)
    assert by_record == {records[i].id: near for i in (1, 3, 4)}
    by_group, told = dropped(records, against=against, drop="group", parts=3, buckets=7)
    assert by_group == by_record | {records[i].id: "decontaminate_images.test.group" for i in (0, 2)}
    assert DecontaminateImages(against=against).report(told)["sets"]["test"] | {"pictures": 0} == {
        "pictures": 0, "undecodable": 0, "plain": 0, "met": 1, "exact": 0, "near": 3, "group": 2,
    }  # fmt: skip


def test_frames_of_a_real_video_file_that_an_evaluation_shows_cost_their_clip(tmp_path):
    films = {"leaked.mp4": clip(first=1111), "own.mp4": clip(first=3000)}
    source = {"video_folder": {"path": folder(tmp_path / "in", films), "fps": 10.0, "frames_per_clip": 10, "size": 96}}
    whole = run("video", source, tmp_path / "whole")
    leaked = next(r for i in range(len(whole.shards)) for r in whole.records(i, payloads=True) if r.origin == "leaked.mp4@1000-2000")
    still = images.encode_jpeg(images.decode(leaked.segments[4].payload), 60)
    data = run("video", source, tmp_path / "out", stage(folder(tmp_path / "e", {"still.jpg": still})))
    assert {r.origin for r in held(whole)} - {r.origin for r in held(data)} == {"leaked.mp4@1000-2000"}


def test_a_set_may_be_a_folder_tars_parquet_a_table_a_dataset_or_a_list_of_hashes(tmp_path, evaluation):
    files = {f"{i}.jpg": JPEGS[i] for i in range(LEAKED)}
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    pq.write_table(pa.table({"picture": [{"bytes": d, "path": n} for n, d in files.items()]}), tmp_path / "p.parquet")
    rows = [{"id": i, "question": q} for i in range(LEAKED) for q in ("what?", "who?")]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "list.txt").write_text("".join(f"{sha256(d).hexdigest()}\n" for d in files.values()))
    pairs = {f"{i}.txt": b"a photo" for i in range(LEAKED)} | files
    run("image-text", {"image_folder": {"path": folder(tmp_path / "in", pairs)}}, tmp_path / "d")
    sets = [
        ReferenceImages(path=evaluation),
        ReferenceImages(path=str(tmp_path / "t.tar")),
        ReferenceImages(path=str(tmp_path / "p.parquet"), image_field="picture"),
        ReferenceImages(path=str(tmp_path / "qa.jsonl"), image_field="{id}.jpg", images=f"{evaluation}/e"),
        ReferenceImages(path=str(tmp_path / "d")),
        ReferenceImages(path=str(tmp_path / "list.txt"), hashes=True),
    ]
    records = [sample(str(i), [data]) for i, data in enumerate(JPEGS)]
    for one in sets:
        gone, told = dropped(records, against={"test": one})
        assert gone == {records[i].id: "decontaminate_images.test.exact" for i in range(LEAKED)}, one
        assert DecontaminateImages(against={"test": one}).report(told)["sets"]["test"]["pictures"] == LEAKED
        assert image_files(one)


def test_what_is_missing_from_a_set_is_an_error_and_what_cannot_be_decoded_is_known_by_its_bytes(tmp_path, evaluation):
    (tmp_path / "qa.jsonl").write_text('{"image": "none.jpg"}\n')
    with pytest.raises(Exception, match=r"none\.jpg"):
        list(reference_images(ReferenceImages(path=str(tmp_path / "qa.jsonl"))))
    with pytest.raises(InputError, match="names no image"):
        list(reference_images(ReferenceImages(path=str(tmp_path / "qa.jsonl"), image_field="picture")))
    with pytest.raises(InputError, match="held-out side"):
        list(reference_images(ReferenceImages(path=evaluation, held_out={"fraction": "2%"})))
    broken = JPEGS[0][:200]
    one = ReferenceImages(path=folder(tmp_path / "broken", {"a.jpg": broken}))
    gone, told = dropped([sample("a", [broken]), sample("b", [JPEGS[0]]), sample("c", [b"nothing"])], against={"test": one})
    assert len(gone) == 1 and DecontaminateImages(against={"test": one}).report(told)["sets"]["test"]["undecodable"] == 1


def test_what_is_held_out_itself_is_left_alone_and_only_that_side_of_a_dataset_is_compared_with(tmp_path):
    pairs = {f"{i}.txt": b"a photo" for i in range(10)} | {f"{i}.jpg": d for i, d in enumerate(JPEGS)}
    data = run("image-text", {"image_folder": {"path": folder(tmp_path / "in", pairs)}}, tmp_path / "d")
    one = ReferenceImages(path=data.path, held_out={"fraction": "40%", "seed": 1})
    shown = {name for name, _ in reference_images(one)}
    assert 0 < len(shown) < 10
    records = held(data)
    copies = [sample(f"copy{r.origin}", [COPIES["re-encoded"](PHOTOS[int(r.origin[0])])], group="train") for r in records]
    own = [sample(r.origin, [JPEGS[int(r.origin[0])]], group=r.group) for r in records]
    gone, _ = dropped(own + copies, against={"test": one})
    wanted = {c.id for c, r in zip(copies, records, strict=True) if r.origin in shown}
    assert wanted and set(gone) == wanted


def test_the_first_set_of_the_recipe_is_named_and_exact_before_near(tmp_path, evaluation):
    near = ReferenceImages(path=folder(tmp_path / "near", {"a.jpg": COPIES["JPEG at quality 60"](PHOTOS[0])}))
    same = ReferenceImages(path=evaluation)
    record = sample("a", [JPEGS[0]])
    assert dropped([record], against={"x": near, "y": same})[0] == {record.id: "decontaminate_images.x.near"}
    assert dropped([record], against={"y": same, "x": near})[0] == {record.id: "decontaminate_images.y.exact"}
    assert dropped([sample("b", [COPIES["JPEG at quality 60"](PHOTOS[0]), JPEGS[0]])], against={"y": same})[0].popitem()[1].endswith("exact")


def test_plain_pictures_are_compared_by_bytes_and_pixels_alone(tmp_path):
    white, grey = (np.full((40, 60, 3), c, np.uint8) for c in (255, 200))
    one = ReferenceImages(path=folder(tmp_path / "e", {"white.png": images.encode_png(white)}))
    files = [images.encode_png(grey), COPIES["other format, same pixels"](white), images.encode_jpeg(grey)]
    records = [sample(str(i), [d]) for i, d in enumerate(files)]
    gone, told = dropped(records, against={"test": one})
    assert list(gone) == [records[1].id] and DecontaminateImages(against={"test": one}).report(told)["sets"]["test"]["plain"] == 1


def test_another_evaluation_set_makes_another_dataset(tmp_path, evaluation):
    pairs = {"9.txt": b"a photo", "9.jpg": JPEGS[9]}
    source = {"image_folder": {"path": folder(tmp_path / "in", pairs)}}
    more = folder(tmp_path / "e", {"0.jpg": JPEGS[0]})
    first = run("image-text", source, tmp_path / "out", stage(more)).card["recipe_fingerprint"]
    folder(tmp_path / "e", {"9.jpg": JPEGS[9]})
    again = run("image-text", source, tmp_path / "out2", stage(more))
    assert again.card["written"] == 0 and again.card["recipe_fingerprint"] != first


@pytest.mark.skipif(not (DATA := os.environ.get("HEADWATER_DATA")), reason="HEADWATER_DATA is not set")
def test_planted_copies_of_radiology_images_are_found_and_other_radiology_images_are_left(tmp_path):
    found = [p.read_bytes() for p in sorted(Path(f"{DATA}/vqa/vqa_rad/images").iterdir())[:60]]
    one = ReferenceImages(path=folder(tmp_path / "e", {f"{i}.jpg": d for i, d in enumerate(found[:20])}))
    copies = [sample(f"{i}{name}", [copy(images.decode(d))], "vqa") for i, d in enumerate(found[:20]) for name, copy in COPIES.items()]
    others = [sample(str(i), [d], "vqa") for i, d in enumerate(found[20:])]
    gone, _ = dropped(copies + others, against={"test": one})
    assert set(gone) == {r.id for r in copies}
