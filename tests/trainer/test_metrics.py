"""Lines of a run: the same under any packing, sharding and resumption; tokens equal to the plan; MFU from a formula a reader can redo."""

from __future__ import annotations

import json
import time
from pathlib import Path

import hand
import numpy as np
import pytest
import torch
import toyplan
from test_losses import documents, found
from test_train import StopAt, lines

from mixtures.plan import Plan
from pipelines.format import storage
from pipelines.format.errors import Stopped
from trainer import ledger, losses, meter, metrics
from trainer.loop import train
from trainer.losses import COUNTS, T_BINS
from trainer.parallel import World
from trainer.report.evidence import curves
from trainer.run import Loss, Run

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toyplan.make(tmp_path_factory.mktemp("toyplan"), tokens=1200, n=60)


@pytest.fixture(scope="module")
def whole(plan: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return train(toyplan.run(plan, tmp_path_factory.mktemp("whole"), peak_tflops=0.05))


def raw(root: str | Path) -> list[dict]:
    return [json.loads(line) for line in storage.read(storage.join(str(root), "metrics.jsonl")).splitlines()]


def test_tokens_by_source_are_the_plans_at_every_step_and_at_the_end(whole: dict, plan: str) -> None:
    opened, made = Plan.open(plan), raw(whole["path"])
    for done in (1, 3, len(made) // 2, len(made)):
        wanted = ledger.tokens(opened, done, 4)
        assert {name: made[done - 1][f"tokens/{name}"] for name in opened.sources} == {name: wanted.get(name, 0) for name in opened.sources}
    for name, source in storage.read_json(storage.join(plan, "plan.json"))["sources"].items():
        assert made[-1][f"tokens/{name}"] == source["taken"]


def test_the_lines_of_shards_add_up_to_that_of_the_whole_whatever_the_packing() -> None:
    docs = documents()
    names = ["a", "b", "c"]
    packings = ([docs], [docs[:2], docs[2:]], [[d] for d in docs])
    made = []
    for rows in packings:
        whole_batch = hand.batch(rows, length=80)
        parts = [found(whole_batch.rows(i, i + 1)) for i in range(len(rows))]  # a rank, or a micro-batch, each
        made.append(metrics.step_line(0, names, sum(p[0] for p in parts), sum(p[1] for p in parts), Loss()))
    for line in made[1:]:
        assert line.keys() == made[0].keys()
        assert all(line[k] == pytest.approx(made[0][k], rel=1e-5) for k in line)
    assert {"text/a", "text/b", "text/c", "flow/a", "flow/b"} <= made[0].keys() and "flow/c" not in made[0]


def test_times_weighted_by_their_latents_are_the_flow_loss() -> None:
    counts, sums, _ = found(hand.batch([documents()], length=80))
    line = metrics.step_line(0, ["a", "b", "c"], counts, sums, Loss())
    bins = {k: v for k, v in line.items() if k.startswith("flow/t")}
    latents = sums[:, 2 + T_BINS :].sum(axis=0)
    assert set(bins) == {f"flow/{metrics.bin_name(k)}" for k in np.flatnonzero(latents)}
    mean = sum(line[f"flow/{metrics.bin_name(k)}"] * latents[k] for k in np.flatnonzero(latents)) / latents.sum()
    assert mean == pytest.approx(line["flow"]) and latents.sum() == counts[:, -1].sum()
    assert not any("t0" in source for _, source in curves([{**line, "tokens": 3}])), "the report takes no time for a source"


def test_flops_of_the_lines_are_those_of_the_card_and_mfu_follows_from_them(whole: dict) -> None:
    made = raw(whole["path"])
    assert sum(line["flops"] for line in made) == whole["flops"]
    for line in made[1:]:
        assert line["mfu"] == pytest.approx(line["flops"] / (line["step_s"] * 0.05e12), rel=0.02, abs=2e-4)
        assert line["tokens_per_s"] == pytest.approx(line["step_tokens"] / line["step_s"], rel=0.02) and 0 <= line["data_wait"] <= 1
    assert "memory_gib" not in made[0], "there is no device whose memory this would be"


def test_flops_count_what_the_mask_shows_and_not_the_padding() -> None:
    from test_attention import model

    net, docs = model(), documents()
    packed, apart = (metrics.flops(net, losses.counts(hand.batch(rows, length=80), 3)) for rows in ([docs], [[d] for d in docs]))
    assert packed == apart, "documents side by side see no more than documents apart"
    assert metrics.flops(net, np.zeros((3, len(COUNTS)))) == 0


def test_mfu_is_absent_without_a_peak_and_cards_are_known_by_their_whole_name() -> None:
    watch = meter.Meter(CPU, meter.peak(None, CPU, True))
    watch.arrived()
    assert "mfu" not in watch.stepped({"step_tokens": 1, "flops": 1})
    assert meter.peak_of("NVIDIA H100 80GB HBM3") == 989.4 and meter.peak_of("NVIDIA H100 PCIe") == 756.0
    assert meter.peak_of("NVIDIA A100-SXM4-80GB") == 312.0 and meter.peak_of("NVIDIA H200 NVL") == 835.5
    assert meter.peak_of("NVIDIA L40") is None and meter.peak_of("NVIDIA L4") == 121.0 and meter.peak_of("NVIDIA A10G") is None


def test_a_meter_counts_waiting_as_waiting_and_saving_as_neither_waiting_nor_working() -> None:
    watch = meter.Meter(CPU, None)
    time.sleep(0.02)
    watch.arrived()
    first = watch.stepped({"step_tokens": 100, "flops": 1})
    with watch.saving() as took:
        time.sleep(0.1)
    watch.arrived()
    time.sleep(0.02)
    second = watch.stepped({"step_tokens": 100, "flops": 1})
    assert first["data_wait"] > 0.9 and took["save_s"] >= 0.1
    assert second["step_s"] < 0.1 and second["data_wait"] < 0.2
    assert set(first) | set(took) <= set(meter.CLOCK)


def test_a_save_tells_how_long_it_blocked_on_the_line_of_its_step(plan: str, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(toyplan.run(plan, tmp_path, checkpoint_every=3), stop=StopAt(8))
    assert [line["step"] for line in raw(tmp_path) if line.get("save_s", 0) > 0] == [2, 5, 7]


def test_others_get_every_line_once_whole_and_in_order_while_the_file_is_ahead_of_them(tmp_path: Path) -> None:
    got: list[dict] = []
    writer = metrics.Writer(str(tmp_path), 0, [got.append])
    for i in range(3):
        writer.add({"step": i})
        writer.flush()
        assert len(raw(tmp_path)) == i + 1
    writer.note(save_s=1.5)
    assert got == [{"step": 0}, {"step": 1}], "the last line may still get its save"
    writer.close()
    assert got == raw(tmp_path) == [{"step": 0}, {"step": 1}, {"step": 2, "save_s": 1.5}]
    later: list[dict] = []
    again = metrics.Writer(str(tmp_path), 1, [later.append])
    again.add({"step": 1})
    again.close()
    assert raw(tmp_path) == [{"step": 0}, {"step": 1}] and later == [{"step": 1}]


def test_lines_before_a_step_pass_over_a_torn_last_one(tmp_path: Path) -> None:
    assert metrics.lines_before(str(tmp_path), 3) == []
    (tmp_path / "metrics.jsonl").write_text('{"step":0}\n{"step":1}\n{"step":2}\n{"st')
    assert metrics.lines_before(str(tmp_path), 2) == [{"step": 0}, {"step": 1}]


def test_routing_tells_the_most_loaded_expert_of_each_layer_that_routes() -> None:
    counts = np.array([[0, 0, 0, 0], [2, 2, 2, 2], [6, 2, 0, 0]], float)
    assert metrics.routing_line(counts) == {"experts/load/1": 1.0, "experts/load/2": 3.0}


def test_keys_that_only_look_at_a_run_do_not_rename_it(plan: str, tmp_path: Path) -> None:
    run = toyplan.run(plan, tmp_path)
    looked = Run.model_validate({**json.loads(run.model_dump_json()), "guards": {"spike": "stop"}, "log": {"tensorboard": True}, "peak_tflops": 1.0})
    assert looked.identity("x") == run.identity("x")


def test_clocks_are_the_only_keys_that_two_equal_runs_differ_in(whole: dict, plan: str, tmp_path: Path) -> None:
    train(toyplan.run(plan, tmp_path, steps=None))
    assert lines(tmp_path) == lines(whole["path"])
