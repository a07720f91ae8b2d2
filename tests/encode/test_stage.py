"""An encoded dataset holds what the encoders say of the curated one, once, in order, and the same bytes every time."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from encode.decode import STAGE as DECODE
from encode.decode import DecodeRecipe
from encode.encoder import ImageEncoding
from encode.encoders.pixels import Pixels
from encode.encoders.text_tokens import TextTokens
from encode.fit_tokenizer import STAGE as FIT
from encode.fit_tokenizer import FitTokenizer
from encode.parts import runs
from encode.recipe import EncodeRecipe
from encode.stage import STAGE
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import load, parse
from pipelines.format.errors import ConflictError, InputError, RecipeError
from pipelines.format.part import PartWriter
from pipelines.format.record import Image, Record, Text
from tests import toys

KINDS = ("text", "image-text", "video", "action-video", "vqa")
PIXELS = {"pixels": {"size": 32, "patch": 16}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Five curated datasets and a tokenizer fitted to those with text."""
    root = tmp_path_factory.mktemp("world")
    paths = {kind: toys.curated(str(root / kind), kind, n=6) for kind in KINDS}
    run(FIT, FitTokenizer, datasets=[paths[k] for k in KINDS if k != "video"], vocab=300, output=str(root / "tokenizer"))
    return root


def run(stage, config, **keys):
    with open_job("local") as job:
        return stage.run(parse(config, keys), job)


def encode(world, out, kind, **keys):
    given = {"dataset": str(world / kind), "text": tokens(world), "images": PIXELS, "output": str(out), **keys}
    return Dataset.open(run(STAGE, EncodeRecipe, **{k: v for k, v in given.items() if v is not None}))


def tokens(world):
    return {"text_tokens": {"tokenizer": str(world / "tokenizer")}}


