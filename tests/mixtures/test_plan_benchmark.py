"""The comparison of planners' speed says what it measured, on inputs that are what they claim."""

import json

from benchmarks.plan import measure
from benchmarks.plan_inputs import KINDS
from mixtures.mixture import HeldOut, Where
from mixtures.table import read_table
from pipelines.format.dataset import Dataset


def test_a_small_run_gives_every_row_and_its_inputs_hold_what_their_cards_say(tmp_path):
    rows, point = measure(tmp_path, 8_000, 1, ray=False)
    assert [r["name"] for r in rows] == ["plan.order_packing", "plan.end_to_end", "plan.memory", "plan.span_bytes"]
    assert point["records"] == 8_000 and all(json.dumps(r) and r["ours"] > 0 for r in rows)
    for name in KINDS:
        dataset = Dataset.open(str(tmp_path / "8000" / name))
        table = read_table(dataset, HeldOut(), Where())
        assert len(table) == dataset.card["records"] == 2_000 and 0 < table.held.mean() < 0.06
        assert int(table.text.sum() + table.visual.sum()) == dataset.card["tokens"]["all"] == int(table.atom_tokens.sum())
        assert int(table.loss.sum()) == dataset.card["tokens"]["loss"]
