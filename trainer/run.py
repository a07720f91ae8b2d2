"""The run document: a plan, a model, what the model learns by, and where the result goes. Its keys are the YAML's.

What comes in: `runs/*.yaml`. What goes out: a frozen `Run`. A run's fingerprint leaves out where things lie and how fast they go (output, paths,
threads, device, checkpoint rhythm), so that the same experiment keeps its name when it moves. No torch here: a command line that only reads
a document should not wait for it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from pipelines.format.document import Document, PartOf, Percent, Size, dump, fingerprint


class Loss(Document):
    """Weights of the two losses, each a mean over its own tokens of the whole step.

    scheme fixed: `text` and `flow` are the weights (the paper: 1.0 and 3.0). token_share: each times its loss's share of the step's trained tokens.
    centering: the paper's appendix D.2, weights that bring both losses to one moving target; `alpha` is the flow loss's part in the target, `mu` the
    target's memory from step to step (the paper's values are not known), and `text` and `flow` serve until both losses were seen.
    """

    scheme: Literal["fixed", "token_share", "centering"] = "fixed"
    alpha: Percent = Field(0.5, ge=0, le=1)
    mu: float = Field(0.99, ge=0, lt=1)
    text: float = Field(1.0, ge=0)
    flow: float = Field(3.0, ge=0)


class Flow(Document):
    """What the model predicts, in which space the error is measured, how t is drawn. t = 1 is data.

    predict x with loss_space v is the paper's best for semantic latents; predict v for VAE latents. `shift: auto` is
    s = max(1, sqrt(tokens * channels / 4096)) per image (RAE, arXiv 2510.11690); a number fixes s. `cfg_drop` names conditions (caption, action,
    context) and the share of records in which images do not see them: one draw a record, so named conditions fall together.
    """

    predict: Literal["x", "v"] = "x"
    loss_space: Literal["v", "x"] = "v"
    time: Literal["uniform", "logit_normal"] = "uniform"
    shift: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    cfg_drop: dict[Literal["caption", "action", "context"], Percent] = {}


class Optim(Document):
    """AdamW. lr is the peak; warmup is a share of all steps below 1, else a number of steps; cosine ends at `final` x lr."""

    lr: float = Field(3e-4, gt=0)
    warmup: Percent = Field(0.02, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    final: Percent = Field(0.1, ge=0, le=1)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    clip: float = Field(1.0, gt=0)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step `step` (from 0) of `steps`. The first step already moves; the last ends the cosine."""
        warm = self.warmup * steps if self.warmup < 1 else self.warmup
        if step + 1 <= warm:
            return self.lr * (step + 1) / warm
        if self.schedule == "constant":
            return self.lr
        done = (step + 1 - warm) / max(steps - warm, 1)
        return self.lr * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


class Guards(Document):
    """What stops a run by itself. nan: a loss or gradient that is not a number. spike: text loss, flow loss or gradient norm above
    median + factor x max(1.4826 MAD, 2 % of the median) of the last `window` steps, `patience` steps in a row (trainer/guards.py)."""

    nan: Literal["stop", "off"] = "stop"
    spike: Literal["off", "warn", "stop"] = "warn"
    factor: float = Field(20.0, gt=0)
    window: int = Field(128, ge=8)
    patience: int = Field(1, ge=1)


class Wandb(Document):
    """A Weights & Biases project for the lines of metrics.jsonl. mode: null leaves it to WANDB_MODE."""

    project: str
    entity: str | None = None
    group: str | None = None
    mode: Literal["online", "offline"] | None = None


class Logs(Document):
    """Where the lines of metrics.jsonl also go. tensorboard: a folder, or true for <output>/tensorboard. every: steps between lines there."""

    tensorboard: bool | str = False
    wandb: Wandb | None = None
    every: int = Field(1, ge=1)


class Encode(Document):
    """Latents are made while training, of the curated pictures. encode: the encoder as an encode recipe names it (null: as the plan's datasets do);
    one that makes other latents than the plan is of is refused. codec: latents go through it, as if they had been stored. service: what offers
    encoders, by its entry point in `pipelines.services`."""

    encode: dict[str, dict[str, Any] | None] | None = None
    codec: Literal["bf16", "f32", "int8", "f8e4m3"] | None = None
    service: str = "latents"


class Workers(Document):
    """What one process takes on a cluster: processors, and GPUs (null: one where the cluster has any and `device` allows it)."""

    cpus: float = Field(1, gt=0)
    gpus: float | None = Field(None, ge=0)


class Ema(Document):
    """A moving average of the weights, kept beside them in float32 and exported as ema.safetensors. decay: its memory from step to step; early
    on min(decay, (1 + steps) / (10 + steps)), so that short runs do not average their start."""

    decay: float = Field(0.9999, gt=0, lt=1)


