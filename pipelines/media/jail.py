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

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
_CLONE_VM = 0x100  # a thread: memory shared with its maker
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC

# Numbers of the system-call tables (arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h).
_REFUSED = {
    "x86_64": {
        "socket": 41, "connect": 42, "bind": 49, "listen": 50, "accept": 43, "accept4": 288,
        "execve": 59, "execveat": 322, "fork": 57, "vfork": 58,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
        "creat": 85, "truncate": 76, "rename": 82, "renameat": 264, "renameat2": 316, "unlink": 87, "unlinkat": 263, "rmdir": 84,
        "mkdir": 83, "mkdirat": 258, "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266, "mknod": 133, "mknodat": 259,
        "chmod": 90, "fchmodat": 268, "chown": 92, "fchownat": 260, "openat2": 437, "mount": 165, "unshare": 272, "io_uring_setup": 425,
    },
    "aarch64": {
        "socket": 198, "bind": 200, "listen": 201, "accept": 202, "connect": 203, "accept4": 242,
        "execve": 221, "execveat": 281, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271,
        "truncate": 45, "renameat": 38, "renameat2": 276, "unlinkat": 35, "mkdirat": 34, "linkat": 37, "symlinkat": 36, "mknodat": 33,
        "fchmodat": 53, "fchownat": 54, "openat2": 437, "mount": 40, "unshare": 97, "io_uring_setup": 425,
    },
}  # fmt: skip
# Judged by an argument: kill and tgkill on oneself only (abort uses them); clone for threads only; clone3 hides its flags, so libc is told
# it does not exist and falls back to clone; open and openat for reading only (number, which argument holds the flags).
_SIGNALS = {"x86_64": (62, 234), "aarch64": (129, 131)}
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
_OPENS = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}  # (number, which argument holds the flags): open, openat
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # one number on every architecture
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_LOADED_FROM = ("/usr", "/lib", "/lib64", "/opt", "/etc/ld.so.cache", "/proc/self", "/dev/null", "/dev/urandom")


def enter(readable: Iterable[str] = ()) -> tuple[str, ...]:
    """Put up the walls, from here on and for good; `readable` are paths that stay readable beside the system's libraries. Returns those
    that stand: "landlock", "seccomp"."""
    if sys.platform != "linux":
        return ()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return ()
    walls = (("landlock", _only_read(libc, {*_LOADED_FROM, sys.prefix, sys.base_prefix, *readable})), ("seccomp", _filter(libc)))
    return tuple(name for name, stands in walls if stands)


def _only_read(libc: ctypes.CDLL, paths: Iterable[str]) -> bool:
    """A Landlock domain in which these paths, and what lies below them, may be read."""
    handled = ctypes.c_uint64(_READ_FILE | _READ_FOLDER)
    rules = libc.syscall(_LANDLOCK_CREATE, ctypes.byref(handled), 8, 0)
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
    if machine not in _REFUSED:
        return False
    code = b"".join(_program(machine))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(program), 0, 0) == 0)


def _program(machine: str) -> list[bytes]:
    """The filter: another architecture's calls are refused; listed numbers are refused; opening is refused with a writing flag."""
    load, equal, any_bit, answer = 0x20, 0x15, 0x45, 0x06
    arch, number = 4, 0  # offsets in struct seccomp_data; arguments follow at 16, eight bytes each, little-endian

    def op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, k)

    out = [op(load, arch), op(equal, _AUDIT_ARCH[machine], 1, 0), op(answer, _EPERM), op(load, number)]
    if machine == "x86_64":
        out += [op(any_bit, 0x40000000, 0, 1), op(answer, _EPERM)]  # the x32 numbers would go round the list
    for n in sorted(_REFUSED[machine].values()):
        out += [op(equal, n, 0, 1), op(answer, _EPERM)]
    for n, argument in _OPENS[machine]:
        out += [op(equal, n, 0, 4), op(load, 16 + 8 * argument), op(any_bit, _WRITING, 0, 1), op(answer, _EPERM), op(answer, _ALLOW)]
    for n in _SIGNALS[machine]:
        out += [op(equal, n, 0, 4), op(load, 16), op(equal, os.getpid(), 1, 0), op(answer, _EPERM), op(answer, _ALLOW)]
    out += [op(equal, _CLONE[machine], 0, 4), op(load, 16), op(any_bit, _CLONE_VM, 1, 0), op(answer, _EPERM), op(answer, _ALLOW)]
    out += [op(equal, _CLONE3, 0, 1), op(answer, _ENOSYS)]
    return [*out, op(answer, _ALLOW)]
