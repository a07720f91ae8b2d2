"""Ablations: arms by arithmetic on the document, and one whole tiny ablation on three toy datasets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import mixtures
from pipelines.format.document import dump, load, parse
from pipelines.format.errors import BudgetError, HeadwaterError, RecipeError, Stopped
from pipelines.format.manifest import read_card
from tests.trainer.asked import HeldOut
from trainer.ablate_stage import ABLATE, FEW_STEPS
from trainer.ablation import Ablation, arm_runs, identity, mixture_of, plan_paths
from trainer.check import check
from trainer.run import Run
from trainer.view import pages

MODEL = {"transfusion": {"layers": 1, "width": 16, "heads": 2, "ffn": "shared", "norm": "layer", "activation": "relu2"}}
ARMS = {"few": {"tokens": {"vqa": "5B"}}, "more": {"extends": "few", "tokens": {"vqa": "20B"}}, "with_text": {"tokens": {"vqa": "5B", "text": "5B"}}}


def document(tmp: str = "x", **over) -> dict:
    sources = {name: {"dataset": f"{tmp}/{name}", "max_epochs": 99} for name in ("vqa", "text", "video")}
    sources["vqa"]["turns"] = "isolated"
    return {
        "name": "toy",
        "scale": 2e-7,
        "seeds": [0, 1],
        "run": {"model": MODEL, "batch": 1, "plan": "", "output": "", "threads": 1, "flow": {"predict": "v", "shift": 1}},
        "mixture": {"sequence_length": 96, "held_out": {"fraction": 0.3}, "sources": sources},
        "arms": ARMS,
        "evaluate": [{"vqa": {"questions": 5}}, "text_perplexity", "flow_loss"],
        "output": f"{tmp}/ablation",
        **over,
    }


def made(tmp: str = "x", **over) -> Ablation:
    return parse(Ablation, document(tmp, **over), name="toy.yaml")


class Job:
    """What a stage needs of a job."""

    def __init__(self) -> None:
        self.stop, self.events = threading.Event(), []

    def log(self, event: str, **fields) -> None:
        self.events.append((event, fields))


def test_every_arm_lists_all_sources_so_that_all_share_what_is_held_out():
    found = [mixture_of(made(), a) for a in ARMS]
    assert {tuple(m.sources) for m in found} == {("vqa", "text", "video")}
    assert [{n: s.tokens for n, s in m.sources.items()} for m in found][2] == {"vqa": 5 * 10**9, "text": 5 * 10**9, "video": 0}


def test_an_arm_that_extends_another_changes_only_what_it_says():
    arms = {"a": {"tokens": {"vqa": 10}, "sources": {"vqa": {"pool": 5}}, "run": {"optim": {"lr": 0.1}}}, "b": {"extends": "a", "run": {"batch": 4}}}
    settled = made(arms=arms).settled("b")
    assert (settled.tokens, settled.sources, settled.run) == ({"vqa": 10}, {"vqa": {"pool": 5}}, {"optim": {"lr": 0.1}, "batch": 4})


def test_seeds_are_paired_and_share_the_plan():
    runs = arm_runs(made())
    assert [(r.arm, r.seed, r.run.seed) for r in runs] == [(a, s, s) for a in ARMS for s in (0, 1)]
    assert all(len({r.run.plan for r in runs if r.arm == a}) == 1 for a in ARMS)
    assert len({r.output for r in runs}) == 6


def test_arms_that_differ_in_the_model_alone_share_a_plan():
    arms = {"a": {"tokens": {"vqa": 10}}, "b": {"extends": "a", "run": {"loss": {"flow": 1.0}}}, "c": {"tokens": {"vqa": 11}}}
    paths = plan_paths(made(arms=arms))
    assert paths["a"] == paths["b"] != paths["c"]
    losses = [r.run.loss.flow for r in arm_runs(made(arms=arms, seeds=[0]))]
    assert losses == [3.0, 1.0, 3.0]


def test_a_base_run_is_found_beside_the_document_that_names_it(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "ablations").mkdir()
    (tmp_path / "runs/base.yaml").write_text(f"model: {json.dumps(MODEL)}\nbatch: 8\nplan: p\noutput: o\n")
    (tmp_path / "ablations/a.yaml").write_text(json.dumps({**document(), "run": {"extends": "../runs/base.yaml", "seed": 3}}))
    ablation = load(Ablation, str(tmp_path / "ablations/a.yaml"), ["run.batch=2", "scale=1e-8"])
    assert {(r.run.batch, r.run.model.width) for r in arm_runs(ablation)} == {(2, 16)} and ablation.scale == 1e-8
    assert "extends" not in dump(ablation)["run"]


def test_an_ablation_s_mixture_may_be_a_file_s_or_a_packaged_one_s_and_its_arms_say_the_budgets(tmp_path):
    (tmp_path / "m.yaml").write_text("sequence_length: 96\nsources: {vqa: {dataset: v, tokens: 3, turns: isolated}, old: {dataset: o, tokens: 4}}\n")
    block = {"extends": "m.yaml", "seed": 5, "sources": {"old": None, "text": {"dataset": "t"}}}
    (tmp_path / "a.yaml").write_text(json.dumps({**document(), "mixture": block}))
    ablation = load(Ablation, str(tmp_path / "a.yaml"))
    few = mixture_of(ablation, "few")
    assert {n: (s.dataset, s.tokens) for n, s in few.sources.items()} == {"vqa": ("v", 5 * 10**9), "text": ("t", 0)}
    assert few.seed == 5 and few.sources["vqa"].turns == "isolated"
    spelled = {"sequence_length": 96, "seed": 5, "sources": {"vqa": {"dataset": "v", "tokens": 3, "turns": "isolated"}, "text": {"dataset": "t"}}}
    assert plan_paths(ablation) == plan_paths(made(mixture=spelled))
    assert dump(mixture_of(made(mixture=spelled), "few")) == dump(few)
    packaged = {"extends": "vqa20_text80", "total": None, "sources": {"video": {"dataset": "w"}}}
    (tmp_path / "a.yaml").write_text(json.dumps({**document(), "mixture": packaged}))
    few = mixture_of(load(Ablation, str(tmp_path / "a.yaml"), packaged=[Path(mixtures.__file__).parent / "recipes"]), "few")
    assert few.sequence_length == 4096 and few.sources["text"].dataset == "out/text" and few.total is None


def test_an_ablation_extends_another_arms_and_all(tmp_path):
    (tmp_path / "base.yaml").write_text(json.dumps(document()))
    text = "extends: base.yaml\nseeds: [7]\nrun: {checkpoint_every: null}\narms: {%s: null, third: {extends: more, tokens: {text: 1B}}}\n"
    (tmp_path / "more.yaml").write_text(text % "with_text")
    ablation = load(Ablation, str(tmp_path / "more.yaml"))
    assert list(ablation.arms) == ["few", "more", "third"] and ablation.name == "more" and ablation.scale == 2e-7
    assert [(r.arm, r.seed, r.run.checkpoint_every) for r in arm_runs(ablation)] == [(a, 7, None) for a in ablation.arms]
    (tmp_path / "more.yaml").write_text(text % "few")
    with pytest.raises(RecipeError, match="no other arm 'few'"):
        load(Ablation, str(tmp_path / "more.yaml"))


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        ({"a": {"tokens": {"vqu": 1}}}, "no source 'vqu'"),
        ({"a": {"extends": "b"}, "b": {"extends": "a"}}, "in a circle"),
        ({"a": {"extends": "z"}}, "no other arm 'z'"),
        ({"a/../b": {}}, "cannot name a folder"),
        ({"a": {"tokns": {}}}, "unknown key 'tokns'"),
    ],
)
def test_an_arm_that_cannot_be_is_refused_by_name(arms, says):
    with pytest.raises(RecipeError, match=says) as caught:
        made(arms=arms)
    assert caught.value.exit == 2


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"compare": [{"difference": {"metric": "vqa", "against": "many"}}]}, "no arm 'many'; known: few"),
        ({"compare": [{"difference": {"metric": "vqa", "of": ["more", "moer"], "against": ["few"]}}]}, "no arm 'moer'"),
        ({"compare": [{"exchange_rate": {"metric": "vqa", "ladder": {"few": 1, "fewer": 2}}}]}, "no arm 'fewer'"),
        ({"report": [{"bars": {"metric": "vqa", "arms": ["few", "all"]}}]}, "no arm 'all'"),
        ({"report": [{"progression": {"metrics": ["vqa"], "steps": [{"name": "data", "arms": ["few", "mor"]}]}}]}, "no arm 'mor'"),
    ],
)
def test_a_question_about_an_arm_that_is_not_there_is_refused_unless_that_arm_is_left_out(asked, says):
    with pytest.raises(RecipeError, match=says):
        made(**asked)
    name = says.split("'")[1]
    assert name not in made(**asked, left_out={name: "for want of time"}).arms


def test_a_wrong_key_of_the_run_is_named():
    with pytest.raises(RecipeError, match="unknown key 'bach'"):
        arm_runs(made(run={**document()["run"], "bach": 3}))


def test_the_identity_follows_what_changes_numbers_and_nothing_else():
    plans = {a: a for a in ARMS}
    base = identity(made(), plans)
    assert identity(made(output="elsewhere", parallel=2), plans) == base
    assert identity(made(seeds=[0]), plans) != base
    assert identity(made(), {**plans, "few": "other"}) != base


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("ablation"))
    HeldOut(root, 60)
    job, ablation = Job(), made(root)
    path = ABLATE.run(ablation, job)
    return root, ablation, path, job


def test_results_have_a_row_per_arm_seed_and_metric(done):
    table = pq.read_table(f"{done[2]}/results.parquet")
    assert table.column_names == ["arm", "seed", "metric", "split", "value", "n", "chance"]
    rows = table.to_pylist()
    asked = ("vqa", "vqa.constant", "vqa.shuffled", "vqa.blind", "vqa.attributes", "vqa.choice", "text_perplexity", "bits_per_byte", "flow_loss")
    for metric in asked:
        found = [(r["arm"], r["seed"]) for r in rows if r["metric"] == metric and r["split"] == "held_out"]
        assert found == [(a, s) for a in ARMS for s in (0, 1)], metric


def test_all_arms_answer_the_same_questions(done):
    asked = {tuple(pq.read_table(f"{r.output}/answers.parquet", columns=["id"])["id"].to_pylist()) for r in arm_runs(done[1])}
    assert len(asked) == 1


def test_consumed_tokens_equal_the_plan_for_every_arm(done):
    for item in arm_runs(done[1]):
        run, plan = read_card(item.output), read_card(item.run.plan)
        assert {n: s["tokens"]["all"] for n, s in run["sources"].items()} == {n: s["tokens"]["all"] for n, s in plan["sources"].items()}


def test_the_card_says_what_was_made_and_what_is_weak(done):
    card = read_card(done[2])
    assert card["kind"] == "ablation" and card["records"] == 6 and len(card["parents"]) == 6
    assert card["warnings"] == [f"fewer than {FEW_STEPS} optimiser steps in {a}" for a in ARMS]
    assert {f["path"] for f in card["files"]} == {"results.parquet", "diff.json", "report.html", "report.md"}


def test_the_report_names_every_arm_and_its_steps(done):
    page = Path(done[2], "report.html").read_text()
    assert all(f">{a}</th>" in page for a in ARMS) and "Consumed payload equals the plan" in page
    assert pages(done[2])[0][1] == page


def test_a_second_call_trains_nothing_and_gives_the_same_results(done):
    before = Path(done[2], "results.parquet").read_bytes()
    job = Job()
    ABLATE.run(done[1], job)
    assert Path(done[2], "results.parquet").read_bytes() == before
    assert all(Path(r.output, "log.jsonl").read_text().count("trained") == 1 for r in arm_runs(done[1]))


def test_a_stopped_ablation_says_so_before_it_trains(done, tmp_path):
    job = Job()
    job.stop.set()
    with pytest.raises(Stopped):
        ABLATE.run(made(done[0], output=str(tmp_path)), job)
    assert not (tmp_path / "results.parquet").exists()


@pytest.mark.slow
def test_two_at_a_time_give_the_numbers_of_one_at_a_time(done, tmp_path):
    beside = made(done[0], output=str(tmp_path), parallel=2, seeds=[1], arms={"few": ARMS["few"], "with_text": ARMS["with_text"]})
    ABLATE.run(beside, Job())
    wanted = [r for r in pq.read_table(f"{done[2]}/results.parquet").to_pylist() if r["seed"] == 1 and r["arm"] != "more"]
    found = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert found == wanted


KILLED = """
import json, sys
from pipelines.format.document import parse
from tests.trainer.test_ablation import Job
from trainer.ablate_stage import ABLATE
from trainer.ablation import Ablation

