"""What a list of hashes names does not come in: exact by bytes, near by looks, and a list that cannot be read stops the job."""

import gzip
import random
from hashlib import md5, sha1, sha256

import numpy as np
import pytest

from pipelines.curate import Curate
from pipelines.engine import open_job
from pipelines.filters.hash_denylist import HashDenylist
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.format.errors import InputError, Reject
from pipelines.format.record import Image, Record, Text
from pipelines.hash_list import hash_list
from pipelines.media import hashing, images
from pipelines.recipe import Recipe
from tests.toys import jpeg


def pair(*pictures, phash=None):
    return Record.make("t", "o", "vqa", [*(Image(p, atom=0) for p in pictures), Text("?")], phash=phash)


def listing(tmp_path, text, name="list.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("digest", [md5, sha1, sha256])
@pytest.mark.parametrize("form", ["{}", "{}\n", "{}\r\n", "# bad\n{}  # one\n", "sha256:{}\n", "MD5 = {}\n", "{},abc,def\n", "  {};x\n\n"])
def test_listed_bytes_do_not_come_in_however_the_list_is_written(tmp_path, digest, form):
    rule = HashDenylist(lists=(listing(tmp_path, form.format(digest(b"bad").hexdigest().upper())),))
    assert rule.reason(pair(b"bad")) == "hash_denylist.bytes"
    assert rule.reason(pair(b"good", b"bad")) == "hash_denylist.bytes"
    assert rule.reason(pair(b"good")) is None and rule.reason(pair()) is None


def test_a_list_may_be_packed_and_there_may_be_several(tmp_path):
    packed = listing(tmp_path, gzip.compress(sha256(b"one").hexdigest().encode()), "a.txt.gz")
    plain = listing(tmp_path, md5(b"two").hexdigest(), "b.txt")
    rule = HashDenylist(lists=(packed, plain))
    assert [rule.reason(pair(p)) for p in (b"one", b"two", b"three")] == ["hash_denylist.bytes"] * 2 + [None]
    assert rule.files() == [packed, plain]


@pytest.mark.parametrize("line", ["xyz", "abc123", "g" * 64, "a" * 63, "a" * 65, "a" * 17, "sha256,comment", "a" * 40 + "b"])
def test_a_line_that_is_no_hash_is_an_error_with_its_number(tmp_path, line):
    path = listing(tmp_path, f"{'0' * 64}\n{line}\n{'1' * 64}\n")
    with pytest.raises(InputError, match="no hash") as e:
        HashDenylist(lists=(path,)).reason(pair(b"x"))
    assert f"{path}:2" in str(e.value)


def test_an_empty_list_and_a_cut_one_are_errors(tmp_path):
    for data, name in ((b"# nothing\n\n", "a"), (b"", "b"), (gzip.compress(random.Random(0).randbytes(9999).hex().encode())[:-99], "c.gz")):
        with pytest.raises(InputError):
            HashDenylist(lists=(listing(tmp_path, data, name),)).reason(pair(b"x"))
    with pytest.raises(InputError):
        HashDenylist(lists=(str(tmp_path / "none"),)).reason(pair(b"x"))


def test_whole_blocks_and_single_lines_give_the_same_set(tmp_path):
    rng = random.Random(1)
    digests = [rng.randbytes(32) for _ in range(3000)]
    lines = [d.hex() for d in digests]
    fast = hash_list((listing(tmp_path, "\n".join(lines), "fast"),), ("",), 4).digests["sha256"]
    slow = hash_list((listing(tmp_path, "\n".join(f" {x} # {i}" for i, x in enumerate(lines)), "slow"),), ("",), 4).digests["sha256"]
    spaced = [*lines[:5], lines[5][:20] + "  " + lines[5][22:]]  # hex digits that white space interrupts are no hash
    assert len(fast) == len(slow) == 3000
    assert all(d in fast and d in slow for d in digests)
    assert not any(rng.randbytes(32) in fast for _ in range(3000))
    with pytest.raises(InputError):
        hash_list((listing(tmp_path, "\n".join(spaced), "spaced"),), ("",), 4)


def test_digests_that_begin_alike_are_told_apart(tmp_path):
    alike = [bytes(8) + bytes([i]) * 24 for i in range(9)]
    found = hash_list((listing(tmp_path, "\n".join(d.hex() for d in alike[::2])),), ("",), 4).digests["sha256"]
    assert [d in found for d in alike] == [i % 2 == 0 for i in range(9)]


def scene(seed):
    rng = np.random.Generator(np.random.Philox(seed))
    return images.stretch(np.clip(128 + 60 * rng.normal(size=(9, 12, 3)), 0, 255).astype(np.uint8), 180, 240)


def test_a_listed_picture_is_known_again_after_compression_and_resizing(tmp_path):
    listed = scene(1)
    rule = HashDenylist(lists=(listing(tmp_path, f"{images.phash(listed):016x}\n"),))
    copies = [images.encode_jpeg(listed, 60), images.encode_png(images.stretch(listed, 126, 168))]
    assert {rule.reason(pair(c)) for c in copies} == {"hash_denylist.near"}
    assert [rule.reason(pair(images.encode_png(scene(s)))) for s in range(2, 12)] == [None] * 10


def test_the_distance_is_where_it_says_and_a_known_hash_is_not_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "phash", lambda data: pytest.fail("decoded"))
    base = 0x5555555555555555
    path = listing(tmp_path, f"phash:{base:016x}")
    for distance in (0, 2, 4):
        rule = HashDenylist(lists=(path,), distance=distance)
        for bits in range(8):
            near = base ^ ((1 << bits) - 1) << 9
            assert rule.reason(pair(b"x", phash=near)) == ("hash_denylist.near" if bits <= distance else None)


def test_flat_pictures_are_judged_by_bytes_alone(tmp_path):
    white = images.encode_png(np.full((9, 9, 3), 255, np.uint8))
    assert HashDenylist(lists=(listing(tmp_path, f"{1 << 63:016x}"),)).reason(pair(white)) is None


def test_what_cannot_be_decoded_is_not_let_through(tmp_path):
    with pytest.raises(Reject):
        HashDenylist(lists=(listing(tmp_path, "5" * 16),)).reason(pair(b"no image"))


def test_another_list_makes_another_dataset_and_the_counts_say_what_went(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(jpeg(i, 64))
        (folder / f"{i}.txt").write_text("a caption")
    cards = []
    for name, listed in (("a", [0]), ("b", [0, 2])):
        path = listing(tmp_path, "\n".join(sha256(jpeg(i, 64)).hexdigest() for i in listed))
        filters = [{"hash_denylist": {"lists": [path]}}]
        document = {"name": "t", "source": {"image_folder": {"path": str(folder)}}, "filters": filters, "output": str(tmp_path / name)}
        document["engine"] = "local"
        with open_job("local") as job:
            cards.append(Dataset.open(Curate("image-text").run(parse(Recipe, document), job)).card)
    assert [c["filtered"] for c in cards] == [{"hash_denylist.bytes": 1}, {"hash_denylist.bytes": 2}]
    assert [c["written"] for c in cards] == [2, 1]