def pairs(a, b):
    """Records of two datasets side by side, with their shards."""
    left = [(i, r) for i in range(len(a.shards)) for r in a.records(i)]
    right = [(i, r) for i in range(len(b.shards)) for r in b.records(i)]
    return zip(left, right, strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_segment_becomes_what_its_encoder_says_and_the_record_stays_the_same(world, tmp_path, kind):
    curated, encoded = Dataset.open(str(world / kind)), encode(world, tmp_path, kind, storage="f32")
    tokenizer, images = TextTokens(tokenizer=str(world / "tokenizer")).load(), ImageEncoding(Pixels(size=32, patch=16))
    seen = Counter()
    for (i, before), (j, after) in pairs(curated, encoded):
        for field in ("id", "source", "origin", "data", "group", "licence", "url", "phash", "scores", "fields"):
            assert getattr(before, field) == getattr(after, field)
        for s, t in zip(before.segments, after.segments, strict=True):
            assert (s.role, s.atom, s.turn, s.time_s) == (t.role, t.atom, t.turn, t.time_s)
            if s.kind == "text":
                assert t.kind == "tokens" and t.member == s.member
                assert tokenizer.decode(encoded.array(j, t)) == s.text and t.tokens == t.shape[0]
            else:
                assert t.kind == "latents" and t.tokens == 4 and t.shape == (4, 768)
                np.testing.assert_array_equal(encoded.array(j, t), images.encode_bytes([bytes(curated.payload(i, s))])[0])
            seen[t.kind] += t.tokens
    assert encoded.card["tokens"]["text"] == seen["tokens"] and encoded.card["tokens"]["visual"] == seen["latents"]


def test_each_distinct_image_is_stored_once(world, tmp_path):
    encoded = encode(world, tmp_path, "action-video")
    for i, shard in enumerate(encoded.shards):
        places = Counter(s.offset for r in encoded.records(i) for s in r.segments if s.kind == "latents")
        assert shard.data_bytes == len(places) * 4 * 768 * 2 and places.total() == 3 * 5 and len(places) == 7


def test_the_card_says_all_that_a_planner_needs(world, tmp_path):
    card = encode(world, tmp_path, "image-text").card
    vocab = json.loads((world / "tokenizer" / "manifest.json").read_text())["vocab"]
    text, image = card["encoding"]["text"], card["encoding"]["image"]
    assert text["vocab"] == vocab + 5 and sorted(text["specials"].values()) == list(range(vocab, vocab + 5))
    assert {k: image[k] for k in ("encoder", "tokens", "width", "codec", "pixels")} == {
        "encoder": "pixels",
        "tokens": 4,
        "width": 768,
        "codec": "bf16",
        "pixels": [32, 32],
    }
    assert {f["path"].split("-")[0] for f in card["files"]} == {"shards", "tokenizer.json", "stats"}
    assert [p["fingerprint"] for p in card["parents"]] == [Dataset.open(str(world / "image-text")).fingerprint]
    assert "image" not in encode(world, tmp_path / "text", "text").card["encoding"]


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_statistics_are_those_of_what_is_stored(world, tmp_path, codec):
    encoded = encode(world, tmp_path, "video", storage=codec)
    stored = []
    for i in range(len(encoded.shards)):
        distinct = {s.offset: s for r in encoded.records(i) for s in r.segments}
        stored += [encoded.array(i, s).astype(np.float64) for s in distinct.values()]
    x = np.concatenate(stored)
    n, mean, variance = encoded.latent_stats()
    assert n == len(x)
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(variance, x.var(axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("codec", ["bf16", "f32", "int8", "f8e4m3"])
def test_the_card_says_what_a_codec_costs_and_loses_and_the_fingerprint_does_not(world, tmp_path, codec):
    encoded = encode(world, tmp_path / "e", "video", storage=codec)
    exact = encode(world, tmp_path / "exact", "video", storage="f32")
    squared = norm = 0.0
    seen, cosines = 0, []
    distinct = {(i, s.offset): (s, j, t) for (i, a), (j, b) in pairs(exact, encoded) for s, t in zip(a.segments, b.segments, strict=True)}
    for (i, _), (s, j, t) in distinct.items():
        x, y = exact.array(i, s).astype(np.float64), encoded.array(j, t).astype(np.float64)
        squared, norm, seen = squared + float(np.square(x - y).sum()), norm + float(np.square(x).sum()), seen + len(x)
        cosines += (np.einsum("nc,nc->n", x, y) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).tolist()
    said = encoded.card["figures"]["codec"][codec]
    assert said["tokens"] == seen and said["bytes_per_token"] == sum(s.data_bytes for s in encoded.shards) / seen
    assert said["relative_l2"] == pytest.approx((squared / norm) ** 0.5, rel=1e-9)
    assert said["mean_cosine"] == pytest.approx(np.mean(cosines)) and said["worst_cosine"] == pytest.approx(min(cosines))
    assert (said["relative_l2"] == 0) == (codec == "f32") and "figures" not in encoded.encoding
    again = encode(world, tmp_path / "again", "video", images={"reuse": encoded.path})
    assert again.card["figures"]["codec"] == encoded.card["figures"]["codec"]


def test_stats_print_the_codec_beside_what_it_loses(world, tmp_path, capsys):
    from pipelines.commands import main

    encoded = encode(world, tmp_path / "e", "video", storage="int8")
    assert main(["stats", encoded.path]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "bytes_per_token" in said and "relative_l2" in said and "int8" in said


def files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in Path(root).rglob("*") if p.is_file() and p.suffix in (".bin", ".parquet")}


def test_the_same_recipe_gives_the_same_bytes_at_another_place(world, tmp_path):
    one, other = encode(world, tmp_path / "a", "vqa"), encode(world, tmp_path / "b" / "deeper", "vqa")
    assert files(one.path) == files(other.path) and one.fingerprint == other.fingerprint


def test_a_second_run_writes_nothing_and_a_lost_part_is_made_again(world, tmp_path):
    encoded = encode(world, tmp_path, "vqa")
    before = {p: p.stat().st_mtime_ns for p in Path(encoded.path).rglob("*") if p.is_file()}
    encode(world, tmp_path, "vqa")
    assert before == {p: p.stat().st_mtime_ns for p in Path(encoded.path).rglob("*") if p.is_file()}
    whole = files(encoded.path)
    (Path(encoded.path) / encoded.shards[1].data).unlink()
    encode(world, tmp_path, "vqa")
    assert files(encoded.path) == whole


def test_another_recipe_at_the_same_place_is_a_conflict(world, tmp_path):
    encode(world, tmp_path, "vqa")
    with pytest.raises(ConflictError):
        encode(world, tmp_path, "vqa", storage="f32")


def test_smaller_shards_hold_the_same_records(world, tmp_path):
    whole, split = encode(world, tmp_path / "a", "video"), encode(world, tmp_path / "b", "video", shard_bytes=1)
    assert len(split.shards) == 6 > len(whole.shards)
    for (i, a), (j, b) in pairs(whole, split):
        assert a.id == b.id
        np.testing.assert_array_equal(whole.array(i, a.segments[0]), split.array(j, b.segments[0]))


def test_reused_latents_are_pointed_at_and_not_copied(world, tmp_path):
    first = encode(world, tmp_path / "first", "video", shard_bytes=1)
    again = encode(world, tmp_path / "again", "video", images={"reuse": first.path})
    assert again.encoding["image"] == first.encoding["image"]
    assert not list(Path(again.path).glob("latents-*")) and all(s.data.startswith("../first/latents-") for s in again.shards)
    for (i, a), (j, b) in pairs(first, again):
        for s, t in zip(a.segments, b.segments, strict=True):
            np.testing.assert_array_equal(first.array(i, s), again.array(j, t))
    for ours, theirs in zip(again.latent_moments(), first.latent_moments(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_latents_of_another_dataset_are_not_reused(world, tmp_path):
    first = encode(world, tmp_path / "first", "video")
    with pytest.raises(InputError, match="encoded from the same curated one"):
        encode(world, tmp_path / "again", "vqa", images={"reuse": first.path})


def test_without_storage_the_index_points_at_the_parents_pictures(world, tmp_path):
    curated, encoded = Dataset.open(str(world / "vqa")), encode(world, tmp_path / "vqa-later", "vqa", storage="none")
    assert not list(Path(encoded.path).glob("latents-*")) and encoded.card["tokens"]["visual"] == 6 * 4
    for (i, before), (j, after) in pairs(curated, encoded):
        s, t = before.segments[0], after.segments[0]
        assert (t.kind, t.dtype, t.shape, t.tokens) == ("latents", "jpeg", (4, 768), 4)
        assert bytes(encoded.payload(j, t)) == bytes(curated.payload(i, s))


def test_a_record_with_an_unreadable_image_is_rejected_and_nothing_else_is_lost(world, tmp_path):
    good, bad = toys.jpeg(1), toys.jpeg(2)[:100]
    with PartWriter(str(tmp_path / "c"), 0, fingerprint="f") as w:
        for i, payload in enumerate((good, bad, good, bad)):
            w.emit()
            w.add(Record.make("toy", f"{i}.jpg", "image-text", [Image(payload, atom=0, shape=(32, 32, 3)), Text("a word", atom=1)]))
        commit = w.commit()
    toys.seal(str(tmp_path / "c"), "toy", "image-text", [commit], {})
    encoded = encode(tmp_path, tmp_path / "e", "c", text=tokens(world))
    card = encoded.card
    assert (card["in"], card["written"], sum(card["rejected"].values())) == (4, 2, 2)
    assert [r.origin for r in encoded.records(0)] == ["0.jpg", "2.jpg"]
    assert encoded.latent_stats()[0] == 4, "one distinct image of 4 tokens"


def test_a_dataset_with_images_needs_an_image_encoder_and_a_curated_parent(world, tmp_path):
    with pytest.raises(RecipeError, match="says nothing about them"):
        encode(world, tmp_path / "a", "vqa", images=None)
    encoded = encode(world, tmp_path / "b", "vqa")
    with pytest.raises(InputError, match="already encoded"):
        encode(world, tmp_path / "c", encoded.path)


def test_the_recipe_tells_text_encoders_from_image_encoders(world):
    good = {"dataset": "x", "text": tokens(world), "output": "y"}
    with pytest.raises(RecipeError, match="takes an image encoder"):
        parse(EncodeRecipe, {**good, "images": tokens(world)})
    with pytest.raises(RecipeError, match="takes a text encoder"):
        parse(EncodeRecipe, {**good, "text": PIXELS})
    with pytest.raises(RecipeError, match="multiple of patch"):
        parse(EncodeRecipe, {**good, "images": {"pixels": {"size": 30, "patch": 8}}})


def test_a_dry_run_counts_images_tokens_and_disk_without_writing(world, tmp_path):
    keys = {"dataset": str(world / "action-video"), "text": tokens(world), "images": PIXELS, "output": str(tmp_path / "out")}
    facts = STAGE.plan(parse(EncodeRecipe, keys)).as_dict()
    made = encode(world, tmp_path / "made", "action-video")
    assert facts["visual_tokens"] == made.card["tokens"]["visual"] and facts["text_tokens_estimated"] == made.card["tokens"]["text"]
    assert facts["images"] == 14 and facts["image_references"] == 30
    assert facts["latent_bytes"] == sum(s.data_bytes for s in made.shards) and not (tmp_path / "out").exists()


def test_parts_hold_no_more_distinct_images_than_the_limit_and_every_row_once():
    rng = np.random.default_rng(0)
    rows, offsets = np.sort(rng.integers(0, 40, 200)), rng.integers(0, 60, 200)
    for limit in (1, 5, 17, 1000):
        found = list(runs(40, rows, offsets, limit))
        assert [r.first for r in found] == list(np.cumsum([0, *(r.rows for r in found[:-1])])) and sum(r.rows for r in found) == 40
        assert sum(r.references for r in found) == 200
        for r in found:
            inside = set(offsets[(rows >= r.first) & (rows < r.first + r.rows)].tolist())
            assert r.images == len(inside) and (len(inside) <= limit or r.rows == 1)


def test_decoding_gives_the_pictures_and_texts_back(world, tmp_path):
    encoded = encode(world, tmp_path / "e", "vqa", storage="f32")
    decoded = Dataset.open(run(DECODE, DecodeRecipe, dataset=encoded.path, output=str(tmp_path / "d")))
    assert decoded.encoding is None and decoded.data == "vqa"
    from pipelines.media import images

    for (i, before), (j, after) in pairs(Dataset.open(str(world / "vqa")), decoded):
        assert before.id == after.id and [s.text for s in before.segments] == [s.text for s in after.segments]
        curated = Dataset.open(str(world / "vqa"))
        np.testing.assert_array_equal(
            images.decode(bytes(curated.payload(i, before.segments[0]))), images.decode(bytes(decoded.payload(j, after.segments[0])))
        )


def test_decoding_can_be_limited_and_refuses_what_is_not_encoded(world, tmp_path):
    encoded = encode(world, tmp_path / "e", "video")
    decoded = Dataset.open(run(DECODE, DecodeRecipe, dataset=encoded.path, output=str(tmp_path / "d"), records=4, pictures="jpeg"))
    assert decoded.card["records"] == 4
    with pytest.raises(InputError, match="not encoded"):
        run(DECODE, DecodeRecipe, dataset=decoded.path, output=str(tmp_path / "f"))


def test_a_tokenizer_is_fitted_the_same_every_time_and_codes_any_text(world, tmp_path):
    again = run(FIT, FitTokenizer, datasets=[str(world / k) for k in KINDS if k != "video"], vocab=300, output=str(tmp_path / "again"))
    assert (Path(again) / "tokenizer.json").read_bytes() == (world / "tokenizer" / "tokenizer.json").read_bytes()
    tokenizer = TextTokens(tokenizer=again).load()
    for said in ("dx=+1.338, dyaw=-0.012", "ünïcode 漢字 🦆\n\ttab  two spaces", ""):
        (ids,) = tokenizer.encode([said])
        assert tokenizer.decode(ids) == said
    assert len(tokenizer.encode(["river river"])[0]) < 6, "frequent words of the corpus are merged"
    assert len(tokenizer.encode(["1338"])[0]) == 4, "digits stand alone"


def test_a_tokenizer_needs_text_and_keeps_to_its_recipe(world, tmp_path):
    with pytest.raises(InputError, match="holds any text"):
        run(FIT, FitTokenizer, datasets=[str(world / "video")], output=str(tmp_path))
    with pytest.raises(ConflictError):
        run(FIT, FitTokenizer, datasets=[str(world / "text")], vocab=280, output=str(world / "tokenizer"))


def test_a_large_corpus_is_sampled_by_record_and_says_how_much(world, tmp_path):
    keys = {"datasets": [str(world / "text")], "vocab": 280, "max_bytes": 300, "output": str(tmp_path)}
    whole = FIT.plan(parse(FitTokenizer, {**keys, "max_bytes": 10_000})).as_dict()["text_bytes"]
    card = json.loads((Path(run(FIT, FitTokenizer, **keys)) / "manifest.json").read_text())
    assert 0 < card["text_bytes"] < whole and card["kind"] == "tokenizer"


def test_entry_points_load_neither_torch_nor_ray():
    import subprocess
    import sys

    code = "import encode.stage, encode.fit_tokenizer, encode.decode, encode.chain, sys\n"
    code += "print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


HERE = Path(__file__).parents[2]
CAPTIONS = ("siglip2", "dinov2", "webssl", "sd_vae", "flux_vae", "pixels", "dual")
RECIPES = {
    FIT: ["encode/recipes/world_tokenizer.yaml", "examples/real/tokenizer.yaml"],
    STAGE: [f"encode/recipes/{n}.yaml" for n in ("world_pixels", "world_tower", *(f"captions_{n}" for n in CAPTIONS))]
    + [f"examples/real/{n}.yaml" for n in ("encode_pixels", "encode_siglip2")],
    DECODE: ["encode/recipes/decode.yaml"],
}


@pytest.mark.parametrize(("stage", "path"), [(stage, path) for stage, paths in RECIPES.items() for path in paths])
def test_the_recipes_that_ship_are_valid(stage, path):
    assert load(stage.config, str(HERE / path)).output.startswith("out/")


def test_a_changed_byte_of_a_tokenizer_is_found(world, tmp_path):
    import shutil

    from encode.check_tokenizer import check

    shutil.copytree(world / "tokenizer", tmp_path / "t")
    assert check(str(tmp_path / "t"), {}) == []
    file = tmp_path / "t" / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b"BPE", b"BPF"))
    assert check(str(tmp_path / "t"), {}) == [{"file": "tokenizer.json", "what": "differs from its card"}]


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_parent_forgot_is_left_out_counted_and_costs_one_part(world, tmp_path, kind):
    from pipelines.check_dataset import check
    from pipelines.tombstones import add

    place = toys.curated(str(tmp_path / "curated"), kind, n=6)
    before = encode(world, tmp_path / "out", kind, dataset=place, images=None if kind == "text" else PIXELS)
    rows = [r for i in range(2) for r in before.index(i, ["id", "sha256"]).to_pylist()]
    commits = {p.name: p.read_bytes() for p in (tmp_path / "out" / "parts").iterdir()}
    add(Dataset.open(place), {"id": [rows[1]["id"]]}, "asked")
    after = encode(world, tmp_path / "out", kind, dataset=place, images=None if kind == "text" else PIXELS)
    assert [r for i in range(2) for r in after.index(i, ["id", "sha256"]).to_pylist()] == [r for r in rows if r != rows[1]]
    assert after.card["in"] == 6 and after.card["filtered"] == {"tombstone": 1} and check(after.path, {"deep": True}) == []
    assert [name for name, data in commits.items() if (tmp_path / "out" / "parts" / name).read_bytes() != data] == ["00000.json"]
    back = Dataset.open(run(DECODE, DecodeRecipe, dataset=before.path, output=str(tmp_path / "back")))
    assert back.card["records"] == 5
    add(after, {"id": [rows[4]["id"]]}, "asked")
    decoded = Dataset.open(run(DECODE, DecodeRecipe, dataset=after.path, output=str(tmp_path / "back")))
    assert decoded.card["records"] == 4 and decoded.card["filtered"] == {"tombstone": 1} and check(decoded.path, {"deep": True}) == []


def test_a_part_of_which_everything_is_forgotten_is_done_all_the_same(world, tmp_path):
    from pipelines.check_dataset import check
    from pipelines.tombstones import add

    place = toys.curated(str(tmp_path / "curated"), "image-text", n=6)
    found = Dataset.open(place)
    add(found, {"id": found.index(0, ["id"])["id"].to_pylist()}, "asked")
    after = encode(world, tmp_path / "out", "image-text", dataset=place)
    assert after.card["records"] == 3 and after.card["filtered"] == {"tombstone": 3} and check(after.path, {"deep": True}) == []


def test_a_tokenizer_is_fitted_without_what_was_forgotten(tmp_path):
    from pipelines.tombstones import add

    fit = lambda data, out: Path(run(FIT, FitTokenizer, datasets=[data], vocab=300, output=str(tmp_path / out)), "tokenizer.json").read_bytes()
    all_, few = toys.curated(str(tmp_path / "all"), "text", n=6), toys.curated(str(tmp_path / "few"), "text", n=5, parts=1)
    last = Dataset.open(all_).index(1, ["id"])["id"].to_pylist()[-1]
    add(Dataset.open(all_), {"id": [last]}, "asked")
    assert fit(all_, "a") == fit(few, "b")
