"""Fixtures shared by all tests: an object store on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.s3_server import s3_server


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """`s3://bucket` on a moto server that lives as long as the test process."""
    with s3_server() as bucket:
        yield bucket
