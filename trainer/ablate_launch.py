"""How the arm-runs of an ablation are started: in processes here, on a Ray cluster, or by SLURM. All ways train by the same lines to the same files.

    local    worker processes that live long (sweep.py); runs of several processes by torchrun, one after the other
    ray      `engine: ray`: an actor takes one arm-run after another (`resources`, of each); runs of several processes by Ray Train
    slurm    `slurm: {…}`: an array job, a task an arm-run, and a job after it: the same command again, which then has only the report to make

What is done is skipped and what was stopped goes on, so any of them may be called again after any kill, or another in its place. SLURM alone works on
when the command has ended: what it was given is remembered in jobs/submitted.json, and is not given again while that job may be alive.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from typing import Any

from pipelines.format import storage
from pipelines.format.document import dump
from pipelines.format.errors import HeadwaterError, Stopped, TemporaryError
from trainer.ablation import Ablation, ArmRun, evaluations_of
from trainer.evaluate import Evaluations
from trainer.run import Workers
from trainer.sweep import Task, do, sweep, task

JOBS = "jobs"
GONE = "Invalid job id"  # what squeue says of a job that it no longer knows, with status 1
SQUEUE_SECONDS = 60.0
SUBMITTED = "submitted.json"  # {"arms": job number, or null while sbatch is asked; "cluster", "report"}


def train_all(config: Ablation, job: Any, plans: dict[str, Any], runs: list[ArmRun]) -> None:
    """Train and evaluate every arm-run. Raises the first error; TemporaryError where a batch system has them now."""
    if config.slurm is not None:
        return _by_slurm(config, runs)
    several = [r for r in runs if r.run.processes * r.run.nodes > 1 and not storage.exists(storage.join(r.output, "run.json"))]
    for item in several:
        _launched(config, item, job)
    asked = {arm: _plain(config, arm) for arm in config.arms}
    tasks = []
    for item in runs:
        threads = item.run.threads or (1 if config.parallel > 1 else None)
        run = item.run.model_copy(update={"threads": threads, "processes": 1, "nodes": 1, "engine": "local"})
        tasks.append(task(f"{item.arm} seed {item.seed}", run, asked[item.arm], float(plans[item.arm].card["tokens"]["all"])))
    if config.engine == "ray":
        _by_ray(config, tasks, job)
    else:
        sweep(tasks, config.parallel, job.stop, _told(job))


def _plain(config: Ablation, arm: str) -> list[Any]:
    """An arm's evaluations as plain values."""
    return list(dump(Evaluations(evaluate=evaluations_of(config, arm)))["evaluate"])


def _launched(config: Ablation, item: ArmRun, job: Any) -> None:
    """One run on several processes: torchrun here, Ray Train there. Its evaluation remains."""
    if config.engine == "ray":
        from trainer.stage import TRAIN

        TRAIN.run(item.run.model_copy(update={"engine": "ray"}), job)
        return
    document = json.dumps(item.run.recipe(), indent=1).encode()  # JSON is YAML
    storage.publish(storage.join(item.output, "run.yaml"), document)
    status = job.launch(argv(item), item.run.processes)
    if job.stop.is_set():
        raise Stopped("stopped; finished runs and a checkpoint are kept", where=item.output, next="the same command goes on")
    if status:
        raise HeadwaterError(f"the trainer ended with status {status}", where=item.output, next="its messages stand above")


def argv(item: ArmRun) -> list[str]:
    """The command that trains an arm-run on several processes."""
    return ["-m", "trainer", storage.join(item.output, "run.yaml")]


def _told(job: Any) -> Any:
    """Finished arm-runs go to the job's log, and as a line to the person waiting."""

    def say(event: str, **fields: Any) -> None:
        job.log(event, **fields)
        print(f"  {event} {fields['name']}: {fields['seconds']} s, {fields['done']} of {fields['of']}", file=sys.stderr, flush=True)

    return say


# ---- Ray -----------------------------------------------------------------------------------------------------------------------------------


