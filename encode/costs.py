"""What an encode costs, and whether it pays: hours and money from a measured rate, and from which epoch stored latents are the cheaper way.

In: counts, a rate, prices (`recipe.Costs`). Out: plain figures. Two ways are compared for a training run of E epochs over the dataset:

    stored      distinct images are encoded once, and their latents are kept for `months`
    on the fly  each epoch encodes every image it shows, so a frame that serves many samples is encoded for each of them, at the same rate and price

Both decode the same pictures once an encoding, which is counted; training itself costs the same and falls out. Not counted: that a trainer which
encodes needs room for the encoder and has steps of unequal length, and that reading latents takes bandwidth.
"""

from __future__ import annotations

from typing import Any

from encode.recipe import Costs


def hours(images: int, rate: float) -> float:
    """Of one worker."""
    return images / rate / 3600


def encoding(images: int, rate: float, prepared: float, workers: tuple[int, float], costs: Costs) -> dict[str, float]:
    """Hours and cost of encoding so many images once. `workers` = (processors, GPUs) of the worker that `rate` is of."""
    cpus, gpus = workers
    device = hours(images, rate)
    out = {"prepare_cpu_hours": hours(images, prepared)}
    out |= {"gpu_hours": device * gpus} if gpus else {"cpu_hours": device * cpus}
    cost = out["prepare_cpu_hours"] * costs.cpu_hour + device * (gpus * costs.gpu_hour if gpus else cpus * costs.cpu_hour)
    return {**out, "encode_cost": cost}


def keeping(nbytes: int, costs: Costs) -> float:
    """What storing costs."""
    return nbytes / 1e12 * costs.tb_month * costs.months


def pays_from(encode_cost: float, keep_cost: float, each_epoch: float) -> float | None:
    """Epochs from which storing is cheaper: encode + keep <= E * each epoch. None where encoding costs nothing."""
    return (encode_cost + keep_cost) / each_epoch if each_epoch else None


def compared(images: int, references: int, nbytes: dict[str, int], once: float, costs: Costs) -> dict[str, dict[str, Any]]:
    """By codec: bytes, what they cost to keep, and from how many epochs on that pays. `once` is the cost of encoding all distinct images."""
    each_epoch = once * references / max(images, 1)
    kept = {name: keeping(size, costs) for name, size in nbytes.items()}
    return {name: {"storage_cost": cost, "pays_from_epochs": pays_from(once, cost, each_epoch)} for name, cost in kept.items()}


def assumed(workers: tuple[int, float], costs: Costs) -> str:
    """The prices and the comparison, in a line for people."""
    hour = f"{costs.gpu_hour:g} a GPU-hour, {costs.cpu_hour:g} a CPU-hour" if workers[1] else f"{costs.cpu_hour:g} a CPU-hour"
    return f"{hour}, {costs.tb_month:g} a TB-month for {costs.months:g} months; or encode each epoch at this rate"
