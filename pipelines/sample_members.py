"""Samples in tars as WebDataset writes them: members of one stem belong together, and texts beside a medium are named by their endings.

`00012.mp4`, `00012.json` and `00012.txt` are one sample; a place in it is `txt`, `json`, or a key of the JSON (`json.caption`).
"""

from __future__ import annotations

from typing import Any

from pipelines.format.errors import Reject
from pipelines.json_list import parse

TARS = (".tar", ".tar.gz", ".tgz", ".tar.zst")


def stem_of(member: str) -> str:
    """The name up to the first dot of its last part."""
    folder, slash, base = member.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def said(sample: dict[str, bytes], where: str) -> Any:
    """What stands at a place, None where there is nothing. `sample` holds bytes by ending. Raises `Reject`."""
    member, _, key = where.partition(".")
    if member not in sample:
        return None
    if member != "json":
        try:
            return sample[member].decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Reject("unreadable", f"the {member} is not UTF-8") from None
    value = parse(sample[member])
    for step in key.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value
