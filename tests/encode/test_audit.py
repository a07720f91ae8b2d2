"""An audit finds what no hash tells: latents and ids that are well kept and not those of the pictures and texts behind them."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from encode.audit import audit
from encode.auditing.compare import compare
from encode.auditing.draw import Amount, drawn
from encode.fit_tokenizer import STAGE as FIT
from encode.fit_tokenizer import FitTokenizer
from encode.recipe import EncodeRecipe
from encode.stage import STAGE
from pipelines.check_dataset import check
from pipelines.commands import main
from pipelines.compact import STAGE as COMPACT
from pipelines.compact import Compact
from pipelines.engine import open_job
from pipelines.format.codec import CODECS, encode_latents
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.format.errors import InputError, VerifyError
from tests import toys
from tests.encode.models import save_siglip
from tests.encode.planted import latents, planted, with_latents, with_segment

KINDS = ("text", "image-text", "video", "action-video", "vqa")
PIXELS = {"pixels": {"size": 32, "patch": 16, "batch": 4}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Curated datasets, a tokenizer, two small towers of one form, and pairs encoded by pixels and by the first tower."""
    root = tmp_path_factory.mktemp("world")
    for kind in KINDS:
        toys.curated(str(root / kind), kind, n=12, parts=3)
    run(FIT, FitTokenizer, datasets=[str(root / k) for k in KINDS if k != "video"], vocab=300, output=str(root / "tokenizer"))
    for n in (0, 1):
        save_siglip(str(root / f"tower{n}"), seed=n)
    encode(root, "image-text", root / "pixels")
    encode(root, "image-text", root / "tower", images=tower(root))
    return root


def run(stage, config, **keys):
    with open_job("local") as job:
        return stage.run(parse(config, keys), job)


def encode(root, kind, out, **more):
    text = {"text_tokens": {"tokenizer": str(root / "tokenizer")}}
    return run(STAGE, EncodeRecipe, **{"dataset": str(root / kind), "text": text, "images": PIXELS, "output": str(out), **more})


def tower(root, n=0):
    return {"siglip2": {"weights": str(root / f"tower{n}"), "batch": 4}}


def whole(path, **more):
    return audit(str(path), {"amount": "100%", **more})


def ids(path):
    return [[r.id for r in Dataset.open(str(path)).records(i)] for i in range(len(Dataset.open(str(path)).shards))]


# ---- clean datasets ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_clean_dataset_of_any_kind_is_equal_to_the_byte(world, tmp_path, kind):
    path = encode(world, kind, tmp_path / "e")
    found = whole(path)
    dataset = Dataset.open(path)
    texts = sum(s.kind == "tokens" for i in range(len(dataset.shards)) for r in dataset.records(i) for s in r.segments)
    payloads = {(i, s.offset) for i in range(len(dataset.shards)) for r in dataset.records(i) for s in r.segments if s.kind == "latents"}
    assert found["problems"] == [] and found["texts"] == {"checked": texts, "of": texts, "equal": texts}
    if kind == "text":
        assert "images" not in found
    else:
        assert (found["images"]["checked"], found["images"]["of"], found["images"]["equal"]) == (len(payloads),) * 3
        assert found["images"]["worst_cosine"] == 1.0 and found["images"]["pictures"] == len(payloads)


@pytest.mark.parametrize("codec", CODECS)
def test_a_network_gives_the_stored_bytes_again_wherever_a_picture_stands_in_its_batch(world, tmp_path, codec):
    """Parts hold four records and batches four; a sample of 7 stands in other batches, at other places."""
    path = encode(world, "image-text", tmp_path / "e", images=tower(world), storage=codec)
    for amount, n in (("100%", 12), ("7", 7)):
        found = audit(path, {"amount": amount, "seed": 3})
        assert found["problems"] == [] and found["images"]["equal"] == found["images"]["same_arithmetic"] == n


