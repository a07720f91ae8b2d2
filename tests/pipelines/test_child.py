"""The guarded child: what hostile code in it can cost is one record."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from pipelines.format.errors import Reject
from pipelines.media import child
from pipelines.media.child import Child, ChildDied, ask, close_children, guarded

HOSTILE = """
import os, re, ctypes, socket, time
from pipelines.format.errors import Reject

def echo(args, file):
    data = file.read()
    yield {"args": args, "n": len(data)}, data

def crash(args, file):
    yield {}, b"before"
    ctypes.string_at(0)

def abort(args, file):
    os.abort()
    yield

def leave(args, file):
    os._exit(7)
    yield

def spin(args, file):
    re.match(r"(a+)+$", "a" * 64 + "b")     # holds the interpreter lock, as C code in an endless loop does
    yield

def sleep(args, file):
    time.sleep(600)
    yield

def eat(args, file):
    bytearray(1 << 36)
    yield

def world(args, file):
    import resource, sys
    memory = resource.getrlimit(resource.RLIMIT_AS)[0]
    return {"environment": os.environ.get("WHERE_LIBRARIES_ARE"), "loaded": "colorsys" in sys.modules, "memory": memory}, b""

def refuse(args, file):
    yield {}, b"one"
    raise Reject("not_allowed", "because")

def bug(args, file):
    raise KeyError("field")
    yield

def nonsense(args, file):
    os.write(args["fd"], bytes([255] * 64))
    time.sleep(600)
    yield

