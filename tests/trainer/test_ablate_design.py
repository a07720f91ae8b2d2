"""What surrounds the arms: the dry run's cost and power, the machine's diff of arms, the scripts for SLURM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.format import storage
from pipelines.format.document import load
from pipelines.format.errors import HeadwaterError, RecipeError, TemporaryError, VerifyError
from pipelines.format.manifest import read_card
from tests.trainer.asked import HeldOut
from tests.trainer.test_ablation import ARMS, Job, document, made
from trainer import ablate_card, arm, sweep
from trainer.ablate_diff import difference, held_fixed, resolved
from trainer.ablate_stage import ABLATE
from trainer.ablation import Ablation, arm_runs, evaluations_of
from trainer.report.reading import read_run
from trainer.run import Run

TWO = {"few": ARMS["few"], "with_text": ARMS["with_text"]}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("design"))
    HeldOut(root, 60)
    ablation = made(root, arms=TWO, seeds=[0])
    return root, ablation, ABLATE.run(ablation, Job())


# ---- the dry run -----------------------------------------------------------------------------------------------------------------------------


def test_gpu_hours_are_flops_over_what_the_hardware_reaches(done):
    estimate = ABLATE.plan(made(done[0], arms=TWO, hardware={"tflops": 100, "mfu": "50%"}))
    (hours,) = [v for k, v in estimate.facts.items() if k.startswith("GPU-hours at 100 TFLOP/s and 50 % MFU")]
    assert all(row["GPU-hours"] == pytest.approx(row["FLOPs"] / 50e12 / 3600) for row in estimate.table)
    assert hours == pytest.approx(2 * sum(row["GPU-hours"] for row in estimate.table), abs=1e-6)


def test_the_dry_run_says_how_many_tokens_take_loss(done):
    wanted = {a: read_card(f"{done[2]}/plans/{a}")["tokens"]["loss"] for a in TWO}
    assert {r["arm"]: r["loss-bearing"] for r in ABLATE.plan(done[1]).table} == wanted


def test_disk_is_at_least_what_the_finished_ablation_keeps_of_weights_and_of_the_order_of_all_it_holds(done):
    said = ABLATE.plan(done[1]).facts["disk bytes"]
    files = [p for p in Path(done[2]).rglob("*") if p.is_file()]
    weights = sum(p.stat().st_size for p in files if p.name == "model.safetensors")
    assert weights <= said < 20 * sum(p.stat().st_size for p in files)


def test_more_seeds_and_more_questions_find_smaller_differences(done):
    def said(seeds: list[int], questions: int) -> float:
        facts = ABLATE.plan(made(done[0], seeds=seeds, evaluate=[{"vqa": {"questions": questions}}])).facts
        return float(next(v for k, v in facts.items() if k.endswith("vqa")).split()[0])

    assert said([0, 1, 2, 3, 4, 5], 1000) < said([0, 1], 1000) and said([0, 1], 1000) < said([0, 1], 50)


def test_spreads_may_be_assumed_otherwise_and_only_of_known_measures(done):
    by = lambda **spread: next(v for k, v in ABLATE.plan(made(done[0], assume={"vqa": spread})).facts.items() if k.endswith("vqa"))
    assert float(by(seed="10%", item=0.5).split()[0]) > float(by(seed="1%", item=0.5).split()[0])
    with pytest.raises(RecipeError, match="no such measure"):
        ABLATE.plan(made(done[0], assume={"charm": {"seed": "1%", "item": 1.0}}))


def test_one_seed_is_said_to_find_no_difference_that_another_start_would_not_undo(done):
    facts = lambda seeds: ABLATE.plan(made(done[0], seeds=seeds, evaluate=[{"vqa": {"questions": 1000}}])).facts
    one, two = (next(v for k, v in facts(seeds).items() if k.endswith("vqa")) for seeds in ([0], [0, 1]))
    assert one.startswith("one seed: only over items, ") and "what another start would move (assumed sd 0.032) one seed cannot show" in one
    assert float(two.split()[0]) > 0.2 and "2 seeds x 1,000 items" in two


def test_arms_that_are_compared_at_once_need_a_larger_difference(done):
    ask = lambda *arms: [{"difference": {"metric": "vqa", "of": list(of), "against": "few"}} for of in (arms, ["more"])]
    said = lambda compare: next(v for k, v in ABLATE.plan(made(done[0], seeds=[0, 1, 2], compare=compare)).facts.items() if k.endswith("vqa"))
    plain, one, two = said([]), said(ask("more")), said(ask("more", "with_text"))
    assert plain == one and float(two.split()[0]) > 1.2 * float(one.split()[0]) and "items, 2 arms compared at once; sd" in two


def test_what_an_earlier_evaluation_left_is_not_shown_as_of_this_one(done, tmp_path):
    run = shutil.copytree(arm_runs(done[1])[0].output, tmp_path / "run")
    (run / "samples").mkdir()
    pq.write_table(pa.table({"caption": ["a red square"]}), run / "samples/pictures.parquet")
    evaluated = json.loads((run / "eval.json").read_text())
    here = read_run(str(run), "few", 0)
    assert here.answers is not None and here.pictures is None
    rows = [r for r in evaluated["rows"] if not r["metric"].startswith("vqa")]
    (run / "eval.json").unlink()
    assert read_run(str(run), "few", 0).answers is None
    (run / "eval.json").write_text(json.dumps({**evaluated, "rows": rows, "evaluate": ["text_perplexity", {"samples": {"images": 2}}]}))
    now = read_run(str(run), "few", 0)
    assert now.answers is None and now.pictures.to_pylist() == [{"caption": "a red square"}]


# ---- do arms differ in what they should? ---------------------------------------------------------------------------------------------------------


def cards_of(ablation: Ablation) -> dict:
    runs = {r.arm: r for r in arm_runs(ablation)}
    return {a: (read_card(r.run.plan), read_card(r.output)) for a, r in runs.items()}


def test_the_diff_shows_exactly_the_ablated_keys(done):
    found = storage.read_json(f"{done[2]}/diff.json")
    assert found["base"] == "few" and found["arms"]["few"] == [] and found["undeclared"] == 0
    rows = [(r["key"], r["base"], r["here"], r["declared"]) for r in found["arms"]["with_text"]]
    assert rows == [("mixture.sources.text.tokens", 0, 5 * 10**9, True)]


def test_what_no_arm_declares_is_found(done):
    cards = cards_of(done[1])
    plan, run = cards["with_text"]
    other = {**run, "recipe": {**run["recipe"], "optim": {**run["recipe"]["optim"], "lr": 0.123}}, "code": {**run["code"], "version": "9.9"}}
    found = difference(done[1], {**cards, "with_text": (plan, other)})
    assert {r["key"] for r in found["arms"]["with_text"] if not r["declared"]} == {"run.optim.lr", "code.version"} and found["undeclared"] == 2


def test_a_dataset_made_anew_between_two_arms_is_a_difference_though_its_path_is_the_same(done):
    cards = cards_of(done[1])
    plan, run = cards["with_text"]
    where = plan["sources"]["vqa"]["dataset"]
    parents = [{**p, "fingerprint": "0" * 64} if i == where else p for i, p in enumerate(plan["parents"])]
    found = difference(done[1], {**cards, "with_text": ({**plan, "parents": parents}, run)})
    assert [(r["key"], r["declared"]) for r in found["arms"]["with_text"] if r["key"].startswith("data")] == [("data.vqa", False)]


def test_defaults_that_come_with_a_group_are_declared_by_it_and_a_changed_default_is_not(done):
    experts = {"run": {"model": {"transfusion": {"ffn": "moe", "experts": {"count": 16, "top_k": 2}}}}}
    ablation = made(done[0], arms={"few": ARMS["few"], "moe": {"extends": "few", **experts}}, seeds=[0])
    plan, run = cards_of(done[1])["few"]
    model = run["recipe"]["model"]["transfusion"]
    moe = {**model, "ffn": "moe", "experts": {"count": 16, "top_k": 2, "balance": "loss", "bias_rate": 0.001}}
    with_ = lambda m: {**run, "recipe": {**run["recipe"], "model": {"transfusion": m}}}
    found = difference(ablation, {"few": (plan, with_({**model, "experts": None})), "moe": (plan, with_(moe))})
    assert {r["key"].rpartition(".")[2] for r in found["arms"]["moe"]} == {"ffn", "count", "top_k", "balance", "bias_rate"}
    assert found["undeclared"] == 0
    other = {**moe, "experts": {**moe["experts"], "balance": "bias"}}
    both = made(done[0], arms={"few": {**ARMS["few"], **experts}, "moe": {"extends": "few"}}, seeds=[0])
    found = difference(both, {"few": (plan, with_(moe)), "moe": (plan, with_(other))})
    assert [(r["key"], r["declared"]) for r in found["arms"]["moe"]] == [("run.model.transfusion.experts.balance", False)]


def test_where_things_lie_and_how_fast_they_go_is_no_difference(done):
    cards = cards_of(done[1])
    plan, run = cards["few"]
    moved = {**run, "recipe": {**run["recipe"], "output": "s3://elsewhere", "threads": 9, "checkpoint_every": 3, "device": "cuda"}}
    assert resolved(plan, run) == resolved({**plan, "mixture": {**plan["mixture"], "output": "elsewhere", "name": "other"}}, moved)


def test_what_is_held_fixed_and_what_differs_are_all_there_is(done):
    cards = cards_of(done[1])
    fixed, flat = held_fixed(done[1], cards), resolved(*cards["few"])
    differing = {r["key"] for rows in difference(done[1], cards)["arms"].values() for r in rows}
    assert set(flat) - set(fixed) == differing and fixed["run.model.transfusion.width"] == 16


def test_an_undeclared_difference_is_a_warning_on_the_card(done, monkeypatch, tmp_path):
    from mixtures.plan import Plan

    real = ablate_card.read_card
    changed = lambda path: (c := real(path)) | ({"code": {**c["code"], "version": "0"}} if "with_text" in path else {})
    monkeypatch.setattr(ablate_card, "read_card", changed)
    runs = arm_runs(done[1])
    ablate_card.finish(done[1], {r.arm: Plan.open(r.run.plan) for r in runs}, runs, [])
    monkeypatch.undo()
    assert "1 differences between runs that the document does not declare (diff.json)" in read_card(done[2])["warnings"]
    ABLATE.run(done[1], Job())
    assert not any("does not declare" in w for w in read_card(done[2])["warnings"])


def test_a_seed_added_by_other_code_is_found_among_all_seeds_and_stands_in_red(done, tmp_path):
    from mixtures.plan import Plan

    shutil.copytree(done[0], tmp_path / "moved")
    config = made(str(tmp_path / "moved"), arms=TWO, seeds=[0, 1])
    runs = arm_runs(config)
    for item in runs:
        if item.seed == 1:
            shutil.copytree(item.output.replace("seed-1", "seed-0"), item.output)
    place = Path(runs[-1].output, "run.json")
    card = json.loads(place.read_text())
    place.write_text(json.dumps({**card, "code": {**card["code"], "version": "0.0.0+other"}}))
    path = ablate_card.finish(config, {r.arm: Plan.open(r.run.plan) for r in runs}, runs, [])
    found = storage.read_json(f"{path}/diff.json")
    rows = [{k: v for k, v in r.items() if k != "base"} for r in found["arms"]["with_text"] if not r["declared"]]
    assert rows == [{"key": "code.version", "here": "0.0.0+other", "declared": False, "seed": 1}] and found["undeclared"] == 1
    page = Path(path, "report.html").read_text()
    assert "code.version" not in found["held"] and "code.version (with_text, seed 1)" in page and "are declared by the arms" not in page


def test_a_run_that_consumed_other_tokens_than_planned_ends_the_ablation(done):
    item = arm_runs(done[1])[0]
    run, plan = read_card(item.output), read_card(item.run.plan)
    run["sources"]["vqa"]["tokens"]["all"] += 1
    with pytest.raises(VerifyError, match="consumed tokens of vqa differ"):
        ablate_card._same_tokens(item, run, plan)


def test_a_run_cut_short_by_its_own_steps_must_have_consumed_that_prefix(done, tmp_path):
    cut = made(done[0], arms={"few": {**ARMS["few"], "run": {"steps": 11}}}, seeds=[0], output=str(tmp_path / "cut"))
    path = ABLATE.run(cut, Job())
    (item,) = arm_runs(cut)
    card, plan = read_card(item.output), read_card(item.run.plan)
    assert card["steps"] == 11 < plan["records"] and read_card(path)["arms"]["few"]["cost"]["steps"] == 11
    card["sources"]["vqa"]["tokens"]["all"] -= 1
    with pytest.raises(VerifyError, match="consumed tokens of vqa differ"):
        ablate_card._same_tokens(item, card, plan)


# ---- what is asked of an arm -----------------------------------------------------------------------------------------------------------------


def test_an_arm_may_be_asked_with_keys_of_its_own_and_its_heirs_are_too():
    arms = {"a": {"tokens": {"vqa": 9}, "evaluate": {"vqa": {"questions": 2}}}, "b": {"extends": "a"}, "c": {"tokens": {"vqa": 9}}}
    ablation = made(arms=arms)
    asked = {a: [p.questions for p in evaluations_of(ablation, a) if type(p).__name__ == "Vqa"] for a in arms}
    assert asked == {"a": [2], "b": [2], "c": [5]}
    assert all(len(evaluations_of(ablation, a)) == len(ablation.evaluate) for a in arms)


def test_keys_for_what_is_not_asked_are_passed_over_and_for_what_does_not_exist_refused():
    arms = {"a": {"tokens": {"vqa": 9}, "evaluate": {"samples": {"images": 2}}}}
    assert evaluations_of(made(arms=arms), "a") == list(made(arms=arms).evaluate)
    with pytest.raises(RecipeError, match="no evaluation 'vqu'"):
        made(arms={"a": {"evaluate": {"vqu": {}}}})
    with pytest.raises(RecipeError, match="unknown key 'questons'"):
        evaluations_of(made(arms={"a": {"evaluate": {"vqa": {"questons": 2}}}}), "a")


# ---- SLURM -----------------------------------------------------------------------------------------------------------------------------------------


def slurm(root: str, output: Path, **keys) -> Ablation:
    return made(root, arms=TWO, seeds=[0], output=str(output), slurm={"at_once": 1, "options": ["--partition=cpu"], "setup": ["export X=1"], **keys})


def test_slurm_s_scripts_train_what_is_left_and_then_the_same_command_makes_the_same_results(done, tmp_path):
    ablation = slurm(done[0], tmp_path / "a")
    with pytest.raises(TemporaryError, match="scripts for 2 arm-runs are written") as told:
        ABLATE.run(ablation, Job())
    assert "sbatch --dependency=afterok:$(sbatch --parsable" in str(told.value)
    script = (tmp_path / "a/jobs/arms.sbatch").read_text()
    head = script.split("\n\n")[0]
    assert "#SBATCH --array=0,1%1" in head and "#SBATCH --partition=cpu" in head and "gpus" not in head and "\nexport X=1\n" in script
    fake = tmp_path / "bin/srun"  # what srun does for one task
    fake.parent.mkdir()
    fake.write_text('#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n')
    fake.chmod(0o755)
    for task in ("0", "1"):
        environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": task}
        subprocess.run(["bash", str(tmp_path / "a/jobs/arms.sbatch")], env=environment, check=True, capture_output=True)
    path = ABLATE.run(ablation, Job())
    assert pq.read_table(f"{path}/results.parquet").equals(pq.read_table(f"{done[2]}/results.parquet"))
    assert "slurm=null" in (tmp_path / "a/jobs/report.sbatch").read_text()


def test_a_run_on_many_gpus_is_trained_by_torchrun_on_all_nodes_of_its_task(done, tmp_path):
    with pytest.raises(TemporaryError):
        ABLATE.run(slurm(done[0], tmp_path / "a", nodes=2, gpus=8, time="1-00:00:00"), Job())
    script = (tmp_path / "a/jobs/arms.sbatch").read_text()
    wanted = ("#SBATCH --nodes=2", "#SBATCH --gpus-per-node=8", "--nproc-per-node 8", "#SBATCH --time=1-00:00:00")
    assert all(line in script for line in wanted)
    assert subprocess.run(["bash", "-n", str(tmp_path / "a/jobs/arms.sbatch")]).returncode == 0
    run = load(Run, str(tmp_path / "a/jobs/0001.yaml"))
    assert run.output == f"{tmp_path}/a/arms/with_text/seed-0"


def test_submitting_names_the_job_and_a_refused_submission_says_why(done, tmp_path, monkeypatch):
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/asked\necho "77;cluster"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    with pytest.raises(TemporaryError, match="submitted as job 77"):
        ABLATE.run(slurm(done[0], tmp_path / "a", submit=True), Job())
    first, second = (tmp_path / "asked").read_text().splitlines()
    assert first.endswith("arms.sbatch") and "--dependency=afterok:77" in second and second.endswith("report.sbatch")
    sbatch.write_text("#!/bin/bash\necho no such partition >&2\nexit 1\n")
    with pytest.raises(HeadwaterError, match="no such partition"):
        ABLATE.run(slurm(done[0], tmp_path / "a", submit="again"), Job())


@pytest.mark.parametrize("bad", [{"options": ["--x\nrm -rf /"]}, {"setup": ["a\nb"]}, {"time": "1; rm"}, {"gpu": 1}])
def test_a_script_holds_nothing_but_single_lines_of_its_kind(bad, tmp_path):
    with pytest.raises(RecipeError):
        slurm(str(tmp_path), tmp_path, **bad)


def test_a_finished_arm_is_not_done_again_and_a_wrong_command_line_is_told(done, tmp_path, capsys):
    item = arm_runs(done[1])[0]
    run, evaluate = tmp_path / "run.yaml", tmp_path / "evaluate.yaml"
    run.write_text(json.dumps(item.run.recipe()))
    evaluate.write_text(json.dumps({"evaluate": document()["evaluate"]}))
    before = Path(item.output, "eval.json").stat().st_mtime_ns
    command = [sys.executable, "-m", "trainer.arm"]
    assert subprocess.run([*command, str(run), str(evaluate)], capture_output=True).returncode == 0
    assert Path(item.output, "eval.json").stat().st_mtime_ns == before
    assert arm.main([str(run)]) == 2 and "which arm?" in capsys.readouterr().err


# ---- where and how runs are judged -----------------------------------------------------------------------------------------------------------


def test_runs_that_were_evaluated_in_different_arithmetic_are_warned_of(done, tmp_path):
    assert {tuple(json.loads(Path(r.output, "eval.json").read_text())["computed"].items()) for r in arm_runs(done[1])} == {
        (("device", "cpu"), ("precision", "fp32"))
    }
    shutil.copytree(done[0], tmp_path / "moved")
    config = made(str(tmp_path / "moved"), arms=TWO, seeds=[0])
    place = Path(arm_runs(config)[0].output, "eval.json")
    place.write_text(json.dumps({**json.loads(place.read_text()), "computed": {"device": "cuda", "precision": "bf16"}}))
    warned = read_card(ABLATE.run(config, Job()))["warnings"]
    assert warned[len(TWO) :] == ["runs were evaluated in different arithmetic: cpu fp32, cuda bf16"]


def test_a_run_is_evaluated_where_it_is_trained(monkeypatch):
    monkeypatch.setattr("trainer.loop.train", lambda *a, **k: None)
    monkeypatch.setattr("trainer.evaluate.evaluate_run", lambda output, parts, device: asked.append(device))
    run = arm_runs(made())[0].run
    for there in (True, False):
        monkeypatch.setattr("torch.cuda.is_available", lambda: there)  # noqa: B023
        asked: list[str] = []
        for device in ("auto", "cpu", "cuda"):
            sweep.do(sweep.task("t", run.model_copy(update={"device": device}), [], 1.0))
        assert asked == ["cuda" if there else "cpu", "cpu", "cuda"]
