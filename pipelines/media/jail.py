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
_CLONE_THREAD = 0x10000  # not CLONE_VM, which a process that shares memory has too, and which would outlive a kill
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC

# Numbers of the system-call tables (arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h). socketpair: a datagram end may
# send to any other unix socket, such as the system log's. shmget: what it makes counts against no limit and outlives the process.
# pidfd_…, tkill, rt_…sigqueueinfo: signals by another door. The last of each table change a file through a descriptor open for reading.
_REFUSED = {
    "x86_64": {
        "socket": 41, "socketpair": 53, "connect": 42, "bind": 49, "listen": 50, "accept": 43, "accept4": 288,
        "execve": 59, "execveat": 322, "fork": 57, "vfork": 58, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
        "tkill": 200, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
        "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203, "sched_setattr": 314, "ioprio_set": 251,
        "migrate_pages": 256, "move_pages": 279,
        "shmget": 29, "shmat": 30, "semget": 64, "msgget": 68, "mq_open": 240, "mq_unlink": 241,
        "add_key": 248, "request_key": 249, "keyctl": 250, "perf_event_open": 298, "bpf": 321, "userfaultfd": 323,
        "creat": 85, "truncate": 76, "rename": 82, "renameat": 264, "renameat2": 316, "unlink": 87, "unlinkat": 263, "rmdir": 84,
        "mkdir": 83, "mkdirat": 258, "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266, "mknod": 133, "mknodat": 259,
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "open_by_handle_at": 304,
        "chmod": 90, "fchmodat": 268, "chown": 92, "lchown": 94, "fchownat": 260, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280,
        "setxattr": 188, "lsetxattr": 189, "removexattr": 197, "lremovexattr": 198,
        "fchmod": 91, "fchown": 93, "fsetxattr": 190, "fremovexattr": 199,
    },
    "aarch64": {
        "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "accept": 202, "connect": 203, "accept4": 242,
        "execve": 221, "execveat": 281, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
        "tkill": 130, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
        "setpriority": 140, "sched_setparam": 118, "sched_setscheduler": 119, "sched_setaffinity": 122, "sched_setattr": 274, "ioprio_set": 30,
        "migrate_pages": 238, "move_pages": 239,
        "shmget": 194, "shmat": 196, "semget": 190, "msgget": 186, "mq_open": 180, "mq_unlink": 181,
        "add_key": 217, "request_key": 218, "keyctl": 219, "perf_event_open": 241, "bpf": 280, "userfaultfd": 282,
        "truncate": 45, "renameat": 38, "renameat2": 276, "unlinkat": 35, "mkdirat": 34, "linkat": 37, "symlinkat": 36, "mknodat": 33,
        "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268, "open_by_handle_at": 265,
        "fchmodat": 53, "fchownat": 54, "utimensat": 88, "setxattr": 5, "lsetxattr": 6, "removexattr": 14, "lremovexattr": 15,
        "fchmod": 52, "fchown": 55, "fsetxattr": 7, "fremovexattr": 16,
    },
}  # fmt: skip
# One number on every architecture: pidfd_send_signal, io_uring_setup, open_tree to fspick, pidfd_open, openat2, pidfd_getfd, process_madvise,
# mount_setattr, fchmodat2, setxattrat, removexattrat.
_REFUSED_ANYWHERE = (424, 425, 428, 429, 430, 431, 432, 433, 434, 437, 438, 440, 442, 452, 463, 466)
# Judged by an argument: kill and tgkill on oneself only (abort uses them), limits of oneself only; clone for threads only; clone3 hides its
# flags, so libc is told it does not exist and falls back to clone; open and openat for reading only (number, which argument holds the flags).
_ON_ITSELF = {
    "x86_64": ((62, False), (234, False), (302, True)),
    "aarch64": ((129, False), (131, False), (261, True)),
}  # kill, tgkill, prlimit64 (0: itself)
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
_OPENS = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}  # (number, which argument holds the flags): open, openat
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # one number on every architecture
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
# What a domain takes away, by the version of Landlock that knows it (linux/landlock.h): from 1 executing, reading, writing, making and removing;
# 2 moving, 3 cutting, 5 asking devices; 4 TCP; 6 abstract unix sockets of others, and signals to them.
_LANDLOCK_FILES = ((1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
_LANDLOCK_TCP, _LANDLOCK_SCOPES = (4, 0b11), (6, 0b11)
_PR_CAPBSET_DROP, _CAP_READ_SEARCH, _CAPSET_V3, _CAPSET = 24, 2, 0x20080522, {"x86_64": 126, "aarch64": 91}
_LOADED_FROM = ("/usr", "/lib", "/lib64", "/opt", "/etc/ld.so.cache", "/proc/self", "/dev/null", "/dev/urandom")


def enter(readable: Iterable[str] = ()) -> tuple[str, ...]:
    """Put up the walls, from here on and for good; `readable` are paths that stay readable beside the system's libraries. Returns those
    that stand: "landlock", "seccomp"."""
    if sys.platform != "linux":
        return ()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return ()
    _no_privileges(libc)
    walls = (("landlock", _only_read(libc, {*_LOADED_FROM, sys.prefix, sys.base_prefix, *readable})), ("seccomp", _filter(libc)))
    return tuple(name for name, stands in walls if stands)


def _only_read(libc: ctypes.CDLL, paths: Iterable[str]) -> bool:
    """A Landlock domain in which these paths, and what lies below them, may be read."""
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    files = sum(bits for since, bits in _LANDLOCK_FILES if version >= since)
    tcp, scopes = (bits if version >= since else 0 for since, bits in (_LANDLOCK_TCP, _LANDLOCK_SCOPES))
    handled = ctypes.create_string_buffer(struct.pack("=QQQ", files, tcp, scopes)[: 24 if scopes else 16 if tcp else 8])
    rules = libc.syscall(_LANDLOCK_CREATE, handled, len(handled.raw) - 1, 0)  # the buffer ends in a NUL of its own
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


def _no_privileges(libc: ctypes.CDLL) -> None:
    """A child of root keeps one of root's rights, to read files that belong to others (its libraries may): not the one to raise limits again."""
    if (call := _CAPSET.get(platform.machine())) is not None:
        kept = 1 << _CAP_READ_SEARCH
        if libc.syscall(call, struct.pack("=Ii", _CAPSET_V3, 0), struct.pack("=6I", kept, kept, 0, 0, 0, 0)):  # refused to who has none of it
            libc.syscall(call, struct.pack("=Ii", _CAPSET_V3, 0), bytes(24))


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
    for n in sorted({*_REFUSED[machine].values(), *_REFUSED_ANYWHERE}):
        out += [op(equal, n, 0, 1), op(answer, _EPERM)]
    for n, argument in _OPENS[machine]:
        out += [op(equal, n, 0, 4), op(load, 16 + 8 * argument), op(any_bit, _WRITING, 0, 1), op(answer, _EPERM), op(answer, _ALLOW)]
    for n, zero in _ON_ITSELF[machine]:
        own = [op(equal, 0, 2 if zero else 0, 0), op(equal, os.getpid(), 1, 0)]
        out += [op(equal, n, 0, 5), op(load, 16), *own, op(answer, _EPERM), op(answer, _ALLOW)]
    out += [op(equal, _CLONE[machine], 0, 4), op(load, 16), op(any_bit, _CLONE_THREAD, 1, 0), op(answer, _EPERM), op(answer, _ALLOW)]
    out += [op(equal, _CLONE3, 0, 1), op(answer, _ENOSYS)]
    return [*out, op(answer, _ALLOW)]
