"""Planning at 1, 10 and 100 million records: records a second on one core, memory, and bytes on disk.

    python -m benchmarks.plan --json                       10 million records, three runs
    python -m benchmarks.plan --sizes 1M 10M 100M --ray    and the chart benchmarks/plan.svg, and the same plan through Ray at 10M

The inputs are indexes of the field's synthetic mix (plan_inputs.py), made once in `--folder` (70 bytes a record) and left there. Each figure is
that of a fresh process, by processor time (user and system, all threads), imports and start included:

    plan.order_packing   from units at hand to rows of pieces: the consumption order of all sources, their merge, best-fit packing
    plan.end_to_end      indexes → a published plan: surveys, draws, selection, order, packing, spans, Parquet, hashes, card
    plan.memory          ≤ 2 GB: largest resident size (peer: the bar)
    plan.span_bytes      ≤ 16 bytes a span on disk (peer: the bar)
    plan.ray             the same plan through the engine: 1 when every byte is equal
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.plan_inputs import KINDS, make
from benchmarks.processes import most_held_mb

ORDER, WHOLE, MEMORY_GB, SPAN_BYTES = 1e6, 0.4e6, 2.0, 16
CHART = Path(__file__).with_name("plan.svg")


def mixture(inputs: Path) -> dict[str, Any]:
    """Every record once, but for two in a hundred that are held out."""
    sources = {name: {"dataset": str(inputs / name), "epochs": 1} for name in KINDS}
    held = {"fraction": "2%", "seed": 0, "max_tokens": "5M"}
    return {"name": "plan", "sequence_length": 4096, "held_out": held, "normalise": "none", "count": "records", "sources": sources}


def whole(inputs: Path, out: Path, engine: str) -> dict[str, Any]:
    """One plan, made in this process."""
    from mixtures.mixture import Mixture
    from mixtures.plan import make_plan
    from pipelines.engine import open_job
    from pipelines.format.document import parse

    document = parse(Mixture, mixture(inputs) | {"engine": engine})
    if engine == "ray":
        with open_job("ray", cpus=2) as job:
            make_plan(document, str(out), job=job)
    else:
        make_plan(document, str(out))
    used = resource.getrusage(resource.RUSAGE_SELF)
    card = json.loads((out / "plan.json").read_text())
    spans = sum(s["spans"] for s in card["sources"].values())
    records = sum(s["records"] for s in card["sources"].values())
    nbytes = sum(p.stat().st_size for p in out.glob("*.parquet"))
    figures = {"seconds": used.ru_utime + used.ru_stime, "memory_gb": most_held_mb() / 1024, "records": records, "spans": spans}
    return figures | {"span_bytes": nbytes / spans, "fill": card["fill"]}


def order(inputs: Path) -> dict[str, Any]:
    """Order and packing alone, of units that are at hand."""
    from mixtures import rows
    from mixtures.budget import draft
    from mixtures.mixture import Mixture
    from mixtures.packing import pack_windows, window_of
    from pipelines.format.document import parse

    drafted = draft(parse(Mixture, mixture(inputs)))
    n = sum(d.units.of("units") for d in drafted.sources)
    begun = time.process_time()
    live = rows._Live(rows._windows(rows._merged(drafted, 0), window_of(n)))
    made = 0
    for window, left in pack_windows(live.windows(), drafted.mixture.sequence_length):
        live.forget(left)
        made += window.rows
    return {"seconds": time.process_time() - begun, "records": sum(d.units.of("records") for d in drafted.sources), "rows": made}


def alone(*argv: str) -> dict[str, Any]:
    """A figure from a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.plan", *argv], stdout=subprocess.PIPE, check=True, cwd=Path(__file__).parents[1])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(folder: Path, n: int, runs: int, ray: bool, rows: bool = True) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the table at one size (or none), and the point on the chart."""
    inputs = folder / f"{n}"
    make(inputs, n)
    made, ordered, differs = [], [], None
    with tempfile.TemporaryDirectory(prefix="benchmark-plan-", dir=folder) as scratch:
        out = Path(scratch)
        for k in range(runs):
            made.append(alone("--whole", str(inputs), str(out / f"{k}")))
            ordered += [alone("--order", str(inputs))] if rows else []
        if ray:
            alone("--whole", str(inputs), str(out / "ray"), "ray")
            differs = [p.name for p in sorted((out / "0").glob("*.*")) if p.read_bytes() != (out / "ray" / p.name).read_bytes()]
            differs = [name for name in differs if name != "plan.json"]  # says which engine the mixture names
            differs += [] if _card(out / "0") == _card(out / "ray") else ["plan.json"]
    per = lambda found: [f["records"] / f["seconds"] for f in found]
    most, span = max(m["memory_gb"] for m in made), median(m["span_bytes"] for m in made)
    versions = {"numpy": np.__version__, "pyarrow": pa.__version__}
    point = {"records": n, "seconds": median(m["seconds"] for m in made), "memory_gb": most, "span_bytes": span}
    if not rows:
        return [], point

    def row(name: str, ours: float, peer: float, unit: str, ratio: float, facts: Any) -> dict[str, Any]:
        figures = {"ours": round(ours, 3), "peer": peer, "unit": unit, "ratio": round(ratio, 3), "bar": 1.0, "ok": ratio >= 1}
        return {"name": name, **figures, "runs": facts, "versions": versions}

    unit = f"records per processor second, {n:,} records (peer: the figure to reach)"
    table = [
        row("plan.order_packing", median(per(ordered)), ORDER, unit, median(per(ordered)) / ORDER, ordered),
        row("plan.end_to_end", median(per(made)), WHOLE, unit, median(per(made)) / WHOLE, made),
        row("plan.memory", most, MEMORY_GB, f"GB resident at most, {n:,} records (peer: the bar)", MEMORY_GB / most, made),
        row("plan.span_bytes", span, SPAN_BYTES, "bytes a span on disk (peer: the bar)", SPAN_BYTES / span, made),
    ]
    if differs is not None:
        same = float(not differs)
        table.append(row("plan.ray", same, 1.0, f"equal to the byte through Ray, {n:,} records", same, [{"differs": differs}]))
    return table, point


