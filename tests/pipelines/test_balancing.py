"""The draws follow the published rule in distribution, the limits of several languages follow theirs, and the figures say what would be kept."""

import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.balancing import Needs, Tails, by_rank, merged, rounded_up, solve, steps
from pipelines.format.chance import draw, uniform
from pipelines.format.document import parse
from pipelines.recipe import Recipe
from tests.pipelines.balanced import drops, pair, recipe, stage

LIST = ["dog", "cat", "red fox", "New York", ",", "lamp", "axolotl", "a"]
WORDS = ["dog", "cat", "red fox", "New York", "lamp", "a", "nothing", "cats", ","]


def captions(n, seed, texts=1):
    """n records with that many captions, in which common words are common; every twentieth names an axolotl."""
    rng = random.Random(seed)

    def text(i):
        said = rng.choices(WORDS, weights=[30, 15, 6, 3, 8, 40, 30, 5, 10], k=rng.randint(1, 4))
        return " ".join(said + ["axolotl"] * (i % 20 == 0))

    return [pair(i, *(text(i) for _ in range(texts))) for i in range(n)]


# ---- an implementation of its own, straight from the published description ----------------------------------------------------------------


def holds(text):
    """The entries of LIST in a text."""
    spaced = f" {text} "
    for mark in ",.;:?!`":
        spaced = spaced.replace(mark, f" {mark} ")
    for blank in "\t\n\r":
        spaced = spaced.replace(blank, " ")
    return [e for e in LIST if f" {e} " in spaced]


def plain(records):
    """Entries of each text of each record, and how many texts hold each."""
    found = [[holds(s.text) for s in r.segments if s.text] for r in records]
    return found, Counter(e for texts in found for entries in texts for e in entries)


def chance_of(entries, count, t):
    """1 − ∏(1 − p): p = 1 below t, else t / count; each entry draws for itself, and one that passes keeps the text."""
    missed = 1.0
    for e in entries:
        missed *= 1.0 - (1.0 if count[e] < t else t / count[e])
    return 1.0 - missed


def kept_over_seeds(tmp_path, records, seeds, **keys):
    """bool [seed, record]."""
    rows = []
    for seed in range(seeds):
        gone, _ = drops(stage(tmp_path, LIST, seed=seed, curve=False, **keys), [records])
        rows.append([r.id not in gone for r in records])
    return np.array(rows)


def agree(kept, wanted):
    """Each record's frequency within 4 standard errors, certain ones exactly; and the sums spread as those of independent records do."""
    seeds = len(kept)
    error = np.sqrt(wanted * (1 - wanted) / seeds)
    assert (np.abs(kept.mean(0) - wanted) <= 4 * error + 1e-12).all()
    z = (kept.mean(0) - wanted)[error > 0] / error[error > 0]
    assert abs(z.mean()) < 4 / np.sqrt(len(z)) and abs(z.std() - 1) < 4 / np.sqrt(2 * len(z))
    spread = (wanted * (1 - wanted)).sum()
    assert abs(kept.sum(1).var(ddof=1) / spread - 1) < 4 * np.sqrt(2 / seeds)


def test_over_many_seeds_a_record_stays_as_often_as_the_published_rule_says(tmp_path):
    records = captions(300, 1)
    found, count = plain(records)
    wanted = np.array([chance_of(texts[0], count, 25) for texts in found])
    assert ((wanted > 0) & (wanted < 1)).sum() > 100 and (wanted == 1).sum() > 20 and (wanted == 0).sum() > 5
    agree(kept_over_seeds(tmp_path, records, 300, t=25), wanted)


def test_with_one_text_a_record_stays_as_often_as_a_text_drawn_from_those_that_match_would(tmp_path):
    records = captions(300, 2, texts=3)
    found, count = plain(records)
    by_text = [[chance_of(entries, count, 40) for entries in texts if entries] for texts in found]
    wanted = np.array([sum(c) / len(c) if c else 0.0 for c in by_text])
    kept = kept_over_seeds(tmp_path, records, 300, t=40, texts="one")
    agree(kept, wanted)
    both = np.array([chance_of({e for entries in texts for e in entries}, count, 40) for texts in found])
    assert kept.mean() < both.mean() - 0.05, "many captions are not many chances"


