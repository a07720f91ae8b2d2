"""Figures of whole-dataset stages as tables: what has the same keys stands side by side, the rest below one another, names of files unchanged."""

from pipelines.summary import flat, tables

SETS = {"coco": {"met": 1, "near": 2}, "rad": {"met": 0, "near": 0}}


def test_mappings_with_the_same_keys_are_a_table_of_their_own():
    (title, rows), (rest, below) = tables("stage", {"sets": SETS, "bits": {"00": 3}, "records_seen": 5})
    assert title == "stage: sets" and rows == [["", "met", "near"], ["coco", 1, 2], ["rad", 0, 0]]
    assert rest == "stage" and below == [["", ""], ["bits: 00", 3], ["records seen", 5]]


def test_one_set_is_a_table_too_and_nothing_gives_no_table():
    assert tables("stage", {"sets": {"coco": {"met": 1}}}) == [("stage: sets", [["", "met"], ["coco", 1]])]
    assert tables("stage", {}) == []


def test_keys_lose_their_underscores_and_file_names_do_not():
    assert flat({"without_frames": 1, "a/b_c.jpg": 2}) == [["without frames", 1], ["a/b_c.jpg", 2]]
