"""The guarded child: a disposable process in which bytes from strangers are decoded.

What comes in: the name of a decoding function (`package.module:function`), its arguments, and the untrusted bytes. What goes out: what the
function yields, one (meta, buffer) at a time; a `Reject` for anything that goes wrong in there. Decoders are C code that has been broken
before and will be again, so a crash, an endless loop or a memory bomb must cost one record, never the worker:

    worker ──socket: JSON header + raw bytes──▶ child      no pickle in either direction; many bytes travel as an anonymous file
           ◀──────── one frame per answer ────             a slow reader is simply waited for (the socket is the back-pressure)

The child has an empty environment (no credentials, no proxies), an empty and already deleted working directory, no standard streams, and
limits on memory, processor time per answer, file size (0) and open files; where the kernel can, `jail.py` takes from it the network, new
programs, writing, and reading anything but libraries and what it was handed. It is killed when an answer is late and when its parent dies.
One child serves a worker for many records (starting one costs about 0.1 s, and 0.3 s until the codecs are loaded); it is replaced after
a failure, and after `RETIRE` calls so that a leaking decoder cannot grow for ever.

The lifeline, not PR_SET_PDEATHSIG, ties the child to its parent: that fires when the *thread* that started the child ends.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from pipelines.format.errors import InputError, Reject, TemporaryError
from pipelines.media.wire import as_file, head_of

MEMORY = 3 << 30  # address space: 8192 × 4320 h264 needs 1.4 GB with all its reference frames, and libraries reserve 0.6 GB unused
WALL_S = 60.0  # waiting for one answer; three times the processor limit, since other work shares the machine
CPU_S = 20  # processor time per answer
RETIRE = 5000  # calls a child serves; restarting costs 0.06 ms per call at this rate, 0.3 ms at a thousand: a tenth of a small picture
MAX_HEADER = 1 << 20
INLINE = 1 << 20  # bytes up to this many go through the socket: a web picture costs one system call instead of eight
_AHEAD = 64 << 10
MAX_BLOB = 1 << 30
_START_S = 120.0
_BOOT = "import sys, json; sys.path[:], *how = json.loads(sys.argv[1]); from pipelines.media import serve; serve.serve(*how, *map(int, sys.argv[2:]))"


@dataclass(frozen=True, slots=True)
class Answer:
    """One thing the child yielded: a small JSON object and a buffer that is ours alone."""

    meta: dict[str, Any]
    blob: bytearray


class ChildDied(Exception):
    """The child is gone or must go; the message says how."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _Broken(InputError):
    """The child cannot load its code: no record's fault, every one would fail alike, so the job must stop and say so."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of child: its memory, the calls it serves, the variables of our environment it sees, and what it loads `first`, before its walls."""

    memory: int = MEMORY
    retire: int = RETIRE
    keep: tuple[str, ...] = ()
    first: tuple[str, ...] = ()