if __name__ == "__main__":
    ABLATE.run(parse(Ablation, json.loads(sys.argv[1]), name="toy.yaml"), Job())
"""


@pytest.mark.slow
def test_a_killed_ablation_leaves_no_worker_and_resumes_to_the_same_results(done, tmp_path):
    script, output = tmp_path / "killed.py", tmp_path / "ablation"
    script.write_text(KILLED)
    smaller = {"arms": {"few": ARMS["few"], "with_text": ARMS["with_text"]}, "seeds": [0], "parallel": 2}
    said = {**document(done[0], output=str(output), **smaller), "run": {**document()["run"], "checkpoint_every": 2}}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, str(script), json.dumps(said)], env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        until(lambda: process.poll() is not None or list(output.glob("arms/*/*/checkpoints/*/complete.json")), 120)
        workers = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert process.poll() is None and not (output / "results.parquet").exists()
    finally:
        process.kill()
        process.wait()
    until(lambda: not any(alive(p) for p in workers), 20)
    ABLATE.run(made(done[0], output=str(output), **smaller, run=document()["run"]), Job())
    wanted = [r for r in pq.read_table(f"{done[2]}/results.parquet").to_pylist() if r["seed"] == 0 and r["arm"] != "more"]
    assert pq.read_table(output / "results.parquet").to_pylist() == wanted


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(true, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_runs_of_several_processes_are_launched_and_a_failed_launch_ends_the_ablation(done, tmp_path):
    job = Job()
    job.launch = lambda argv, processes: job.events.append((argv, processes)) or 1  # type: ignore[attr-defined]
    arms = {"few": {**ARMS["few"], "run": {"processes": 2}}}
    with pytest.raises(HeadwaterError, match="ended with status 1"):
        ABLATE.run(made(done[0], output=str(tmp_path), arms=arms, seeds=[0]), job)
    argv, processes = job.events[-1]
    assert processes == 2 and argv[:2] == ["-m", "trainer"]
    assert load(Run, argv[2]).output == f"{tmp_path}/arms/few/seed-0"


def test_an_arm_of_fewer_than_ten_steps_is_refused(done, tmp_path):
    with pytest.raises(BudgetError, match="few has too few optimiser steps") as caught:
        ABLATE.run(made(done[0], output=str(tmp_path), scale=1e-8), Job())
    assert caught.value.exit == 3


def test_the_dry_run_says_what_the_plans_then_hold_and_writes_nothing(done, tmp_path):
    estimate = ABLATE.plan(made(done[0], output=str(tmp_path / "nothing")))
    cards = [read_card(f"{done[2]}/plans/{a}") for a in ARMS]
    assert [(r["tokens"], r["steps"]) for r in estimate.table] == [(c["tokens"]["all"], c["records"]) for c in cards]
    assert estimate.facts["runs"] == 6 and estimate.facts["flops"] > 0 and len(estimate.warnings) == 3
    assert not (tmp_path / "nothing").exists()


def test_the_dry_run_of_datasets_that_are_not_there_speaks_of_budgets():
    estimate = ABLATE.plan(made("nowhere"))
    assert [r["tokens"] for r in estimate.table] == [1000, 4000, 2000] and "not there yet" in estimate.warnings[-1]


def test_verify_names_the_file_with_a_flipped_byte(done):
    assert check(done[2], {"deep": True}) == []
    path = Path(done[2], "arms/few/seed-0/model.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert [p["file"] for p in check(done[2], {"deep": True})] == ["arms/few/seed-0/model.safetensors"]
        assert check(done[2]) == []
    finally:
        path.write_bytes(whole)
