"""How many workers of a step fit on the machines there are, and how many processors each may hold. Numbers only: nothing here knows Ray.

Machines differ: eight GPUs and few processors here, processors only there. A worker lies on one machine, and a share of a GPU on one GPU, so 0.6
of a GPU finds two places on two GPUs, not three. A pool larger than what fits would leave workers waiting for ever, and workers that take every
processor would wait for ever for what the steps beside them give. GPUs are what is dear: where there are few processors, the workers of GPUs hold
less of one each, rather than a GPU lying idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

ROUNDING = 1e-9  # 0.1 + 0.2 of a processor is 0.3 of one
LEAST = 0.01  # of a processor


def fitting(machines: Iterable[Mapping[str, float]], cpus: float, gpus: float = 0.0, beside: float = 0.0) -> tuple[int, float]:
    """(workers, processors each) for machines given as {"CPU": …, "GPU": …}; 0 workers where none fits anywhere.

    `beside` is what one worker of the other steps needs: as much is left free of all processors together, unless no worker would fit then."""
    machines = list(machines)
    free = sum(m.get("CPU", 0.0) for m in machines) - beside
    if gpus:
        slots = [(m.get("CPU", 0.0), _slots(m.get("GPU", 0.0), gpus)) for m in machines]
        total = sum(n for _, n in slots)
        room = min([free / total, *(cpu / n for cpu, n in slots if n)]) if total else cpus
        return total, max(LEAST, _step(min(cpus, room)))
    total = sum(int(m.get("CPU", 0.0) / cpus + ROUNDING) for m in machines)
    return min(total, max(1, int(free / cpus + ROUNDING))), cpus


def _slots(there: float, gpus: float) -> int:
    return int(there) * int(1 / gpus + ROUNDING) if gpus < 1 else int(there / gpus + ROUNDING)


def _step(cpus: float) -> float:
    """Above one, whole processors; below, hundredths."""
    return float(int(cpus + ROUNDING)) if cpus >= 1 else int(cpus * 100 + ROUNDING) / 100
