"""Two encoders, one job: two datasets whose rows are each other's, each what its encoder alone would have made of the same records."""

import json
from collections import Counter
from pathlib import Path

import pytest

from encode import dual
from encode.audit import audit
from encode.dual import SIDES, side
from encode.encoder import as_written, opened
from encode.encoders.dual import Dual
from encode.encoders.pixels import Pixels
from encode.fit_tokenizer import STAGE as FIT
from encode.fit_tokenizer import FitTokenizer
from encode.parts import MAX_BYTES, MAX_IMAGES, image_limit
from encode.recipe import EncodeRecipe
from encode.stage import STAGE
from pipelines.check_dataset import check
from pipelines.compact import STAGE as COMPACT
from pipelines.compact import Compact
from pipelines.engine import open_job
from pipelines.format.codec import CODECS, nbytes
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.format.errors import ConflictError, RecipeError
from pipelines.format.part import PartWriter
from pipelines.format.record import Image, Record, Text
from pipelines.media import images
from tests import toys
from tests.encode.models import save_siglip
from tests.encode.planted import latents, planted, with_latents, with_segment

KINDS = ("text", "image-text", "video", "action-video", "vqa")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    for kind in KINDS:
        toys.curated(str(root / kind), kind, n=12, parts=3)
    texts = [str(root / k) for k in KINDS if k != "video"]
    with open_job("local") as job:
        FIT.run(parse(FitTokenizer, {"datasets": texts, "vocab": 300, "output": str(root / "tokenizer")}), job)
    save_siglip(str(root / "tower"))
    return root


def both(root):
    """4 tokens of 32 values for images that are looked at, 16 of 192 for images that are made."""
    context = {"siglip2": {"weights": str(root / "tower"), "batch": 4}}
    return {"dual": {"context": context, "target": {"pixels": {"size": 32, "patch": 8}}}}


def recipe(root, kind, out, **more):
    text = {"text_tokens": {"tokenizer": str(root / "tokenizer")}}
    given = {"dataset": str(root / kind), "text": text, "images": both(root), "output": str(out), **more}
    return parse(EncodeRecipe, given)


def run(config):
    with open_job("local") as job:
        return STAGE.run(config, job)


def encode(root, kind, out, **more):
    run(recipe(root, kind, out, **more))
    return tuple(Dataset.open(str(Path(out) / name)) for name in SIDES)


def records(dataset):
    return [(i, r) for i in range(len(dataset.shards)) for r in dataset.records(i)]


def payloads(dataset):
    return [(r.id, k, bytes(dataset.payload(i, s))) for i, r in records(dataset) for k, s in enumerate(r.segments)]


def files(root):
    kept = (".bin", ".parquet", ".json")
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in Path(root).rglob("*") if p.is_file() and p.suffix in kept}


@pytest.mark.parametrize("kind", KINDS)
def test_each_dataset_holds_what_its_encoder_alone_makes_of_every_record(world, tmp_path, kind):
    config = recipe(world, kind, tmp_path / "both", storage="f32")
    run(config)
    for name in SIDES:
        alone = side(config, name).model_copy(update={"output": str(tmp_path / name)})
        one, two = Dataset.open(run(alone)), Dataset.open(str(tmp_path / "both" / name))
        assert payloads(one) == payloads(two) and one.encoding == two.encoding and one.card["encoders"] == two.card["encoders"]
        assert one.card["tokens"] == two.card["tokens"] and one.card["parents"][0]["fingerprint"] == two.card["parents"][0]["fingerprint"]
        assert check(two.path, {"deep": True}) == [] and audit(two.path, {"amount": "100%"})["problems"] == []


@pytest.mark.parametrize("shard_bytes", [1, 2_000, 30_000, 256 << 20])
@pytest.mark.parametrize("kind", ["image-text", "action-video", "vqa"])
def test_a_place_in_the_one_is_a_place_in_the_other_however_shards_are_cut(world, tmp_path, kind, shard_bytes):
    """Target latents are 24 times as large, so bytes alone would cut the two elsewhere."""
    context, target = encode(world, kind, tmp_path, shard_bytes=shard_bytes)
    assert [(s.part, s.first_row, s.records) for s in context.shards] == [(s.part, s.first_row, s.records) for s in target.shards]
    assert len(context.shards) >= (12 if shard_bytes == 1 else 3)
    for (i, a), (j, b) in zip(records(context), records(target), strict=True):
        assert (i, a.id, a.group, a.fields) == (j, b.id, b.group, b.fields) and len(a.segments) == len(b.segments)
        for s, t in zip(a.segments, b.segments, strict=True):
            assert (s.kind, s.role, s.atom, s.turn, s.member) == (t.kind, t.role, t.atom, t.turn, t.member)
            if s.kind == "latents":
                assert (s.shape, t.shape) == ((4, 32), (16, 192))
            else:
                assert bytes(context.payload(i, s)) == bytes(target.payload(j, t))