@pytest.mark.parametrize("codec", CODECS)
def test_latents_of_another_batch_size_count_as_other_arithmetic_and_pass_by_cosine(world, tmp_path, codec):
    path = encode(world, "image-text", tmp_path / "e", images=tower(world), storage=codec)
    for file in [Path(path) / "manifest.json", *(Path(path) / "parts").glob("*.json")]:
        old = Dataset.open(path).encoding["image"]["fingerprint"] if "manifest" in file.name else json.loads(file.read_text())["stats"]["encoder"]
        file.write_text(file.read_text().replace(old, "0" * 64))
    found = whole(path)["images"]
    assert found["same_arithmetic"] == 0 and found["differ"] == 0 and found["worst_cosine"] >= found["bar"]


def test_reused_and_compacted_latents_are_audited_against_the_same_parent(world, tmp_path):
    first = encode(world, "vqa", tmp_path / "first", shard_bytes=1)
    again = encode(world, "vqa", tmp_path / "again", images={"reuse": first})
    small = run(COMPACT, Compact, dataset=first, output=str(tmp_path / "small"), engine="local")
    assert len(Dataset.open(small).shards) == 1 < len(Dataset.open(first).shards)
    for path in (again, small):
        found = whole(path)
        assert found["problems"] == [] and found["images"]["equal"] == found["images"]["of"] == 12 and found["texts"]["equal"] == 24
        assert found["parent"] == Dataset.open(str(world / "vqa")).path


def test_without_storage_texts_are_audited_and_of_images_it_is_said_that_there_are_none(world, tmp_path):
    found = whole(encode(world, "vqa", tmp_path / "e", storage="none"))
    assert found["images"]["checked"] == 0 and "nothing to compare" in found["images"]["note"]
    assert found["problems"] == [] and found["texts"]["equal"] == 24


def test_a_clip_kept_beside_its_frames_shifts_nothing(world, tmp_path):
    from pipelines.format.part import PartWriter
    from pipelines.format.record import Image, Record, Video

    with PartWriter(str(tmp_path / "c"), 0, fingerprint="f") as w:
        w.emit()
        frames = [Image(toys.jpeg(k), atom=k, shape=(32, 32, 3), time_s=float(k)) for k in range(3)]
        w.add(Record.make("toy", "a.mp4", "video", [*frames, Video(b"film", (32, 32, 3), 0.0)]))
        commit = w.commit()
    toys.seal(str(tmp_path / "c"), "toy", "video", [commit], {})
    text = {"text_tokens": {"tokenizer": str(world / "tokenizer")}}
    found = whole(encode(tmp_path, "c", tmp_path / "e", text=text))
    assert found["problems"] == [] and found["images"]["equal"] == 3


# ---- planted damage ----------------------------------------------------------------------------------------------------------------------


def told(path, **more):
    """What an audit names: (shard, record, segment). Nothing else finds it."""
    assert check(path, {"deep": True}) == []
    return [(p["shard"], p["record"], p.get("segment")) for p in whole(path, **more)["problems"]]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("which", ["pixels", "tower"])
def test_one_row_of_one_image_turned_round_is_found_and_named(world, tmp_path, which, codec):
    made = encode(world, "image-text", tmp_path / "e", storage=codec, images=PIXELS if which == "pixels" else tower(world))

    def flipped(records):
        x = latents(records[2].segments[0]).copy()
        x[1] = -x[1]
        return [*records[:2], with_segment(records[2], 0, with_latents(records[2].segments[0], x)), *records[3:]]

    def only_the_second_part(records):
        return flipped(records) if records[0].id == ids(made)[1][0] else records

    bad = planted(made, str(tmp_path / "bad"), only_the_second_part)
    # The toys are moved by a folder: the parents' paths of the card are relative.
    assert told(bad) == [(1, ids(bad)[1][2], 0)]
    (problem,) = whole(bad)["problems"]
    assert "worst in row 1: -" in problem["what"] and problem["file"] == Dataset.open(bad).shards[1].data and problem["cosine"] < 0.9999


def test_one_bit_of_one_value_is_found_where_the_arithmetic_is_the_same(world, tmp_path):
    made = encode(world, "image-text", tmp_path / "e", images=tower(world), storage="f32")

    def nudged(records):
        x = latents(records[0].segments[0]).copy()
        x.view(np.uint32)[3, 5] ^= 1
        return [with_segment(records[0], 0, with_latents(records[0].segments[0], x)), *records[1:]]

    bad = planted(made, str(tmp_path / "bad"), nudged)
    assert told(bad) == [(i, ids(bad)[i][0], 0) for i in range(3)]
    assert all("differ in bytes from what the same arithmetic gives: cosine 1.0" in p["what"] for p in whole(bad)["problems"])


