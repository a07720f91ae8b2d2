"""Fine-tuning begins with another run's weights and with nothing else of it, and says what it came from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toyplan

from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from pipelines.commands import trace
from pipelines.format import storage
from pipelines.format.errors import ConflictError, InputError, Stopped
from pipelines.summary import stats
from trainer import checkpoint, starting
from trainer.check import check
from trainer.loop import train
from trainer.models.load import load_model, read_weights


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets of four kinds, a plan over three of them, and one over questions alone, normalised as the first."""
    root = tmp_path_factory.mktemp("world")
    paths = {data: toyplan.dataset(str(root / data), data, 60) for data in ("text", "image-text", "video", "vqa")}
    planned(root, "pretraining", {k: {"dataset": paths[k], "tokens": 1200, "max_epochs": 20} for k in ("text", "image-text", "video")})
    asked = {"vqa": {"dataset": paths["vqa"], "tokens": 600, "max_epochs": 20, "turns": "isolated"}}
    planned(root, "questions", asked, normalise={"stats": str(root / "pretraining")})
    planned(root, "alone", asked)
    return root


def planned(root: Path, name: str, sources: dict[str, Any], **keys: Any) -> str:
    said = {"sequence_length": 64, "held_out": {"fraction": 0.1, "seed": 0}, "sources": sources, **keys}
    return make_plan(Mixture.model_validate(said), str(root / name))


@pytest.fixture(scope="module")
def pretrained(world: Path) -> dict:
    return train(toyplan.run(str(world / "pretraining"), world / "first", optim={"lr": 4e-3, "warmup": 2.0}))


def tuned(world: Path, output: Path, **changes: Any) -> Any:
    given = {"init": str(world / "first"), "optim": {"lr": 1e-3, "warmup": 3.0, "schedule": "constant"}, "batch": 2, **changes}
    return toyplan.run(str(world / "questions"), output, **given)


def lines(root: Any) -> list[dict]:
    return [json.loads(line) for line in storage.read(storage.join(str(root), "metrics.jsonl")).splitlines()]


def test_fine_tuning_begins_with_the_weights_and_with_a_schedule_and_a_plan_of_its_own(world: Path, pretrained: dict, tmp_path: Path) -> None:
    card = train(tuned(world, tmp_path / "run"))
    made = lines(tmp_path / "run")
    assert [line["step"] for line in made] == list(range(card["steps"])) and card["tokens"]["all"] == made[-1]["tokens"] == 600
    assert [round(line["lr"], 6) for line in made[:4]] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3], rel=1e-3)
    # Nothing was updated before the first loss: it is that of the weights, which have seen no question and yet know words and pictures.
    still = train(tuned(world, tmp_path / "still", steps=1, optim={"lr": 1e-12}))
    mine, theirs = read_weights(still["path"]), read_weights(pretrained["path"])
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-9) for name in theirs)
    cold = train(toyplan.run(str(world / "questions"), tmp_path / "cold", batch=2, steps=1))
    assert lines(still["path"])[0]["loss"] == made[0]["loss"] != lines(cold["path"])[0]["loss"]


def test_its_card_names_the_start_and_stats_verify_and_trace_follow_it(world: Path, pretrained: dict, tmp_path: Path) -> None:
    card = train(tuned(world, tmp_path / "run"))
    assert [p["fingerprint"] for p in card["parents"]] == [Plan.open(str(world / "questions")).card["fingerprint"], pretrained["fingerprint"]]
    told = {(e["kind"], Path(e["path"]).name): e["found"] for e in stats(card["path"])["lineage"]}
    assert told[("run", "first")] == told[("plan", "pretraining")] == told[("plan", "questions")] == told[("dataset", "vqa")] == "yes"
    assert check(card["path"], {"deep": True}) == []

    # A question was seen by the fine-tuned run alone, a clip by the run before it alone; each step is of the run that took it.
    for kind, run in (("vqa", "run"), ("video", "first")):
        plan = Plan.open(str(world / ("questions" if kind == "vqa" else "pretraining")))
        spans = [s for i in range(plan.sequences()) for s in plan.row(i).spans if plan.datasets[s.dataset].data == kind]
        trail = trace.answer(SimpleNamespace(id=plan.record(spans[0]).id, path=card["path"]))["trail"]  # type: ignore[arg-type]
        assert {Path(step["path"]).name for step in trail if step["at"] == "run" and step["n"]} == {run}


def test_a_run_s_name_follows_its_start_and_not_where_that_lies(world: Path, pretrained: dict, tmp_path: Path) -> None:
    shutil.copytree(world / "first", tmp_path / "copied")
    run = tuned(world, tmp_path / "run")
    card = train(run)
    assert train(run.model_copy(update={"init": str(tmp_path / "copied")}))["fingerprint"] == card["fingerprint"]
    with pytest.raises(ConflictError):
        train(run.model_copy(update={"init": None}))


def test_a_run_that_never_ended_and_one_of_its_checkpoints_are_starts_too(world: Path, pretrained: dict, tmp_path: Path) -> None:
    from test_train import StopAt

    first = toyplan.run(str(world / "pretraining"), tmp_path / "first", checkpoint_every=4)
    with pytest.raises(Stopped):
        train(first, stop=StopAt(6))
    found = checkpoint.newest(str(tmp_path / "first"))[0]
    assert found is not None
    for name, start in (("a", str(tmp_path / "first")), ("b", found.path)):
        card = train(tuned(world, tmp_path / name, init=start))
        assert lines(card["path"])[0]["loss"] == lines(tmp_path / "a")[0]["loss"] and len(card["parents"]) == 2


