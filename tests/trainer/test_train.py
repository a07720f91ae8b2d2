"""A run: it learns, it consumes exactly its plan, and being stopped, killed or moved leaves no trace in its numbers."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import toyplan

from mixtures.plan import Plan
from pipelines.format import storage
from pipelines.format.errors import ConflictError, InputError, Stopped, VerifyError
from trainer import checkpoint, stream
from trainer.flow import clean
from trainer.guards import Diverged
from trainer.loop import train
from trainer.meter import CLOCK
from trainer.models.load import load_model, read_weights
from trainer.stream import Reader


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toyplan.make(tmp_path_factory.mktemp("toyplan"), tokens=1200, n=60)


@pytest.fixture(scope="module")
def whole(plan: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The uninterrupted run that others are compared with."""
    return train(toyplan.run(plan, tmp_path_factory.mktemp("whole")))


class StopAt(threading.Event):
    """Set once it has been looked at `n` times: the loop looks once a step."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


def lines(root) -> list[dict]:
    read = [json.loads(line) for line in storage.read(storage.join(str(root), "metrics.jsonl")).splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read]


def same_weights(a, b) -> bool:
    a, b = read_weights(str(a)), read_weights(str(b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_learns_and_consumes_exactly_what_its_plan_takes(whole: dict, plan: str) -> None:
    made = lines(whole["path"])
    assert [line["step"] for line in made] == list(range(whole["steps"]))
    answers = [line["text/vqa"] for line in made if "text/vqa" in line]
    assert np.mean(answers[-5:]) < 0.6 * np.mean(answers[:5])
    card = storage.read_json(storage.join(plan, "plan.json"))
    for name, source in card["sources"].items():
        assert whole["sources"][name]["tokens"]["all"] == source["taken"]
    assert whole["tokens"]["all"] == made[-1]["tokens"] == 5000
    assert whole["tokens"]["all"] + whole["structure"] + whole["padding"] == whole["records"] * 64
    assert whole["parents"][0]["fingerprint"] == card["fingerprint"]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_stopped_run_goes_on_to_the_numbers_of_one_that_was_not(whole: dict, plan: str, tmp_path: Path, prefetch: int) -> None:
    run = toyplan.run(plan, tmp_path / "run", prefetch=prefetch)
    with pytest.raises(Stopped, match="after step 7"):
        train(run, stop=StopAt(7))
    assert not (tmp_path / "run/run.json").exists()
    seen = []
    train(run, log=lambda event, **fields: seen.append(event))
    assert "resumed" in seen
    assert lines(tmp_path / "run") == lines(whole["path"])
    assert same_weights(tmp_path / "run", whole["path"])


def test_a_run_killed_between_checkpoints_repeats_its_steps_and_no_line_stands_twice(whole: dict, plan: str, tmp_path: Path) -> None:
    run = toyplan.run(plan, tmp_path / "run", checkpoint_every=5)
    with pytest.raises(Stopped):
        train(run, stop=StopAt(8))
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000008")  # as if killed before this one: metrics go to step 8, weights to 5
    train(run)
    assert lines(tmp_path / "run") == lines(whole["path"]) and same_weights(tmp_path / "run", whole["path"])


def test_an_unfinished_checkpoint_is_named_and_passed_over(plan: str, tmp_path: Path) -> None:
    run = toyplan.run(plan, tmp_path / "run", checkpoint_every=3)
    with pytest.raises(Stopped):
        train(run, stop=StopAt(8))
    folder = tmp_path / "run/checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000006", "step-00000008"]  # two are kept
    (folder / "step-00000008/complete.json").unlink()
    said = []
    with pytest.raises(Stopped):
        train(run, log=lambda event, **fields: said.append((event, fields)), stop=StopAt(2))
    assert ("incomplete checkpoint passed over", {"path": str(folder / "step-00000008")}) in said
    assert next(f["step"] for e, f in said if e == "resumed") == 6


def test_a_truncated_piece_makes_a_checkpoint_incomplete_and_a_changed_one_is_refused(plan: str, tmp_path: Path) -> None:
    run = toyplan.run(plan, tmp_path / "run")
    with pytest.raises(Stopped):
        train(run, stop=StopAt(3))
    piece = tmp_path / "run/checkpoints/step-00000003/__0_0.distcp"
    data = bytearray(piece.read_bytes())
    data[len(data) // 2] ^= 1
    piece.write_bytes(data)
    with pytest.raises(VerifyError, match="differs from its marker"):
        train(run)
    piece.write_bytes(data[:-1])
    found, passed = checkpoint.newest(str(tmp_path / "run"))
    assert found is None and passed == [str(piece.parent)]


def test_a_finished_run_is_left_as_it_is_and_another_may_not_take_its_place(whole: dict, plan: str) -> None:
    again = train(toyplan.run(plan, Path(whole["path"])))
    assert again["seconds"] == 0 and again["fingerprint"] == whole["fingerprint"]
    moved = train(toyplan.run(plan, Path(whole["path"]), threads=2, checkpoint_every=7, name="renamed"))
    assert moved["fingerprint"] == whole["fingerprint"]
    with pytest.raises(ConflictError):
        train(toyplan.run(plan, Path(whole["path"]), seed=1))


def test_checkpoints_of_another_run_are_refused(plan: str, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(toyplan.run(plan, tmp_path / "run"), stop=StopAt(2))
    with pytest.raises(ConflictError, match="checkpoints of another run"):
        train(toyplan.run(plan, tmp_path / "run", seed=3))


def test_micro_batches_change_no_loss(whole: dict, plan: str, tmp_path: Path) -> None:
    train(toyplan.run(plan, tmp_path / "run", micro_batch=1))
    for a, b in zip(lines(tmp_path / "run"), lines(whole["path"]), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-4) and a["tokens"] == b["tokens"]


def test_steps_ends_the_run_and_its_schedule_early(plan: str, tmp_path: Path) -> None:
    card = train(toyplan.run(plan, tmp_path / "run", steps=5))
    made = lines(tmp_path / "run")
    assert card["steps"] == len(made) == 5 and card["records"] == 20
    assert made[-1]["lr"] == pytest.approx(4e-3 * 0.1)


def test_init_takes_weights_and_nothing_else(whole: dict, plan: str, tmp_path: Path) -> None:
    card = train(toyplan.run(plan, tmp_path / "run", init=whole["path"], steps=3))
    assert lines(tmp_path / "run")[0]["text"] < 0.8 * lines(whole["path"])[0]["text"]
    assert [p["fingerprint"] for p in card["parents"]][1] == whole["fingerprint"]
    other = {"transfusion": {"layers": 2, "width": 48, "heads": 2}}
    with pytest.raises(InputError, match="another model"):
        train(toyplan.run(plan, tmp_path / "other", init=whole["path"], model=other))


def test_a_loss_that_is_not_a_number_stops_with_step_source_and_sequences(plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, opened = stream.Reader.sequence, Plan.open(plan)
    clips = opened.sources.index("clips")
    victim = next(i for i in range(8, 40) if any(span.source == clips for span in opened.row(i).spans))

    def poisoned(self, seq, split="train"):
        documents = read(self, seq, split)
        for d in documents:
            if seq == victim and d.source == clips:
                d.latents[0, 0] = np.nan
        return documents

    monkeypatch.setattr(stream.Reader, "sequence", poisoned)
    with pytest.raises(Diverged, match=f"step {victim // 4}:") as caught:
        train(toyplan.run(plan, tmp_path / "run"))
    first = victim // 4 * 4
    assert caught.value.found == "sources clips" and str(list(range(first, first + 4))) in str(caught.value.where)
    assert not (tmp_path / "run/run.json").exists()


def test_a_run_may_live_on_an_object_store(whole: dict, plan: str) -> None:
    run = toyplan.run(plan, Path("x"), checkpoint_every=4).model_copy(update={"output": "memory://runs/one"})
    with pytest.raises(Stopped):
        train(run, stop=StopAt(6))
    card = train(run)
    assert card["steps"] == whole["steps"] and lines("memory://runs/one") == lines(whole["path"])


def test_a_finished_run_is_loaded_with_its_weights_and_its_plan(whole: dict) -> None:
    model, run, plan = load_model(whole["path"])
    batch = Reader(plan).batch([Reader(plan).sequence(0)])
    seen = clean(batch)
    with torch.no_grad():
        out = model(batch, seen.z, seen.t)
    target = batch.text_target.reshape(-1)[out.at].long()
    loss = torch.nn.functional.cross_entropy(out.logits, target)
    assert run.batch == 4 and not model.training and float(loss) < 3.2  # log 55 = 4.0 untrained


def test_a_run_says_who_stood_in_for_the_forgotten_and_consumes_no_forgotten_record(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from pipelines.format.manifest import read_card
    from pipelines.tombstones import add
    from pipelines.uses import stood_in
    from trainer.check import check

    plan = Plan.open(toyplan.make(tmp_path, tokens=300, n=30))
    spans = {i: plan.row(i).spans for i in range(plan.sequences())}
    victims = {s.dataset: plan.record(s).id for row in spans.values() for s in row}
    for dataset, id in victims.items():
        add(plan.datasets[dataset], {"id": [id]}, "asked")
    root = tmp_path / "run"
    train(toyplan.run(plan.path, root))
    notes = [n for n in root.iterdir() if n.name.startswith("stand-ins-")]
    rows = pq.read_table(notes[0]).to_pylist()
    said = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    event = next(e for e in said if e["event"] == "stand-ins")
    assert event["file"] == notes[0].name and event["forgotten"] == len({r["forgotten"] for r in rows}) == len(victims)
    gone = {seq for seq, row in spans.items() for s in row if plan.record(s).id in victims.values()}
    assert {r["seq"] for r in rows} == gone
    read = {d.h for seq in gone for d in Reader(Plan.open(plan.path)).sequence(seq)}
    assert not read & {plan.record(s).h for row in spans.values() for s in row if plan.record(s).id in victims.values()}
    assert check(str(root), {}) == [], "about as many tokens as planned are as good as planned"
    card = read_card(str(root))
    for r in rows:
        told = [{"seq": r["seq"], "step": r["seq"] // 4, "forgotten": r["forgotten"], "id": r["id"]}]
        assert told[0] in stood_in(card, r["forgotten"]) and (r["id"] is None or told[0] in stood_in(card, r["id"]))
    assert stood_in(card, "0" * 32) == []