def test_each_image_is_decoded_once(world, tmp_path, monkeypatch):
    seen = Counter()
    plain = images.decode
    monkeypatch.setattr(images, "decode", lambda data: seen.update([bytes(data)]) or plain(data))
    encode(world, "action-video", tmp_path)
    parent = Dataset.open(str(world / "action-video"))
    places = {(i, s.offset) for i, r in records(parent) for s in r.segments if s.kind == "image"}
    assert seen.total() == len(places)


def test_a_record_with_an_unreadable_image_is_missing_in_both(world, tmp_path):
    good, bad = toys.jpeg(1), toys.jpeg(2)[:100]
    with PartWriter(str(tmp_path / "c"), 0, fingerprint="f") as w:
        for i, payload in enumerate((good, bad, good, bad)):
            w.emit()
            w.add(Record.make("toy", f"{i}.jpg", "image-text", [Image(payload, atom=0, shape=(32, 32, 3)), Text("a word", atom=1)]))
        commit = w.commit()
    toys.seal(str(tmp_path / "c"), "toy", "image-text", [commit], {})
    text = {"text_tokens": {"tokenizer": str(world / "tokenizer")}}
    config = parse(EncodeRecipe, {"dataset": str(tmp_path / "c"), "text": text, "images": both(world), "output": str(tmp_path / "e")})
    run(config)
    for name in SIDES:
        dataset = Dataset.open(str(tmp_path / "e" / name))
        assert [r.origin for _, r in records(dataset)] == ["0.jpg", "2.jpg"]
        assert (dataset.card["in"], dataset.card["written"], sum(dataset.card["rejected"].values())) == (4, 2, 2)


def test_a_part_where_no_image_can_be_read_leaves_both_without_shards(world, tmp_path):
    with PartWriter(str(tmp_path / "c"), 0, fingerprint="f") as w:
        w.emit()
        w.add(Record.make("toy", "0.jpg", "image-text", [Image(toys.jpeg(2)[:100], atom=0), Text("a word", atom=1)]))
        commit = w.commit()
    toys.seal(str(tmp_path / "c"), "toy", "image-text", [commit], {})
    text = {"text_tokens": {"tokenizer": str(world / "tokenizer")}}
    run(parse(EncodeRecipe, {"dataset": str(tmp_path / "c"), "text": text, "images": both(world), "output": str(tmp_path / "e")}))
    assert [len(Dataset.open(str(tmp_path / "e" / name)).shards) for name in SIDES] == [0, 0]


