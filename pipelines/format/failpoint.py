"""A hook at every I/O step, so that tests can make the k-th step of a process fail, hang or die. Costs one look at the environment.

HEADWATER_FAIL_AT="k[:raise|kill|hang]" picks the step; counting starts at 1 in each process. The method is SQLite's: run with k = 1, 2, …
until a run finishes untouched, and look at what was left on disk each time.
"""

from __future__ import annotations

import errno
import os
import signal
import time

_step = 0


def failpoint(name: str) -> None:
    """Count one I/O step; HEADWATER_FAIL_AT="k[:raise|kill|hang]" makes the k-th step of this process fail. For tests only."""
    setting = os.environ.get("HEADWATER_FAIL_AT")
    if not setting:
        return
    global _step
    _step += 1
    at, _, how = setting.partition(":")
    if _step != int(at):
        return
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(3600)
    raise OSError(errno.ENOSPC, f"failpoint {_step}: {name}")


def failpoint_steps(reset: bool = False) -> int:
    """How many I/O steps this process has counted."""
    global _step
    if reset:
        _step = 0
    return _step