def test_images_swapped_between_two_records_are_found_in_both(world, tmp_path):
    made = encode(world, "image-text", tmp_path / "e", images=tower(world))

    def swapped(records):
        a, b = records[0], records[3]
        return [with_segment(a, 0, b.segments[0]), *records[1:3], with_segment(b, 0, a.segments[0])]

    bad = planted(made, str(tmp_path / "bad"), swapped)
    assert sorted(told(bad)) == sorted((i, ids(bad)[i][k], 0) for i in range(3) for k in (0, 3))


def test_a_frame_shown_in_the_wrong_sample_is_found_though_its_payload_is_right(world, tmp_path):
    """Samples of a trajectory share payloads: each picture that a payload stands for is looked at, once."""
    made = encode(world, "action-video", tmp_path / "e")

    def doubled(records):
        return [with_segment(records[0], 2, records[0].segments[0]), *records[1:]]

    bad = planted(made, str(tmp_path / "bad"), doubled)
    assert told(bad) == [(i, ids(bad)[i][0], 2) for i in range(3)]


def test_latents_twice_as_long_have_a_cosine_of_one_and_are_found(world, tmp_path):
    made = encode(world, "image-text", tmp_path / "e", images=tower(world))
    bad = planted(made, str(tmp_path / "bad"), lambda rs: [with_segment(r, 0, with_latents(r.segments[0], 2 * latents(r.segments[0]))) for r in rs])
    found = whole(bad)
    assert len(found["problems"]) == 12 and found["images"]["worst_cosine"] > 0.9999


def test_latents_of_other_weights_are_all_found(world, tmp_path):
    other = Dataset.open(encode(world, "image-text", tmp_path / "other", images=tower(world, 1)))
    theirs = {r.id: r for i in range(len(other.shards)) for r in other.records(i, payloads=True)}
    made = encode(world, "image-text", tmp_path / "e", images=tower(world))
    bad = planted(made, str(tmp_path / "bad"), lambda rs: [with_segment(r, 0, theirs[r.id].segments[0]) for r in rs])
    assert told(bad) == [(i, id, 0) for i, some in enumerate(ids(bad)) for id in some]
    assert whole(bad)["images"]["worst_cosine"] < 0.9


def test_an_id_changed_in_a_text_is_found_with_its_place(world, tmp_path):
    made = encode(world, "vqa", tmp_path / "e")

    def changed(records):
        s = records[1].segments[1]
        there = np.frombuffer(s.payload, "<u2").copy()
        there[2] ^= 1
        return [records[0], with_segment(records[1], 1, replace(s, payload=there.tobytes())), *records[2:]]

    bad = planted(made, str(tmp_path / "bad"), changed)
    assert told(bad) == [(i, ids(bad)[i][1], 1) for i in range(3)]
    found = whole(bad)
    assert found["texts"] == {"checked": 24, "of": 24, "equal": 21} and "from id 2 on" in found["problems"][0]["what"]


def test_a_record_that_the_parent_lacks_or_that_is_built_otherwise_is_named(world, tmp_path):
    made = encode(world, "vqa", tmp_path / "e")

    def changed(records):
        lost, short = replace(records[0], id="f" * 31 + records[0].id[-1]), replace(records[1], segments=records[1].segments[:2])
        role = replace(records[2].segments[0], role="target")
        return [lost, short, with_segment(records[2], 0, role), *records[3:]]

    bad = planted(made, str(tmp_path / "bad"), changed)
    said = [p["what"].split(": ", 1)[1] for p in whole(bad)["problems"]][:3]
    assert said[:2] == ["is not in the parent", "has 2 segments, its parent's record 3"]
    assert said[2].startswith("segment 0 is ('latents', 'target'")


