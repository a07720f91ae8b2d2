"""Runs in a guarded child: the ways in which a decoder can go down, and what one that was taken over can say."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any


def echo(args: dict[str, Any], file: Any) -> tuple[dict[str, Any], bytes]:
    return {}, file.read()


def die(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], bytes]]:
    yield {"n": 0}, b"before"
    WAYS[args["way"]]()
    yield {"n": 1}, b"after"


def _loop() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")  # holds the interpreter lock, as C code in an endless loop does


def _blow_up() -> None:
    held = []
    while True:
        held.append(b"x" * (16 << 20))


def _blow_up_in_c() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    while True:
        at = libc.malloc(16 << 20)
        ctypes.memset(at, 1, 16 << 20)  # nobody looks whether there was any: a crash


def _say(*parts: bytes) -> None:
    fd = next(n for n in range(3, 64) if _is_socket(n))
    for part in parts:
        os.write(fd, part)


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


def framed(raw: bytes | dict[str, Any]) -> bytes:
    text = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    return len(text).to_bytes(4, "big") + text


NONSENSE = {
    "noise": b"\xff" * 64,
    "no length": framed(b""),
    "no JSON": framed(b"{not json"),
    "deep": framed(b"[" * 200_000),
    "deep mapping": framed(b'{"a":' * 100_000),
    "a list": framed(b"[]"),
    "infinite": framed(b'{"kind": "end", "blob": Infinity}'),
    "negative": framed({"kind": "end", "blob": -1}),
    "enormous": framed({"kind": "answer", "meta": {}, "blob": 1 << 62}),
    "no kind": framed({"blob": 0}),
    "another kind": framed({"kind": "ready", "walls": [], "blob": 0}),
    "an unknown kind": framed({"kind": "pickle", "blob": 0}),
    "no meta": framed({"kind": "answer", "blob": 0}),
    "a reason that is none": framed({"kind": "reject", "reason": "\x1b[31m" * 9, "detail": "", "blob": 0}),
    "a kind that is a list": framed({"kind": [], "blob": 0}),
    "cannot load": framed({"kind": "broken", "detail": "stop the job", "blob": 0}),
    "more than the end": framed({"kind": "end", "blob": 0}) + framed({"kind": "answer", "meta": {}, "blob": 0}),
    "not utf-8": framed(b"\xff\xfe{}"),
}


def nonsense(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], bytes]]:
    _say(NONSENSE[args["what"]])
    time.sleep(600)
    yield {}, b""


def endless(args: dict[str, Any], file: Any) -> Iterator[tuple[dict[str, Any], bytes]]:
    while True:
        yield {}, b"more"


def _half() -> None:
    _say(framed({"kind": "answer", "meta": {}, "blob": 1000}), b"only this")
    os._exit(0)


def _half_and_wait() -> None:
    _say(framed({"kind": "answer", "meta": {}, "blob": 1000}), b"only this")
    time.sleep(600)


def _hang_up() -> None:
    for n in range(3, 64):
        if _is_socket(n):
            os.close(n)
    time.sleep(600)


WAYS: dict[str, Callable[[], Any]] = {
    "segmentation fault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(7),
    "exit 0": lambda: os._exit(0),
    "endless loop": _loop,
    "sleep": lambda: time.sleep(600),
    "memory": _blow_up,
    "memory in C": _blow_up_in_c,
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "half an answer": _half,
    "half an answer, then silence": _half_and_wait,
    "hangs up": _hang_up,
}
