"""What tests share: an object store on loopback, real inputs when there are some, and one Ray for the whole run.

Ray takes five to twenty seconds to start and holds sockets below its temporary folder, whose paths may not exceed 107 bytes: hence one
cluster of two processors for all tests marked `ray`, without dashboard, in a short folder of its own. Jobs that run in the test process
find it initialised and use it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.s3_server import s3_server

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_COLOR", "1")

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing of a test is left in the user's cache; processes that tests start take it over."""
    os.environ["HEADWATER_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """`s3://bucket` on a moto server that lives as long as the test process."""
    with s3_server() as bucket:
        yield bucket


@pytest.fixture(scope="session")
def _ray_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="hw", dir="/tmp")
    yield folder
    import ray

    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ray_session(_ray_folder: str) -> None:
    """One local Ray: 2 CPUs, no dashboard, 300 MiB of object store. Started anew only where a test had to shut it down."""
    import ray

    if not ray.is_initialized():
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=300 << 20, _temp_dir=_ray_folder, **quiet)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder in which the small demo's out/demo lies, and what the command said. One for all test processes."""
    from tests import small_demo

    base = tmp_path_factory.getbasetemp()
    return small_demo.make(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the source tree."""
    return REPO


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real inputs; tests that ask for it are skipped where there is none."""
    folder = os.environ.get("HEADWATER_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("HEADWATER_DATA names no folder")
    return Path(folder)
