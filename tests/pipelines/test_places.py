"""Workers fit on machines as they are: on one machine each, a share of a GPU on one GPU, and never so many that the others cannot go on."""

import pytest

from pipelines.places import fitting


def machine(cpu, gpu=0):
    return {"CPU": float(cpu), **({"GPU": float(gpu)} if gpu else {})}


@pytest.mark.parametrize(
    ("machines", "cpus", "gpus", "beside", "workers"),
    [
        ([machine(8)], 1, 0, 0, 8),
        ([machine(8)], 3, 0, 0, 2),
        ([machine(2), machine(2)], 3, 0, 0, 0),
        ([machine(8)], 1, 0, 1, 7),
        ([machine(1)], 1, 0, 1, 1),
        ([machine(1)], 0.25, 0, 0.25, 3),
        ([machine(64, 8)], 1, 1, 1, 8),
        ([machine(64, 2)], 1, 0.5, 1, 4),
        ([machine(64, 2)], 1, 0.6, 1, 2),
        ([machine(64, 1)], 1, 0.1, 1, 10),
        ([machine(64, 4)], 1, 2, 1, 2),
        ([machine(64, 3), machine(64, 1)], 1, 2, 1, 1),
        ([machine(16), machine(8, 4), machine(96, 8)], 1, 1, 1, 12),
        ([machine(16)], 1, 1, 1, 0),
        ([], 1, 1, 1, 0),
    ],
)
def test_so_many_workers_fit(machines, cpus, gpus, beside, workers):
    assert fitting(machines, cpus, gpus, beside)[0] == workers


@pytest.mark.parametrize(
    ("machines", "cpus", "gpus", "each"),
    [
        ([machine(64, 8)], 4, 1, 4),
        ([machine(8, 8)], 1, 1, 0.87),
        ([machine(64), machine(4, 8)], 1, 1, 0.5),
        ([machine(9, 4)], 4, 1, 2),
        ([machine(1, 1)], 1, 1, 0.01),
    ],
)
def test_no_gpu_lies_idle_for_want_of_processors_and_loading_goes_on(machines, cpus, gpus, each):
    workers, held = fitting(machines, cpus, gpus, beside=1.0)
    assert held == pytest.approx(each) and workers == sum(m.get("GPU", 0) for m in machines) // gpus
    assert workers * held <= max(sum(m["CPU"] for m in machines) - 1, 0.01)
