"""verify: what was altered is found, and named by file; what was not is left in peace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.check_dataset import check
from pipelines.commands import main
from tests import toys

KINDS = ("text", "image-text", "video", "action-video", "vqa")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shelf")
    for kind in KINDS:
        toys.curated(str(root / kind), kind)
        toys.encoded(str(root / f"{kind}-encoded"), str(root / kind), kind)
    return root


@pytest.fixture
def damaged(shelf: Path, tmp_path: Path) -> Path:
    """A copy of the image-text dataset to be altered."""
    return Path(shutil.copytree(shelf / "image-text", tmp_path / "set"))


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["", "-encoded"])
def test_an_untouched_dataset_has_no_problem(shelf: Path, kind: str, form: str) -> None:
    assert check(str(shelf / f"{kind}{form}"), {"deep": True}) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_any_file_of_bytes_is_found_and_its_file_named(shelf: Path, data: st.DataObject) -> None:
    root = shelf / data.draw(st.sampled_from(["image-text", "text", "vqa-encoded"]))
    hashed = sorted(p for p in root.rglob("*") if p.suffix in (".tar", ".bin", ".parquet"))
    path = data.draw(st.sampled_from(hashed))
    at = data.draw(st.integers(0, path.stat().st_size - 1))
    bit = data.draw(st.integers(0, 7))
    flip(path, at, bit)
    try:
        found = check(str(root), {"deep": True})
    finally:
        flip(path, at, bit)
    assert str(path.relative_to(root)) in {problem["file"] for problem in found}


def test_a_flipped_byte_makes_the_command_exit_4_with_the_file(damaged: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tar = next(damaged.glob("data-00001-*.tar"))
    flip(tar, tar.stat().st_size // 2)
    assert main(["verify", str(damaged), "--json"]) == 0, "a shallow check reads no data"
    capfd.readouterr()
    assert main(["verify", str(damaged), "--deep", "--json"]) == 4
    said = json.loads(capfd.readouterr().out)
    assert said["ok"] is False and [p["file"] for p in said["problems"]] == [tar.name]


@pytest.mark.parametrize("pattern", ["data-*.tar", "index-*.parquet", "shards-*.parquet", "rejects/*.parquet"])
@pytest.mark.parametrize("how", ["gone", "short"])
def test_a_missing_or_short_file_is_found_without_reading_data(damaged: Path, pattern: str, how: str) -> None:
    path = sorted(damaged.glob(pattern))[0]
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert str(path.relative_to(damaged)) in {p["file"] for p in check(str(damaged), {})}


@pytest.mark.parametrize(
    "key, change", [("in", 1), ("written", 1), ("records", 1), ("filtered", {"toy_filter": 9}), ("rejected", {}), ("fingerprint", "0" * 64)]
)
def test_a_card_that_says_otherwise_is_found(damaged: Path, key: str, change: object) -> None:
    path = damaged / "manifest.json"
    card = json.loads(path.read_text())
    card[key] = card[key] + change if isinstance(change, int) else change
    path.write_text(json.dumps(card))
    assert any(p["file"] == "manifest.json" for p in check(str(damaged), {}))


@pytest.mark.parametrize("key", ["in", "written", "shards", "filtered", "files"])
def test_a_commit_record_that_says_otherwise_is_found(damaged: Path, key: str) -> None:
    path = damaged / "parts/00001.json"
    commit = json.loads(path.read_text())
    commit[key] = commit[key] + 1 if isinstance(commit[key], int) else type(commit[key])()
    path.write_text(json.dumps(commit))
    assert check(str(damaged), {})


def test_a_lost_commit_record_is_found(damaged: Path) -> None:
    (damaged / "parts/00000.json").unlink()
    assert check(str(damaged), {})


def test_a_card_that_is_no_json_is_a_failed_verification(damaged: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (damaged / "manifest.json").write_text('{"format": ')
    assert main(["verify", str(damaged), "--json"]) == 4
    assert json.loads(capfd.readouterr().out)["problems"][0]["file"] == "manifest.json"


def test_no_card_at_all_is_a_wrong_path(tmp_path: Path) -> None:
    assert main(["verify", str(tmp_path), "--json"]) == 2


def test_a_parent_that_is_gone_is_told_and_is_no_problem(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    toys.curated(str(tmp_path / "set"))
    toys.encoded(str(tmp_path / "encoded"), str(tmp_path / "set"))
    shutil.rmtree(tmp_path / "set")
    assert main(["verify", str(tmp_path / "encoded"), "--deep", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["lineage"][0]["found"] == "missing"