class ArmWorker:
    """What an actor does: one arm-run after another, each trained and evaluated."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(max(1, threads))

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        return do(Task(**item))


def _by_ray(config: Ablation, tasks: list[Task], job: Any) -> None:
    each = config.resources or Workers()
    asked = {"cpus": each.cpus, "gpus": each.gpus or 0.0, "actors": config.parallel if config.parallel > 1 else None, "name": "arm"}
    say, ordered = _told(job), sorted(tasks, key=lambda t: -t.size)
    items = [{"name": t.name, "run": t.run, "evaluate": t.evaluate, "size": t.size} for t in ordered]
    for done, found in enumerate(job.each(ArmWorker, {"threads": int(each.cpus)}, items, **asked), 1):
        say("arm", **found, done=done, of=len(items))


# ---- SLURM ---------------------------------------------------------------------------------------------------------------------------------


def _by_slurm(config: Ablation, runs: list[ArmRun]) -> None:
    """Write the scripts for what is not done yet and submit them if asked; returns when nothing is left to do."""
    from trainer.evaluate import is_evaluated

    left = [i for i, item in enumerate(runs) if not is_evaluated(item.output, evaluations_of(config, item.arm))]
    if not left:
        return
    assert config.slurm is not None
    root = storage.absolute(storage.join(config.output, JOBS))
    if "://" in root:
        raise HeadwaterError("SLURM's scripts need a folder that all machines see", where="output", found=config.output, allowed="a path")
    if config.slurm.submit is True:
        _refuse_twice(root, len(left))  # before a file changes that a waiting job will read
    write = lambda name, data: storage.replace(storage.join(root, name), data, scratch=root)
    write("ablation.yaml", json.dumps(dump(config), indent=1).encode())
    for i in left:
        run = runs[i].run.model_copy(update={"engine": "local", "nodes": 1, "processes": 1})
        write(f"{i:04d}.yaml", json.dumps(run.recipe(), indent=1).encode())
        write(f"{i:04d}-evaluate.yaml", json.dumps({"evaluate": _plain(config, runs[i].arm)}, indent=1).encode())
    write("arms.sbatch", arms_script(config, runs, left, root).encode())
    write("report.sbatch", report_script(config, root).encode())
    arms, report = (shlex.quote(storage.join(root, n)) for n in ("arms.sbatch", "report.sbatch"))
    command = f"sbatch --dependency=afterok:$(sbatch --parsable {arms}) {report}"
    if not config.slurm.submit:
        raise TemporaryError(f"scripts for {len(left)} arm-runs are written", where=root, next=command)
    note = lambda **known: write(SUBMITTED, json.dumps(known, indent=1).encode())
    note(arms=None)  # should this end before sbatch has answered
    try:
        number, cluster = _sbatch([storage.join(root, "arms.sbatch")])
    except HeadwaterError:
        storage.delete(storage.join(root, SUBMITTED))
        raise
    note(arms=number, cluster=cluster, report=None)
    there = [f"--clusters={cluster}"] if cluster else []
    after, _ = _sbatch([*there, f"--dependency=afterok:{number}", storage.join(root, "report.sbatch")])
    note(arms=number, cluster=cluster, report=after)
    said = f"{len(left)} arm-runs are submitted as job {number}, the report after them"
    raise TemporaryError(said, where=root, next="the same command tells what is left")


def _sbatch(arguments: list[str]) -> tuple[str, str]:
    """Submit. (the job's number, the cluster's name, if SLURM has several)."""
    try:
        done = subprocess.run(["sbatch", "--parsable", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as e:
        found, next_ = getattr(e, "stderr", "") or e, "slurm.submit=false writes the scripts only"
        raise HeadwaterError("sbatch did not take the job", where=arguments[-1], found=found, next=next_) from e
    number, _, cluster = done.stdout.strip().partition(";")
    return number, cluster


def _refuse_twice(root: str, left: int) -> None:
    """TemporaryError while the job that was submitted is alive, HeadwaterError where that cannot be known; returns when it is gone, or none was."""
    place = storage.join(root, SUBMITTED)
    if not storage.exists(place):
        return
    before = storage.read_json(place)
    number, cluster = before["arms"], before.get("cluster")
    again = f"if it is gone: slurm.submit=again, or delete {place}"
    if not number:
        said = "arm-runs may have been submitted: the command ended before sbatch answered"
        raise HeadwaterError(said, where=place, next=f"squeue --me shows your jobs; {again}")
    try:
        asked = ["squeue", "-h", "-j", number, *(["-M", cluster] if cluster else [])]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=SQUEUE_SECONDS)
        known, found = done.returncode == 0 or GONE in done.stderr, done.stderr.strip() or f"squeue ended with status {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as e:
        known, found = False, str(e)
    what = f"{left} arm-runs are left"
    if not known:
        raise HeadwaterError(f"{what}, submitted as job {number}, and nobody says whether it is alive", where=place, found=found, next=again)
    if done.returncode == 0 and any(line.strip() and not line.startswith("CLUSTER:") for line in done.stdout.splitlines()):
        later = "the same command tells what is left, and submits it once the job is gone; slurm.submit=again submits beside it"
        raise TemporaryError(f"{what}, and job {number} is alive", where=place, next=later)


def _head(config: Ablation, name: str, root: str, more: list[str]) -> list[str]:
    assert config.slurm is not None
    lines = [f"--job-name={name}", f"--output={root}/%x-%j.log", *more, *config.slurm.options]
    return ["#!/bin/bash", *(f"#SBATCH {line}" for line in lines), "", "set -e", f"cd {shlex.quote(storage.absolute('.'))}", *config.slurm.setup]


def arms_script(config: Ablation, runs: list[ArmRun], left: list[int], root: str) -> str:
    """The array job. Runs of several processes are trained by torchrun on all nodes of the task, then evaluated by one process."""
    s = config.slurm
    assert s is not None
    name = (config.name or "ablation").replace(" ", "_")
    array = ",".join(map(str, left)) + (f"%{s.at_once}" if s.at_once else "")
    more = [f"--array={array}", f"--nodes={s.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={s.cpus}", f"--time={s.time}"]
    more += [f"--gpus-per-node={s.gpus}"] if s.gpus else []
    more += ["--requeue", "--open-mode=append", "--signal=TERM@120"]
    python, place = shlex.quote(sys.executable), shlex.quote(root)
    lines = [*_head(config, name, root, more), f'run={place}/$(printf %04d "$SLURM_ARRAY_TASK_ID")']
    processes = max(s.gpus, 1)
    if processes * s.nodes > 1:
        lines += [
            'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f'srun {python} -m torch.distributed.run --nnodes "$SLURM_NNODES" --nproc-per-node {processes} --max-restarts 3 '
            '--rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:29500" -m trainer "$run.yaml"',
        ]
    lines.append(f'srun --nodes=1 --ntasks=1 {python} -m trainer.arm "$run.yaml" "$run-evaluate.yaml"')
    return "\n".join(lines) + "\n"


def report_script(config: Ablation, root: str) -> str:
    """The job after the array: the same command, on the resolved document."""
    name = (config.name or "ablation").replace(" ", "_") + "-report"
    lines = _head(config, name, root, ["--nodes=1", "--ntasks=1", "--time=01:00:00"])
    document = shlex.quote(storage.join(root, "ablation.yaml"))
    return "\n".join([*lines, f"{shlex.quote(sys.executable)} -m pipelines.commands run ablate -c {document} slurm=null"]) + "\n"
