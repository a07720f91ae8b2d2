"""Questions after an epoch of instruction data: planned without what is held out, trained once, gone on with after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.manifest import read_card
from tests.trainer.asked import HeldOut
from tests.trainer.test_ablation import MODEL
from tests.trainer.test_evaluate import values
from trainer import loop
from trainer.evaluate import Evaluations, evaluate_run, versions
from trainer.evaluate._trained import Trained
from trainer.run import Run


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """A finished run of a few steps over questions and prose, with a moving average."""
    root = tmp_path_factory.mktemp("sft")
    HeldOut(str(root), 40)
    sources = {"vqa": {"dataset": str(root / "vqa"), "tokens": 600, "turns": "isolated"}, "text": {"dataset": str(root / "text"), "tokens": 400}}
    mixture = {"sequence_length": 96, "held_out": {"fraction": 0.3}, "sources": sources}
    plan = make_plan(Mixture.model_validate(mixture), str(root / "plan"))
    flow = {"predict": "v", "shift": 1}
    document = {"plan": plan, "output": str(root / "run"), "model": MODEL, "batch": 2, "flow": flow, "threads": 1, "device": "cpu"}
    loop.train(Run.model_validate({**document, "optim": {"lr": 1e-2}, "ema": {"decay": 0.5}}))
    return root


def parts(root: Path, **keys) -> list:
    asked = {"dataset": str(root / "vqa"), "batch": 2, "lr": 5e-3, "evaluate": [{"vqa": {"questions": 8}}], **keys}
    return Evaluations.model_validate({"evaluate": [{"vqa": {"questions": 8}}, {"sft_vqa": asked}]}).evaluate


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and p.name not in ("log.jsonl", "metrics.jsonl")}


def test_the_fine_tuned_run_is_made_once_and_says_its_rows_beside_the_runs_own(ran):
    rows = evaluate_run(str(ran / "run"), parts(ran))
    metrics = {r["metric"] for r in rows}
    assert {m for m in metrics if m.startswith("sft")} == {f"sft_{m}" for m in metrics if m.startswith("vqa")}
    asked = [{(r["split"], r["n"], r["chance"]) for r in rows if r["metric"] == metric} for metric in ("vqa", "sft_vqa")]
    assert asked[0] == asked[1]
    card = read_card(str(ran / "run/sft"))
    assert card["recipe"]["optim"]["lr"] == 5e-3 and card["recipe"]["batch"] == 2 and card["recipe"]["init"] == str(ran / "run")
    plan = Plan.open(str(ran / "run/sft/plan"))
    assert card["sources"]["sft"]["tokens"]["all"] == plan.card["sources"]["sft"]["tokens"]["all"] > 0
    items = pq.read_table(ran / "run/items/sft_vqa.parquet").to_pandas()
    assert items.value.mean() == pytest.approx(values(rows, "sft_vqa")["held_out"])
    assert list(items.item) == list(pq.read_table(ran / "run/items/vqa.parquet").to_pandas().item)  # the same questions, so that they can be paired
    before = files(ran / "run/sft")
    (ran / "run/eval.json").unlink()
    assert evaluate_run(str(ran / "run"), parts(ran)) == rows and files(ran / "run/sft") == before


def test_what_the_runs_plan_holds_out_is_not_trained_on(ran):
    evaluate_run(str(ran / "run"), parts(ran))
    before, after = Plan.open(str(ran / "plan")), Plan.open(str(ran / "run/sft/plan"))
    group = lambda plan, split, rows: {plan.record(s).group for i in rows for s in plan.row(i, split).spans}
    held = group(before, "heldout", before.held_out("vqa"))
    trained = group(after, "train", range(after.sequences()))
    assert held and trained and not held & trained
    assert held | trained == {r.group for d in before.datasets if d.data == "vqa" for r in d.records(0)}  # one epoch of all the rest
    assert np.allclose(before.latent_stats()[1], after.latent_stats()[1]) and np.allclose(before.latent_stats()[2], after.latent_stats()[2])


def benchmark(ran: Path, path: str, **keys) -> list:
    asked = [{"benchmark": {"sets": {"mine": {"dataset": path, "score": "exact"}}}}]
    return parts(ran, evaluate=asked, **keys)[1:]


@pytest.fixture
def fresh(ran):
    """Nothing fine-tuned before, nothing after."""
    shutil.rmtree(ran / "run/sft", ignore_errors=True)
    yield
    shutil.rmtree(ran / "run/sft", ignore_errors=True)


def test_a_set_that_was_just_fine_tuned_on_is_refused_and_so_is_what_was_made_of_it(ran, tmp_path, fresh):
    HeldOut(str(tmp_path), 30)
    own = str(tmp_path / "vqa")  # the run's plan does not know it, the epoch does
    with pytest.raises(InputError, match="fine-tuned on this set"):
        evaluate_run(str(ran / "run"), benchmark(ran, own, dataset=own))
    other = tmp_path / "other"
    HeldOut(str(other), 50)
    card = json.loads((other / "vqa/manifest.json").read_text())
    between = tmp_path / "filtered"
    between.mkdir()
    parent = {"path": "../vqa", "fingerprint": read_card(own)["fingerprint"]}
    (between / "manifest.json").write_text(json.dumps({**card, "fingerprint": "e" * 64, "parents": [parent]}))
    (other / "vqa/manifest.json").write_text(json.dumps({**card, "parents": [{"path": "../../filtered", "fingerprint": "e" * 64}]}))
    with pytest.raises(InputError, match="fine-tuned on this set"):
        evaluate_run(str(ran / "run"), benchmark(ran, str(other / "vqa"), dataset=own))
    assert not (ran / "run/sft").exists()  # it is said before anything is trained


def test_two_encodings_of_one_curated_set_are_one_set():
    made = lambda own, parent: type("D", (), {"fingerprint": own, "encoding": {}, "path": own, "card": {
        "fingerprint": own, "path": "/nowhere", "parents": [{"path": "gone", "fingerprint": parent}]}})  # fmt: skip
    one, two, other = made("1", "curated"), made("2", "curated"), made("3", "another")
    one.encoding = two.encoding = {"text": {}}
    with pytest.raises(InputError, match="fine-tuned on this set"):
        Trained(one, None).refuse(two)
    Trained(one, None).refuse(other)


def test_questions_about_pictures_of_the_instruction_data_are_not_asked(ran, tmp_path, fresh):
    HeldOut(str(tmp_path), 60)  # the first 40 pictures are the instruction data's, of which the plan holds some out
    with pytest.warns(UserWarning, match="are not asked"):
        rows = evaluate_run(str(ran / "run"), benchmark(ran, str(tmp_path / "vqa")))
    plan = Plan.open(str(ran / "run/sft/plan"))
    trained = {plan.record(s).group for i in range(plan.sequences()) for s in plan.row(i, "train").spans}
    records = {r.id: r.group for r in Dataset.open(str(tmp_path / "vqa")).records(0)}
    asked = set(pq.read_table(ran / "run/sft/answers-mine.parquet")["id"].to_pylist())
    assert {records[i] for i in asked} == set(records.values()) - trained and 20 < len(asked) < 40
    assert {r["n"] for r in rows if r["metric"] == "sft_vqa"} == {2 * len(asked)}
    whole = [r.id for r in Dataset.open(str(ran / "vqa")).records(0)]
    assert asked & set(whole) and len(set(whole) - asked) == len(trained)


def test_a_set_of_which_nothing_is_left_is_refused(ran, tmp_path, fresh):
    HeldOut(str(tmp_path), 30)
    with pytest.raises(InputError, match="every picture of this set"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trained, "has", lambda self, groups: np.ones(len(groups), bool))
        evaluate_run(str(ran / "run"), benchmark(ran, str(tmp_path / "vqa")))


def test_a_part_whose_numbers_changed_is_asked_again_and_no_other(ran, monkeypatch):
    from trainer.evaluate.benchmark import Benchmark

    nested, alone = benchmark(ran, "x"), parts(ran)[:1]
    before = versions(nested), versions(alone)
    assert ["benchmark", Benchmark.version] in before[0]
    monkeypatch.setattr(Benchmark, "version", Benchmark.version + 1)
    assert versions(nested) != before[0] and versions(alone) == before[1]
    asked = lambda **keys: Evaluations.model_validate({"evaluate": [{"experts": keys}]}).evaluate
    assert versions(asked()) != versions(asked(max_tokens=5)) != []


def test_a_killed_fine_tuning_goes_on_to_the_same_bytes(ran, monkeypatch):
    rows, before = evaluate_run(str(ran / "run"), parts(ran)), files(ran / "run/sft")
    storage.delete_tree(str(ran / "run/sft"))
    storage.delete(str(ran / "run/eval.json"))
    calls, advance = [], loop.advance

    def dies(state, step, *rest):
        calls.append(step)
        if step == 3:
            raise KeyboardInterrupt
        return advance(state, step, *rest)

    monkeypatch.setattr(loop, "advance", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(str(ran / "run"), parts(ran, checkpoint_every=2))
    monkeypatch.setattr(loop, "advance", lambda *a: calls.append(a[1]) or advance(*a))
    calls.clear()
    again = evaluate_run(str(ran / "run"), parts(ran, checkpoint_every=2))
    assert again == rows and calls[0] == 2
    weights = {name: data for name, data in files(ran / "run/sft").items() if name.endswith(".safetensors")}
    assert weights == {name: data for name, data in before.items() if name.endswith(".safetensors")}


def test_the_average_is_another_start_and_another_result(ran):
    storage.delete_tree(str(ran / "run/sft"))
    evaluate_run(str(ran / "run"), parts(ran, init="ema"))
    assert read_card(str(ran / "run/sft"))["recipe"]["init_ema"] is True
    storage.delete_tree(str(ran / "run/sft"))


def test_an_evaluation_may_ask_for_the_average(ran):
    asked = lambda weights: Evaluations.model_validate({"evaluate": [{"text_perplexity": {"weights": weights}}]}).evaluate
    last, average = (values(evaluate_run(str(ran / "run"), asked(w)), "text_perplexity")["held_out"] for w in ("last", "ema"))
    assert last != average
    assert values(evaluate_run(str(ran / "run"), asked("last"), ema=True), "text_perplexity")["held_out"] == average


def test_a_row_that_two_evaluations_say_is_refused(ran):
    twice = Evaluations.model_validate({"evaluate": [{"vqa": {"questions": 2}}, {"vqa": {"questions": 3}}]}).evaluate
    with pytest.raises(InputError, match="the same row"):
        evaluate_run(str(ran / "run"), twice)


def test_data_of_another_kind_and_other_evaluations_are_refused(ran):
    with pytest.raises(InputError, match="instruction data"):
        evaluate_run(str(ran / "run"), parts(ran, dataset=str(ran / "text")))
    with pytest.raises(ValidationError, match="cannot be asked here"):
        from trainer.evaluate.sft_vqa import SftVqa

        SftVqa.model_validate_json(json.dumps({"dataset": "x", "evaluate": ["flow_loss"]}), strict=True)


def test_a_set_that_changed_is_asked_again(ran):
    from trainer.evaluate import is_evaluated

    sets = [{"name": "t", "dataset": str(ran / "text"), "records": "held_out"}]
    part = Evaluations.model_validate({"evaluate": [{"text_perplexity": {"sets": sets}}]}).evaluate
    evaluate_run(str(ran / "run"), part)
    assert is_evaluated(str(ran / "run"), part)
    card = json.loads((ran / "text/manifest.json").read_text())
    (ran / "text/manifest.json").write_text(json.dumps({**card, "fingerprint": "f" * 64}))
    assert not is_evaluated(str(ran / "run"), part)
    (ran / "text/manifest.json").write_text(json.dumps(card))
