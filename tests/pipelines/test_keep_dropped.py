"""What filters drop can be kept: a dataset of its own beside the other, with the reason, the same however often the job is killed."""

import json

import pytest

from pipelines import curate
from pipelines.format.dataset import Dataset
from pipelines.format.errors import Stopped
from tests.pipelines.test_across import folder, recipe, run

FILTERS = [{"text_length": {"min_words": 2}}]


def rows(root):
    ds = Dataset.open(str(root))
    records = [r for i in range(len(ds.shards)) for r in ds.records(i)]
    return sorted((r.segments[0].text, r.fields.get("dropped")) for r in records)


def test_dropped_records_are_a_dataset_with_their_reasons(tmp_path):
    out = tmp_path / "d"
    run(recipe(folder(tmp_path, 2), out, across=[], filters=FILTERS, keep_dropped=True))
    assert rows(out / "dropped") == [("short", "text_length.min_words"), ("three", "text_length.min_words")]
    card = json.loads((out / "dropped" / "manifest.json").read_text())
    assert card["in"] == card["written"] == 2 and card["name"].endswith("(dropped)")
    assert json.loads((out / "manifest.json").read_text())["written"] == 7


def test_what_whole_dataset_stages_drop_is_kept_beside_what_filters_dropped(tmp_path):
    out = tmp_path / "d"
    run(recipe(folder(tmp_path, 2), out, filters=FILTERS, keep_dropped=True))
    kept, gone = rows(out), rows(out / "dropped")
    assert len(kept) == 3 and [reason for _, reason in gone].count("exact_text") == 4 and len(gone) == 6


@pytest.mark.parametrize("across", [[], ["exact_text"]])
def test_the_dataset_is_the_same_with_and_without_and_can_be_asked_for_later(tmp_path, across):
    source = folder(tmp_path, 2)
    run(recipe(source, tmp_path / "golden", across=across, filters=FILTERS))
    out = tmp_path / "d"
    run(recipe(source, out, across=across, filters=FILTERS))
    assert not (out / "dropped").exists()
    for _ in range(2):
        run(recipe(source, out, across=across, filters=FILTERS, keep_dropped=True))
        assert Dataset.open(str(out)).fingerprint == Dataset.open(str(tmp_path / "golden")).fingerprint
        assert len(rows(out / "dropped")) == 9 - len(rows(out))


def test_a_killed_job_goes_on_to_the_same_two_datasets(tmp_path, monkeypatch):
    source = folder(tmp_path, 3)
    run(recipe(source, tmp_path / "golden", across=[], filters=FILTERS, keep_dropped=True))
    whole = curate.curate_part

    def stops(item, recipe):
        if item["part"] == 1:
            raise Stopped()
        return whole(item, recipe)

    stops.__name__ = "curate_part"
    monkeypatch.setattr(curate, "curate_part", stops)
    with pytest.raises(Stopped):
        run(recipe(source, tmp_path / "d", across=[], filters=FILTERS, keep_dropped=True))
    monkeypatch.undo()
    run(recipe(source, tmp_path / "d", across=[], filters=FILTERS, keep_dropped=True))
    for name in ("", "dropped"):
        assert Dataset.open(str(tmp_path / "d" / name)).fingerprint == Dataset.open(str(tmp_path / "golden" / name)).fingerprint
