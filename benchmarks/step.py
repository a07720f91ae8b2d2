"""What a training step costs on a CPU, f32, one thread: beside the same stack in torch's own layers, beside transfusion-pytorch, and its data.

    python -m benchmarks.step --json           about two minutes of processor time
    python -m benchmarks.step --toy            proof that it runs, not a measurement

    step.packed    payload tokens a processor second of our loop's step on packed rows of text, pictures and clips, against nn.TransformerEncoderLayer
                   over the same rows with their dense mask
    step.text      the same on rows of one text each, where torch's causal kernel is at its best and packing has nothing to give
    step.qk_norm   step.text with normalised queries and keys, as our models have them and torch's layer has not
    step.peer      against transfusion-pytorch on the same documents, a row each, padded to the longest: whoever pads pays
    step.wait      the share of step time spent waiting for data in a run over a plan of encoded shards (peer: the most it may be)

Sides and what each does: step_sides.py. A step is everything from a batch that was read (draws of times and noise, counts) to weights that moved.
`bar` .952 is 1 / 1.05: at most 5 % slower.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import packed, peers, step_sides
from benchmarks.alternating import alternate, compared
from benchmarks.gpu_rows import TOY as SIZES
from benchmarks.gpu_training import plan
from benchmarks.step_sides import Ours, Peer, Plain, Shape, document, samples, text_rows

BARS = {"step.packed": 0.952, "step.text": 0.952, "step.qk_norm": 0.952, "step.peer": 2.0}
NAMES = [*BARS, "step.wait"]
MOST_WAIT = 0.02
KINDS = ((1, 30), (0, 200), (2, 0), (1, 60), (0, 90))
WAYS = ("grouped", "flat", "hybrid")  # of the peer through a batch


def against_plain(name: str, root: Path, made: str, s: Shape, runs: int) -> dict[str, Any]:
    """Our step against torch's layers, on packed or on text rows."""
    text = name != "step.packed"
    rows = text_rows(s) if text else packed.rows(s.sequence, s.rows, s.patches, s.channels, s.vocab, kinds=KINDS)
    batch = packed.batch(rows, s.sequence, s.vocab, s.channels)
    ours, plain = Ours(made, s, root / name, qk_norm=name == "step.qk_norm"), Plain(s, text)
    took = alternate(lambda _: ours.step(batch), lambda _: plain.step(batch), runs)
    more = {"ours_parameters": ours.parameters, "peer_parameters": sum(p.numel() for p in plain.parameters())}
    unit = "payload tokens per processor second; peer: nn.TransformerEncoderLayer"
    return compared(name, _payload(rows), unit, BARS[name], took, **more, **_versions())


def against_peer(root: Path, made: str, s: Shape, runs: int) -> dict[str, Any]:
    """Our step against transfusion-pytorch's, by its fastest way."""
    rows = packed.rows(s.sequence, s.rows, s.patches, s.channels, s.vocab, kinds=KINDS)
    batch, given = packed.batch(rows, s.sequence, s.vocab, s.channels), samples(rows)
    ours, peer = Ours(made, s, root / "step.peer"), Peer(s)
    tried = {}
    for way in WAYS:
        peer.model.modality_processing = way
        peer.step(given)
        tried[way] = alternate(lambda _: None, lambda _: peer.step(given), 1, warm=False)[0]["peer_cpu_s"]
    best = min(tried, key=lambda way: tried[way])
    peer.model.modality_processing = best
    took = alternate(lambda _: ours.step(batch), lambda _: peer.step(given), runs)
    more = {"way": best, "ours_parameters": ours.parameters, "peer_parameters": peer.parameters, "documents": len(given)}
    versions = {**_versions()["versions"], **peers.versions("transfusion", ["transfusion-pytorch"])}
    unit = f"payload tokens per processor second; peer: transfusion-pytorch ({best})"
    return compared("step.peer", _payload(rows), unit, BARS["step.peer"], took, **more, versions=versions)


def waiting(root: Path, made: str, s: Shape) -> dict[str, Any]:
    """The share of a run's time that its steps waited for data, by metrics.jsonl, the first step aside (it opens the shards)."""
    from trainer.loop import train
    from trainer.run import Run

    train(Run.model_validate(document(made, s, root / "run")))
    lines = [json.loads(line) for line in (root / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()][1:]
    share = sum(line["data_wait"] * line["step_s"] for line in lines) / sum(line["step_s"] for line in lines)
    step = statistics.median(line["step_s"] for line in lines)
    unit = f"share of wall time, steps of {step:.2g} s; peer: the most it may be"
    return {
        "name": "step.wait", "ours": round(share, 5), "peer": MOST_WAIT, "unit": unit,
        "ratio": round(MOST_WAIT / max(share, 1e-9), 3), "bar": 1.0, "ok": share <= MOST_WAIT, "runs": len(lines), **_versions(),
    }  # fmt: skip


def _payload(rows: list[list[Any]]) -> int:
    """Stored ids and latents: what every side is asked to learn from."""
    return sum(int((d.kind <= 1).sum()) for row in rows for d in row)


def _versions() -> dict[str, Any]:
    return {"versions": {"numpy": version("numpy"), "torch": str(torch.__version__)}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--toy", action="store_true", help="toy sizes")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    s = step_sides.TOY if args.toy else step_sides.REAL
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made = plan(root, SIZES._replace(sequence=s.sequence, patches=s.patches, channels=s.channels, vocab=s.vocab, steps=s.steps))
        for name in args.only:
            if name == "step.wait":
                rows.append(waiting(root, made, s))
            elif name == "step.peer":
                rows.append(against_peer(root, made, s, max(args.runs - 2, 1)))
            else:
                rows.append(against_plain(name, root, made, s, args.runs))
    print(json.dumps(rows) if args.json else "\n".join(f"{r['name']}: {r['ours']} {r['unit']}, ratio {r['ratio']} (bar {r['bar']})" for r in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
