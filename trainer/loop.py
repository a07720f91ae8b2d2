"""Training: a run document in, a run folder out.

    plan ─▶ stream ─▶ noised ─▶ model ─▶ errors ─▶ sum of gradients ─▶ clip ─▶ AdamW        metrics.jsonl, checkpoints/, model.safetensors, run.json

Everything a step does follows from (run, step): batches, times, noise, dropped conditions and learning rate. So stopping and going on gives
the numbers of not having stopped, bit for bit at the same world size. The card is written last; a folder without one is a run that goes on
from its newest complete checkpoint when the same command is given again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import torch

from mixtures.plan import Plan
from pipelines.format import manifest, storage
from pipelines.format.errors import BudgetError, ConflictError, Stopped
from trainer import checkpoint, guards, loggers, losses, meter, metrics, parallel, pictures, starting, stood_in
from trainer.ema import Ema
from trainer.models import load
from trainer.optim import adamw
from trainer.parallel import World
from trainer.run import Run
from trainer.saver import Saver
from trainer.step import State, advance, prepare
from trainer.stream import Reading, Stream, ahead

Log = Callable[..., Any]
VERSION = 1


def train(run: Run, output: str | None = None, log: Log | None = None, stop: threading.Event | None = None) -> dict[str, Any]:
    """Train, or go on training, and return the run's card with `path` and `seconds`. A finished run of the same identity returns at once.

    Collective under torchrun. Raises Stopped after a checkpoint when `stop` is set; ConflictError when `output` holds another run.
    """
    begun, say = time.monotonic(), log or (lambda event, **fields: None)
    root = output or run.output
    plan = Plan.open(run.plan)
    start = load.start_of(run.init).fingerprint if run.init else None
    identity = run.identity(plan.card["fingerprint"], start, pictures.fingerprint_of(run, plan))
    finished = _finished(root, identity)
    if finished is not None:
        return {**finished, "seconds": 0.0}
    loggers.check(run.log, root)
    if run.threads:
        torch.set_num_threads(run.threads)
    with parallel.world(run.device, run.parallel, alone=run.precision == "bf16") as where:
        state, first = begin(run, root, identity, plan, where, say)
        if where.rank == 0 and (event := stood_in.note(root, state.stream.reader.stand_ins)) is not None:
            _log(root, event)
            say("others stand in for forgotten records", **{k: v for k, v in event.items() if k != "event"})
        _steps(state, root, identity, plan, first, say, stop)
        if state.stream.reader.left_out:
            say("places of forgotten records stayed empty", spans=state.stream.reader.left_out)
        weights = {load.WEIGHTS: checkpoint.full_weights(state.model)}
        if state.ema is not None:
            weights[load.AVERAGE] = {**weights[load.WEIGHTS], **parallel.whole(state.ema.weights, where)}
        if where.rank == 0:
            _card(state, root, identity, plan, [load.export(root, w, name) for name, w in weights.items()])
            _log(root, {"event": "trained", "seconds": round(time.monotonic() - begun, 3), "from_step": first, "world": where.size})
            storage.sweep(root)
        where.gather(None)
    return {**manifest.read_card(root), "seconds": round(time.monotonic() - begun, 3)}


def _finished(root: str, identity: str) -> dict[str, Any] | None:
    if not storage.exists(storage.join(root, "run.json")):
        return None
    card = manifest.read_card(root)
    if card["fingerprint"] != identity:
        raise ConflictError("the output holds another run", where=root, found=card["fingerprint"][:16], allowed=identity[:16],
                            next="choose another `output`, or remove that folder first")  # fmt: skip
    return card


def begin(run: Run, root: str, identity: str, plan: Plan, where: World, say: Log) -> tuple[State, int]:
    """Model, optimizer and account, from the newest complete checkpoint when there is one; and the first step to run."""
    model = load.build(run, load.shape_of(plan))
    parallel.placed(model, where, run)
    optimizer = adamw(run.optim, model)
    ema = Ema(run.ema, model) if run.ema is not None else None
    if where.rank == 0:
        storage.delete_tree(storage.join(root, storage.TMP))  # what a killed save left there is as large as a checkpoint
    found, incomplete = checkpoint.newest(root)
    for path in incomplete:
        say("incomplete checkpoint passed over", path=path)
    if found is not None:
        if found.marker["fingerprint"] != identity:
            raise ConflictError("the output holds checkpoints of another run", where=found.path, found=found.marker["fingerprint"][:16],
                                allowed=identity[:16], next="choose another `output`, or remove that folder first")  # fmt: skip
        checkpoint.load(found, model, optimizer, where, ema)
        say("resumed", step=found.step, path=found.path)
    elif run.init:
        for note in starting.differences(run.init, run, plan):
            say(note)
        load.begin(model, run.init, where, run.init_ema)
        if ema is not None:
            ema.restart()
    first = found.step if found is not None else 0
    reading = Reading(run.workers, max(run.prefetch or 0, 2 * run.workers), run.cache.dir, run.cache.bytes, run.verify, parallel.neighbours(where),
                      pictures.encoding_of(run, plan, str(where.device)))  # fmt: skip
    stream = Stream(plan, run.batch, where.rank, where.size, first, steps=run.steps, reading=reading)
    if not stream.total:
        raise BudgetError("the plan holds no training sequence", where=run.plan)
    account = metrics.Account(plan.sources, found.marker["consumed"] if found is not None else None)
    weighing = losses.Weighing(run.loss, found.marker.get("carried", {}).get("loss") if found is not None else None)
    return State(run, where, stream, model, optimizer, account, guards.resumed(run.guards, root, first, where), weighing, ema), first


def _steps(state: State, root: str, identity: str, plan: Plan, first: int, say: Log, stop: threading.Event | None) -> None:
    run, where, steps = state.run, state.where, state.stream.steps
    depth = run.prefetch if run.prefetch is not None else (2 if where.device.type == "cuda" else 0)
    saver = Saver(root, where, run.keep, say)
    fixed = {"fingerprint": identity, "recipe": run.recipe(), "shape": load.shape_of(plan)}
    facts = lambda: {**fixed, "consumed": state.account.as_dict(), "carried": {"loss": state.weighing.state()}}
    watch = meter.Meter(where, meter.peak(run.peak_tflops, where, parallel.in_bf16(run, where.device.type)))
    made = ahead(((prepare(state, batch), done) for batch, done in state.stream), depth)
    with ExitStack() as stack:  # also when a step raises: the threads and processes that read and write end before this does
        writer = _writer(stack, run, root, identity, first) if where.rank == 0 else None
        for one in (saver, made):
            stack.enter_context(closing(one))
        for prepared, done in made:
            watch.arrived()
            line, stopping = advance(state, done - 1, prepared, bool(stop is not None and stop.is_set()))
            line |= watch.stepped(line)
            line |= pictures.shares(state.stream.reader.pictures, line["step_s"])
            if writer is not None:
                writer.add(line)
            last = done == steps
            if done == first + 1 and run.checkpoint_every:
                saver.prepare(checkpoint.state_of(state.model, state.optimizer, state.ema))
            if stopping or (run.checkpoint_every and done % run.checkpoint_every == 0 and not last):
                if writer is not None:
                    writer.flush()  # a checkpoint never stands without the lines before it: the guards go on from them
                with watch.saving() as took:
                    saver.save(done, checkpoint.state_of(state.model, state.optimizer, state.ema), facts())
                if writer is not None:
                    writer.note(**took)
            saver.look()
            if stopping:
                saver.wait(must=not last)
            if stopping and not last:
                raise Stopped(f"stopped after step {done} of {steps}; a checkpoint is kept", where=root, signal=15, next="the same command goes on")
            if done % max(steps // 20, 1) == 0:
                say("step", step=done, of=steps, loss=round(line["loss"], 4), tokens=line["tokens"])
            if "spike" in line:
                say("spike", step=done - 1, **{k: line[k] for k in ("spike", "spike_above", line["spike"])})


def _writer(stack: ExitStack, run: Run, root: str, identity: str, first: int) -> metrics.Writer:
    """Where lines go, closed with the stack."""
    others = [stack.enter_context(closing(logger)) for logger in loggers.opened(run, root, identity, first)]
    return stack.enter_context(closing(metrics.Writer(root, first, others)))


def _card(state: State, root: str, identity: str, plan: Plan, files: list[dict[str, Any]]) -> None:
    """Write run.json, whose weights are `files`: what was consumed, of what, by which model."""
    run, stream, account = state.run, state.stream, state.account
    of = dict(zip(losses.COUNTS, account.table.sum(axis=0).tolist(), strict=True))
    sequences = min(stream.steps * run.batch, stream.total)
    sources = {
        name: {
            "tokens": {"text": c["text"], "visual": c["visual"], "loss": c["text_targets"] + c["flow_targets"], "all": c["text"] + c["visual"]},
            "structure": c["structure"], "text_targets": c["text_targets"], "flow_targets": c["flow_targets"],
        }
        for name, c in account.as_dict().items()
    }  # fmt: skip
    parents = [manifest.parent(run.plan, root, plan.card["fingerprint"])]
    if run.init:
        parents.append(manifest.parent(run.init, root, load.start_of(run.init).fingerprint))
    loss = of["text_targets"] + of["flow_targets"]
    card = manifest.card(
        "run", run.name or storage.absolute(root).rpartition("/")[2], identity, run.recipe(), parents=parents, stages={"train": VERSION},
        records=sequences, bytes=sum(f["bytes"] for f in files), files=files, sources=sources,
        tokens={"text": of["text"], "visual": of["visual"], "loss": loss, "all": of["text"] + of["visual"]},
        structure=of["structure"], padding=sequences * plan.sequence_length - of["text"] - of["visual"] - of["structure"],
        steps=stream.steps, parameters=state.model.parameters_by_use(), shape=load.shape_of(plan), flops=metrics.flops(state.model, account.table),
        **({} if stream.reader.pictures is None else {"encoded": stream.reader.pictures.made_by()}),
    )  # fmt: skip
    manifest.publish_card(root, "run.json", card)


def _log(root: str, event: dict[str, Any]) -> None:
    """What knows the clock goes to log.jsonl, never into a card."""
    import json

    path = storage.join(root, "log.jsonl")
    before = storage.read(path) if storage.exists(path) else b""
    storage.replace(path, before + json.dumps({"time": time.time(), **event}).encode() + b"\n", scratch=root)