def misdeeds(args, file):
    deeds = {
        "socket": lambda: socket.socket(),
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "fork": os.fork,
        "write": lambda: open(args["path"], "w"),
        "read": lambda: open(args["victim"]).read(),
        "read /etc": lambda: open("/etc/passwd").read(),
        "unlink": lambda: os.unlink(args["victim"]),
        "kill": lambda: os.kill(args["parent"], 0),
        "relative": lambda: open("canary.txt"),
        "mkdir": lambda: os.mkdir("here"),
    }
    out = {}
    for name, deed in deeds.items():
        try:
            deed()
            out[name] = "done"
        except OSError as e:
            out[name] = type(e).__name__
    yield {"deeds": out, "environment": sorted(os.environ)}, b""
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch) -> Iterator[str]:
    (tmp_path / "hostile_ops.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    close_children()
    yield "hostile_ops"
    close_children()


def test_bytes_come_back_as_they_went(hostile):
    for n in (0, 1, 70_000, child.INLINE, child.INLINE + 1, 3_000_001):  # through the socket, and beyond that as a file
        data = os.urandom(n)
        answer = ask(f"{hostile}:echo", {"x": [1, "ü"]}, data)
        assert answer.blob == data and answer.meta == {"args": {"x": [1, "ü"]}, "n": n}


def test_an_open_file_is_handed_over_without_being_read(hostile, tmp_path):
    (tmp_path / "f").write_bytes(b"content")
    with open(tmp_path / "f", "rb") as f:
        assert ask(f"{hostile}:echo", {}, f).blob == b"content"


def test_one_child_serves_many_calls(hostile):
    guarded_pids = set()
    for _ in range(5):
        ask(f"{hostile}:echo", {}, b"x")
        guarded_pids.add(child._idle[0].pid)
    assert len(guarded_pids) == 1


@pytest.mark.parametrize(("op", "reason"), [("crash", "unreadable"), ("abort", "unreadable"), ("leave", "unreadable"), ("eat", "too_large")])
def test_a_dying_decoder_costs_one_record_and_the_next_call_works(hostile, op, reason):
    with pytest.raises(Reject) as e:
        list(guarded(f"{hostile}:{op}", {}))
    assert e.value.reason == reason
    assert ask(f"{hostile}:echo", {}, b"next").blob == b"next"


def test_what_was_answered_before_the_crash_is_kept(hostile):
    answers = guarded(f"{hostile}:crash", {})
    assert next(answers).blob == b"before"
    with pytest.raises(Reject, match="SIGSEGV"):
        next(answers)


def test_an_endless_loop_ends_at_its_processor_limit(hostile):
    start = time.monotonic()
    with pytest.raises(Reject) as e:
        list(guarded(f"{hostile}:spin", {}, wall_s=60, cpu_s=1))
    assert e.value.reason == "timeout" and time.monotonic() - start < 30


def test_a_sleeping_decoder_ends_at_the_wall_deadline_within_two_seconds(hostile):
    ask(f"{hostile}:echo", {}, b"warm")
    start = time.monotonic()
    with pytest.raises(Reject) as e:
        list(guarded(f"{hostile}:sleep", {}, wall_s=0.5))
    assert e.value.reason == "timeout" and time.monotonic() - start < 2.5


def test_reasons_given_in_the_child_arrive_and_bugs_are_unreadable(hostile):
    answers = guarded(f"{hostile}:refuse", {})
    assert next(answers).blob == b"one"
    with pytest.raises(Reject) as e:
        next(answers)
    assert (e.value.reason, e.value.detail) == ("not_allowed", "because")
    with pytest.raises(Reject) as e:
        list(guarded(f"{hostile}:bug", {}))
    assert e.value.reason == "unreadable" and "KeyError" in e.value.detail


def test_nonsense_on_the_wire_is_not_believed(hostile):
    c = Child()
    fd = next(int(f) for f in os.listdir(f"/proc/{c.pid}/fd") if "socket" in os.readlink(f"/proc/{c.pid}/fd/{f}"))
    with pytest.raises(ChildDied, match="nonsense"):
        list(c.call(f"{hostile}:nonsense", {"fd": fd}, wall_s=20))
    assert not c.alive


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def test_the_child_can_not_reach_out_write_delete_start_kill_or_read_other_files(hostile, tmp_path, tmp_path_factory):
    victim = tmp_path_factory.mktemp("elsewhere") / "victim"
    victim.write_text("still here")
    args = {"path": str(tmp_path / "new"), "victim": str(victim), "parent": os.getpid()}
    found = ask(f"{hostile}:misdeeds", args).meta
    walls = child._idle[0].walls
    held = {"read", "read /etc"} if "landlock" in walls else set()
    held |= {"socket", "exec", "fork", "write", "unlink", "kill", "mkdir"} if "seccomp" in walls else set()
    assert not [deed for deed in held | {"relative"} if found["deeds"][deed] == "done"], found
    assert victim.read_text() == "still here" and not (tmp_path / "new").exists()


def test_no_secret_of_the_environment_reaches_the_child(hostile, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("https_proxy", "http://canary")
    names = ask(f"{hostile}:misdeeds", {"path": "/nowhere/x", "victim": "/nowhere/y", "parent": os.getpid()}).meta["environment"]
    assert set(names) <= {"LC_ALL", "OMP_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LC_CTYPE"}


def test_codecs_load_in_the_child_wherever_the_program_was_started_from(tmp_path):
    script = "from pipelines.media.child import ask, close_children; from pipelines.format.errors import Reject\n"
    script += "try: ask('pipelines.media.frames:probe', {'container': 'mov', 'max_pixels': 1}, b'x' * 99)\n"
    script += "except Reject as e: print(e.reason, e.detail)\nclose_children()"
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "InvalidData" in done.stdout, done.stdout + done.stderr  # FFmpeg's own word: it was loaded, and asked


def test_leaving_early_does_not_leave_a_busy_child_behind(hostile):
    answers = guarded(f"{hostile}:refuse", {})
    next(answers)
    answers.close()
    assert all(c.alive for c in child._idle) and ask(f"{hostile}:echo", {}, b"x").blob == b"x"


def test_nested_calls_use_children_of_their_own(hostile):
    outer = guarded(f"{hostile}:refuse", {})
    next(outer)
    assert ask(f"{hostile}:echo", {}, b"inner").blob == b"inner"
    with pytest.raises(Reject, match="because"):
        next(outer)


def test_kinds_of_children_are_not_mixed_and_each_serves_its_own_number_of_calls(hostile, monkeypatch):
    close_children()
    monkeypatch.setenv("WHERE_LIBRARIES_ARE", "/somewhere")
    short = child.Kind(memory=1 << 30, retire=2, keep=("WHERE_LIBRARIES_ARE",), first=("colorsys", "no_such_module"))
    for _ in range(2):
        list(guarded(f"{hostile}:echo", {}, b"x", kind=short))
    assert child._idle == []
    list(guarded(f"{hostile}:echo", {}, b"x", kind=short))
    ordinary = ask(f"{hostile}:world", {}).meta
    special = next(guarded(f"{hostile}:world", {}, kind=short)).meta
    assert [c.kind for c in child._idle] == [child.Kind()]
    assert special == {"environment": "/somewhere", "loaded": True, "memory": 1 << 30}
    assert ordinary == {"environment": None, "loaded": False, "memory": child.MEMORY}


def test_a_child_retires_after_its_calls(hostile, monkeypatch):
    monkeypatch.setattr(child, "RETIRE", 2)
    ask(f"{hostile}:echo", {}, b"1")
    first = child._idle[0]
    ask(f"{hostile}:echo", {}, b"2")
    assert not first.alive and child._idle == []


def test_the_child_dies_with_its_parent_even_in_an_endless_loop(hostile, tmp_path):
    script = f"""
        import sys, threading, time
        sys.path.insert(0, {str(tmp_path)!r})
        from pipelines.media.child import Child
        box = []
        threading.Thread(target=lambda: box.append(Child())).start()      # the thread ends, the child must not
        while not box: time.sleep(0.01)
        time.sleep(0.1)
        assert box[0].alive
        threading.Thread(target=lambda: list(box[0].call("hostile_ops:spin", {{}}, wall_s=300, cpu_s=300)), daemon=True).start()
        time.sleep(0.3)
        print(box[0].pid, flush=True)
        time.sleep(300)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert _running(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    for _ in range(100):
        if not _running(pid):
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child outlived its parent by five seconds")


def _running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
