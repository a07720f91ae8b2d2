"""What stopped a training process, told to the one that launched it: torchrun and Ray Train pass on no more than that something went wrong.

In: an error of ours in one of many processes. Out: the same error in the launcher, with its exit status, so that bad input is not tried again and a
dead worker is. It goes through a small file in the run's folder, which every process reaches, and which is gone afterwards.
"""

from __future__ import annotations

import os
from typing import Any

from pipelines.format import errors, storage
from pipelines.format.document import canon
from pipelines.format.errors import HeadwaterError

VARIABLE, NAME = "HEADWATER_OUTCOME", "stopped-by.json"


def place(root: str) -> str:
    """Where processes of the run at `root` leave it."""
    return storage.join(storage.absolute(root), NAME)


def leave(error: HeadwaterError) -> None:
    """From a process that was launched so: what it stops for."""
    path = os.environ.get(VARIABLE)
    if path:
        storage.replace(path, canon(error.as_dict()), scratch=path.rpartition("/")[0])


def take(root: str) -> HeadwaterError | None:
    """What a process left, if one did; it is gone then."""
    path = place(root)
    if not storage.exists(path):
        return None
    said: dict[str, Any] = storage.read_json(path)
    storage.delete(path)
    kind = getattr(errors, said["class"], None)
    known = isinstance(kind, type) and issubclass(kind, HeadwaterError)
    made = kind if known and kind is not None else HeadwaterError
    error: HeadwaterError = made(said["what"], **{key: said[key] for key in ("where", "found", "allowed", "next")})
    error.exit = int(said["exit"])  # type: ignore[misc]
    return error