@pytest.mark.parametrize("t", [3, 40, 10_000])
def test_with_one_text_what_stays_is_what_the_drawn_text_says_record_by_record(tmp_path, t):
    records = captions(400, 3, texts=3)
    found, count = plain(records)
    want = {}
    for r, texts in zip(records, found, strict=True):
        matching = [entries for entries in texts if entries]
        if not matching:
            want[r.id] = "metaclip.no_match"
            continue
        mine = matching[int(uniform(draw(r.h, 0, "balance_text")) * len(matching))]
        if not any(uniform(draw(r.h, 0, "balance", e)) < min(1.0, t / count[e]) for e in mine):
            want[r.id] = "metaclip.balanced"
    shuffled = records[:]
    random.Random(4).shuffle(shuffled)
    for parts in ([records], [shuffled[:7], [], shuffled[7:300], shuffled[300:]]):
        gone, told = drops(stage(tmp_path, LIST, t=t, texts="one", buckets=len(parts)), parts)
        assert gone == want
    figures = stage(tmp_path, LIST, t=t, texts="one").report(told)
    assert figures["matches"]["all"] == count.total() and figures["texts"]["all"] == 1200, "all texts are counted, whatever is drawn"


def test_a_text_is_drawn_from_those_of_the_named_captions_only(tmp_path):
    records = [pair(i, "a dog", "a lamp") for i in range(200)] + [pair(900 + i, "axolotl", "a dog") for i in range(40)]
    keys = {"t": 10, "texts": "one", "captions": ["original"]}
    gone, _ = drops(stage(tmp_path, LIST, **keys), [records])
    assert gone == drops(stage(tmp_path, LIST, **{**keys, "texts": "all"}), [records])[0], "one name, one text"
    some = drops(stage(tmp_path, LIST, t=50, texts="one"), [records])[0]
    rare = [r.id for r in records[200:]]
    assert 0 < sum(id in some for id in rare) < 40, "a rare entry may lose a record whose other text was drawn"


# ---- limits of several languages ---------------------------------------------------------------------------------------------------------


def share_below(counts, t):
    """The second version's first step, a count at a time."""
    return sum(c for c in counts if c < t) / sum(counts)


def count_at(counts, share):
    """Its second step: from the rarest on, the count at which the share reached lies nearest; the first such in a tie."""
    reached, best = 0, None
    for c in sorted(counts):
        reached += c
        off = abs(reached / sum(counts) - share)
        if best is None or off < best[0]:
            best = off, c
    return best[1]


COUNTS = st.lists(st.integers(0, 2000), min_size=1, max_size=40).filter(any)


@given(COUNTS, st.lists(COUNTS, max_size=3), st.integers(1, 2500))
def test_every_language_gets_the_t_that_the_two_steps_give_it(first, others, t):
    flat = [c for counts in [first, *others] for c in counts]
    ends = np.cumsum([len(first), *map(len, others)]).tolist()
    tails = Tails(np.array(flat), zip([0, *ends], ends, strict=False))
    share = share_below(first, t)
    assert tails.share(t) == pytest.approx(share, abs=1e-12)
    assert tails.at(t)[0] == t
    for found, counts in zip(tails.at(t)[1:], others, strict=True):
        positive = [c for c in counts if c]  # a t of 0, which the plain steps can give, would drop all records of a language
        off = [abs(s - share) for s in np.cumsum(sorted(positive)) / sum(positive)]
        assert found == count_at(positive, share) or sorted(off)[1] - sorted(off)[0] < 1e-12
    assert len(tails.limits(t)) == len(flat) and (np.diff([tails.at(x) for x in range(1, 2500, 97)], axis=0) >= 0).all(), "rises with t"


