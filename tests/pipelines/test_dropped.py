"""What filters dropped can be looked at: for each reason its count and some records, beside what stayed, harmless whatever the records say."""

import json

import pytest

from pipelines import dropped
from pipelines.commands import main
from pipelines.format.chance import hash64
from pipelines.format.dataset import Dataset
from pipelines.format.part import PartWriter, dropped_path
from pipelines.format.record import Image, Record, Text
from tests import toys
from tests.pipelines.test_verbs import HOSTILE, Seen, tell

DROPS = {"c4.curly_bracket": 25, "c4.too_few_sentences": 3, "text_length.min_words": 12}


@pytest.fixture
def shelf(tmp_path):
    """A dataset of 10 records in two shards, with 40 dropped ones of three reasons below it, in several shards too."""
    root = str(tmp_path / "set")
    reasons = [r for r, n in sorted(DROPS.items()) for _ in range(n)]
    with PartWriter(root, 0, fingerprint="0" * 64, keep_dropped=True, shard_bytes=100) as w:
        for i in range(50):
            w.emit()
            record = Record.make("s", f"o{i:02}", "text", [Text(f"document {i:02} " + "x" * 400)])
            w.add(record) if i < 10 else w.drop(record, "f", reasons[i - 10])
        commit = w.commit()
    toys.seal(root, "set", "text", [commit], {"source": {"toy": {}}})
    gone = json.loads((tmp_path / "set/dropped/parts/00000.json").read_text())
    toys.seal(dropped_path(root), "set (dropped)", "text", [gone], {"source": {"toy": {}}})
    return tmp_path


def test_every_reason_has_its_count_and_examples_from_all_over(shelf, capfd):
    _, said = tell(capfd, "inspect", str(shelf / "set"), "--dropped", "-n", "5")
    assert {r["reason"]: r["dropped"] for r in said["dropped"]} == DROPS
    assert [r["reason"] for r in said["dropped"]] == sorted(DROPS, key=lambda r: -DROPS[r])
    assert [len(r["examples"]) for r in said["dropped"]] == [5, 5, 3] and len(said["kept"]) == 5
    ids = sorted(hash64(Record.make("s", f"o{i}", "text", []).id) for i in range(10, 35))
    assert [hash64(e["id"]) for e in said["dropped"][0]["examples"]] == ids[:5]  # as good as drawn, whatever the shards
    assert all(e["fields"]["dropped"] == r["reason"] for r in said["dropped"] for e in r["examples"])


def test_a_filters_name_takes_all_its_reasons_and_a_whole_reason_itself(shelf, capfd):
    def reasons(wanted):
        return [r["reason"] for r in tell(capfd, "inspect", str(shelf / "set"), "--reason", wanted)[1]["dropped"]]

    assert reasons("c4") == ["c4.curly_bracket", "c4.too_few_sentences"]
    assert reasons("c4.too_few_sentences") == ["c4.too_few_sentences"]


def test_a_reason_that_nothing_was_dropped_for_is_told_with_those_there_are(shelf, capfd):
    code, said = tell(capfd, "inspect", str(shelf / "set"), "--dropped", "--reason", "c")
    assert code == 2 and "c4.curly_bracket 25" in said["error"]["allowed"]


def test_without_the_dropped_records_it_says_how_to_get_them(tmp_path, capfd):
    code, said = tell(capfd, "inspect", toys.curated(str(tmp_path / "d")), "--dropped")
    assert code == 2 and "keep_dropped" in said["error"]["next"]


def test_people_see_as_much_of_a_text_as_they_ask_for(shelf, capfd):
    main(["inspect", str(shelf / "set"), "--dropped", "--reason", "text_length", "-n", "1", "--chars", "300"])
    shown = capfd.readouterr().out
    assert "── dropped by text_length.min_words: 12, 1 shown" in shown and "── kept: 1 shown" in shown
    assert "x" * 250 in shown and "x" * 300 not in shown


def test_taking_rows_reads_them_and_no_others(shelf):
    ds = Dataset.open(str(shelf / "set/dropped"))
    for shard in range(len(ds.shards)):
        every = list(ds.rows(shard))
        assert [row for _, row in ds.take(shard, [len(every) - 1, 0])] == [every[0], every[-1]][: len({0, len(every) - 1})] or len(every) == 1
    assert sum(len(r.examples) for r in dropped.by_reason(ds, 1_000)) == 40


def test_the_page_shows_dropped_pictures_anew_and_hostile_text_as_text(tmp_path, capfd):
    root = str(tmp_path / "set")
    payload = toys.jpeg(1) + b"<script>hidden</script>"
    with PartWriter(root, 0, fingerprint="0" * 64, keep_dropped=True) as w:
        for i in range(9):
            w.emit()
            record = Record.make(HOSTILE, f"{HOSTILE}{i}", "image-text", [Image(payload, atom=0, shape=(32, 32, 3)), Text(HOSTILE, atom=1)])
            w.drop(record, "f", f"f.{HOSTILE}") if i else w.add(record)
        commit = w.commit()
    toys.seal(root, "set", "image-text", [commit], {"source": {"toy": {}}})
    gone = json.loads((tmp_path / "set/dropped/parts/00000.json").read_text())
    toys.seal(dropped_path(root), "gone", "image-text", [gone], {"source": {"toy": {}}})
    code, said = tell(capfd, "view", root, "--out", str(tmp_path / "page"))
    text = (tmp_path / "page/index.html").read_text()
    seen = Seen(text)
    assert code == 0 and said["pages"] and not {"script", "svg", "iframe", "a"} & set(seen.tags)
    assert [v[:22] for k, v in seen.attributes if k == "src"] == ["data:image/jpeg;base64"] * 5  # the kept one and four of eight
    assert "PHNjcmlwdD" not in text
