"""What fetching may take and what it must respect: the block `fetch:` of a recipe, and the one object that every part of this room reads.

Times are wall seconds on a monotonic clock, sizes are bytes. Two things are not here on purpose, since recipes travel with data: addresses
that may be reached although they are not public, and switching certificates off. The first is the operator's environment variable
HEADWATER_FETCH_PRIVATE (`10.1.2.3:8080,…`: exact address and port pairs, for a mirror inside a private network); the second does not exist.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache

from pydantic import Field

from pipelines.format.document import Document, Size
from pipelines.format.errors import InputError
from pipelines.format.manifest import code_version

ENVIRONMENT = "HEADWATER_FETCH_PRIVATE"
# Keys that say how patiently, not what: they stay out of fingerprints, so that a job may be finished or retried at another pace.
PACE = ("deadline", "connect", "min_rate", "grace", "patience", "attempts", "backoff", "max_wait", "concurrency", "per_host", "host_failures")


class Policy(Document):
    """`agent` is the product token that robots.txt and X-Robots-Tag address; `contact` (a URL or mail address) goes into User-Agent, where site
    owners look for it. `ports` are allowed beside 80 and 443.

    One attempt (with its redirects) ends after `deadline` s, connecting after `connect` s, a body whose mean rate is below `min_rate` bytes/s
    once `grace` s are over; all attempts of one URL and the waits between them after `patience` s. Waiting for a turn at a busy host counts
    towards none of these. `max_bytes` holds for the wire and, apart, for what it unpacks to. `concurrency` and `per_host` are connections of
    one worker. A host whose last `host_failures` URLs all failed in passing ways is left alone for the rest of the part."""

    agent: str = Field("headwater", pattern=r"^[A-Za-z_-]+$")
    contact: str | None = Field(None, max_length=200, pattern=r"^[\x20-\x7e]*$")
    ports: tuple[int, ...] = ()
    deadline: float = Field(30.0, gt=0)
    connect: float = Field(10.0, gt=0)
    min_rate: int = Field(1_024, ge=0)
    grace: float = Field(5.0, gt=0)
    patience: float = Field(120.0, gt=0)
    attempts: int = Field(5, ge=1, le=20)
    backoff: float = Field(0.5, ge=0)
    max_wait: float = Field(60.0, ge=0)
    max_bytes: Size = 20_000_000
    max_redirects: int = Field(5, ge=0, le=20)
    concurrency: int = Field(128, ge=1, le=1_024)
    per_host: int = Field(8, ge=1, le=256)
    host_failures: int = Field(20, ge=1)
    robots: bool = True
    opt_outs: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex", "noml", "none")
    tdm_reservation: bool = True

    @property
    def user_agent(self) -> str:
        """The User-Agent header."""
        about = f" (+{self.contact})" if self.contact else ""
        return f"{self.agent}/{code_version()}{about}"


class FilePolicy(Policy):
    """The same for files of gigabytes, which go to a scratch file. `deadline` holds for what comes before a body. The body itself may take as long
    as it earns: `min_rate` bytes/s, with `grace` s of silence at most. `patience` and `attempts` begin anew with every 8 MiB that a fresh attempt
    adds to what the last one left. `max_bytes` is of one file, and so of the scratch space that one worker needs."""

    min_rate: int = Field(50_000, ge=0)
    grace: float = Field(30.0, gt=0)
    patience: float = Field(600.0, gt=0)
    attempts: int = Field(8, ge=1, le=20)
    backoff: float = Field(1.0, ge=0)
    max_bytes: Size = 5_000_000_000
    opt_outs: tuple[str, ...] = ("noai", "noindex", "noml", "none")


@cache
def _pairs(text: str) -> frozenset[tuple[str, int]]:
    found = set()
    for item in filter(None, (i.strip() for i in text.split(","))):
        host, _, port = item.rpartition(":")
        if not host or not port.isdigit():
            raise InputError("not an address and a port", where=ENVIRONMENT, found=item, allowed="10.1.2.3:8080,[fd00::1]:80")
        found.add((host.strip("[]"), int(port)))
    return frozenset(found)


def private_pairs(environment: Mapping[str, str] | None = None) -> frozenset[tuple[str, int]]:
    """The (address, port) pairs that the operator of this machine allows although they are not public."""
    return _pairs((os.environ if environment is None else environment).get(ENVIRONMENT, ""))
