"""Worker processes: the same batches in the same order for any number of them, whatever happens to them; and nothing is left when they go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import toyplan

from mixtures.plan import Plan
from pipelines.format.errors import InputError, TemporaryError, VerifyError
from trainer import workers as workers_
from trainer.batch import Batch
from trainer.slots import Slots, largest
from trainer.stream import Reading, Stream
from trainer.workers import Workers

REPO = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes as Linux shows them")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return Plan.open(toyplan.make(tmp_path_factory.mktemp("toyplan"), tokens=900, n=60))


@pytest.fixture(scope="module")
def plain(plan: Plan) -> list[tuple[Batch, int]]:
    return list(Stream(plan, 4))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in Batch.__slots__)


def children() -> list[int]:
    """Living child processes of this one that are workers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if b"trainer.worker" in (entry / "cmdline").read_bytes() and f"PPid:\t{os.getpid()}\n" in (entry / "status").read_text():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize(("count", "depth"), [(1, 1), (2, 2), (3, 7), (4, 4)])
def test_any_number_of_workers_gives_the_batches_of_none(plan: Plan, plain: list[tuple[Batch, int]], count: int, depth: int) -> None:
    made = list(Stream(plan, 4, reading=Reading(workers=count, depth=depth)))
    assert [at for _, at in made] == [at for _, at in plain]
    assert all(same(a, b) for (a, _), (b, _) in zip(plain, made, strict=True))
    assert not children()


def test_workers_serve_any_rank_from_any_step(plan: Plan, plain: list[tuple[Batch, int]]) -> None:
    steps, parts = len(plain), []
    for rank in range(3):
        parts.append([b.seq.tolist() for b, _ in Stream(plan, 4, rank, 3, start_step=2, reading=Reading(workers=2))])
    for step in range(2, steps):
        read = sorted(n for rank in parts for n in rank[step - 2] if n >= 0)
        assert read == [n for n in plain[step][0].seq.tolist() if n >= 0]


def test_killed_workers_are_replaced_and_no_batch_is_lost_or_changed(plan: Plan, plain: list[tuple[Batch, int]]) -> None:
    stream = Stream(plan, 4, reading=Reading(workers=2, depth=4))
    killed = 0
    with Workers(stream) as workers:
        for step in range(stream.steps):
            if step % 4 == 1:
                os.kill(workers.pids[step // 4 % 2], signal.SIGKILL)
                killed += 1
            arrays, _ = workers.take(step)
            assert all(np.array_equal(arrays[name], getattr(plain[step][0], name).numpy()) for name in arrays)
    assert killed >= 3 and not children()


def test_workers_that_keep_dying_end_the_run_with_a_word_about_it(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_.sys, "executable", "/bin/false")
    began = time.monotonic()
    with pytest.raises(TemporaryError, match="died 3 times"):
        list(Stream(plan, 4, reading=Reading(workers=2)))
    assert time.monotonic() - began < 20 and not children()


def test_a_worker_that_hangs_is_replaced(plan: Plan, plain: list[tuple[Batch, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_, "SILENCE_SECONDS", 3.0)
    with Workers(Stream(plan, 4, reading=Reading(workers=1, depth=1))) as workers:
        workers.take(0)
        os.kill(workers.pids[0], signal.SIGSTOP)
        arrays, _ = workers.take(1)
    assert np.array_equal(arrays["tokens"], plain[1][0].tokens.numpy()) and not children()


def test_what_a_worker_meets_is_raised_as_itself(tmp_path: Path) -> None:
    plan = Plan.open(toyplan.make(tmp_path, tokens=300, n=30))
    shard = plan.datasets[0].shards[0]
    index = Path(plan.datasets[0].path) / shard.index
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    with pytest.raises(VerifyError, match="differs from what its dataset says") as caught:
        list(Stream(plan, 4, reading=Reading(workers=2)))
    assert caught.value.where == str(index) and not children()


def test_a_reader_that_leaves_early_leaves_no_process(plan: Plan) -> None:
    reading = iter(Stream(plan, 4, reading=Reading(workers=2)))
    next(reading)
    assert len(children()) == 2
    reading.close()
    assert not children()


def test_workers_end_with_a_parent_that_was_killed(plan: Plan) -> None:
    code = (
        "import sys, time\nfrom mixtures.plan import Plan\nfrom trainer.stream import Reading, Stream\nfrom trainer.workers import Workers\n"
        "w = Workers(Stream(Plan.open(sys.argv[1]), 4, reading=Reading(workers=2)))\nw.take(0)\nprint(*w.pids, flush=True)\ntime.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, plan.path], stdout=subprocess.PIPE, text=True, cwd=REPO)
    try:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_batch_that_is_kept_is_not_written_over(plan: Plan, plain: list[tuple[Batch, int]]) -> None:
    kept, loose = [], 0
    for batch, at in Stream(plan, 4, reading=Reading(workers=1, depth=3)):
        kept += [batch] if at % 3 == 0 else []
        loose += 1
    assert loose == len(plain)
    assert all(same(batch, plain[3 * i + 2][0]) for i, batch in enumerate(kept))


def test_a_slot_holds_the_largest_batch_there_can_be() -> None:
    rows, length, width = 2, 8, 4
    n = rows * length
    every = {name: np.zeros((rows, length), kind) for name, kind in (("tokens", "i4"), ("kind", "u1"), ("doc", "i4"), ("turn", "i2"))}
    every |= {name: np.zeros((rows, length), kind) for name, kind in (("image", "i4"), ("position", "i4"), ("source", "i2"), ("condition", "u1"))}
    every |= {"text_target": np.zeros((rows, length), "i4"), "latents": np.ones((n, width), "f4"), "latent_slot": np.zeros(n, "i8")}
    every |= {"latent_image": np.zeros(n, "i4"), "image_loss": np.zeros(n, "?"), "image_hidden": np.zeros(n, "?"), "image_h": np.zeros(n, "u8")}
    every |= {"image_segment": np.zeros(n, "i2"), "image_epoch": np.zeros(n, "i2"), "seq": np.zeros(rows, "i8")}
    assert set(every) == set(Batch.__slots__)
    slots = Slots(largest(rows, length, width), 2)
    where = slots.write(1, every)
    assert all(np.array_equal(found, every[name]) and found.dtype == every[name].dtype for name, found in slots.read(1, where)[0].items())
    slots.close()


def test_what_lives_in_one_process_is_not_given_to_workers(plan: Plan) -> None:
    card = {**plan.card, "datasets": [], "encoding": {k: v for k, v in plan.card["encoding"].items() if k != "stats"}}
    with pytest.raises(InputError, match="one process only"):
        Workers(Stream(Plan("memory://plan", card), 4, reading=Reading(workers=1)))


def test_workers_load_no_torch() -> None:
    code = "import trainer.worker, sys; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
