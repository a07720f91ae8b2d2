"""What code that has taken over a decoding child can reach: with both walls up, and with each one alone."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from pipelines.media.child import Child, Kind, ask, close_children

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")

DEEDS = """
import ctypes, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)

def said(value):
    if value is None or value == -1:
        raise OSError(ctypes.get_errno(), "refused")
    return value

def sibling():  # a process of its own that shares memory: killing this one would not end it
    CLONE_VM, number = 0x100, {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    return said(libc.syscall(number, CLONE_VM | 0x4000 | 17, None, None, None, None))

def parents_memory(args):
    class Span(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
    mine = ctypes.create_string_buffer(8)
    here, there = Span(ctypes.addressof(mine), 8), Span(args["address"], 8)
    return said(libc.process_vm_readv(args["parent"], ctypes.byref(here), 1, ctypes.byref(there), 1, 0))

def datagram(address):  # no socket() and no connect(): one end of a pair may write to any other
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return one.sendto(b"stolen", address)

def try_all(args, file):
    own = 0
    deeds = {
        "tcp": lambda: socket.create_connection(("127.0.0.1", args["port"]), 1),
        "tcp6": lambda: socket.socket(socket.AF_INET6).connect(("::1", args["port"])),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"stolen", ("127.0.0.1", 53)),
        "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
        "name service": lambda: socket.getaddrinfo("localhost.invalid", 80),
        "unix": lambda: datagram(args["unix"]),
        "abstract": lambda: datagram("\\0" + args["abstract"]),
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "fork": os.fork,
        "sibling": sibling,
        "ptrace": lambda: said(libc.ptrace(16, args["parent"], None, None)),
        "memory": lambda: parents_memory(args),
        "mem file": lambda: open(f"/proc/{args['parent']}/mem", "rb"),
        "environment": lambda: open(f"/proc/{args['parent']}/environ", "rb").read(),
        "kill": lambda: os.kill(args["parent"], 0),
        "queue signal": lambda: said(-1 if libc.sigqueue(args["parent"], 0, None) else 0),
        "limit parent": lambda: said(libc.prlimit(args["parent"], 7, None, ctypes.create_string_buffer(16))),
        "raise limit": lambda: said(libc.prlimit(0, 9, struct.pack("QQ", 1 << 40, 1 << 40), None)),
        "shared memory": lambda: said(libc.shmget(0, 4096, 0o1600)),
        "passwords": lambda: open("/etc/passwd").read(),
        "canary": lambda: open(args["canary"]).read(),
        "list": lambda: os.listdir(os.path.dirname(args["canary"])),
        "write": lambda: open(args["new"], "w"),
        "make folder": lambda: os.mkdir(args["new"] + ".d"),
        "link": lambda: os.symlink("/etc/passwd", args["new"] + ".l"),
        "delete": lambda: os.unlink(args["canary"]),
        "rename": lambda: os.rename(args["canary"], args["new"]),
        "mode of what was handed over": lambda: os.fchmod(file.fileno(), 0o777),
        "date of what was handed over": lambda: os.utime(file.fileno(), (0, 0)),
        "write to what was handed over": lambda: os.write(file.fileno(), b"x"),
        "namespace": lambda: said(libc.unshare(0x10000000)),
        "mount": lambda: said(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
        "change root": lambda: os.chroot("/"),
    }
    out = {}
    for name, deed in deeds.items():
        if name in args["leave"]:
            continue
        try:
            value = deed()
            out[name] = "done"
            if name in ("fork", "sibling") and value == 0:
                os._exit(0)
        except BaseException as e:
            out[name] = type(e).__name__
    yield out, b""
"""
NETWORK = {"tcp", "tcp6", "udp", "raw", "netlink", "unix", "abstract"}
READING = {"passwords", "canary", "list", "mem file", "environment"}
WRITING = {"write", "make folder", "link", "delete", "rename"}
HANDED = {"mode of what was handed over", "date of what was handed over", "write to what was handed over"}
PROCESSES = {"exec", "fork", "sibling", "ptrace", "memory", "kill", "queue signal", "limit parent", "raise limit"}
REST = {"shared memory", "namespace", "mount", "change root", "name service"}


@pytest.fixture
def outside(tmp_path, tmp_path_factory, monkeypatch):
    """A place with a canary, sockets that listen, and what arrived there; beside it, where the child may read, the code."""
    away = tmp_path_factory.mktemp("away")
    (away / "canary").write_text("secret")
    handed = away / "handed"
    handed.write_bytes(b"media")
    handed.chmod(0o640)
    (tmp_path / "taken_over.py").write_text(DEEDS)
    for wall in ("_filter", "_only_read"):
        (tmp_path / f"without{wall}.py").write_text(f"import pipelines.media.jail as jail\njail.{wall} = lambda *a: False\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    close_children()
    arrived: list[str] = []
    named, abstract = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    short = Path("/tmp") / f"unix-{os.getpid()}-{tmp_path.name[-20:]}"  # a socket's name has 107 bytes at most
    named.bind(str(short))
    abstract.bind(f"\0{short.name}")
    tcp = socket.create_server(("127.0.0.1", 0))
    yield {
        "args": {"canary": str(away / "canary"), "new": str(away / "new"), "parent": os.getpid(), "port": tcp.getsockname()[1], "unix": str(short),
                 "abstract": short.name, "address": id(arrived)},
        "away": away, "handed": handed, "sockets": (named, abstract, tcp),
    }  # fmt: skip
    close_children()
    for one in (named, abstract, tcp):
        one.close()
    short.unlink()


def _deeds(outside, first: tuple[str, ...] = (), leave: tuple[str, ...] = ()) -> tuple[dict[str, str], tuple[str, ...]]:
    child = Child(kind=Kind(first=first))
    try:
        with open(outside["handed"], "rb") as f:
            (answer,) = child.call("taken_over:try_all", {**outside["args"], "leave": leave}, f, wall_s=60)
    finally:
        child.close()
    return answer.meta, child.walls


def _untouched(outside) -> None:
    assert (outside["away"] / "canary").read_text() == "secret" and sorted(p.name for p in outside["away"].iterdir()) == ["canary", "handed"]
    assert outside["handed"].stat().st_mode & 0o777 == 0o640 and outside["handed"].read_bytes() == b"media" and outside["handed"].stat().st_mtime > 0
    for one in outside["sockets"]:
        one.settimeout(0.05)
        with pytest.raises(TimeoutError):  # nothing arrived, nobody called
            one.accept() if one.type == socket.SOCK_STREAM else one.recv(10)


def test_with_both_walls_nothing_outside_is_reached(outside):
    found, walls = _deeds(outside)
    if walls != ("landlock", "seccomp"):
        pytest.skip(f"this kernel has {walls}")
    assert [name for name, what in found.items() if what == "done"] == []
    assert set(found) == NETWORK | READING | WRITING | HANDED | PROCESSES | REST
    _untouched(outside)


def test_without_landlock_the_filter_still_holds_the_network_writing_and_other_processes(outside):
    found, walls = _deeds(outside, ("without_only_read",))
    if walls != ("seccomp",):
        pytest.skip(f"this kernel has {walls}")
    assert {name for name, what in found.items() if what == "done"} <= READING  # what is lost, and nothing more
    _untouched(outside)


def test_without_the_filter_landlock_still_holds_reading_and_writing(outside):
    found, walls = _deeds(outside, ("without_filter",), leave=("sibling",))  # it would end us both
    if walls != ("landlock",):
        pytest.skip(f"this kernel has {walls}")
    assert not {name for name in READING | WRITING if found[name] == "done"}, found
    assert (outside["away"] / "canary").read_text() == "secret" and not (outside["away"] / "new").exists()


def test_without_both_the_child_has_still_no_secrets_no_folder_and_its_limits(outside, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    (Path(outside["away"]).parent / "x").mkdir(exist_ok=True)
    Path(sys.path[0], "bare.py").write_text(
        "import os, resource\ndef look(args, file):\n    r = resource\n    yield {'env': sorted(os.environ),"
        " 'here': os.path.exists('.') and os.listdir('.'),"
        " 'limits': [r.getrlimit(n)[1] for n in (r.RLIMIT_AS, r.RLIMIT_FSIZE, r.RLIMIT_CORE, r.RLIMIT_NOFILE)]}, b''\n"
    )
    child = Child(kind=Kind(first=("without_only_read", "without_filter")))
    try:
        (answer,) = child.call("bare:look", {})
    finally:
        child.close()
    assert child.walls == () and "AWS_SECRET_ACCESS_KEY" not in answer.meta["env"] and not answer.meta["here"]
    assert answer.meta["limits"] == [3 << 30, 0, 0, 64]


def test_a_stopped_child_costs_one_record_and_its_deadline(outside):
    Path(sys.path[0], "stops.py").write_text(
        "import os, signal\ndef stop(args, file):\n    os.kill(os.getpid(), signal.SIGSTOP)\n    yield {}, b''\n"
    )
    from pipelines.format.errors import Reject

    with pytest.raises(Reject) as e:
        ask("stops:stop", {}, b"", wall_s=0.5)
    assert e.value.reason == "timeout"
