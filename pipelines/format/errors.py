"""Every error a person can meet, as one tree, each with its exit status.

    HeadwaterError            what is wrong · where (file:line or record id) · what was found · what is allowed · the next step
      RecipeError        2    a YAML document that cannot be understood
      InputError         2    data, a path or a record that cannot be used as asked
      BudgetError        3    tokens wanted that are not there
      VerifyError        4    bytes on disk that differ from what their card says
      ErrorBudgetSpent   5    too many records failed: the job stopped itself
      ConflictError      6    somebody else has written, or is writing, the same output
      StorageError      74    input/output: no space, no permission, a broken disk or store
      TemporaryError    75    worth trying again later
      Stopped      130/143    stopped by a signal; `next` is the command that resumes

`Reject` is not part of the tree: it costs one record, is counted by its reason, and never stops a job.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any, ClassVar


class HeadwaterError(Exception):
    """An error that speaks to the person at the keyboard rather than to us."""

    exit: ClassVar[int] = 1

    def __init__(self, what: str, *, where: Any = None, found: Any = None, allowed: Any = None, next: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.found = None if found is None else str(found)
        self.allowed = None if allowed is None else str(allowed)
        self.next = next
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.what]
        for label in ("where", "found", "allowed", "next"):
            value = getattr(self, label)
            if value is not None:
                lines.append(f"  {label + ':':9}{value}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross process borders (Ray, child processes): rebuild from the fields, not from the rendered text.
        return _rebuild, (type(self), self.what, self.where, self.found, self.allowed, self.next)

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints under "error"."""
        fields = {"class": type(self).__name__, "what": self.what, "where": self.where, "found": self.found}
        return {**fields, "allowed": self.allowed, "next": self.next, "exit": self.exit}


def _rebuild(cls: type[HeadwaterError], what: str, where: Any, found: Any, allowed: Any, next: str | None) -> HeadwaterError:
    return cls(what, where=where, found=found, allowed=allowed, next=next)


class RecipeError(HeadwaterError):
    exit = 2


class InputError(HeadwaterError):
    exit = 2


class BudgetError(HeadwaterError):
    exit = 3


class VerifyError(HeadwaterError):
    exit = 4


class ErrorBudgetSpent(HeadwaterError):
    exit = 5


class ConflictError(HeadwaterError):
    exit = 6


class StorageError(HeadwaterError):
    exit = 74


class TemporaryError(HeadwaterError):
    exit = 75


class Stopped(HeadwaterError):
    """A clean stop by SIGINT (130) or SIGTERM (143)."""

    exit = 130

    def __init__(self, what: str = "stopped", *, signal: int = 2, **more: Any) -> None:
        super().__init__(what, **more)
        self.exit = 128 + signal  # type: ignore[misc]


class Reject(Exception):
    """This record cannot be used: `reason` is lower_snake and counted; `detail` is kept beside it in the rejects file."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
    """Turn what the operating system or a store says about `path` into our error, with the next step."""
    try:
        yield
    except FileNotFoundError as e:
        raise InputError("no such file", where=path) from e
    except PermissionError as e:
        raise StorageError("no permission", where=path, found=e) from e
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "no space left" if full else "input/output failed"
        raise StorageError(what, where=path, found=e, next="free some space and run the same command again" if full else None) from e