def lingual(tmp_path, **keys):
    lists = {}
    for name, entries in (("en", ["dog", "cat", "owl"]), ("fr", ["chien", "chat", "lynx"])):
        (tmp_path / f"{name}.json").write_text(json.dumps(entries))
        lists[name] = str(tmp_path / f"{name}.json")
    said = [("en", "dog", 90), ("en", "cat", 20), ("en", "owl", 4), ("fr", "chien", 300), ("fr", "chat", 95), ("fr", "lynx", 5), ("de", "dog", 9)]
    records = [pair(f"{lang}{w}{i}", w, language=lang) for lang, w, n in said for i in range(n)]
    return records, parse(Recipe, recipe(tmp_path, across=[{"metaclip": {"languages": lists, **keys}}])).across[0]


def test_with_several_languages_a_wanted_number_of_pairs_is_found_too(tmp_path):
    records, s = lingual(tmp_path, pairs=300)
    gone, told = drops(s, [records[:150], records[150:]])
    t = s.report(told)["t"]["en"]
    kept = {x: len(records) - len(drops(lingual(tmp_path, t=x)[1], [records])[0]) for x in (t - 1, t)}
    assert len(records) - len(gone) == kept[t] >= 300 > kept[t - 1]


# ---- figures -----------------------------------------------------------------------------------------------------------------------------


def test_the_curve_tells_how_many_records_every_t_would_keep(tmp_path):
    records = captions(500, 5)
    s = stage(tmp_path, LIST, t=30)
    _, told = drops(s, [records[:200], records[200:]])
    curve = s.report(told)["records_by_t"]
    assert [t for t, _ in curve][:4] == [1, 2, 5, 10] and curve[-1][1] == s.report(told)["records"]["matched"]
    for t, n in curve:
        assert n == len(records) - len(drops(stage(tmp_path, LIST, t=t, curve=False), [records])[0]), t
    assert "records_by_t" not in stage(tmp_path, LIST, t=30, curve=False).report(told[:1])


def test_the_curve_of_several_languages_is_that_of_the_first_ones_t(tmp_path):
    records, s = lingual(tmp_path, t=25)
    curve = s.report(drops(s, [records])[1])["records_by_t"]
    for t, n in curve[::2]:
        assert n == len(records) - len(drops(lingual(tmp_path, t=t)[1], [records])[0]), t


def test_ranks_and_the_commonest_entries_are_those_of_the_counts(tmp_path):
    records = captions(500, 6)
    s = stage(tmp_path, LIST, t=30)
    figures = s.report(drops(s, [records])[1])
    _, count = plain(records)
    ranked = count.most_common()
    assert [row[:2] for row in figures["commonest"]] == [[e, n] for e, n in ranked if n > 30] and {row[2] for row in figures["commonest"]} == {30}
    n, before, after = figures["matches_by_rank"][-1]
    assert n == len(count) and before == count.total() and after == sum(min(c, 30) for c in count.values())
    assert figures["matches_by_rank"][1][:2] == [2, ranked[0][1] + ranked[1][1]]


def test_the_figures_of_a_list_of_half_a_million_long_entries_fit_a_card(tmp_path):
    entries = ["\U0001f98a" * 4000 + str(i) for i in range(30)] + LIST
    records = [pair(i, entries[i % 30]) for i in range(300)]
    s = stage(tmp_path, entries, t=2)
    assert len(json.dumps(s.report(drops(s, [records])[1]))) < 32_000
    counts = np.arange(500_000)[::-1]
    assert len(json.dumps(by_rank(counts, np.minimum(counts, 20_000)))) < 2_000


@given(st.lists(st.integers(1, 10**9), max_size=60), st.integers(1, 80))
def test_solving_gives_the_smallest_t_of_four_digits_that_keeps_so_many(needs, wanted):
    counts = np.array([max([*needs, 1])])
    values = list(merged([{"list": 0, "t": [int(rounded_up(np.array([n]))[0])], "n": [1]} for n in needs]))
    table, tails = Needs(values, 1), Tails(counts, [(0, 1)])
    t = solve(tails, table, wanted)
    if wanted > len(needs):
        assert t is None
    else:
        assert t == rounded_up(np.array([sorted(needs)[wanted - 1]]))[0] and table.kept([t]) >= wanted > table.kept([t - 1])


@given(st.integers(1, 10**12))
def test_steps_reach_what_they_must_and_no_further(last):
    assert steps(last)[-1] >= last and (len(steps(last)) == 1 or steps(last)[-2] < last)
