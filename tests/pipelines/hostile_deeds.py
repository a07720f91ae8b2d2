"""Runs in a guarded child: everything that code taken over by a hostile file would try. Each deed says "done" or the error it met."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import resource
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"


def syscall(x86: int, arm: int, *args: Any) -> int:
    out = int(libc.syscall(x86 if X86 else arm, *args))
    if out < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return out


def try_all(args: dict[str, Any], file: Any) -> tuple[dict[str, Any], bytes]:
    deeds = {**network(args), **processes(args), **files(args)}
    out = {}
    for name, deed in deeds.items():
        try:
            deed()
            out[name] = "done"
        except (OSError, subprocess.SubprocessError) as e:
            out[name] = f"{type(e).__name__} {getattr(e, 'errno', '')}"
    return {"deeds": out, "environment": sorted(os.environ), "pid": os.getpid()}, b""


def network(args: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    def udp(family: int, where: str) -> None:
        socket.socket(family, socket.SOCK_DGRAM).sendto(b"secret", (where, args["udp"]))

    def pair() -> None:
        a, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        a.sendto(b"secret", args["abstract"])

    return {
        "tcp": lambda: socket.create_connection(("127.0.0.1", args["tcp"]), 2),
        "tcp, IPv6": lambda: socket.socket(socket.AF_INET6).connect(("::1", args["tcp6"])),
        "udp": lambda: udp(socket.AF_INET, "127.0.0.1"),
        "udp, IPv6": lambda: udp(socket.AF_INET6, "::1"),
        "abstract unix": lambda: socket.socket(socket.AF_UNIX).connect(args["abstract"]),
        "abstract unix from a pair": pair,
        "unix": lambda: socket.socket(socket.AF_UNIX).connect(args["unix"]),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "io_uring": lambda: syscall(425, 425, 4, ctypes.create_string_buffer(120)),
    }


def processes(args: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    parent = args["parent"]
    word = ctypes.create_string_buffer(8)

    def owner() -> None:
        fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, parent)

    def vector() -> Any:
        return (ctypes.c_uint64 * 2)(ctypes.addressof(word), 8)

    def twin() -> None:  # memory shared, but a process of its own that no kill of this one reaches
        if syscall(56, 220, 0x100 | 0x4000 | signal.SIGCHLD, 0, 0, 0, 0) == 0:
            os._exit(0)

    def bomb() -> None:
        for _ in range(64):
            if os.fork() == 0:
                os._exit(0)

    return {
        "read the parent's memory": lambda: open(f"/proc/{parent}/mem", "rb").close(),
        "read the parent's environment": lambda: open(f"/proc/{parent}/environ", "rb").read(),
        "list the parent's files": lambda: os.listdir(f"/proc/{parent}/fd"),
        "ptrace": lambda: syscall(101, 117, 16, parent, 0, 0),
        "process_vm_readv": lambda: syscall(310, 270, parent, vector(), 1, vector(), 1, 0),
        "pidfd_open": lambda: syscall(434, 434, parent, 0),
        "execve": lambda: os.execv("/bin/true", ["true"]),
        "spawn": lambda: subprocess.run(["/bin/true"], check=True),
        "posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "fork bomb": bomb,
        "clone with shared memory": twin,
        "kill": lambda: os.kill(parent, 0),
        "kill its group": lambda: os.killpg(args["group"], 0),
        "kill by tkill": lambda: syscall(200, 130, parent, 0),
        "kill by a file's owner": owner,
        "kill by a limit": lambda: resource.prlimit(parent, resource.RLIMIT_CORE, (0, 0)),
        "slow down by scheduling": lambda: os.sched_setaffinity(parent, os.sched_getaffinity(parent)),
        "nice": lambda: os.setpriority(os.PRIO_PROCESS, parent, 19),
        "shared memory": lambda: syscall(29, 194, 0x1234, 4096, 0o1600),
        "keyring": lambda: syscall(250, 219, 0, -3, 0),
        "bpf": lambda: syscall(321, 280, 0, None, 0),
    }


def files(args: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    victim, code = args["victim"], args["code"]

    def in_a_thread() -> None:
        met: list[OSError] = []

        def read() -> None:
            try:
                open(victim).close()
            except OSError as e:
                met.append(e)

        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        if met:
            raise met[0]

    return {
        "read": lambda: open(victim).close(),
        "read from a thread": in_a_thread,
        "read through /proc/self/root": lambda: open(f"/proc/self/root{victim}").close(),
        "read through /proc/self/cwd": lambda: open(f"/proc/self/cwd/../..{victim}").close(),
        "read /etc/passwd": lambda: open("/etc/passwd").close(),
        "read where the parent stands": lambda: open(os.path.join(args["cwd"], "secret.txt")).close(),
        "list /": lambda: os.listdir("/"),
        "write": lambda: open(victim, "w").close(),
        "create": lambda: open(victim + ".new", "x").close(),
        "truncate": lambda: os.truncate(victim, 0),
        "unlink": lambda: os.unlink(victim),
        "rename": lambda: os.rename(victim, victim + "2"),
        "symlink": lambda: os.symlink("/etc/passwd", victim + ".link"),
        "hard link": lambda: os.link(code, victim + ".hard"),
        "mode of an open file": lambda: os.fchmod(os.open(code, os.O_RDONLY), 0o777),
        "date of an open file": lambda: os.utime(os.open(code, os.O_RDONLY), (1, 1)),
        "attributes": lambda: os.setxattr(code, "user.note", b"secret"),
        "change code": lambda: open(code, "a").close(),
        "device": lambda: os.mknod(victim + ".dev", 0o600 | 0o020000, os.makedev(1, 3)),
        "mount": lambda: syscall(165, 40, b"none", victim.encode(), b"tmpfs", 0, 0),
        "handle": lambda: syscall(303, 264, -100, code.encode(), ctypes.create_string_buffer(200), ctypes.create_string_buffer(8), 0),
    }
