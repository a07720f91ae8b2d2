"""A list of entries is what the counts say, in a stated order, from any number of shards."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from pipelines import build_entries
from pipelines.build_entries import STAGE, BuildEntries, cut
from pipelines.check_files import check
from pipelines.commands import main
from pipelines.curate import Curate
from pipelines.engine import open_job
from pipelines.entries import read_entries
from pipelines.entry_sources import Counted, counted, included, wordnet
from pipelines.format.document import parse
from pipelines.format.errors import ConflictError, HeadwaterError, InputError, Stopped
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
    assert [w for w in cut("a ‑ b £ … 1 → «c»") if w] == ["a", "b", "1", "c"], "what holds no letter and no digit is no word in any script"


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
    none = {"numerals": 0, "wordnet": 0, "included": 0, "counted": 0}
    assert card["figures"]["entries"] == {**none, "words_read": total, "words": len(expected), "pairs": 2}


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


# ---- lists that others made --------------------------------------------------------------------------------------------------------------

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n  2 Princeton University under the following license.  \n"
DATA = """00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 | that which is perceived
08524735 15 n 02 New_York 0 Empire_State 0 002 @i 08654360 n 0000 | a state
00002312 00 a 02 alive(p) 0 live(a) 0 001 ! 00095280 a 0101 | possessing life
00001740 29 v 0b breathe 0 take_a_breath 0 respire 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i_j 0 021 * 00005041 v 0000 | draw air
"""
INDEX = """entity n 1 1 ~ 1 1 00001740
new_york n 3 3 @ ; + 3 1 08524735 09119277 08524999
'hood n 1 2 @ ; 1 0 08641944
"""


def test_wordnets_own_files_give_their_lemmas_as_they_are_written(tmp_path):
    (tmp_path / "data.noun").write_text(LICENCE + DATA)
    (tmp_path / "index.noun").write_text(LICENCE + INDEX)
    data = wordnet(str(tmp_path / "data.noun"))
    assert data[:5] == ["entity", "New York", "Empire State", "alive", "live"]
    assert data[5:] == ["breathe", "take a breath", "respire", *"bcdefgh", "i j"], "0b lemmas, the number being hexadecimal"
    assert wordnet(str(tmp_path / "index.noun")) == ["entity", "new york", "'hood"]
    (tmp_path / "other").write_text("dog\ncat\n")
    with pytest.raises(InputError, match="WordNet"):
        wordnet(str(tmp_path / "other"))


def test_a_list_with_counts_is_taken_from_the_top_as_far_as_asked_for(tmp_path):
    (tmp_path / "titles.tsv").write_text("Red_fox\t900\nNew York\t80\n!!\t5000\nAxolotl 70\nRare thing 69\nNew_York 20\n")
    path = str(tmp_path / "titles.tsv")
    assert counted(Counted(path=path, min_count=70)) == ["Red fox", "New York", "Axolotl"]
    assert counted(Counted(path=path, min_count=1, top="60%")) == ["Red fox", "New York"], "three of five lines, one of them pure punctuation"
    with pytest.raises(InputError, match="no entry"):
        counted(Counted(path=path, min_count=10_000))
    (tmp_path / "titles.tsv").write_text("Red fox\n")
    with pytest.raises(InputError, match="count"):
        counted(Counted(path=path))


def test_lists_that_cannot_be_read_are_said_before_anything_is_counted(text, tmp_path, monkeypatch):
    monkeypatch.setattr(build_entries, "count_shard", None)
    (tmp_path / "cut.gz").write_bytes(b"\x1f\x8b\x08 no")
    (tmp_path / "latin").write_bytes(b"caf\xe9 7\n")
    bad = [{"counted": [{"path": str(tmp_path / name)}]} for name in ("cut.gz", "latin")]
    for more in (*bad, {"wordnet": [str(tmp_path / "none")]}):
        with pytest.raises(HeadwaterError):
            built(text(), tmp_path / "e", **more)


def test_all_kinds_of_lists_come_before_the_words_without_doubles_and_without_pure_punctuation(text, tmp_path):
    (tmp_path / "data.noun").write_text(LICENCE + DATA)
    (tmp_path / "plain.txt").write_text("entity\n...\nowl\n")
    (tmp_path / "titles.tsv").write_text("owl\t90\nRed_fox\t80\nthe\t1\n")
    lists = {"wordnet": [str(tmp_path / "data.noun")], "include": [str(tmp_path / "plain.txt")]}
    path = built(text(), tmp_path / "e", **lists, counted=[{"path": str(tmp_path / "titles.tsv"), "min_count": 70}])
    entries, figures = read_entries(path), read_card(path)["figures"]["entries"]
    assert figures | {"words": 0, "pairs": 0, "words_read": 0} == {
        "wordnet": 16,
        "included": 1,
        "counted": 1,
        "numerals": 0,
        "words": 0,
        "pairs": 0,
        "words_read": 0,
    }
    assert entries[16:18] == ["owl", "Red fox"] and entries[18] == "the" and len(entries) == len(set(entries))
    with pytest.raises(ConflictError):
        built(text(), tmp_path / "e", **lists, counted=[{"path": str(tmp_path / "titles.tsv"), "min_count": 71}])


def test_inspect_shows_some_entries(text, tmp_path, capsys):
    path = built(text(), tmp_path / "e")
    assert main(["inspect", path, "-n", "2", "--skip", "1"]) == 0
    assert capsys.readouterr().out.split() == read_entries(path)[1:3]


def test_real_lists_are_read_whole(real_data):
    lists = real_data / "entry_lists"
    lemmas = included(str(lists / "open_english_wordnet_lemmas.txt.gz"))
    assert len(lemmas) == 128_044 and "12-tone music" in lemmas
    words = counted(Counted(path=str(lists / "swwiki-2024-02-20.txt"), min_count=100))
    assert words[:3] == ["ya", "na", "wa"] and len(words) == len(set(words)) > 1000