class Layout(Document):
    """How ranks share the model: `replicate` copies of it, each cut over `shard` ranks (null: all there are). replicate 1 is FSDP, more is HSDP:
    the cut is gathered within a copy (the ranks of a machine, say), and only gradients travel between copies."""

    replicate: int = Field(1, ge=1)
    shard: int | None = Field(None, ge=1)


class Cache(Document):
    """Where, and how much of, remote shards is kept on this machine. dir: shared by its processes (default: HEADWATER_CACHE, or a folder of this
    user's in the temporary one); bytes: the most it may hold (default: half of what is free there, at most 64 GiB)."""

    dir: str | None = None
    bytes: Size | None = Field(None, ge=1 << 20)


class Run(Document):
    """One training run over a plan.

    batch: sequences a step, over all ranks. micro_batch: sequences of a rank that go through the model at once (default: all of them).
    steps: stop, and end the schedule, after so many (default: the whole plan). init: a finished run or checkpoint whose weights are the start.
    latents: `stored` are read, `encode` are made while training, of the pictures (docs/latents.md).
    checkpoint_every: steps between checkpoints (null: only when stopped); the newest `keep` stay. threads: torch's threads (null: as they are).
    prefetch: steps made ready early (null: 2 on a GPU, 0 on a CPU). workers: processes that read and compose batches (0: this one). verify: check
    local data files too, each once at first open (remote ones always are). None of the three changes a batch.
    processes: of each of `nodes` machines (several: `engine: ray`). retries: how often the run is gone on with when a process is lost.
    init_ema: start from the average that `init` keeps. recompute: blocks whose inner values are computed again in the backward pass instead of
    kept (all, or the first n). compile: each block through torch.compile (auto: on a GPU).
    peak_tflops: what one device could do, in TFLOP/s, for `mfu` (null: known for common cards in bf16, else no mfu).
    """

    name: str | None = None
    plan: str
    seed: int = 0
    init: str | None = None
    init_ema: bool = False
    latents: Literal["stored", "encode"] | Encode = "stored"
    model: Annotated[Any, PartOf("trainer.models")]
    loss: Loss = Loss()
    flow: Flow = Flow()
    optim: Optim = Optim()
    ema: Ema | None = None
    batch: Size = Field(512, ge=1)
    micro_batch: Size | None = Field(None, ge=1)
    steps: Size | None = Field(None, ge=1)
    output: str
    checkpoint_every: Size | None = Field(1000, ge=1)
    keep: int = Field(2, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int | None = Field(None, ge=1)
    processes: int = Field(1, ge=1)
    nodes: int = Field(1, ge=1)
    retries: int = Field(0, ge=0)
    parallel: Layout = Layout()
    recompute: Literal["none", "blocks"] | Annotated[int, Field(ge=1)] = "none"
    compile: Literal["auto"] | bool = "auto"
    prefetch: int | None = Field(None, ge=0)
    workers: int = Field(0, ge=0, le=64)
    cache: Cache = Cache()
    verify: bool = False
    guards: Guards = Guards()
    log: Logs = Logs()
    peak_tflops: float | None = Field(None, gt=0)
    engine: Literal["ray", "local"] = "local"
    resources: Workers | None = None

    def recipe(self) -> dict[str, Any]:
        """The resolved document, as saved with the run."""
        return dump(self)

    def identity(self, plan_fingerprint: str, init_fingerprint: str | None = None, encoder: str | None = None) -> str:
        """Fingerprint of what decides the result: the plan, the start, and every key that changes a number. `encoder`: the fingerprint of the one
        that makes latents, which stands for where its weights lie."""
        known = {k: v for k, v in self.recipe().items() if k not in PLACES}
        if self.latents != "stored":
            known["latents"] = {"encode": encoder, "codec": None if isinstance(self.latents, str) else self.latents.codec}
        for path, was in LATER.items():
            *outer, key = path.split(".")
            place = known
            for name in outer:
                place = place[name]
            if place[key] == was:
                del place[key]
        return fingerprint({"run": known, "plan": plan_fingerprint, "init": init_fingerprint})


# Keys that change where or how fast a run goes, not what comes out of it.
PLACES = frozenset(
    {"name", "plan", "init", "output", "checkpoint_every", "keep", "device", "threads", "processes", "engine", "resources"}
    | {"nodes", "retries"}
    | {"prefetch", "workers", "cache", "verify", "guards", "log", "peak_tflops", "parallel", "recompute", "compile"}
)
# Keys younger than the first runs, and what held before them: they enter a fingerprint when they say something else, so old runs keep their names.
LATER: dict[str, Any] = {"loss.scheme": "fixed", "loss.alpha": 0.5, "loss.mu": 0.99, "ema": None, "init_ema": False}
