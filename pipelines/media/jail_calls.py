"""System calls by number: what the filter of `jail.py` refuses to a decoding process, and what it judges by an argument.

What comes in: nothing; these are tables (arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h). A list of refusals and not of
permissions: decoders, allocators and interpreters of years to come use calls that nobody could list, and a refused one would look like damaged
data. So the list names every family that reaches beyond the process itself; a number that an architecture has not is absent there.
"""

REFUSED = {
    "x86_64": {
        # the network; an end of a datagram pair may send to any unix socket
        "socket": 41, "socketpair": 53, "connect": 42, "bind": 49, "listen": 50, "accept": 43, "accept4": 288,
        # programs and processes
        "execve": 59, "execveat": 322, "fork": 57, "vfork": 58, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
        "process_madvise": 440, "process_mrelease": 448, "kcmp": 312, "pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424,
        "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "setpriority": 141, "ioprio_set": 251, "migrate_pages": 256, "move_pages": 279,
        "setpgid": 109, "setns": 308, "unshare": 272,
        # writing, deleting, owners, dates
        "creat": 85, "truncate": 76, "ftruncate": 77, "fallocate": 285, "rename": 82, "renameat": 264, "renameat2": 316, "unlink": 87, "unlinkat":
        263, "rmdir": 84, "mkdir": 83, "mkdirat": 258, "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266, "mknod": 133, "mknodat": 259,
        "chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "setxattr": 188, "lsetxattr": 189,
        "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "utime": 132, "utimes": 235, "utimensat": 280,
        "futimesat": 261, "copy_file_range": 326, "openat2": 437, "name_to_handle_at": 303, "open_by_handle_at": 304, "inotify_init": 253,
        "inotify_init1": 294, "fanotify_init": 300, "fchmodat2": 452,
        # memory shared by name
        "shmget": 29, "shmat": 30, "shmctl": 31, "semget": 64, "semop": 65, "semctl": 66, "semtimedop": 220, "msgget": 68, "msgsnd": 69, "msgrcv":
        70, "msgctl": 71, "mq_open": 240, "mq_unlink": 241,
        # the system
        "mount": 165, "umount2": 166, "chroot": 161, "pivot_root": 155, "fsopen": 430, "fsmount": 432, "fsconfig": 431, "fspick": 433,
        "move_mount": 429, "open_tree": 428, "mount_setattr": 442, "init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load":
        246, "kexec_file_load": 320, "reboot": 169, "swapon": 167, "swapoff": 168, "sethostname": 170, "setdomainname": 171, "settimeofday": 164,
        "clock_settime": 227, "clock_adjtime": 305, "adjtimex": 159, "acct": 163, "quotactl": 179, "syslog": 103, "iopl": 172, "ioperm": 173,
        "vhangup": 153,
        # ways round, and large surfaces
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "bpf": 321, "userfaultfd": 323, "perf_event_open": 298, "keyctl":
        250, "add_key": 248, "request_key": 249, "uselib": 134, "personality": 135,
    },
    "aarch64": {
        # the network; an end of a datagram pair may send to any unix socket
        "socket": 198, "socketpair": 199, "connect": 203, "bind": 200, "listen": 201, "accept": 202, "accept4": 242,
        # programs and processes
        "execve": 221, "execveat": 281, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "process_madvise": 440,
        "process_mrelease": 448, "kcmp": 272, "pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424, "rt_sigqueueinfo": 138,
        "rt_tgsigqueueinfo": 240, "setpriority": 140, "ioprio_set": 30, "migrate_pages": 238, "move_pages": 239, "setpgid": 154, "setns": 268,
        "unshare": 97,
        # writing, deleting, owners, dates
        "truncate": 45, "ftruncate": 46, "fallocate": 47, "renameat": 38, "renameat2": 276, "unlinkat": 35, "mkdirat": 34, "linkat": 37,
        "symlinkat": 36, "mknodat": 33, "fchmod": 52, "fchmodat": 53, "fchown": 55, "fchownat": 54, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7,
        "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16, "utimensat": 88, "copy_file_range": 285, "openat2": 437, "name_to_handle_at":
        264, "open_by_handle_at": 265, "inotify_init1": 26, "fanotify_init": 262, "fchmodat2": 452,
        # memory shared by name
        "shmget": 194, "shmat": 196, "shmctl": 195, "semget": 190, "semop": 193, "semctl": 191, "semtimedop": 192, "msgget": 186, "msgsnd": 189,
        "msgrcv": 188, "msgctl": 187, "mq_open": 180, "mq_unlink": 181,
        # the system
        "mount": 40, "umount2": 39, "chroot": 51, "pivot_root": 41, "fsopen": 430, "fsmount": 432, "fsconfig": 431, "fspick": 433, "move_mount":
        429, "open_tree": 428, "mount_setattr": 442, "init_module": 105, "finit_module": 273, "delete_module": 106, "kexec_load": 104,
        "kexec_file_load": 294, "reboot": 142, "swapon": 224, "swapoff": 225, "sethostname": 161, "setdomainname": 162, "settimeofday": 170,
        "clock_settime": 112, "clock_adjtime": 266, "adjtimex": 171, "acct": 89, "quotactl": 60, "syslog": 116, "vhangup": 58,
        # ways round, and large surfaces
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "bpf": 280, "userfaultfd": 282, "perf_event_open": 241, "keyctl":
        219, "add_key": 217, "request_key": 218, "personality": 92,
    },
}  # fmt: skip

# Judged by the first argument, a process: signals to oneself only (abort uses them), limits and scheduling of oneself (0) only.
SIGNALS = {"x86_64": (62, 234, 200), "aarch64": (129, 131, 130)}
SELF = {"x86_64": (302, 203, 144, 142, 314), "aarch64": (261, 122, 119, 118, 274)}
# clone for threads only; clone3 hides its flags, so libc is told that it does not exist and falls back to clone.
CLONE, CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
THREAD = 0x10000  # CLONE_THREAD; shared memory alone (CLONE_VM) may be a process that outlives this one
# (number, which argument holds the flags): open and openat, for reading only.
OPENS = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}
WRITING = 0o1 | 0o2 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
# A descriptor's owner gets its signals: naming another process there is a way to kill it. fcntl F_SETOWN, F_SETSIG, F_SETOWN_EX; ioctl FIOSETOWN,
# SIOCSPGRP; and TIOCSTI, TIOCLINUX, which type into a terminal.
COMMANDS = {"x86_64": ((72, (8, 10, 15)), (16, (35073, 35074, 21522, 21532))), "aarch64": ((25, (8, 10, 15)), (29, (35073, 35074, 21522, 21532)))}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SECCOMP = {"x86_64": 317, "aarch64": 277}
