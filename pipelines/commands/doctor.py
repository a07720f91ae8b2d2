"""Look at the machine: versions against their floors, torch, Ray, ffmpeg, disk, memory, cores.

A floor is the version that closed a hole or brought a behaviour that headwater relies on. Below a floor is a failure (exit 4), a
missing optional package is a note. Nothing is changed and nothing is fetched.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.format.errors import HeadwaterError, Reject
from pipelines.media.backends import BACKENDS, about
from pipelines.media.child import Child, ChildDied
from pipelines.terminal import say, size, table

# name, floor, what the floor is for; optional packages are judged only when they are installed.
FLOORS = (
    ("ray", "2.56", "pickle in read_webdataset (CVE-2026-57516)"),
    ("pillow", "13.0.0", "heap overflow in the JPEG decoder (CVE-2026-112403)"),
    ("pyarrow", "17", "extension types that unpickle (CVE-2023-47248, 14.0.1)"),
    ("fsspec", "2026.6", "code from reference file systems (CVE-2026-104851)"),
    ("torch", "2.11", "torch.load with weights_only (CVE-2026-24747, 2.10)"),
    ("transformers", "5.3", "remote code through config.json (CVE-2026-5241)"),
    ("av", "18", "the bundled FFmpeg 8.1"),
    ("numpy", "2.0", "the array interface used here"),
    ("pydantic", "2.7", "strict JSON validation"),
    ("tokenizers", "0.20", "the tokenizer.json format written here"),
    ("zstandard", "0.22", "bounded streaming decompression"),
)
OPTIONAL = (
    ("urllib3", "2.7.0", "decompression bombs (CVE-2026-44432)"),
    ("aiohttp", "3.14.4", "decompression bombs (CVE-2026-128131)"),
    ("datasets", "5.2.0", "pickle in the pandas builder (CVE-2026-57845)"),
    ("hydra-core", "1.3.7", "code from configs (CVE-2026-106439)"),
    ("diffusers", "0.36", "the VAE encoders"),
    ("webdataset", "0.2.111", "reading our tars elsewhere"),
    ("scenedetect-headless", "0.7", "shots of raw video"),
)
# From these patch levels on tarfile's own extraction filters hold; we stream members and never extract, hence a note and not a failure.
TARFILE = {(3, 11): 17, (3, 12): 15, (3, 13): 16}
FFMPEG = "8.1.3"  # CVE-2026-107697: what playlists may name
WALLS = ("landlock", "seccomp")
DISK, MEMORY = 5 << 30, 4 << 30  # .venv takes 2.1 GiB and the demo 0.6; its processes held 1.9 GiB (PSS) while encoding, Ray included


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--at", default=".", metavar="DIR", help="the folder whose disk is looked at (default: here)")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    rows = [_python(), *(_package(*row, required=True) for row in FLOORS), *(_package(*row, required=False) for row in OPTIONAL)]
    rows += [_torch(), _ffmpeg(), *_decoding(), *map(_video, BACKENDS), _ray_open()]
    rows += [_cores(), _memory(), _disk(args.at)]
    return {"ok": all(row["state"] != "fail" for row in rows), "checks": rows}


def status(answer: dict[str, Any]) -> int:
    return 0 if answer["ok"] else 4


def show(answer: dict[str, Any]) -> None:
    table(
        "doctor",
        ["", "what", "found", "floor", "note"],
        [[r["state"], r["what"], r["found"], r["floor"], r["note"]] for r in answer["checks"]],
    )
    say("all is well" if answer["ok"] else "something is below its floor: pip install -c constraints.txt -e . brings the known-good set")


def _row(what: str, state: str, found: Any, floor: str = "", note: str = "") -> dict[str, str]:
    return {"what": what, "state": state, "found": str(found), "floor": floor, "note": note}


def numbers(text: str) -> tuple[int, ...]:
    """A version as comparable numbers without trailing zeros, so that 13 is not below 13.0.0: "2.13.0+cpu" is (2, 13)."""
    head = re.match(r"\d+(?:\.\d+)*", text)
    parts = [int(n) for n in head[0].split(".")] if head else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def _package(name: str, floor: str, why: str, *, required: bool) -> dict[str, str]:
    try:
        found = version(name)
    except PackageNotFoundError:
        return _row(name, "fail" if required else "note", "not installed", floor, why)
    return _row(name, "ok" if numbers(found) >= numbers(floor) else "fail", found, floor, why)


def _python() -> dict[str, str]:
    here = sys.version_info
    old = here.micro < TARFILE.get((here.major, here.minor), 0)
    note = "its tarfile filters can be passed by; headwater never extracts" if old else ""
    return _row("python", "fail" if here < (3, 11) else "note" if old else "ok", ".".join(map(str, here[:3])), "3.11", note)


def _torch() -> dict[str, str]:
    """Asked in a child: this floor imports no torch."""
    code = "import torch; print(torch.__version__, 'cuda', torch.version.cuda, torch.cuda.device_count(), 'threads', torch.get_num_threads())"
    try:
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    except (subprocess.SubprocessError, OSError) as error:
        return _row("torch loads", "fail", f"{type(error).__name__}", note="pip install torch")
    return _row("torch loads", "ok", out.strip())


def _ffmpeg() -> dict[str, str]:
    path = shutil.which("ffmpeg")
    return _row("ffmpeg", "ok" if path else "note", path or "not installed", note="not needed: PyAV brings its own")


def _video(name: str) -> dict[str, str]:
    """Asked in the guarded process where it would decode."""
    works, found = about(name)
    note = f"backend: {name}, for trusted files; {BACKENDS[name].install}" if BACKENDS[name].trust else "backend: auto"
    return _row(f"video by {name}", "ok" if works else "note" if BACKENDS[name].trust else "fail", found, note=note)


def _decoding() -> list[dict[str, str]]:
    """What really holds a decoding process here, asked of one; and which FFmpeg it decodes with."""
    try:
        child = Child()
        try:
            found = next(iter(child.call("pipelines.media.frames:versions", {}))).meta["ffmpeg"]
        finally:
            child.close()
    except (HeadwaterError, Reject, ChildDied) as error:
        return [_row("decoding child", "fail", str(error).splitlines()[0], note="nothing can be decoded")]
    missing = [wall for wall in WALLS if wall not in child.walls]
    note = (
        f"no {' and no '.join(missing)}: a decoder taken over by a file is held by limits only; decode what you trust, or in a container"
        if missing
        else ""
    )
    rows = [_row("decoding child", "note" if missing else "ok", ", ".join(child.walls) or "limits only", ", ".join(WALLS), note)]
    fixed = numbers(found) >= numbers(FFMPEG)
    rows.append(
        _row(
            "ffmpeg in PyAV",
            "ok" if fixed else "note",
            found,
            FFMPEG,
            "" if fixed else "older than fixes of its playlists, which are never opened here",
        )
    )
    return rows


def _ray_open() -> dict[str, str]:
    """A Ray dashboard that listens on every interface lets anybody run code here, unless a token is asked for."""
    port = f"{8265:04X}"  # /proc/net/tcp writes ports in hex
    tables = [path for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists()]
    try:
        rows = [line.split() for path in tables for line in path.read_text().splitlines()[1:]]
    except OSError:
        tables = []
    if not tables:
        return _row("ray dashboard", "note", "cannot be seen on this system")
    is_open = any(row[1] in (f"{'0' * 8}:{port}", f"{'0' * 32}:{port}") and row[3] == "0A" for row in rows)
    if not is_open:
        return _row("ray dashboard", "ok", "not open to the network")
    token = os.environ.get("RAY_AUTH_MODE") == "token"
    return _row("ray dashboard", "ok" if token else "fail", "0.0.0.0:8265", note="set RAY_AUTH_MODE=token or --dashboard-host 127.0.0.1")


def _cores() -> dict[str, str]:
    return _row("cores", "ok", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def _memory() -> dict[str, str]:
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(facts["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError):
        return _row("memory", "note", "cannot be seen on this system", size(MEMORY))
    return _row("memory", "ok" if free >= MEMORY else "note", f"{size(free)} available", size(MEMORY), "for the demo")


def _disk(at: str) -> dict[str, str]:
    free = shutil.disk_usage(at).free
    return _row("disk", "ok" if free >= DISK else "note", f"{size(free)} free", size(DISK), "for the demo")
