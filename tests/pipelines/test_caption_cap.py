"""At most so many records for one caption, the same ones whatever the parts; a record stays for any caption within its cap."""

import random
from collections import Counter

import pytest

from pipelines.across.caption_cap import CaptionCap
from pipelines.format.chance import draw
from tests.pipelines.test_image_hash import pictured, rounds


def pool(seed=0, n=300):
    rng = random.Random(seed)
    common = ["Untitled", "A house", "a  house", "Page 1 of 9", "page 2 of 9", "a red chair!"]
    texts = [[rng.choice([*common, f"unique {rng.getrandbits(99):x}q"]) for _ in range(rng.choice([1, 1, 2, 3]))] for _ in range(n)]
    return [pictured(str(i), texts=some) for i, some in enumerate(texts)]


def by_definition(stage, records):
    """Caption by caption in the order of draws; who is beyond the cap everywhere leaves."""
    held = {}
    for r in sorted(records, key=lambda r: (draw(r.h, stage.seed, "survivor"), r.id)):
        for caption in {stage.normal(s.text) for s in r.segments if s.text is not None}:
            held.setdefault(caption, []).append(r.id)
    within = {id for ids in held.values() for id in ids[: stage.most]}
    return {r.id: "caption_cap" for r in records if r.id not in within}


@pytest.mark.parametrize("most", [1, 3, 20, 1000])
@pytest.mark.parametrize("keys", [{}, {"digits": "keep", "seed": 5}])
def test_what_leaves_is_what_the_rule_says(most, keys):
    records, stage = pool(), CaptionCap(most=most, **keys)
    got, _ = rounds(stage, [records])
    assert got == by_definition(stage, records) and bool(got) == (most < 1000)


def test_parts_order_and_buckets_change_nothing_and_caps_nest():
    records = pool(1)
    wanted, _ = rounds(CaptionCap(most=5), [records])
    mixed = random.Random(0).sample(records, len(records))
    assert rounds(CaptionCap(most=5, buckets=7), [mixed[::2], mixed[1::2]])[0] == wanted
    assert set(rounds(CaptionCap(most=9), [records])[0]) < set(wanted)


def test_captions_are_compared_without_case_spaces_marks_and_numbers():
    stage = CaptionCap()
    assert stage.normal("Page 1 of 9") == stage.normal("page  2 of 9!") != CaptionCap(digits="keep").normal("page 2 of 9")
    assert stage.normal("Ｕntitled") == "untitled" and stage.normal("12 - 34") == "12 - 34" and stage.normal("IMG_0231") == "img"
    assert stage.normal("की") != stage.normal("का")


def test_a_record_stays_for_one_caption_within_its_cap():
    records = [pictured(str(i), texts=["same", f"own {chr(97 + i)}"]) for i in range(5)] + [pictured(str(i), texts=["same"]) for i in range(5, 9)]
    gone, _ = rounds(CaptionCap(most=2), [records])
    assert set(gone) <= {r.id for r in records[5:]} and len(gone) >= 2
    assert not rounds(CaptionCap(most=2, captions=("recaption",)), [records])[0]


def test_a_caption_twice_in_one_record_counts_once():
    records = [pictured(str(i), texts=["same", "Same "]) for i in range(4)]
    assert len(rounds(CaptionCap(most=3), [records])[0]) == 1


def test_the_report_names_the_commonest_captions():
    records = pool(2)
    stage = CaptionCap(most=4)
    _, told = rounds(stage, [records])
    counts = Counter(c for r in records for c in {stage.normal(s.text) for s in r.segments if s.text})
    over = {c: n for c, n in counts.items() if n > 4}
    said = stage.report(told)
    assert said["captions"] == len(over) and said["records"] == sum(over.values())
    assert {e["caption"]: e["n"] for e in said["commonest"]} == over and said["commonest"][0]["n"] == max(over.values())
