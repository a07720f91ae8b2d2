"""Journeys: every document is read before anything runs, one job serves all steps, and a stop ends between steps."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pipelines import journey, plugins
from pipelines.format.document import Document
from pipelines.format.errors import InputError, RecipeError
from tests import toys


class Config(Document):
    name: str = ""
    output: str
    size: int = 1
    nested: dict[str, int] = {}


class Toy:
    """A stage that makes a toy dataset and remembers what it was given."""

    config = Config

    def __init__(self) -> None:
        self.ran: list[tuple[Config, Any]] = []

    def run(self, config: Config, job: Any) -> str:
        self.ran.append((config, job))
        return toys.curated(config.output, n=config.size)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    stage = Toy()
    real = plugins.find
    monkeypatch.setattr(plugins, "find", lambda group, name: stage if name == "toy" else real(group, name))
    return stage


def written(folder: Path, steps: list[dict[str, Any]]) -> str:
    (folder / "toy.yaml").write_text(yaml.safe_dump({"output": "nowhere", "size": 2}))
    path = folder / "j.yaml"
    path.write_text(yaml.safe_dump({"steps": steps}))
    return str(path)


def test_steps_run_in_order_in_one_job_with_their_changes(tmp_path: Path, toy: Toy) -> None:
    config = str(tmp_path / "toy.yaml")
    steps = [{"run": "toy", "config": config, "set": {"output": str(tmp_path / name), "size": size}} for name, size in (("a", 4), ("b", 6))]
    found = journey.read(written(tmp_path, steps))
    job, said = SimpleNamespace(stop=Event()), []
    rows = list(journey.travel(journey.prepare(found), job, said.append))
    assert [Path(row["path"]).name for row in rows] == ["a", "b"] and [row["stats"]["records"] for row in rows] == [4, 6]
    assert all(given is job for _, given in toy.ran) and len(said) == 4 and "6 records" in said[-1]
    assert found.name == "j"


def test_a_mistake_in_the_last_document_shows_before_the_first_step(tmp_path: Path, toy: Toy) -> None:
    config = str(tmp_path / "toy.yaml")
    steps = [{"run": "toy", "config": config}, {"run": "toy", "config": config, "set": {"sise": 3}}]
    with pytest.raises(RecipeError, match="sise"):
        journey.prepare(journey.read(written(tmp_path, steps)))
    assert toy.ran == []


def test_a_stage_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no stage of this name") as caught:
        journey.prepare(journey.read(written(tmp_path, [{"run": "encde", "config": "x"}])))
    assert "encode" in str(caught.value.next)


def test_a_stop_ends_between_steps(tmp_path: Path, toy: Toy) -> None:
    config = str(tmp_path / "toy.yaml")
    steps = [{"run": "toy", "config": config, "set": {"output": str(tmp_path / name)}} for name in "ab"]
    job = SimpleNamespace(stop=Event())
    job.stop.set()
    rows = list(journey.travel(journey.prepare(journey.read(written(tmp_path, steps))), job, lambda text: None))
    assert len(rows) == len(toy.ran) == 1


def test_the_packaged_demo_is_a_journey_of_twelve_valid_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps = journey.prepare(journey.read("demo"))
    assert len(steps) == 12 and steps[-1][0].run == "ablate"
    outputs = [config.output for _, _, config in steps]
    assert len(set(outputs)) == 12, "no two steps share an output"
    made = set()
    for _, _, config in steps[:-1]:
        reads = [getattr(config, "dataset", None), *getattr(config, "datasets", [])]
        assert {r for r in reads if r} <= made, "every step reads only what an earlier one has made"
        made.add(config.output)


def test_each_step_logs_into_its_own_artifact(tmp_path: Path, toy: Toy) -> None:
    config = str(tmp_path / "toy.yaml")
    steps = [{"run": "toy", "config": config, "set": {"output": str(tmp_path / name)}} for name in "ab"]
    job = SimpleNamespace(stop=Event())
    places = []
    for _ in journey.travel(journey.prepare(journey.read(written(tmp_path, steps))), job, lambda text: None):
        places.append(job.log_path)
    assert places == [str(tmp_path / name / "log.jsonl") for name in "ab"]
    assert journey.log_path(Config(output="s3://bucket/x")) is None, "an object store cannot be appended to"