def test_a_parent_that_was_damaged_since_is_told_from_a_wrong_encoding(world, tmp_path):
    shutil.copytree(world / "image-text", tmp_path / "c")
    text = {"text_tokens": {"tokenizer": str(world / "tokenizer")}}
    path = encode(tmp_path, "c", tmp_path / "e", text=text)
    tar = next((tmp_path / "c").glob("data-00000-*.tar"))
    parent = Dataset.open(str(tmp_path / "c"))
    first = next(parent.records(0)).segments[0]
    data = bytearray(tar.read_bytes())
    data[first.offset + first.nbytes - 40] ^= 0xFF
    tar.write_bytes(bytes(data))
    (problem,) = whole(path)["problems"]
    assert problem["record"] == next(parent.records(0)).id and "parent's" in problem["what"]


def test_behind_a_compacted_dataset_whose_parent_is_gone_the_curated_one_can_be_named(world, tmp_path):
    first = encode(world, "vqa", tmp_path / "first", shard_bytes=1)
    small = run(COMPACT, Compact, dataset=first, output=str(tmp_path / "small"), engine="local")
    shutil.rmtree(first)
    with pytest.raises(InputError, match="--parent"):
        whole(small)
    found = whole(small, parent=str(world / "vqa"))
    assert found["problems"] == [] and found["images"]["equal"] == 12
    assert len(whole(small, parent=str(world / "image-text"))["problems"]) == 12, "none of its records is there"


# ---- what hinders an audit ---------------------------------------------------------------------------------------------------------------


def test_a_parent_that_moved_is_asked_for_and_may_be_named(world, tmp_path):
    shutil.copytree(world / "vqa", tmp_path / "c")
    text = {"text_tokens": {"tokenizer": str(world / "tokenizer")}}
    path = encode(tmp_path, "c", tmp_path / "e", text=text)
    (tmp_path / "c").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="--parent"):
        whole(path)
    assert whole(path, parent=str(tmp_path / "moved"))["problems"] == []
    with pytest.raises(InputError, match="dataset has changed"):
        whole(path, parent=str(world / "image-text"))


def test_weights_that_are_gone_or_others_are_an_error_that_says_what_to_do(world, tmp_path):
    shutil.copytree(world / "tower0", tmp_path / "w")
    path = encode(world, "image-text", tmp_path / "e", images={"siglip2": {"weights": str(tmp_path / "w")}})
    shutil.copy(world / "tower1" / "model.safetensors", tmp_path / "w" / "model.safetensors")
    with pytest.raises(InputError, match="not those that made these latents"):
        whole(path)
    shutil.rmtree(tmp_path / "w")
    with pytest.raises(InputError, match=r"neither a local folder|no \*.safetensors there"):  # which, depends on what this process has seen
        whole(path)


def test_a_later_version_of_an_encoder_is_compared_by_cosine_and_said(world, tmp_path):
    path = encode(world, "image-text", tmp_path / "e", images=tower(world))
    card = json.loads((Path(path) / "manifest.json").read_text())
    card["identity"]["image"]["config"] = {"setting_of_old": 1}
    (Path(path) / "manifest.json").write_text(json.dumps(card))
    found = whole(path)
    assert found["problems"] == [] and "another config than the one that made" in found["images"]["note"]


def test_another_tokenizer_in_the_folder_is_an_error(world, tmp_path):
    path = encode(world, "text", tmp_path / "e")
    file = Path(path) / "tokenizer.json"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(VerifyError, match="not the one that made these ids"):
        whole(path)


def test_a_curated_dataset_and_words_that_are_no_amount_are_refused(world):
    with pytest.raises(InputError, match="only an encoded dataset"):
        whole(world / "vqa")
    for text in ("0", "0%", "101%", "1.5", "-3", "some", "", "nan%"):
        with pytest.raises(InputError, match="no amount"):
            Amount.read(text)


# ---- the draw ----------------------------------------------------------------------------------------------------------------------------


