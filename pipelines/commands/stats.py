"""Say what an artifact holds: records, tokens by modality and source, sizes, drops by reason, lineage.

pipelines stats PATH          PATH: a dataset, a plan, a run or an ablation
pipelines stats PLAN --deep   also what is counted from the rows of a long plan: by stage, cost, what cutting loses (short plans: always)
"""

from __future__ import annotations

import argparse
from typing import Any

from pipelines import summary


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--deep", action="store_true", help="count what the card does not say")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    return summary.stats(args.path, args.deep or None)


def show(answer: dict[str, Any]) -> None:
    summary.show_stats(answer)
