"""What stands in training and was to be held out: every planted copy is found, by the way it was planted, and nothing else is."""

import json

import numpy as np
import pytest

import mixtures.leaks
from mixtures.check import check
from mixtures.leaks import leaks
from mixtures.plan import Plan, make_plan
from mixtures.used import marked
from pipelines.commands import main
from pipelines.format.document import fingerprint
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment
from tests.mixtures.sets import SPECIALS, mixture
from tests.toys import seal

HELD = {"fraction": "20%", "seed": 0}


def words(i, n=20):
    ids = np.random.Generator(np.random.Philox(i)).integers(0, 1000, n).astype("<u2")
    return Segment("tokens", "target", -1, -1, None, None, ids.tobytes(), "uint16", (n,), n)


def picture(i, atom=0):
    rows = np.full((4, 2), i, "<f4")
    return Segment("latents", "target", atom, -1, None, None, rows.tobytes(), "f32", (4, 2), 4)


def pair(i, caption):
    return [picture(i), Segment("tokens", "target", 1, -1, "original", None, caption.payload, "uint16", caption.shape, caption.tokens)]


def write(root, name, records, data="text", parts=2):
    commits = []
    for part in range(parts):
        with PartWriter(str(root), part, fingerprint=fingerprint([name, part]), encoded=True) as w:
            for r in records[part::parts]:
                w.emit()
                w.add(r)
            commits.append(w.commit())
    encoding = {"text": {"tokenizer_sha256": "0", "vocab": 1005, "specials": SPECIALS}}
    if data != "text":
        from mixtures.latent_stats import publish

        encoding["image"] = {"encoder": "toy", "fingerprint": "0", "tokens": 4, "width": 2, "codec": "f32"}
        encoding["stats"], _ = publish(str(root), (1, np.zeros(2), np.ones(2)))
    return seal(str(root), name, data, commits, {}, encoding)


def plan(tmp_path, entries, **keys):
    sources = {name: {"dataset": path, "epochs": 1} for name, path in entries.items()}
    return Plan.open(make_plan(mixture(sources, tmp_path / "plan", held_out=HELD, **keys)))


def test_a_plan_of_distinct_records_leaks_nothing(tmp_path):
    p = plan(tmp_path, {"a": write(tmp_path / "a", "a", [Record.make("a", f"{i}", "text", [words(i)]) for i in range(200)])})
    found = leaks(p)
    assert found["train"] + found["held_out"] == 200 and 10 < found["held_out"] < 80
    assert all(way["records"] == 0 and way["examples"] == [] for way in found["ways"].values())
    facts = {}
    assert check(p.path, {"deep": True, "facts": facts}) == [] and facts["leaks"] == found


@pytest.mark.parametrize("size", [1, 1 << 19])
def test_copies_of_a_text_in_another_source_are_found_by_payload_and_counted_pair_by_pair(tmp_path, monkeypatch, size):
    monkeypatch.setattr(mixtures.leaks, "_PIECE", size)
    mine = [Record.make("a", f"{i}", "text", [words(i)]) for i in range(300)]
    other = [Record.make("b", f"{i}", "text", [words(i if i % 3 == 0 else 5000 + i)]) for i in range(300)]
    p = plan(tmp_path, {"a": write(tmp_path / "a", "a", mine), "b": write(tmp_path / "b", "b", other)})
    rows = {name: d.index(0, ["id"])["id"].to_pylist() + d.index(1, ["id"])["id"].to_pylist() for name, d in zip("ab", p.datasets, strict=True)}
    held = {name: {id for id, flag in zip(rows[name], f, strict=True) if flag} for name, f in zip("ab", marked(p, "heldout"), strict=True)}
    wanted = {"a": 0, "b": 0}
    for i in range(0, 300, 3):
        a_out, b_out = mine[i].id in held["a"], other[i].id in held["b"]
        wanted["a"] += b_out and not a_out
        wanted["b"] += a_out and not b_out
    found = leaks(p)["ways"]
    assert found["sha256"]["records"] == found["text"]["records"] == wanted["a"] + wanted["b"] > 10
    assert {b["train"]: b["records"] for b in found["sha256"]["between"]} == wanted
    assert found["text"]["new"] == 0 and found["id"]["records"] == found["group"]["records"] == 0
    for e in found["sha256"]["examples"]:
        assert e["held_out"] in held["a"] | held["b"] and e["train"] not in held["a"] | held["b"]


def test_one_record_in_two_datasets_with_different_groups_is_a_problem(tmp_path, capfd):
    mine = [Record.make("a", f"{i}", "text", [words(i)]) for i in range(100)]
    regrouped = [Record.make("a", f"{i}", "text", [words(i)], group=f"page{i}") for i in range(100)]
    p = plan(tmp_path, {"a": write(tmp_path / "a", "a", mine), "b": write(tmp_path / "b", "b", regrouped)})
    assert leaks(p)["ways"]["id"]["records"] > 5
    assert ["held out in another source" in problem["what"] for problem in check(p.path, {"deep": True})] == [True]
    assert main(["verify", p.path, "--deep", "--json"]) == 4
    said = json.loads(capfd.readouterr().out)
    assert said["leaks"]["ways"]["id"]["records"] and not said["ok"]


def test_a_url_met_again_a_caption_said_again_and_a_near_picture_are_each_found_in_their_own_way(tmp_path, capfd):
    hashes = np.random.default_rng(3).integers(0, 1 << 63, 400, dtype=np.uint64)

    def make(source, i, picture_of, caption, **more):
        return Record.make(source, f"{i}", "image-text", pair(picture_of, caption), **more)

    mine = [make("a", i, i, words(i), url=f"https://x/{i}", phash=int(hashes[i])) for i in range(200)]
    kinds = [
        lambda i: make("b", i, 900 + i, words(900 + i), url=f"https://x/{i}", phash=None),
        lambda i: make("b", i, 900 + i, words(i), phash=None),
        lambda i: make("b", i, 900 + i, words(900 + i), phash=int(hashes[i]) ^ 0b101),
        lambda i: make("b", i, 900 + i, words(900 + i), phash=0b111),  # flat, like all flat ones
    ]
    other = [kinds[i % 4](i) for i in range(200)]
    files = {"a": write(tmp_path / "a", "a", mine, "image-text"), "b": write(tmp_path / "b", "b", other, "image-text")}
    p = plan(tmp_path, files)
    found = leaks(p)["ways"]
    assert found["sha256"]["records"] == found["id"]["records"] == 0
    for way in ("url", "text", "phash"):
        assert found[way]["records"] == found[way]["new"] > 5, way
    assert leaks(p, distance=1)["ways"]["phash"]["records"] == 0 and "phash" not in leaks(p, distance=None)["ways"]
    assert main(["verify", p.path, "--deep"]) == 0
    said = capfd.readouterr().out
    assert "between sources" in said and found["url"]["examples"][0]["train"] in said


def test_short_texts_may_repeat(tmp_path):
    both = {n: [Record.make(n, f"{i}", "text", [words(i % 2, 15), words(ord(n) * 1000 + i, 2)]) for i in range(100)] for n in "ab"}
    p = plan(tmp_path, {n: write(tmp_path / n, n, r) for n, r in both.items()})
    assert leaks(p)["ways"]["text"]["records"] == 0
