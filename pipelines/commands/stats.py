"""Say what an artifact holds: records, tokens by modality and source, sizes, drops by reason, lineage.

pipelines stats PATH          PATH: a dataset, a plan, a run or an ablation
"""

from __future__ import annotations

import argparse
from typing import Any

from pipelines import summary


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    return summary.stats(args.path)


def show(answer: dict[str, Any]) -> None:
    summary.show_stats(answer)
