"""What is launched is heard, stopped and counted, and never writes to the standard output of the command that launches it."""

from __future__ import annotations

import json
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest

from pipelines import launching
from pipelines.engine import open_job
from pipelines.format.errors import InputError


def test_lines_of_both_streams_go_to_the_person_and_the_log_and_none_to_standard_output(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    log = tmp_path / "log.jsonl"
    with open_job("local", log_path=str(log)) as job:
        status = job.launch(["-c", "import os, sys; print('out', os.environ['X']); print('err', file=sys.stderr); sys.exit(3)"], env={"X": "1"})
    said = capfd.readouterr()
    assert status == 3 and said.out == "" and {"out 1", "err"} <= set(said.err.splitlines())
    assert {json.loads(line)["line"] for line in log.read_text().splitlines()} == {"out 1", "err"}


def test_a_stop_is_passed_on_as_sigterm_and_waited_for() -> None:
    lines = ("import signal, sys, time", "signal.signal(15, lambda *_: (print('saved', flush=True), sys.exit(7)))", "print('up', flush=True)")
    code = "\n".join((*lines, "time.sleep(60)"))
    stop, heard = threading.Event(), []

    def told(line: str) -> None:
        heard.append(line)
        if line == "up":
            stop.set()

    began = time.monotonic()
    assert launching.here(["-c", code], 1, "local", None, stop, told) == 7
    assert heard == ["up", "saved"] and time.monotonic() - began < 20


def worker(monkeypatch: pytest.MonkeyPatch, main: Any, stopped: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The settings of a worker whose module is `toy`, and the lines it says."""
    said: list[str] = []
    ready = lambda value: types.SimpleNamespace(future=lambda: types.SimpleNamespace(result=lambda: value))
    mailbox = types.SimpleNamespace(
        say=types.SimpleNamespace(remote=lambda line: ready(said.append(line))), stopped=types.SimpleNamespace(remote=lambda: ready(stopped))
    )
    monkeypatch.setitem(sys.modules, "toy", types.ModuleType("toy"))
    monkeypatch.setitem(sys.modules, "toy.__main__", types.SimpleNamespace(main=main))  # type: ignore[arg-type]
    return {"mailbox": mailbox, "argv": ["-m", "toy", "a", "b=c"], "folder": "/nowhere", "env": {}}, said


def test_a_worker_calls_what_the_command_line_names_and_a_status_takes_its_group_down(monkeypatch: pytest.MonkeyPatch) -> None:
    config, said = worker(monkeypatch, lambda arguments, stop, say: say(" ".join(arguments)) or 0)
    launching.work(config)
    assert said == ["a b=c"]
    config, _ = worker(monkeypatch, lambda *_: 2)
    with pytest.raises(RuntimeError, match="status 2"):
        launching.work(config)


def test_a_worker_hears_that_it_should_stop_and_its_status_is_then_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "POLL_SECONDS", 0.01)
    config, _ = worker(monkeypatch, lambda arguments, stop, say: 143 if stop.wait(10) else 0, stopped=True)
    launching.work(config)


def test_more_workers_than_a_machine_of_our_own_can_hold_are_refused_at_once() -> None:
    ray = types.SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0})
    ask = lambda each: launching.on_ray(ray, None, ["-m", "toy"], 3, each, None, threading.Event(), print, "", fixed=True)
    with pytest.raises(InputError, match="cannot hold") as caught:
        ask({"CPU": 1.0})
    assert "'CPU': 3.0" in str(caught.value.allowed)
    with pytest.raises(InputError, match="GPU"):
        ask({"CPU": 0.5, "GPU": 1.0})


def test_a_mailbox_gives_each_line_once() -> None:
    box = launching.Mailbox()
    box.say("a")
    box.say("b")
    assert box.take() == ["a", "b"] and box.take() == [] and not box.stopped()
    box.stop()
    assert box.stopped()
