"""The inside of the guarded child (`child.py`): take limits upon oneself, then answer calls until the parent goes.

What comes in: on a socket, a JSON header {op, args, cpu_s}, and behind it `inline` raw bytes or beside it one file descriptor. What goes out: per
thing the function yields a JSON header {kind: answer, meta, blob: bytes} and the raw buffer; then {kind: end}, or {kind: reject, reason,
detail}. A function is `op(args: dict, file: BinaryIO) -> Iterator[(meta, buffer)]`, or `-> (meta, buffer)` where there is one answer, which then
goes out together with the end: one wake-up of the parent instead of four. The parent names the function, so only trusted code chooses what runs here.
"""

import contextlib
import fcntl
import importlib
import io
import json
import os
import resource
import signal
import socket
import sys
import tempfile
from typing import Any, BinaryIO

import pipelines
from pipelines.format.errors import Reject
from pipelines.media.jail import enter

_F_SETSIG = 10  # Linux: which signal an asynchronous descriptor sends
_FILES = 64


def serve(first: list[str], private: list[str], socket_fd: int, lifeline_fd: int, memory: int) -> None:
    """The life of a child. Returns when the parent closes the socket."""
    _die_with(lifeline_fd)
    for name in first:
        with contextlib.suppress(Exception):  # who needs it will say so
            importlib.import_module(name)
    _nowhere()
    connection = socket.socket(fileno=socket_fd)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # An editable installation is found by a hook, not on sys.path; libraries may lie where LD_LIBRARY_PATH says, if this kind of child sees it.
    paths = [below for p in sys.path for below in (_code_in(p) if p in private else [p])]
    walls = enter([*paths, *pipelines.__path__, *filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":"))])
    _send(connection, {"kind": "ready", "walls": walls})
    while True:
        call = _receive(connection)
        if call is None:
            return
        head, file = call
        with file:
            end = _run(connection, head, file)
        if end is not None:
            _send(connection, end)


def _code_in(folder: str) -> list[str]:
    """Modules and packages in a folder that holds other things too: what somebody works in, or calls home."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [e.path for e in entries if e.name.endswith((".py", ".so")) or os.path.isfile(os.path.join(e.path, "__init__.py"))]
    return []


def _run(connection: socket.socket, head: dict[str, Any], file: Any) -> dict[str, Any] | None:
    """Answer one call; the returned header closes it, if that is still to be said. Whatever the decoder raises is the record's fault; what does
    not load is ours."""
    try:
        module, _, function = head["op"].partition(":")
        run = getattr(importlib.import_module(module), function)
    except Exception as e:
        return {"kind": "broken", "detail": f"{type(e).__name__}: {e}"[:500]}
    try:
        _allow(head["cpu_s"])
        found = run(head["args"], file)
        if isinstance(found, tuple):
            meta, blob = found
            connection.sendall(b"".join([_header({"kind": "answer", "meta": meta}, len(blob)), blob, _header({"kind": "end"})]))
            return None
        for meta, blob in found:
            _send(connection, {"kind": "answer", "meta": meta}, blob)
            _allow(head["cpu_s"])
    except Reject as e:
        return {"kind": "reject", "reason": e.reason, "detail": e.detail}
    except MemoryError:
        return {"kind": "reject", "reason": "too_large", "detail": "out of memory while decoding"}
    except Exception as e:
        return {"kind": "reject", "reason": "unreadable", "detail": f"{type(e).__name__}: {e}"[:500]}
    return {"kind": "end"}


def load(args: dict[str, Any], file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """The function named by `op` loads; else the error is what is answered."""
    module, _, function = args["op"].partition(":")
    getattr(importlib.import_module(module), function)
    return {}, b""


def _allow(cpu_s: int) -> None:
    """So much processor time from now on; SIGXCPU ends the process after it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + cpu_s, hard))


def _die_with(lifeline: int) -> None:
    """The kernel sends SIGKILL when the last writer of the pipe, our parent, is gone; a busy interpreter lock cannot delay it."""
    if hasattr(fcntl, "F_SETOWN"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        if os.read(lifeline, 1) == b"":  # it went before we were listening
            os._exit(0)


def _nowhere() -> None:
    """A working directory that is empty and no longer has a name: no relative path leads anywhere, nothing can be created in it."""
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], BinaryIO] | None:
    first, fds, _, _ = socket.recv_fds(connection, 4, 1)
    if not first:
        return None
    size = int.from_bytes(first + _exactly(connection, 4 - len(first)), "big")
    head = json.loads(_exactly(connection, size))
    if fds:
        return head, os.fdopen(fds[0], "rb")
    return head, io.BytesIO(_exactly(connection, head["inline"]))


def _exactly(connection: socket.socket, n: int) -> bytes:
    out, got = b"", 0
    while got < n:
        more = connection.recv(n - got, socket.MSG_WAITALL)
        if not more:
            os._exit(0)
        out = out + more if out else more
        got = len(out)
    return out


def _send(connection: socket.socket, head: dict[str, Any], blob: Any = b"") -> None:
    view = memoryview(blob).cast("B") if len(blob) else memoryview(b"")
    connection.sendall(_header(head, len(view)))
    if len(view):
        connection.sendall(view)


def _header(head: dict[str, Any], blob: int = 0) -> bytes:
    raw = json.dumps({**head, "blob": blob}).encode()
    return len(raw).to_bytes(4, "big") + raw
