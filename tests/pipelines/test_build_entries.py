"""A list of entries is what the counts say, in a stated order, from any number of shards."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from pipelines import build_entries
from pipelines.build_entries import STAGE, BuildEntries, cut
from pipelines.check_files import check
from pipelines.curate import Curate
from pipelines.engine import open_job
from pipelines.entries import read_entries
from pipelines.format.document import parse
from pipelines.format.errors import ConflictError, InputError, Stopped
from pipelines.format.manifest import read_card
from pipelines.matching import scan
from pipelines.recipe import Recipe

TEXTS = ["the red fox sat", "the red fox, the (red) dog", "a dog sat", "the cat sat. New York", "in New York", "the red fox", "New  York in the fog"]


@pytest.fixture
def text(tmp_path):
    def curated(shard_bytes=10**6, texts=TEXTS):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        document = {"name": "t", "source": {"jsonl": {"path": str(tmp_path / "in")}}, "engine": "local", "shard_bytes": shard_bytes}
        with open_job("local") as job:
            return Curate("text").run(parse(Recipe, {**document, "output": str(tmp_path / f"text{shard_bytes}")}), job)

    return curated


def built(dataset, output, **keys):
    small = {"min_count": 2, "min_pair_count": 2, "min_pmi": 2.0, "max_pairs": 1.0, "numerals": False}
    with open_job("local") as job:
        return STAGE.run(parse(BuildEntries, {"datasets": [dataset], "output": str(output), **small, **keys}), job)


def test_words_are_cut_where_matching_cuts_them_and_marks_part_neighbours():
    words = cut("the (red) fox, dog  don't \"x")
    assert [w for w in words if w] == ["the", "red", "fox", "dog", "don't", "x"]
    near = {(a, b) for a, b in pairwise(words) if a and b}
    assert near == set(), "brackets, the comma, the double space and the quote stand between all of them"
    assert cut("red fox")[1:-1] == ["red", "fox"] and not any(cut("")) and not any(cut(", - (!)"))


def test_the_list_is_words_by_count_then_pairs_by_mutual_information(text, tmp_path):
    path = built(text(), tmp_path / "e")
    entries = read_entries(path)
    words = Counter(w for t in TEXTS for w in cut(t) if w)
    expected = sorted((w for w, n in words.items() if n >= 2), key=lambda w: (-words[w], w))
    assert entries[: len(expected)] == expected
    total, pairs = words.total(), {"red fox": 3, "New York": 2, "the red": 3, "fox sat": 1}
    pmi = {p: np.log2(n * total / np.prod([words[w] for w in p.split()])) for p, n in pairs.items() if n >= 2}
    assert entries[len(expected) :] == sorted((p for p in pmi if pmi[p] >= 2), key=lambda p: (-pmi[p], p)) == ["red fox", "New York"]
    card = read_card(path)
    assert card["kind"] == "entries" and card["records"] == len(entries)
    assert card["figures"]["entries"] == {"words_read": total, "numerals": 0, "included": 0, "words": len(expected), "pairs": 2}


def test_every_entry_is_found_in_the_text_it_comes_from(text, tmp_path):
    entries = read_entries(built(text(), tmp_path / "e"))
    assert {j for _, j in scan(TEXTS, entries)} == set(range(len(entries)))


def test_numerals_and_other_lists_come_first_and_the_list_ends_where_it_is_told_to(text, tmp_path):
    (tmp_path / "more.txt").write_text("axolotl\nthe\n")
    entries = read_entries(built(text(), tmp_path / "e", numerals=True, include=[str(tmp_path / "more.txt")], max_entries=103))
    assert entries[:102] == [*map(str, range(100)), "axolotl", "the"] and len(entries) == 103 == len(set(entries))


def test_shards_do_not_matter_and_a_second_run_does_nothing(text, tmp_path):
    a, b = built(text(), tmp_path / "a"), built(text(shard_bytes=1), tmp_path / "b")
    assert read_entries(a) == read_entries(b)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}
    built(text(), tmp_path / "a")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")} == before
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"entries.json", "manifest.json"}


def test_a_stop_leaves_no_card_and_the_next_run_takes_up_what_was_counted(text, tmp_path, monkeypatch):
    dataset = text(shard_bytes=1)
    monkeypatch.setattr(build_entries, "select", lambda *a: (_ for _ in ()).throw(Stopped()))
    with pytest.raises(Stopped):
        built(dataset, tmp_path / "e")
    assert not (tmp_path / "e" / "manifest.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr(build_entries, "count_shard", None)
    assert read_entries(built(dataset, tmp_path / "e"))


def test_another_setting_in_the_same_place_is_a_conflict_and_nothing_common_enough_is_said(text, tmp_path):
    built(text(), tmp_path / "e")
    with pytest.raises(ConflictError):
        built(text(), tmp_path / "e", min_count=3)
    with pytest.raises(InputError, match="common enough"):
        built(text(), tmp_path / "f", min_count=1000)


def test_verify_sees_a_changed_list(text, tmp_path):
    path = built(text(), tmp_path / "e")
    assert check(path, {}) == []
    (tmp_path / "e" / "entries.json").write_text("[]")
    assert check(path, {}) == [{"file": "entries.json", "what": "differs from its card"}]


def test_a_dry_run_says_what_would_be_read(text, tmp_path):
    estimate = STAGE.plan(parse(BuildEntries, {"datasets": [text()], "output": str(tmp_path / "e")}))
    assert estimate.table[0]["records"] == len(TEXTS)