@pytest.mark.parametrize("after", range(6))
def test_killed_after_any_commit_record_the_next_run_ends_in_the_same_bytes(world, tmp_path, monkeypatch, after):
    """Three parts, two commit records each: the job dies after each number of them."""
    encode(world, "vqa", tmp_path / "whole", shard_bytes=30_000)
    left, plain = [after], dual.write

    def dying(item, root, *args, **kwargs):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return plain(item, root, *args, **kwargs)

    monkeypatch.setattr(dual, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        encode(world, "vqa", tmp_path / "killed", shard_bytes=30_000)
    assert not (tmp_path / "killed" / "context" / "manifest.json").exists()
    monkeypatch.undo()
    encode(world, "vqa", tmp_path / "killed", shard_bytes=30_000)
    ours, theirs = files(tmp_path / "killed"), files(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours if not name.endswith("manifest.json"))
    for name in SIDES:
        assert Dataset.open(str(tmp_path / "killed" / name)).fingerprint == Dataset.open(str(tmp_path / "whole" / name)).fingerprint


def test_killed_between_the_two_cards_the_next_run_writes_the_other(world, tmp_path):
    context, target = encode(world, "vqa", tmp_path / "e")
    card = (Path(context.path) / "manifest.json").read_bytes()
    (Path(context.path) / "manifest.json").unlink()
    assert encode(world, "vqa", tmp_path / "e")[1].fingerprint == target.fingerprint
    assert (Path(context.path) / "manifest.json").read_bytes() == card


def test_a_second_run_writes_nothing_and_a_file_lost_in_one_is_made_again(world, tmp_path):
    context, target = encode(world, "vqa", tmp_path)

    def times():
        return {p: p.stat().st_mtime_ns for p in Path(tmp_path).rglob("*") if p.is_file()}

    before, whole = times(), files(tmp_path)
    encode(world, "vqa", tmp_path)
    assert times() == before
    for dataset in (context, target):
        (Path(dataset.path) / dataset.shards[1].data).unlink()
        encode(world, "vqa", tmp_path)
        assert files(tmp_path) == whole


def test_another_encoder_for_one_of_the_two_is_a_conflict_for_both(world, tmp_path):
    encode(world, "vqa", tmp_path)
    other = both(world)
    other["dual"]["target"] = {"pixels": {"size": 32, "patch": 16}}
    with pytest.raises(ConflictError):
        encode(world, "vqa", tmp_path, images=other)


def test_both_can_be_compacted_and_hold_the_same_records_in_the_same_order(world, tmp_path):
    encode(world, "vqa", tmp_path / "e", shard_bytes=1)
    small = []
    for name in SIDES:
        with open_job("local") as job:
            config = parse(Compact, {"dataset": str(tmp_path / "e" / name), "output": str(tmp_path / f"small-{name}"), "engine": "local"})
            small.append(Dataset.open(COMPACT.run(config, job)))
    one, two = ([r.id for _, r in records(d)] for d in small)
    assert one == two and len(one) == 12
    assert all(audit(d.path, {"amount": "100%"})["problems"] == [] for d in small)


def test_an_estimate_covers_both_and_is_true(world, tmp_path):
    facts = STAGE.plan(recipe(world, "action-video", tmp_path / "out")).as_dict()
    assert not (tmp_path / "out").exists()
    made = encode(world, "action-video", tmp_path / "made")
    for dataset, name in zip(made, SIDES, strict=True):
        assert facts[f"{name}_visual_tokens"] == dataset.card["tokens"]["visual"]
    assert facts["latent_bytes"] == sum(s.data_bytes for d in made for s in d.shards)
    taken = [row for row in facts["table"] if "images" not in row["what"] or "chosen" in row["what"]]  # the other rows are codecs not chosen
    images = [f"{name} images, bf16 (chosen)" for name in SIDES]
    assert [row["what"] for row in taken] == ["context text", images[0], "target text", images[1]]
    assert facts["bytes"] == sum(row["bytes"] for row in taken)


def test_parts_are_as_small_as_both_encoders_together_ask_for():
    wide, narrow = Pixels(size=224, patch=14), Pixels(size=224, patch=4)
    made = Dual(context=wide, target=narrow)
    for name in CODECS:
        alone = [nbytes(name, g.tokens, g.channels) for g in (wide.grid(), narrow.grid())]
        exact, limit = MAX_BYTES // sum(alone), image_limit(made.grid(), name)
        assert 0.98 * exact <= limit <= 1.02 * exact < image_limit(wide.grid(), name), "scales of narrow latents take a little more"
    pictures = 2 * 224 * 224 * 3
    assert made.grid().height * made.grid().width * 3 == pictures and image_limit(made.grid(), "int8") <= MAX_BYTES // pictures
    small = Pixels(size=32, patch=8)
    assert image_limit(Dual(context=small, target=small).grid(), "bf16") == MAX_IMAGES
    assert Dual(context=Pixels(batch=6), target=Pixels(batch=4)).batch == 12


def test_what_a_dual_encoder_cannot_be_is_said(world):
    good = {"dataset": "x", "text": {"text_tokens": {"tokenizer": "t"}}, "output": "y"}
    pixels = {"pixels": {}}
    for made, word in (
        ({"dual": {"context": pixels}}, "required"),
        ({"dual": {"context": pixels, "target": {"reuse": {"dataset": "z"}}}}, "each of the two is an image encoder"),
        ({"dual": {"context": pixels, "target": {"dual": {"context": pixels, "target": pixels}}}}, "each of the two is an image encoder"),
        ({"dual": {"context": pixels, "target": pixels, "batch": 8}}, "said of each"),
    ):
        with pytest.raises(RecipeError, match=word):
            parse(EncodeRecipe, {**good, "images": made})
    with pytest.raises(RecipeError, match="two need another storage"):
        parse(EncodeRecipe, {**good, "images": both(world), "storage": "none"})


def test_a_dual_encoder_is_written_and_read_again(world):
    config = recipe(world, "vqa", "y")
    assert opened(as_written(config.images)) == config.images
    assert parse(EncodeRecipe, json.loads(config.model_dump_json())) == config


def test_damage_in_one_is_found_there_and_not_in_the_other(world, tmp_path):
    def turned(records):
        s = records[0].segments[0]
        return [with_segment(records[0], 0, with_latents(s, -latents(s))), *records[1:]]

    _, target = encode(world, "image-text", tmp_path / "e")
    bad = planted(target.path, str(tmp_path / "e" / "bad"), turned)
    assert len(audit(bad, {"amount": "100%"})["problems"]) == 3
    assert audit(str(tmp_path / "e" / "context"), {"amount": "100%"})["problems"] == []


def test_in_an_object_store_both_have_the_bytes_of_local_ones_and_are_audited_there(world, tmp_path):
    encode(world, "vqa", tmp_path / "e", shard_bytes=30_000)
    toys.curated("memory://dual/vqa", "vqa", n=12, parts=3)
    run(recipe(world, "vqa", "memory://dual/e", shard_bytes=30_000, dataset="memory://dual/vqa"))
    for name in SIDES:
        here, there = Dataset.open(str(tmp_path / "e" / name)), Dataset.open(f"memory://dual/e/{name}")
        assert there.fingerprint == here.fingerprint and check(there.path, {"deep": True}) == []
        found = audit(there.path, {"amount": "100%"})
        assert found["problems"] == [] and found["images"]["equal"] == 12 and found["parent"] == "memory://dual/vqa"
