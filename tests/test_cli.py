"""The command line as a person and as a script meet it: help, errors, exit statuses, one JSON object, clean stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines import commands
from pipelines.commands import main, run
from pipelines.format import errors
from pipelines.format.errors import InputError
from pipelines.stopping import stopping
from pipelines.terminal import clean, short
from tests import toys

PROGRAM = [sys.executable, "-m", "pipelines.commands"]


def say(*words: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run([*PROGRAM, *words], capture_output=True, text=True, cwd=cwd, env={**os.environ, **env}, timeout=120)


def tell(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    """The command in this process, with --json: its status and the object."""
    code = main([*words, "--json"])
    out = capfd.readouterr().out
    assert out.count("\n") == 1, f"stdout is more than one object: {out!r}"
    return code, json.loads(out)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curated dataset, its encoded form and a plan."""
    root = tmp_path_factory.mktemp("shelf")
    toys.curated(str(root / "set"))
    toys.encoded(str(root / "encoded"), str(root / "set"))
    toys.plan(str(root / "plan"), str(root / "encoded"))
    return root


# ---- help ------------------------------------------------------------------------------------------------------------------------------


def test_help_names_every_verb_and_answers_within_half_a_second() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = say("--help")
        times.append(time.perf_counter() - start)
    assert done.returncode == 0
    for verb in commands.verbs():
        assert f"  {verb} " in done.stdout
    assert min(times) <= 0.5, times


@pytest.mark.parametrize("verb", list(commands.verbs()))
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert "--json" in said and commands.verbs()[verb] in said


def test_a_misspelt_verb_is_told_its_neighbour(capfd: pytest.CaptureFixture[str]) -> None:
    code, said = tell(capfd, "verfy")
    assert code == 2 and said["error"]["next"] == "pipelines verify" and said["error"]["exit"] == 2


def test_a_misspelt_option_is_told_its_neighbour(capfd: pytest.CaptureFixture[str], shelf: Path) -> None:
    code, said = tell(capfd, "verify", str(shelf / "set"), "--depe")
    assert code == 2 and "--deep" in said["error"]["next"]


def test_a_misspelt_stage_is_told_its_neighbour(capfd: pytest.CaptureFixture[str]) -> None:
    code, said = tell(capfd, "run", "imagetext", "-c", "x.yaml")
    assert code == 2 and "image-text" in said["error"]["next"] and "encode" in said["error"]["allowed"]


# ---- exit statuses -----------------------------------------------------------------------------------------------------------------------

CASES = [
    (errors.RecipeError("x"), 2),
    (errors.InputError("x"), 2),
    (errors.BudgetError("x", allowed="less"), 3),
    (errors.VerifyError("x"), 4),
    (errors.ErrorBudgetSpent("x"), 5),
    (errors.ConflictError("x"), 6),
    (errors.StorageError("x"), 74),
    (errors.TemporaryError("x"), 75),
    (errors.Stopped("x", signal=15), 143),
    (errors.Stopped("x", signal=2), 130),
    (KeyboardInterrupt(), 130),
    (OSError(28, "No space left on device", "/data"), 74),
    (ZeroDivisionError("ours"), 1),
]


@pytest.mark.parametrize("error, code", CASES, ids=lambda x: type(x).__name__ if isinstance(x, BaseException) else str(x))
def test_an_error_becomes_its_exit_status_and_one_object(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(args: object) -> None:
        raise error

    monkeypatch.setattr("pipelines.commands.stats.answer", fails)
    found, said = tell(capfd, "stats", "anywhere")
    assert found == code == said["error"]["exit"]
    assert set(said["error"]) == {"class", "what", "where", "found", "allowed", "next", "exit"}


def test_our_own_bug_shows_its_traceback_on_stderr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("pipelines.commands.stats.answer", lambda args: 1 / 0)
    assert main(["stats", "x"]) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_what_libraries_print_does_not_reach_stdout(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def noisy(args: object) -> dict[str, int]:
        print("a library says hello")
        os.write(1, b"and so does C\n")
        subprocess.run(["echo", "and a child"], check=True)
        return {"n": 1}

    monkeypatch.setattr("pipelines.commands.stats.answer", noisy)
    code, said = tell(capfd, "stats", "x")
    assert code == 0 and said == {"n": 1}


def test_a_figure_that_does_not_exist_is_null(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("pipelines.commands.stats.answer", lambda args: {"loss": [float("nan"), 1.5, float("inf")]})
    assert tell(capfd, "stats", "x")[1] == {"loss": [None, 1.5, None]}


def test_a_reader_that_leaves_early_causes_no_traceback(shelf: Path) -> None:
    command = f"{' '.join(PROGRAM)} inspect {shelf / 'set'} -n 6 | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr and len(done.stdout) == 10


# ---- run -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rest, found",
    [
        (["a.b=c"], ["a.b=c"]),
        (["--retry", "transient", "seed=1"], ["retry=transient", "seed=1"]),
        (["--verify"], ["verify=true"]),
        (["--verify", "seed=1"], ["verify=true", "seed=1"]),
        (["--shard-bytes=4M"], ["shard_bytes=4M"]),
        (["filters.0.image_size.min_side=64"], ["filters.0.image_size.min_side=64"]),
        (["arms.vqa20+text80.tokens.vqa=1M"], ["arms.vqa20+text80.tokens.vqa=1M"]),
    ],
)
def test_overrides_are_read_as_documented(rest: list[str], found: list[str]) -> None:
    assert run.overrides(rest) == found


def test_a_stray_word_is_refused() -> None:
    with pytest.raises(InputError, match="not understood"):
        run.overrides(["seed"])


def tiny(folder: Path, scenes: int = 300, **more: object) -> str:
    """A recipe over the embedded world."""
    path = folder / "tiny.yaml"
    document = {"source": {"world": {"kind": "image-text", "scenes": scenes}}, "engine": "local", "output": str(folder / "out"), **more}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return str(path)


def test_run_ends_with_the_stats_the_path_and_the_seconds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = tell(capfd, "run", "image-text", "-c", tiny(tmp_path))
    assert code == 0 and said["path"] == str(tmp_path / "out") and said["seconds"] >= 0
    assert said["in"] == said["written"] + sum(said["filtered"].values()) + sum(said["rejected"].values()) == 300
    assert said["kind"] == "dataset" and said["records"] == 300 and said["lineage"] == []
    again = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file() and p.name != "log.jsonl"}
    assert tell(capfd, "run", "image-text", "-c", tiny(tmp_path))[0] == 0
    assert again == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file() and p.name != "log.jsonl"}


