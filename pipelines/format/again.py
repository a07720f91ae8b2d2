"""A remote read that failed for a passing reason is tried again.

In: a call and the path it reads. Out: what it returns, after as many as TRIES tries. The clients of object stores retry some faults themselves,
but not a connection that ends in the middle of a body, a name that does not resolve for a second, or more than a handful in a row; a training run
of weeks meets them all. At 20 % of faults a read fails for good once in 400,000 (0.2^8). Waits double from 0.1 s to 5 s, each multiplied by
0.5 to 1.5, drawn from the path and the number of the try: readers of different files do not come back together, and a run can be repeated.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import TypeVar

from pipelines.format.errors import TemporaryError

T = TypeVar("T")
TRIES = 8
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
# Faults of the clients' own kind that are no OSError, by the package that defines them; importing these for a name would cost a second.
CLIENTS = frozenset({"aiohttp", "aiobotocore", "botocore", "urllib3", "requests", "http", "gcsfs", "google", "azure", "adlfs"})
LASTING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG})


def passing(error: BaseException) -> bool:
    """Whether the same call may succeed later. What a store says about permission or absence is final."""
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)):
        return False
    if isinstance(error, OSError):
        return error.errno not in LASTING
    return isinstance(error, EOFError) or type(error).__module__.partition(".")[0] in CLIENTS


def again(path: str, call: Callable[[], T]) -> T:
    """What `call` returns. Raises what it raises when that will stay so, and TemporaryError (exit 75) after TRIES passing faults."""
    for attempt in range(1, TRIES + 1):
        try:
            return call()
        except Exception as error:
            if not passing(error):
                raise
            if attempt == TRIES:
                raise TemporaryError(
                    f"reading failed {TRIES} times", where=path, found=f"{type(error).__name__}: {error}", next="the same command again, later"
                ) from error
            time.sleep(_wait(path, attempt))
    raise AssertionError("unreachable")


def _wait(path: str, attempt: int) -> float:
    drawn = int.from_bytes(blake2b(f"{path}\n{attempt}".encode(), digest_size=2).digest(), "little") / 65536
    return float(min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * (0.5 + drawn))
