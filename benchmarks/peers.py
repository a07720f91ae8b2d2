"""Peers in venvs of their own, made when missing, so that none of them weighs on users: `.peers/<name>/`, pinned by peers.txt and constraints.txt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ALONE = "alone"  # the word after a name whose own requirements contradict constraints.txt


def wanted(name: str) -> list[str]:
    """What peers.txt says to install for a peer, with pip's options."""
    lines = [line.split() for line in (HERE / "peers.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    packages = next(packages for found, *packages in lines if found == name)
    return packages[1:] if packages[0] == ALONE else ["-c", str(ROOT / "constraints.txt"), *packages]


def installed(name: str) -> bool:
    """Whether a peer's venv is there."""
    return (ROOT / ".peers" / name / ".ready").exists()


def python_of(name: str) -> str:
    """The interpreter of a peer's venv; makes the venv first where there is none, which needs a package index."""
    venv = ROOT / ".peers" / name
    python = venv / "bin" / "python"
    if not installed(name):
        print(f"making {venv} …", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted(name)], check=True, stdout=sys.stderr)
        (venv / ".ready").touch()
    return str(python)


def versions(name: str, packages: list[str]) -> dict[str, str]:
    """The versions of packages in a peer's venv."""
    code = f"import json; from importlib.metadata import version; print(json.dumps({{p: version(p) for p in {packages!r}}}))"
    return dict(json.loads(subprocess.run([python_of(name), "-c", code], check=True, stdout=subprocess.PIPE).stdout))
