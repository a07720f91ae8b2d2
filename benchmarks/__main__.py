"""Every comparison in a row, and the table that says how each came out: `python -m benchmarks` rewrites benchmarks/README.md.

A comparison is a file of this folder, run as a process of its own with --json (what it prints: ARCHITECTURE, "What machines read"). Names on the
command line run those alone; rows of the others stay in the table as they were.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
README = HERE / "README.md"
HEAD = """# Benchmarks

Each row is one comparison, both sides in the same run: `ratio` is the median of paired runs, larger is better, and `bar` is what it must reach.
Where the other side is a limit or a stated figure, that is the `peer`. Rewritten by `python -m benchmarks`; the single runs are in `results.json`.
What needs an accelerator is apart: `python -m benchmarks.gpu`, [gpu.md](gpu.md).

| name | ours | peer | unit | ratio | bar | | runs | versions |
|---|---:|---:|---|---:|---:|---|---:|---|
"""


def names() -> list[str]:
    """The comparisons there are: the files of this folder that have a `main`."""
    found = sorted(m.name for m in pkgutil.iter_modules([str(HERE)]) if not m.name.startswith("_"))
    return [name for name in found if "def main(" in (HERE / f"{name}.py").read_text(encoding="utf-8")]


def run(name: str) -> list[dict[str, Any]]:
    """One comparison's rows; raises CalledProcessError when it fails."""
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--json"], stdout=subprocess.PIPE, check=True, cwd=HERE.parent)
    said = json.loads(done.stdout)
    return said if isinstance(said, list) else [said]


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    versions = ", ".join(f"{k} {v}" for k, v in row["versions"].items())
    runs = max((r.get("run", i) for i, r in enumerate(row["runs"], 1)), default=0) if isinstance(row["runs"], list) else row["runs"]
    cells = [row["name"], _figure(row["ours"]), _figure(row["peer"]), row["unit"], _figure(row["ratio"]), _figure(row["bar"])]
    return "| " + " | ".join([*map(str, cells), "ok" if row["ok"] else "**missed**", str(runs), versions]) + " |\n"


def _figure(x: Any) -> str:
    return f"{x:,.0f}" if isinstance(x, int | float) and abs(x) >= 1000 else f"{x:.3g}" if isinstance(x, float) else str(x)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(names())}")
    wanted = parser.parse_args().names or names()
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in wanted:
        print(f"{name} …", file=sys.stderr, flush=True)
        results[name] = run(name) or results.get(name, [])  # nothing where its inputs are not here
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        README.write_text(HEAD + "".join(line(row) for key in sorted(results) for row in results[key]), encoding="utf-8")
    missed = [row["name"] for name in wanted for row in results[name] if not row["ok"]]
    print(f"{README}{': missed ' + ', '.join(missed) if missed else ''}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
