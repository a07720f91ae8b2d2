"""doctor: a version below its floor fails, a missing optional package does not, and floors agree with what is asked for at installation."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from pipelines.commands import doctor, main

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the child that imports torch."""
    monkeypatch.setattr(doctor, "_torch", lambda: doctor._row("torch loads", "ok", "stub"))


@pytest.mark.parametrize("text, found", [("2.13.0+cpu", (2, 13)), ("13.0.0", (13,)), ("2026.6", (2026, 6)), ("1.0rc1", (1,)), ("x", ())])
def test_versions_compare_as_numbers(text: str, found: tuple[int, ...]) -> None:
    assert doctor.numbers(text) == found


def test_ten_is_above_nine() -> None:
    assert doctor.numbers("10.0") > doctor.numbers("9.9")


def test_the_machine_that_runs_the_tests_is_well(quick: None, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["ok"] and {"python", "ray", "torch", "disk", "memory", "cores"} <= {row["what"] for row in said["checks"]}


def test_video_decoders_are_shown_as_they_load(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor._video("pyav")
    assert found["state"] == "ok" and "FFmpeg" in found["found"]
    monkeypatch.setattr("pipelines.media.backends.find_spec", lambda name: None)
    assert doctor._video("decord")["state"] == "note" and doctor._video("decord")["found"] == "not installed"
    assert doctor._video("pyav")["state"] == "fail"


def test_a_version_below_its_floor_fails_with_status_4(quick: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "12.9.9" if name == "pillow" else real(name))
    assert main(["doctor", "--json"]) == 4
    bad = [row for row in json.loads(capfd.readouterr().out)["checks"] if row["state"] == "fail"]
    assert [row["what"] for row in bad] == ["pillow"] and bad[0]["floor"] == "13.0.0"


def test_a_missing_required_package_fails_and_a_missing_optional_one_is_a_note() -> None:
    assert doctor._package("no-such-package", "1", "why", required=True)["state"] == "fail"
    assert doctor._package("no-such-package", "1", "why", required=False)["state"] == "note"


def test_floors_and_dependencies_and_constraints_agree() -> None:
    """What pip may install is never below what doctor asks for, and the known-good set is above both."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    asked = {m[1].lower(): m[2] for d in project["dependencies"] if (m := re.match(r"([\w-]+)(?:\[[^\]]*\])?>=([\d.]+)", d))}
    lines = [line for line in (REPO / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {name.lower(): v for name, _, v in (line.partition("==") for line in lines)}
    for name, floor, _ in doctor.FLOORS:
        assert doctor.numbers(asked[name]) >= doctor.numbers(floor), name
        assert doctor.numbers(pinned[name]) >= doctor.numbers(floor), name
    for name, floor, _ in doctor.OPTIONAL:
        if name in pinned:
            assert doctor.numbers(pinned[name]) >= doctor.numbers(floor), name


def test_constraints_are_plain_pins_without_places() -> None:
    for line in (REPO / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line