def test_a_draw_is_a_function_of_seed_and_dataset_and_larger_ones_hold_smaller_ones(world):
    dataset = Dataset.open(str(world / "pixels"))

    def places(text, seed=0, kind="latents"):
        found = drawn(dataset, kind, Amount.read(text), seed)
        assert found.of == 12
        return {(i, p) for i, some in found.places.items() for p in some.tolist()}

    sizes = [places(t) for t in ("0.1%", "20%", "0.5", "80%", "100%")]
    assert all(a <= b for a, b in pairwise(sizes)) and len(sizes[-1]) == 12
    assert places("0.5") == places("50%") and places("0.5") != places("0.5", seed=1)
    counts = [places(str(n)) for n in range(1, 15)]
    assert [len(c) for c in counts] == [*range(1, 13), 12, 12] and all(a < b for a, b in pairwise(counts[:12]))
    assert places("0.1%") == counts[0], "at least one is looked at"
    assert len(places("5", kind="tokens")) == 5


def test_a_share_of_many_takes_about_that_share():
    from pipelines.format.chance import draw, uniform

    u = uniform(draw(np.arange(0, 64 * 100_000, 64, dtype=np.uint64), 0, "audit", "latents", "f", 0))
    assert abs((u < 0.01).mean() - 0.01) < 0.002


def test_forgotten_records_are_left_out(world, tmp_path):
    path = encode(world, "image-text", tmp_path / "e")
    assert main(["forget", path, "--id", ids(path)[0][0], "--in", str(tmp_path)]) == 0
    assert whole(path)["images"]["of"] == 11 and whole(path)["texts"]["of"] == 11


# ---- the bars ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_a_codecs_own_error_passes_and_ten_times_a_devices_does_not(codec):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 96)).astype(np.float32)
    other_device = x + 0.005 * rng.standard_normal(x.shape).astype(np.float32)
    assert compare(x, encode_latents(x, codec), codec).equal
    near, far = (compare(x, encode_latents(y, codec), codec) for y in (other_device, x + 10 * (other_device - x)))
    assert not near.equal and near.within and not far.within


# ---- the command -------------------------------------------------------------------------------------------------------------------------


def test_the_command_says_counts_and_exits_4_with_what_differs(world, tmp_path, capfd):
    made = encode(world, "image-text", tmp_path / "e", images=tower(world))
    assert main(["verify", made, "--audit", "100%", "--json"]) == 0
    said = json.loads(capfd.readouterr().out)["audit"]
    assert (said["images"]["checked"], said["images"]["equal"], said["texts"]["checked"], said["seed"]) == (12, 12, 12, 0)
    assert main(["verify", made, "--audit", "3", "--seed", "5"]) == 0
    assert "audit: 3 of 12 images: 3 equal to the byte, worst cosine 1.000000" in capfd.readouterr().out
    bad = planted(made, str(tmp_path / "bad"), lambda rs: [with_segment(r, 0, with_latents(r.segments[0], -latents(r.segments[0]))) for r in rs])
    assert main(["verify", bad, "--audit", "100%", "--json"]) == 4
    problems = json.loads(capfd.readouterr().out)["problems"]
    assert len(problems) == 12 and all(p["record"] in p["what"] and p["cosine"] < 0 for p in problems)


def test_a_dataset_with_missing_files_is_told_so_and_not_audited(world, tmp_path, capfd):
    path = encode(world, "image-text", tmp_path / "e")
    next(Path(path).glob("latents-*")).unlink()
    assert main(["verify", path, "--audit", "1", "--json"]) == 4
    said = json.loads(capfd.readouterr().out)
    assert len(said["problems"]) == 1 and "not done" in said["audit"]["note"]


def test_an_audit_of_a_missing_parent_is_an_error_and_no_damage(world, tmp_path, capfd):
    shutil.copytree(world / "vqa", tmp_path / "c")
    path = encode(tmp_path, "c", tmp_path / "e", text={"text_tokens": {"tokenizer": str(world / "tokenizer")}})
    shutil.rmtree(tmp_path / "c")
    assert main(["verify", path]) == 0
    assert main(["verify", path, "--audit", "1", "--json"]) == 2
    assert "--parent" in json.loads(capfd.readouterr().out.splitlines()[-1])["error"]["next"]


def test_finding_an_audit_loads_no_torch():
    import subprocess
    import sys

    code = "import encode.audit, sys\nprint([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