def _card(path: Path) -> dict[str, Any]:
    card = json.loads((path / "plan.json").read_text())
    for where in (card["mixture"], card["recipe"]):
        where.pop("engine", None)
    return {k: v for k, v in card.items() if k not in ("name", "parents", "datasets")}


def chart(points: list[dict[str, Any]]) -> None:
    """Processor seconds and memory against records, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    x = [p["records"] for p in points]
    axes.loglog(x, [p["seconds"] for p in points], "o-", color="#0072b2", label="processor seconds")
    axes.loglog(x, [points[0]["seconds"] * n / x[0] for n in x], ":", color="#0072b2", label="linear in records")
    axes.loglog(x, [p["memory_gb"] for p in points], "s-", color="#d55e00", label="memory, GB")
    axes.set_xlabel("records planned")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(CHART)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one list on stdout, nothing else")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "headwater-plan-inputs")
    parser.add_argument("--sizes", nargs="+", default=["10M"], help="records, such as 10M; more than one draw the chart; rows are those of 10M")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="also through Ray, at the size of the rows")
    parser.add_argument("--whole", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--order", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.whole:
        inputs, out, *engine = args.whole
        print(json.dumps(whole(Path(inputs), Path(out), *(engine or ["local"]))))
        return
    if args.order:
        print(json.dumps(order(args.order)))
        return
    sizes = sorted(int(float(s.rstrip("M")) * 10**6) for s in args.sizes)
    shown = 10**7 if 10**7 in sizes else sizes[-1]
    rows, points = [], []
    for n in sizes:
        found, point = measure(args.folder, n, args.runs if n <= shown else 1, args.ray and n == shown, n == shown)
        points.append(point)
        rows = found if n == shown else rows
    if len(points) > 1:
        chart(points)
    for row in rows:
        row["facts"] = {"sizes": points}
    print(json.dumps(rows) if args.json else "\n".join(f"{r['name']}: {r['ours']:,} against {r['peer']:,} {r['unit']}: {r['ratio']}" for r in rows))


if __name__ == "__main__":
    main()