def test_a_document_that_extends_nothing_that_is_there_ends_2_with_its_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "arm.yaml").write_text("seed: 1\nextends: gone.yaml\n")
    code, said = tell(capfd, "run", "mix", "-c", str(tmp_path / "arm.yaml"), "--dry-run")
    assert code == 2 and said["error"]["where"] == f"{tmp_path}/arm.yaml:2: extends" and "vqa20" in said["error"]["allowed"]
    (tmp_path / "arm.yaml").write_text("extends: vqa20\nsources: {vqa: {tokens: 1K, max_share: 2}}\n")
    code, said = tell(capfd, "run", "mix", "-c", str(tmp_path / "arm.yaml"), "--dry-run")
    assert code == 2 and said["error"]["where"] == f"{tmp_path}/arm.yaml:2"


def test_a_dry_run_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = tell(capfd, "run", "image-text", "-c", tiny(tmp_path), "--dry-run")
    assert code == 0 and said["dry_run"] is True and said["parts"] == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, says",
    [({"sourc": 1}, "unknown key 'sourc'"), ({"seed": "seven"}, "seed"), ({"source": {"wrld": {}}}, "did you mean 'world'")],
)
def test_a_wrong_document_is_told_by_line(change: dict, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = tiny(tmp_path, **change)
    key = next(iter(change))
    line = next(i for i, text in enumerate(Path(config).read_text().splitlines(), 1) if text.startswith(f"{key}:"))
    code, said = tell(capfd, "run", "image-text", "-c", config)
    assert code == 2 and says in said["error"]["what"]
    assert said["error"]["where"].startswith(f"{config}:{line}")


def test_a_recipe_of_another_kind_than_the_verb_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = tell(capfd, "run", "vqa", "-c", tiny(tmp_path))
    assert code == 2 and said["error"]["found"] == "image-text"


def test_a_document_that_is_not_there_lists_the_packaged_ones(capfd: pytest.CaptureFixture[str]) -> None:
    code, said = tell(capfd, "run", "image-text", "-c", "nowhere.yaml")
    assert code == 2 and "world_image_text" in said["error"]["allowed"]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_a_job_cleanly_and_the_same_command_finishes_it(number: int, code: int, tmp_path: Path) -> None:
    config = tiny(tmp_path, scenes=20_000)
    words = ["run", "image-text", "-c", config]
    child = subprocess.Popen([*PROGRAM, *words], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/parts/*.json")):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.05)
    child.send_signal(number)
    start = time.monotonic()
    _, said = child.communicate(timeout=40)
    assert child.returncode == code and time.monotonic() - start <= 30
    assert f"pipelines {' '.join(words)}" in said
    assert not (tmp_path / "out/manifest.json").exists()
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("out/parts/*.json")}
    assert main([*words, "source.world.scenes=20000"]) == 0
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("out/parts/*.json")}.items()


def test_a_second_signal_ends_at_once() -> None:
    with pytest.raises(errors.Stopped) as stop, stopping(["pipelines", "run", "x y"]) as state:
        state.watch(SimpleNamespace(set=lambda: None))  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert stop.value.exit == 143 and stop.value.next == "pipelines run 'x y'"


# ---- what data may do to a terminal ------------------------------------------------------------------------------------------------------

HOSTILE = [
    "\x1b]0;title\x07",
    "\x1b]52;c;ZWNobyBoaQ==\x1b\\",
    "\x1b[2J\x1b[1;1H",
    "\x1bP+q544e\x1b\\",
    "\x9b31m",
    "\r\x08\x07",
    "a\u202egpj.exe",
    "\x1bc",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_escape_of_a_caption_reaches_the_terminal(text: str) -> None:
    cleaned = clean(f"before{text}after")
    assert not any((ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 or c in "\u202e\u2066" for c in cleaned)
    assert cleaned.startswith("before") and cleaned.endswith("after")


@given(st.text())
def test_cleaning_leaves_no_control_and_is_idempotent(text: str) -> None:
    cleaned = clean(text)
    assert not any((ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 for c in cleaned)
    assert clean(cleaned) == cleaned and len(short(text, 20)) <= 20


def test_output_to_a_pipe_has_no_colour(shelf: Path) -> None:
    assert "\x1b" not in say("stats", str(shelf / "set"), NO_COLOR="").stdout


def test_whatever_a_stop_breaks_ends_as_a_stop() -> None:
    """A worker that dies because it was told to is not our bug; the cause stays visible for whoever asks."""
    with pytest.raises(errors.Stopped) as stop, stopping(["pipelines"]) as state:
        state.watch(SimpleNamespace(set=lambda: None))  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("a worker died")
    assert stop.value.exit == 130 and isinstance(stop.value.__cause__, RuntimeError)


def test_without_a_signal_an_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError), stopping(["pipelines"]):
        raise RuntimeError("ours")


def test_signal_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stopping(["pipelines"]):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