def test_a_stopped_fine_tuning_goes_on_from_its_own_checkpoint_and_not_from_its_start(world: Path, pretrained: dict, tmp_path: Path) -> None:
    from test_train import StopAt

    whole = train(tuned(world, tmp_path / "whole"))
    with pytest.raises(Stopped):
        train(tuned(world, tmp_path / "run"), stop=StopAt(3))
    made = train(tuned(world, tmp_path / "run"))
    losses = [[line["loss"] for line in lines(card["path"])] for card in (whole, made)]
    assert losses[0] == losses[1]


def test_a_start_of_another_shape_is_refused_with_what_differs(world: Path, pretrained: dict, tmp_path: Path) -> None:
    model = {"transfusion": {"layers": 2, "width": 64, "heads": 2, "ffn_width": 64, "norm": "layer", "activation": "relu2"}}
    with pytest.raises(InputError) as wide:
        train(tuned(world, tmp_path / "run", model=model))
    assert (wide.value.found, wide.value.allowed) == ("model.transfusion.width 32", "model.transfusion.width 64")
    with pytest.raises(InputError, match="no weights here"):
        train(tuned(world, tmp_path / "run", init=str(world / "pretraining")))


SAME = {"layers": 2, "width": 32, "heads": 2, "ffn_width": 64, "norm": "layer", "activation": "relu2"}


@pytest.mark.parametrize(
    ("changed", "key"),
    [({"heads": 1}, "heads"), ({"norm": "rms"}, "norm"), ({"rope_theta": 100.0}, "rope_theta"), ({"rope": "axial"}, "rope"),
     ({"output_skip": True}, "output_skip"), ({"qk_norm": False}, "qk_norm")],
)  # fmt: skip
def test_weights_that_fit_and_would_compute_something_else_are_refused(
    world: Path, pretrained: dict, tmp_path: Path, changed: dict, key: str
) -> None:
    own = load_model(pretrained["path"])[1].model.model_dump()
    base = {k: own[k] for k in (*SAME, "qk_norm", "output_skip", "rope_theta")}
    with pytest.raises(InputError) as said:
        train(tuned(world, tmp_path / "run", model={"transfusion": base | changed}))
    assert said.value.found.startswith(f"model.transfusion.{key} ") and not (tmp_path / "run/metrics.jsonl").exists()


def test_a_prediction_of_another_kind_is_refused_and_other_ways_to_train_are_not(world: Path, pretrained: dict, tmp_path: Path) -> None:
    was = load_model(pretrained["path"])[1]
    other = "x" if was.flow.predict == "v" else "v"
    with pytest.raises(InputError) as said:
        train(tuned(world, tmp_path / "run", flow=was.flow.model_dump() | {"predict": other}))
    assert said.value.found == f"flow.predict {was.flow.predict}"
    notes: list[str] = []
    own = was.model.model_dump()
    own = {k: own[k] for k in (*SAME, "qk_norm", "output_skip", "rope_theta", "tie_embeddings", "patch_positions", "time", "ffn")}
    free = {"transfusion": own | {"embedding_std": 0.3, "attention": "dense", "kv_heads": own["heads"]}}
    run = tuned(world, tmp_path / "free", steps=1, model=free, flow=was.flow.model_dump() | {"shift": 7.0})
    train(run, log=lambda event, **_: notes.append(event))
    assert any("times are shifted by 7.0" in note for note in notes)


def test_another_version_of_an_encoder_is_said() -> None:
    of = lambda name, print_: {"encoder": name, "fingerprint": print_}
    assert starting._encoders(of("siglip2", "a"), of("siglip2", "a")) == starting._encoders(None, of("siglip2", "a")) == []
    assert "with other weights" in starting._encoders(of("siglip2", "a"), of("siglip2", "b"))[0]
    assert "trained on those of dinov2" in starting._encoders(of("siglip2", "a"), of("dinov2", "b"))[0]


def test_other_words_are_an_error_and_other_statistics_are_said(world: Path, pretrained: dict, tmp_path: Path) -> None:
    said: list[str] = []
    note = lambda event, **fields: said.append(event)
    train(tuned(world, tmp_path / "same", steps=1), log=note)
    assert not any("statistics" in line for line in said)
    train(tuned(world, tmp_path / "alone", steps=1).model_copy(update={"plan": str(world / "alone")}), log=note)
    assert any(f"normalise: {{stats: {world}/pretraining}}" in line for line in said)
    shutil.copytree(world / "first", tmp_path / "first")
    said.clear()
    train(tuned(world, tmp_path / "gone", steps=1, init=str(tmp_path / "first")), log=note)
    assert any("is gone" in line for line in said)

    shutil.copytree(world / "pretraining", tmp_path / "pretraining")
    card = storage.read_json(str(tmp_path / "pretraining/plan.json"))
    card["encoding"]["text"]["tokenizer_sha256"] = "1" * 64
    (tmp_path / "pretraining/plan.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="another tokenizer"):
        train(tuned(world, tmp_path / "other", steps=1, init=str(tmp_path / "first")))


def test_the_model_of_a_fine_tuned_run_opens_with_its_own_plan(world: Path, pretrained: dict, tmp_path: Path) -> None:
    card = train(tuned(world, tmp_path / "run", steps=2))
    model, run, plan = load_model(card["path"])
    assert plan.sources == ["vqa"] and run.init == str(world / "first") and not model.training