class Child:
    """One guarded process. `call` may be used by one thread at a time; `guarded` below shares children between threads."""

    def __init__(self, memory: int = MEMORY, kind: Kind | None = None) -> None:
        self.kind = kind or Kind(memory)
        ours, theirs = socket.socketpair()
        alive_end, self._lifeline = os.pipe()
        paths = [os.path.abspath(p) for p in sys.path]
        private = [os.getcwd(), os.path.expanduser("~")]  # `python -m` puts the former on sys.path: code may come from there, secrets may lie there
        # MALLOC_…: keep freed pictures in the heap instead of returning every one to the kernel; halves the time of large decodes.
        env = {name: os.environ[name] for name in self.kind.keep if name in os.environ}
        env |= {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "67108864", "MALLOC_TRIM_THRESHOLD_": "268435456"}
        fds, null = (theirs.fileno(), alive_end), subprocess.DEVNULL
        argv = [sys.executable, "-I", "-c", _BOOT, json.dumps([paths, self.kind.first, private]), *map(str, fds), str(self.kind.memory)]
        try:
            self._process = subprocess.Popen(argv, env=env, pass_fds=fds, stdin=null, stdout=null, stderr=null, cwd="/")
        except OSError as e:
            raise TemporaryError("a decoding process could not be started", found=e, next="free some memory, then run again") from e
        finally:
            theirs.close()
            os.close(alive_end)
        self._socket, self._ahead = ours, bytearray()  # what came together with what was asked for
        self.calls = 0
        try:
            hello, _ = self._frame(time.monotonic() + _START_S)
            self.walls: tuple[str, ...] = tuple(hello["walls"])  # what the kernel holds it back with
        except ChildDied as e:
            raise TemporaryError("a decoding process did not start", found=e) from e

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, op: str, args: dict[str, Any], data: Any = b"", *, wall_s: float = WALL_S, cpu_s: int = CPU_S) -> Iterator[Answer]:
        """Run `module:function` on the bytes (or on an open file, which is handed over as it is) and yield its answers.

        Raises `Reject` as the function raised it; `ChildDied` when the process is lost. Leaving the iterator early kills the child."""
        self.calls += 1
        done = False
        try:
            said = {"op": op, "args": args, "cpu_s": cpu_s}
            if isinstance(data, bytes) and len(data) <= INLINE:
                self._send({**said, "inline": len(data)}, wall_s, data)
            else:
                with as_file(data) as fd:
                    self._send(said, wall_s, fd=fd)
            while True:
                head, blob = self._frame(time.monotonic() + wall_s)
                if head["kind"] == "answer":
                    yield Answer(head["meta"], blob)
                    continue
                done = True
                if head["kind"] == "reject":
                    raise Reject(head["reason"], head["detail"][:500])
                if head["kind"] == "broken":
                    raise _Broken("the decoding child cannot load its code", where=op, found=head["detail"][:500], next="pipelines doctor")
                if head["kind"] != "end" or self._ahead:
                    raise ChildDied("unreadable", "the decoder answered nonsense")
                return
        except ChildDied:
            done = True
            self.close()
            raise
        finally:
            if not done:
                self.close()

    def close(self) -> None:
        """Kill the process and wait for it."""
        self._process.kill()
        self._process.wait()
        self._socket.close()
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)

    @property
    def alive(self) -> bool:
        return self._lifeline >= 0 and self._process.poll() is None

    @property
    def pending(self) -> bool:
        """Whether something lies unread."""
        poll = select.poll()  # select() knows no descriptor beyond 1023
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def _send(self, head: dict[str, Any], wall_s: float, data: bytes = b"", fd: int | None = None) -> None:
        raw = json.dumps(head).encode()
        first = len(raw).to_bytes(4, "big") + raw
        self._socket.settimeout(wall_s)  # a child that was stopped reads nothing either
        try:
            sent = self._socket.sendmsg([first, data]) if fd is None else socket.send_fds(self._socket, [first], [fd])
            if sent < len(first):
                self._socket.sendall(first[sent:])
            if sent < len(first) + len(data):
                self._socket.sendall(memoryview(data)[max(0, sent - len(first)) :])
        except TimeoutError:
            raise ChildDied("timeout", "the decoder took nothing in before the deadline") from None
        except OSError as e:
            raise self._death(e) from None

    def _frame(self, deadline: float) -> tuple[dict[str, Any], bytearray]:
        try:
            size = int.from_bytes(self._exactly(4, deadline), "big")
            head, length = head_of(self._exactly(size, deadline) if size <= MAX_HEADER else b"")
        except ValueError:
            raise ChildDied("unreadable", "the decoder answered nonsense") from None
        if not 0 <= length <= MAX_BLOB:
            raise ChildDied("too_large", f"an answer of {length} bytes, allowed {MAX_BLOB}")
        return head, self._exactly(length, deadline)

    def _exactly(self, n: int, deadline: float) -> bytearray:
        """The next n bytes; small pieces are cut from what one read brought."""
        if n < _AHEAD:
            while len(self._ahead) < n:
                self._ahead += self._read(partial(self._socket.recv, _AHEAD), deadline)
            out = self._ahead[:n]
            del self._ahead[:n]
            return out
        got = len(self._ahead)  # always less than _AHEAD
        out, self._ahead = self._ahead + bytearray(n - got), bytearray()
        view = memoryview(out)
        while got < n:
            got += self._read(partial(self._socket.recv_into, view[got:]), deadline)
        return out

    def _read(self, read: Callable[[], Any], deadline: float) -> Any:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            more = read()
        except TimeoutError:
            raise ChildDied("timeout", "no answer before the deadline") from None
        except OSError as e:
            raise self._death(e) from None
        if not more:
            raise self._death(None)
        return more

    def _death(self, error: OSError | None) -> ChildDied:
        """What the end of the conversation means: the socket closes when the process goes."""
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return ChildDied("unreadable", f"the decoder stopped answering: {error}")
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            return ChildDied("timeout", "the decoder used up its processor time" if code == -signal.SIGXCPU else "the decoder was killed")
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return ChildDied("unreadable", f"the decoder died: {name}")


_idle: list[Child] = []
_lock = threading.Lock()
_owner = 0


def guarded(op: str, args: dict[str, Any], data: Any = b"", *, wall_s: float = WALL_S, cpu_s: int = CPU_S, kind: Kind = Kind()) -> Iterator[Answer]:
    """`Child.call` on a child of this process: an idle one, else a new one. A lost child costs this record: `Reject("timeout" | …)`."""
    child = _take(kind)
    try:
        yield from child.call(op, args, data, wall_s=wall_s, cpu_s=cpu_s)
    except ChildDied as e:
        raise Reject(e.reason, str(e)) from None
    except _Broken:
        child.close()
        if not _loads(op, kind):
            raise
        raise Reject("unreadable", "the decoder said that it cannot load; a fresh one can") from None
    finally:
        _give_back(child)


def _loads(op: str, kind: Kind) -> bool:
    """Whether a child that has seen no stranger's bytes can load the function: a decoder taken over must not stop a job by saying that none can."""
    child = Child(kind=kind)
    try:
        return len(list(islice(child.call("pipelines.media.serve:load", {"op": op}), 1))) == 1
    except (Reject, ChildDied):
        return False
    finally:
        child.close()


def ask(op: str, args: dict[str, Any], data: Any = b"", *, wall_s: float = WALL_S, cpu_s: int = CPU_S) -> Answer:
    """`guarded` for functions with one answer."""
    answers = list(islice(guarded(op, args, data, wall_s=wall_s, cpu_s=cpu_s), 2))
    if len(answers) != 1:
        raise Reject("unreadable", "the decoder gave no answer, or several, instead of one")
    return answers[0]


def close_children() -> None:
    """End this process's idle children; the next call starts a new one."""
    with _lock:
        children = list(_idle) if _owner == os.getpid() else []
        _idle.clear()
    for child in children:
        child.close()


def _take(kind: Kind) -> Child:
    global _owner
    with _lock:
        if _owner != os.getpid():  # after a fork the parent's children are not ours to talk to
            _idle.clear()
            _owner = os.getpid()
        for child in [c for c in reversed(_idle) if c.kind == kind]:
            _idle.remove(child)
            if child.alive and not child.pending:  # who speaks unasked would answer for the next record
                return child
            child.close()
    return Child(kind=kind)


def _give_back(child: Child) -> None:
    if child.alive and child.calls < min(child.kind.retire, RETIRE):
        with _lock:
            _idle.append(child)
    else:
        child.close()
