"""What a decoding process may no longer ask of the kernel: sockets, new programs, writing, deleting, other processes, other people's files.

What comes in: the folders that programs and libraries are loaded from; `enter()` applies to the calling process and all it starts, and cannot be
undone. What goes out: which walls the kernel put up. They stand behind the resource limits of `serve.py` and FFmpeg's own switches
(`frames.py`): code that a hostile file has taken over finds nothing to read, no way to send it and nowhere to leave it.

Two walls, each alone if the other is missing. A seccomp filter (classic BPF over the number of the system call, seccomp(2)): a refused call
fails with EPERM, as for a user without rights, so a library that merely tries goes on. And a Landlock domain (landlock(7), Linux 5.13):
files and folders open for reading only below the given ones; descriptors that are already open, such as the media itself, stay good.
Not Linux, another architecture, or a kernel without them: limits only.
"""

import contextlib
import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable

from pipelines.media.jail_calls import AUDIT_ARCH, CLONE, CLONE3, COMMANDS, OPENS, REFUSED, SECCOMP, SELF, SIGNALS, THREAD, WRITING

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_SET_MODE_FILTER, _ALL_THREADS = 1, 1  # of seccomp(2): libraries loaded before may have started threads
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
_CAPABILITIES, _KEPT = 0x20080522, 0b110  # version 3; reading and searching folders of others, since root may run what a user installed

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # one number on every architecture
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_EVERY_FILE_RIGHT = (1 << 13) - 1  # of the first version: executing, writing, reading, removing, making
_LOADED_FROM = ("/usr", "/lib", "/lib64", "/opt", "/etc/ld.so.cache", "/proc/self", "/dev/null", "/dev/urandom")


def enter(readable: Iterable[str] = ()) -> tuple[str, ...]:
    """Put up the walls, from here on and for good; `readable` are paths that stay readable beside the system's libraries. Returns those
    that stand: "landlock", "seccomp"."""
    if sys.platform != "linux":
        return ()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return ()
    _drop_capabilities(libc)
    walls = (("landlock", _only_read(libc, {*_LOADED_FROM, sys.prefix, sys.base_prefix, *readable})), ("seccomp", _filter(libc)))
    return tuple(name for name, stands in walls if stands)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Root's powers go, even where a container gives some."""
    head, data = struct.pack("=Ii", _CAPABILITIES, 0), struct.pack("=6I", _KEPT, _KEPT, 0, 0, 0, 0)
    libc.capset(ctypes.create_string_buffer(head, 8), ctypes.create_string_buffer(data, 24))


def _only_read(libc: ctypes.CDLL, paths: Iterable[str]) -> bool:
    """A Landlock domain in which these paths, and what lies below them, may be read, and nothing else be done to any file. Kernels that know how
    (version 4, 6) also refuse TCP, and abstract sockets of and signals to processes outside."""
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    handled = struct.pack("=QQQ", _EVERY_FILE_RIGHT, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    rules = libc.syscall(_LANDLOCK_CREATE, handled, 24 if version >= 6 else 16 if version >= 4 else 8, 0)
    if rules < 0:
        return False
    for path in sorted(paths):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rights = _READ_FILE | _READ_FOLDER if os.path.isdir(path) else _READ_FILE
            libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, fd), 0)
            os.close(fd)
    done = libc.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0
    os.close(rules)
    return done


def _filter(libc: ctypes.CDLL) -> bool:
    machine = platform.machine()
    if machine not in REFUSED:
        return False
    code = b"".join(_program(machine))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.c_char_p(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)))
    if libc.syscall(SECCOMP[machine], _SET_MODE_FILTER, _ALL_THREADS, program) == 0:
        return True
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0) == 0)


def _program(machine: str) -> list[bytes]:
    """The filter: another architecture's calls are refused; listed numbers are refused; others by an argument, as `jail_calls.py` says."""
    load, equal, any_bit, answer = 0x20, 0x15, 0x45, 0x06
    arch, number, first = 4, 0, 16  # offsets in struct seccomp_data; arguments take eight bytes each, little-endian

    def op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, k)

    refuse, allow = op(answer, _EPERM), op(answer, _ALLOW)

    def judged(n: int, argument: int, *tests: bytes) -> list[bytes]:
        """Call `n`: its argument is loaded and tested; each test's jumps count to the `refuse` and `allow` behind the last one."""
        return [op(equal, n, 0, len(tests) + 3), op(load, first + 8 * argument), *tests, refuse, allow]

    out = [op(load, arch), op(equal, AUDIT_ARCH[machine], 1, 0), refuse, op(load, number)]
    if machine == "x86_64":
        out += [op(any_bit, 0x40000000, 0, 1), refuse]  # the x32 numbers would go round the list
    for n in sorted(REFUSED[machine].values()):
        out += [op(equal, n, 0, 1), refuse]
    for n, argument in OPENS[machine]:
        out += judged(n, argument, op(any_bit, WRITING, 0, 1))
    for n in SIGNALS[machine]:
        out += judged(n, 0, op(equal, os.getpid(), 1, 0))
    for n in SELF[machine]:
        out += judged(n, 0, op(equal, 0, 2, 0), op(equal, os.getpid(), 1, 0))
    for n, commands in COMMANDS[machine]:
        last = len(commands) - 1
        out += judged(n, 1, *(op(equal, c, last - i, int(i == last)) for i, c in enumerate(commands)))
    out += judged(CLONE[machine], 0, op(any_bit, THREAD, 1, 0))
    out += [op(equal, CLONE3, 0, 1), op(answer, _ENOSYS)]
    return [*out, allow]
